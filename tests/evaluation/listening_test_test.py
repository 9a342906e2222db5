import hashlib
import json

import numpy as np
import pyloudnorm
import pytest
import soundfile

from keras_audiolm.evaluation.listening_score import unseal
from keras_audiolm.evaluation.listening_test import (
    check_new_test,
    decode_clips,
    draw_stretches,
    key_path,
    make_listening_test,
    match_loudness,
    write_listening_test,
)
from keras_audiolm.generation import Tokens
from tests.tiny import SAMPLE_RATE, tiny_pipeline

NUM = 3
SHORT = {"num": NUM, "duration": 1.2, "prompt_duration": 0.41, "seed": 5}
SAMPLES = round(1.2 * SAMPLE_RATE)
PROMPT = 6400  # of 0.41 s, whole units of 40 ms


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """One voice: recordings of 0.5 s, shorter than a clip, of all levels."""
    folder = tmp_path_factory.mktemp("voice")
    rng = np.random.default_rng(0)
    for number, level in enumerate((0.003, 0.03, 0.2)):
        audio = rng.normal(0, level, SAMPLE_RATE // 2)
        soundfile.write(folder / f"{number}.wav", audio, SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def made(pipeline, recordings, tmp_path_factory):
    """Folder of a test, with its key beside it."""
    folder = tmp_path_factory.mktemp("tests") / "test"
    assert make_listening_test(pipeline, recordings, folder, **SHORT) == (
        key_path(folder)
    )
    return folder


def read_clips(folder):
    return {
        path.name: soundfile.read(path, dtype="float32")[0]
        for path in sorted((folder / "clips").iterdir())
    }


def test_the_folder_holds_as_many_real_and_continued_clips(made):
    names = [f"0{i}.wav" for i in range(1, 2 * NUM + 1)]
    assert {path.name for path in made.iterdir()} == {
        "clips",
        "index.html",
        "seal.txt",
    }
    assert {path.name for path in made.parent.iterdir()} == {
        "test",
        "test-key.json",
    }
    clips = read_clips(made)
    assert list(clips) == names
    assert {clip.shape for clip in clips.values()} == {(SAMPLES,)}
    _, real = unseal(made)
    assert list(real) == names and sum(real.values()) == NUM
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "6 clips of 1.2 seconds" in page and "with 0.41 seconds" in page
    assert json.dumps(names) in page
    assert (made / "seal.txt").read_text().strip() in page


def test_clips_are_equally_loud_and_none_clips(made):
    meter = pyloudnorm.Meter(SAMPLE_RATE)
    clips = list(read_clips(made).values())
    loudness = [meter.integrated_loudness(c.astype("float64")) for c in clips]
    assert max(loudness) - min(loudness) < 0.1
    assert max(np.abs(clip).max() for clip in clips) < 1.0


def test_files_tell_nothing(made):
    """Neither their sizes and dates nor what stands before the samples."""
    paths = list((made / "clips").iterdir())
    assert len({path.stat().st_size for path in paths}) == 1
    assert len({path.stat().st_mtime_ns for path in paths}) == 1
    header = paths[0].stat().st_size - 2 * SAMPLES
    assert len({path.read_bytes()[:header] for path in paths}) == 1


def test_real_clips_and_prompts_are_what_the_codec_makes_of_recordings(
    pipeline, recordings, monkeypatch
):
    """A codec that adds its own offset: it must be on all of each clip."""
    settings = (pipeline, recordings, NUM, 1.2, 0.41, 5, {})
    given = []
    monkeypatch.setattr(
        pipeline.codec,
        "encode",
        lambda audio, encode=pipeline.codec.encode: (
            given.append(np.array(audio)) or encode(audio)
        ),
    )
    clips = decode_clips(*settings)
    assert clips.shape == (2 * NUM, SAMPLES)
    real, prompts = given
    assert prompts.shape == (NUM, PROMPT)
    sources = [soundfile.read(p)[0] for p in sorted(recordings.iterdir())]
    for stretch in [*real, *prompts]:  # none is padded; all are recorded
        for piece in np.split(stretch[:6400], 8):
            ends = [np.abs(s[:, None] - piece[[0, -1]]).min(0) for s in sources]
            assert np.min(ends, axis=0).max() < 1e-4
    expected = pipeline.codec.decode(pipeline.codec.encode(real))
    np.testing.assert_allclose(clips[:NUM], expected, atol=1e-5)
    expected = pipeline.codec.decode(pipeline.codec.encode(prompts))
    np.testing.assert_allclose(clips[NUM:, :PROMPT], expected, atol=1e-5)
    monkeypatch.setattr(
        pipeline.codec,
        "decode",
        lambda codes, samples=None: np.full((len(codes), samples), 0.5),
    )
    assert (decode_clips(*settings) == 0.5).all()


def test_stretches_that_begin_with_silence_are_drawn_again(tmp_path):
    """Two of three seconds are silent; half a second must not be."""
    audio = np.zeros(48000)
    audio[32000:] = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "paused.wav", audio, 16000)
    found = draw_stretches(tmp_path, 16000, 2.0, 20, 8000, 0)
    assert found.shape == (20, 32000)
    assert np.abs(found[:, :8000]).max(axis=1).min() > 0.1
    assert len({row.tobytes() for row in found}) == 20
    audio[1:] = 0.0
    audio[0] = 1.0  # all that a crop can hold, and seldom at its start
    soundfile.write(tmp_path / "paused.wav", audio, 16000)
    with pytest.raises(ValueError, match="Only 0 of 200 .* 0.001 silent"):
        draw_stretches(tmp_path, 16000, 2.0, 2, 16, 0)


def test_the_same_seed_gives_the_same_test_under_another_seal(
    pipeline, recordings, made, tmp_path
):
    again, other = tmp_path / "again", tmp_path / "other"
    make_listening_test(pipeline, recordings, again, **SHORT)
    make_listening_test(pipeline, recordings, other, **{**SHORT, "seed": 6})
    first, second, third = (read_clips(f) for f in (made, again, other))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert np.abs(first[name] - third[name]).max() > 1e-3
    assert unseal(made)[1] == unseal(again)[1]
    assert unseal(made)[0] != unseal(again)[0]


def test_sampling_settings_reach_the_pipeline(
    pipeline, recordings, tmp_path, monkeypatch
):
    monkeypatch.setattr("keras_audiolm.evaluation.listening_test.BATCH", 2)
    calls = []

    def generate(prompts, **settings):
        calls.append({"prompts": len(prompts), **settings})
        made = np.pad(prompts, [(0, 0), (0, SAMPLES - PROMPT)])
        return made, Tokens(None, pipeline.codec.encode(made))

    monkeypatch.setattr(pipeline, "generate", generate)
    make_listening_test(
        pipeline, recordings, tmp_path / "test", temperature=0.5, **SHORT
    )
    assert [call["prompts"] for call in calls] == [2, 1]
    assert calls[0]["seed"] != calls[1]["seed"]
    for call in calls:
        assert call["temperature"] == 0.5
        assert call["duration"] == pytest.approx(1.2 - 0.4)


def test_order_is_drawn_unless_a_seed_is_given(
    pipeline, recordings, tmp_path, monkeypatch
):
    """Else each test of so many clips would have the same answers."""
    monkeypatch.setattr(
        "keras_audiolm.evaluation.listening_test.decode_clips",
        lambda *_: np.random.default_rng(0).normal(0, 0.1, (40, 8000)),
    )
    orders = set()
    for name in "ab":
        make_listening_test(pipeline, recordings, tmp_path / name)
        orders.add(tuple(unseal(tmp_path / name)[1].values()))
    assert len(orders) == 2


# === The key ===


def write(folder, num=2, rate=8000):
    """A test of noise; the first clips are real."""
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (2 * num, rate)).astype("float32")
    real = np.arange(2 * num) < num
    return write_listening_test(folder, clips, real, rate, 0.3, seed=0)


