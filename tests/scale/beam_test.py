"""Distributed tokenization, with workers that are processes.

Apache Beam has an environment of its own: `make test-scale`.
"""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

pytest.importorskip("apache_beam", reason="make test-scale")

from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from keras_audiolm.data import beam, store
from keras_audiolm.data.tokens import TokenCorpus, tokenize_corpus
from tests.data.tokens_test import HOP, LEVELS, RATE, codes_of, metadata_of

NUM_FILES = 9


class Load:
    """Tells constant files apart, and notes in a file who does what."""

    def __init__(self, log, deadly=None, identity="one"):
        self.log, self.deadly, self.identity = log, deadly, identity

    def __call__(self):
        self.note("load")
        return self.tokenize, metadata_of(self.identity)

    def note(self, *what):
        with open(self.log, "a") as log:
            print(os.getpid(), *what, file=log)

    def tokenize(self, clips):
        numbers = [round(64 * float(clip[0])) - 1 for clip in clips]
        self.note(*numbers)
        time.sleep(0.2)  # so that the other worker gets something
        if self.deadly in numbers:
            time.sleep(2)  # in which the other worker finishes its shards
            os.kill(os.getpid(), 9)
        return [
            (
                codes_of(k, len(clip) // HOP),
                codes_of(k, 2 * len(clip) // HOP, LEVELS),
            )
            for k, clip in zip(numbers, clips, strict=True)
        ]


@pytest.fixture
def folder(tmp_path):
    """Constant files, of which the third is empty and the last is text."""
    for k in range(NUM_FILES):
        path = tmp_path / "audio" / "ab"[k % 2] / f"{k}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full((k + 1) * HOP, (k + 1) / 64), RATE)
        if k in (2, NUM_FILES - 1):
            path.write_bytes(b"no audio" * k)
    return tmp_path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "FILES_PER_SHARD", 2)


def tokenize(folder, **kwargs):
    """Runs in this process, as in the one that `tokenize_elsewhere` starts."""
    store.FILES_PER_SHARD = 2
    files = sorted((folder / "audio").rglob("*.wav"))
    load = Load(folder / "log", **kwargs)
    options = beam.direct_options(num_workers=2)
    return beam.tokenize_files(files, folder / "tokens", load, options)


def tokenize_elsewhere(folder, deadly=None):
    code = (
        "import pathlib, sys; from tests.scale.beam_test import tokenize; "
        f"tokenize(pathlib.Path(sys.argv[1]), deadly={deadly})"
    )
    top = pathlib.Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, folder],
        cwd=top,
        env={**os.environ, "PYTHONPATH": str(top)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def noted(folder):
    """Lists of words: the loads, and the others, of each process."""
    rows = [line.split() for line in (folder / "log").read_text().splitlines()]
    loads = [row[0] for row in rows if row[1] == "load"]
    return loads, [row for row in rows if row[1] != "load"]


def test_workers_make_what_one_process_makes(folder):
    with pytest.warns(UserWarning, match=r"2 file\(s\) gave no tokens"):
        found = tokenize(folder)
    loads, calls = noted(folder)
    # This process, and each worker once; both workers had something to do.
    assert len(loads) == len(set(loads)) == 3
    assert len({pid for pid, *_ in calls}) == 2
    files = sorted((folder / "audio").rglob("*.wav"))
    with pytest.warns(UserWarning, match=r"2 file\(s\) gave no tokens"):
        expected = tokenize_corpus(
            files, folder / "alone", *Load(folder / "log")()
        )
    assert found.metadata == expected.metadata
    assert found.skipped == expected.skipped
    assert {path.name for path in found.skipped} == {"2.wav", "8.wav"}
    for kind in ("semantic", "acoustic"):
        pairs = zip(getattr(found, kind), getattr(expected, kind), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_a_second_run_has_nothing_to_do(folder):
    with pytest.warns(UserWarning, match="gave no tokens"):
        tokenize(folder)
    before = noted(folder)[1]
    with pytest.warns(UserWarning, match="gave no tokens"):
        tokenize(folder)
    assert noted(folder)[1] == before
    with pytest.raises(ValueError, match="codec: found one.*expected two"):
        tokenize(folder, identity="two")


def test_a_killed_worker_loses_its_shard_alone(folder):
    stopped = tokenize_elsewhere(folder, deadly=4)
    assert stopped.returncode == 1
    assert "exited with return code" in stopped.stderr.splitlines()[-1]
    assert "run the same command again" in stopped.stderr.splitlines()[-1]
    with pytest.raises(ValueError, match="is not finished"):
        TokenCorpus(folder / "tokens")
    there = list((folder / "tokens").glob("shard-*"))
    calls = len(noted(folder)[1])
    assert 1 <= len(there) <= 4
    again = tokenize_elsewhere(folder)
    assert again.returncode == 0, again.stderr
    # The shards that were not there, and no other.
    assert len(noted(folder)[1]) - calls <= 5 - len(there)
    with pytest.warns(UserWarning, match="gave no tokens"):
        assert len(TokenCorpus(folder / "tokens")) == NUM_FILES - 2
    left = [p.name for p in (folder / "tokens").iterdir()]
    assert not any(name.startswith(".") for name in left)


def test_the_portable_api_of_other_runners_makes_the_same(folder):
    """What Flink and Spark are spoken to by, with Beam's own job service."""
    files = sorted((folder / "audio").rglob("*.wav"))
    load = Load(folder / "log")
    options = [
        "--runner=PortableRunner",
        "--job_endpoint=embed",
        "--environment_type=LOOPBACK",
    ]
    with pytest.warns(UserWarning, match="gave no tokens"):
        found = beam.tokenize_files(files, folder / "tokens", load, options)
    assert len(found) == NUM_FILES - 2
    np.testing.assert_array_equal(found.semantic[0], codes_of(0, 1))


def test_an_unknown_runner_costs_no_loading(folder):
    files = sorted((folder / "audio").rglob("*.wav"))
    load = Load(folder / "log")
    with pytest.raises(ValueError, match="FlunkRunner"):
        beam.tokenize_files(
            files, folder / "tokens", load, ["--runner=FlunkRunner"]
        )
    assert not (folder / "tokens").exists() and not load.log.exists()


def test_bad_files_are_a_side_output(folder):
    files = sorted((folder / "audio").rglob("*.wav"))
    load = Load(folder / "log")
    plan = store.StorePlan(files, folder / "tokens", load()[1])
    with TestPipeline() as pipeline:
        done = (
            pipeline
            | beam.beam.Create(beam.write_lists(plan))
            | beam.TokenizeShards(load, str(plan.folder), plan.metadata)
        )
        assert_that(done.shards, equal_to(range(5)), label="shards")
        names = done.skipped | beam.beam.MapTuple(
            lambda path, reason: path.rsplit("/")[-1]
        )
        assert_that(names, equal_to(["2.wav", "8.wav"]), label="skipped")


def test_a_worker_with_other_weights_stops(folder):
    files = sorted((folder / "audio").rglob("*.wav"))
    plan = store.StorePlan(files, folder / "tokens", metadata_of("one"))
    stage = beam.TokenizeShard(
        Load(folder / "log", identity="two"), plan.folder, plan.metadata
    )
    with pytest.raises(ValueError, match="codec: found one.*expected two"):
        stage.setup()


@pytest.mark.large
def test_the_command_with_workers_equals_the_command_alone(
    tmp_path, tiny_preset
):
    rng = np.random.default_rng(0)
    for k in range(3):
        path = tmp_path / "audio" / "voice" / f"{k}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 8000 + 4000 * k), 16000)
    command = [sys.executable, "-m", "keras_audiolm.cli", "tokenize"]
    command += [tmp_path / "audio", "--preset", tiny_preset, "--out"]
    for out, more in (("alone", []), ("beam", ["--workers", "2"])):
        subprocess.run([*command, tmp_path / out, *more], check=True)
    alone, both = (TokenCorpus(tmp_path / name) for name in ("alone", "beam"))
    assert alone.metadata == both.metadata
    assert alone.metadata["codec"]["preset"] == str(tiny_preset)
    for one, other in zip(alone.acoustic, both.acoustic, strict=True):
        np.testing.assert_array_equal(one, other)