def test_the_seal_is_the_keys_checksum(tmp_path):
    key = write(tmp_path / "test")
    seal = hashlib.sha256(key.read_bytes()).hexdigest()
    assert (tmp_path / "test" / "seal.txt").read_text() == f"{seal}\n"
    assert unseal(tmp_path / "test") == (
        seal,
        {"01.wav": True, "02.wav": True, "03.wav": False, "04.wav": False},
    )


def test_a_changed_key_does_not_open(tmp_path):
    key = write(tmp_path / "test")
    text = key.read_text()
    key.write_text(text.replace("true", "false", 1))
    with pytest.raises(ValueError, match="test-key.json was changed"):
        unseal(tmp_path / "test")
    key.write_text(text)
    unseal(tmp_path / "test")
    key.unlink()
    with pytest.raises(ValueError, match="There is no key at .*-key.json"):
        unseal(tmp_path / "test")


def test_clips_cannot_be_exchanged(tmp_path):
    write(tmp_path / "test")
    first, last = (tmp_path / "test" / "clips" / f"0{i}.wav" for i in (1, 4))
    a, b = first.read_bytes(), last.read_bytes()
    first.write_bytes(b)
    last.write_bytes(a)
    with pytest.raises(ValueError, match="01.wav is missing or was changed"):
        unseal(tmp_path / "test")


# === Loudness ===


def test_loudness_knows_neither_level_nor_pauses():
    """A quiet clip with a pause ends as loud, where there is sound."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 80000).astype("float32")
    quiet, paused = 1e-3 * noise, noise.copy()
    paused[40000:] = 0.0
    made = match_loudness(np.stack([noise, quiet, paused]), 8000)
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)
    sound = np.sqrt(np.mean(np.square(made[:, :40000]), axis=1))
    decibels = 20 * np.log10(sound / sound[0])
    assert np.abs(decibels).max() < 0.5


def test_peaks_that_would_clip_lower_all_clips():
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.01, (2, 16000)).astype("float32")
    calm = match_loudness(clips, 16000)
    clips[1, 8000] = 1.0
    made = match_loudness(clips, 16000)
    assert np.abs(made).max() == pytest.approx(1.0, abs=1e-4)
    assert np.abs(made[0]).max() < 0.8 * np.abs(calm[0]).max()
    meter = pyloudnorm.Meter(16000)
    first, second = map(meter.integrated_loudness, made.astype("float64"))
    assert first == pytest.approx(second, abs=0.1)


def test_silent_clips_are_refused():
    clips = np.zeros((3, 16000), "float32")
    clips[1] = np.random.default_rng(0).normal(0, 0.1, 16000)
    with pytest.raises(ValueError, match="2 of 3 clips are silent"):
        match_loudness(clips, 16000)


# === Bad input ===


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num": 0}, "num=0"),
        ({"duration": 0.3}, "duration=0.3"),
        ({"duration": float("inf")}, "duration=inf"),
        ({"prompt_duration": 0.0}, "prompt_duration=0.0"),
        ({"prompt_duration": 1.2}, "prompt_duration=1.2"),
        ({"prompt_duration": 1.199}, "leaves nothing"),
    ],
)
def test_refuses_numbers_that_leave_nothing_to_hear(
    settings, message, pipeline, recordings, tmp_path
):
    with pytest.raises(ValueError, match=message):
        make_listening_test(
            pipeline, recordings, tmp_path / "test", **{**SHORT, **settings}
        )
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "old-key.json").touch()
    (tmp_path / "empty").mkdir()
    for name, taken in [("file",) * 2, ("full",) * 2, ("old", "old-key.json")]:
        with pytest.raises(ValueError, match=f"/{taken} exists"):
            check_new_test(tmp_path / name)
    assert check_new_test(tmp_path / "empty") == tmp_path / "empty"
    write(tmp_path / "empty")
    unseal(tmp_path / "empty")


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "keras_audiolm.evaluation.listening_test.render_page",
        lambda *_: 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "test")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    pipeline, recordings, tmp_path, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "pyloudnorm", None)
    with pytest.raises(ImportError, match=r"pyloudnorm.*\[evaluate\]"):
        make_listening_test(pipeline, recordings, tmp_path / "test", **SHORT)
