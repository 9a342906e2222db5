"""The command line, with a pipeline that records what it is asked for."""

import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import pytest

from keras_audiolm import _bundled, cli, generation
from keras_audiolm.commands import options
from keras_audiolm.data.audio import load_audio, save_audio

SAMPLE_RATE = 8000


class FakePipeline:
    """Notes each call; its "new sound" is a constant that tells the row."""

    calls = []
    sample_rate = SAMPLE_RATE
    error = None

    @classmethod
    def from_preset(cls, preset, load_weights=True):
        cls.calls.append(("from_preset", preset, load_weights))
        return cls()

    def _note(self, name, kwargs):
        self.calls.append((name, kwargs))
        if self.error is not None:
            raise self.error

    def generate(self, prompt=None, **kwargs):
        print("Sampling ...")
        self._note("generate", {"prompt": prompt, **kwargs})
        new = round(kwargs["duration"] * SAMPLE_RATE)
        start = np.zeros(0) if prompt is None else prompt
        rows = [
            np.concatenate([start, np.full(new, 0.1 * (i + 1))])
            for i in range(kwargs["batch_size"])
        ]
        return np.stack(rows).astype("float32")

    def resynthesize(self, audio, **kwargs):
        self._note("resynthesize", {"audio": audio, **kwargs})
        return -audio

    def tokenize(self, audio):
        self._note("tokenize", {"audio": audio})
        return np.arange(25), np.arange(100).reshape(50, 2)

    def fit(self, data, **kwargs):
        self._note("fit", {"data": data, **kwargs})

    def save_to_preset(self, folder):
        self._note("save_to_preset", {"folder": folder})


@pytest.fixture
def pipeline(monkeypatch, tmp_path_factory):
    """The pipeline's class, in a package that bundles two presets."""
    tmp_path = tmp_path_factory.mktemp("checkout")
    module = types.ModuleType("keras_audiolm.pipeline")
    module.AudioLMPipeline = FakePipeline
    monkeypatch.setitem(sys.modules, "keras_audiolm.pipeline", module)
    for name in ("librilight", "voices_small"):
        (tmp_path / "presets" / name).mkdir(parents=True)
        (tmp_path / "presets" / name / "metadata.json").write_text("{}")
    package = tmp_path / "keras_audiolm"
    monkeypatch.setattr(_bundled, "__file__", str(package / "_bundled.py"))
    monkeypatch.setattr(FakePipeline, "calls", [])
    monkeypatch.setattr(FakePipeline, "error", None)
    monkeypatch.delenv("KERAS_AUDIOLM_DEBUG", raising=False)
    return FakePipeline


@pytest.fixture
def prompt(tmp_path):
    """Path of one second of a tone, at another rate than the pipeline's."""
    path = tmp_path / "prompt.wav"
    time = np.arange(16000) / 16000
    save_audio(path, 0.5 * np.sin(2 * np.pi * 440 * time), 16000)
    return path


def run(*argv):
    return cli.main([str(word) for word in argv])


def error_line(capsys):
    """The error, which must be the last line and the only one of its kind."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].startswith("keras-audiolm: error: ")
    return lines[-1]


# === What it does ===


def test_continue(pipeline, prompt, tmp_path, capsys):
    out = tmp_path / "new folder" / "out.wav"
    code = run("continue", prompt, "-o", out, "--duration", 0.5, "--seed", 3)
    assert code == 0
    loaded, (name, given) = pipeline.calls
    assert loaded == ("from_preset", "voices_small", True)
    assert name == "generate"
    assert given["prompt"].shape == (SAMPLE_RATE,)
    assert (given["duration"], given["seed"]) == (0.5, 3)
    assert load_audio(out, SAMPLE_RATE).shape == (SAMPLE_RATE * 3 // 2,)
    printed = capsys.readouterr()
    assert "Sampling" in printed.err
    (report,) = printed.out.splitlines()
    assert report.startswith(str(out))
    assert "0.5 s of new sound after a 1.0 s prompt" in report
    assert "real-time factor" in report


def test_continue_uses_the_start_of_the_prompt(pipeline, prompt, tmp_path):
    args = ("continue", prompt, "-o", tmp_path / "out.flac")
    assert run(*args, "--prompt-duration", 0.25) == 0
    given = pipeline.calls[-1][1]["prompt"]
    np.testing.assert_array_equal(
        given, load_audio(prompt, SAMPLE_RATE)[: SAMPLE_RATE // 4]
    )


def test_sampling_options_reach_the_pipeline(pipeline, tmp_path):
    options = ("--temperature", "0.7", "--top-k", "semantic=5, fine=9")
    more = ("--top-p", "coarse=0.9", "--preset", "librilight")
    more += ("--overlap", "fine=0.5", "--stop", "eos")
    out = tmp_path / "out.wav"
    assert run("sample", "-o", out, *options, *more) == 0
    loaded, (_, given) = pipeline.calls
    assert loaded[1] == "librilight"
    assert given["prompt"] is None
    assert given["temperature"] == 0.7
    assert given["top_k"] == {"semantic": 5, "fine": 9}
    assert given["top_p"] == {"coarse": 0.9}
    assert given["overlap"] == {"fine": 0.5}
    assert given["stop"] == "eos"
    assert given["seed"] is None


def test_nothing_is_written_where_all_is_over_at_once(
    pipeline, prompt, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        pipeline, "generate", lambda self, prompt, **_: [prompt, prompt]
    )
    out = tmp_path / "out.wav"
    assert run("continue", prompt, "-o", out, "--stop", "eos", "--num", 2) == 1
    assert "no new sound" in error_line(capsys)
    assert list(tmp_path.iterdir()) == [prompt]


def test_num_writes_numbered_files(pipeline, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert run("sample", "-o", out, "--num", 3, "--duration", 0.1) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out-1.wav",
        "out-2.wav",
        "out-3.wav",
    ]
    third = load_audio(tmp_path / "out-3.wav", SAMPLE_RATE)
    np.testing.assert_allclose(third, 0.3, atol=1e-3)
    assert "out-1.wav ... out-3.wav" in capsys.readouterr().out


def test_resynthesize(pipeline, prompt, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert run("resynthesize", prompt, "-o", out, "--seed", 1) == 0
    assert pipeline.calls[-1][1]["seed"] == 1
    expected = -load_audio(prompt, SAMPLE_RATE)
    made = load_audio(out, SAMPLE_RATE)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert "1.0 s of sound" in capsys.readouterr().out


def test_tokenize(pipeline, prompt, tmp_path):
    out = tmp_path / "tokens.npz"
    assert run("tokenize", prompt, "-o", out) == 0
    with np.load(out) as tokens:
        assert sorted(tokens) == ["acoustic", "semantic"]
        np.testing.assert_array_equal(tokens["semantic"], np.arange(25))
        assert tokens["acoustic"].shape == (50, 2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"prompt.wav", "tokens.npz"}


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None,
    reason="Apache Beam is there",
)
def test_workers_need_apache_beam(pipeline, prompt, tmp_path, capsys):
    store = tmp_path / "store"
    argv = ("tokenize", prompt.parent, "-o", store, "--workers", 2)
    assert run(*argv) == 1
    assert "keras-audiolm[jax,scale]" in error_line(capsys)
    assert not store.exists()


def test_train(pipeline, prompt, tmp_path, capsys):
    out = tmp_path / "mine"
    numbers = ("--epochs", "codec=3,coarse_lm=2", "--batch-size", 4)
    parts = ("--parts", "codec,coarse_lm", "--steps-per-epoch", 7)
    where = ("--out", out, "--validation", prompt.parent)
    how = ("--from-scratch", "--speed-range", 0.8, 1.25)
    argv = (prompt.parent, *where, *numbers, *parts, *how)
    assert run("train", *argv) == 0
    loaded, (_, fitted), (_, saved) = pipeline.calls
    assert loaded == ("from_preset", "voices_small", False)
    assert fitted == {
        "data": str(prompt.parent),
        "parts": ["codec", "coarse_lm"],
        "epochs": {"codec": 3, "coarse_lm": 2},
        "steps_per_epoch": 7,
        "batch_size": 4,
        "validation_data": str(prompt.parent),
        "token_dir": f"{out}-tokens",
        "checkpoint_dir": f"{out}-checkpoints",
        "speed_range": [0.8, 1.25],
        "seed": 0,
    }
    assert saved == {"folder": out}
    assert str(out) in capsys.readouterr().out


def test_backend_is_chosen_before_keras_is_imported(
    pipeline, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    out = tmp_path / "out.wav"
    assert run("sample", "-o", out, "--backend", "torch") == 0
    assert cli.os.environ["KERAS_BACKEND"] == "torch"


# === What goes wrong ===


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["contineu"], "'contineu'"),
        ([], "COMMAND"),
        (["sample"], "-o"),
        (["sample", "-o", "x.mp3"], ".wav or .flac. Received: x.mp3"),
        (["sample", "-o", "x.wav", "--duration", "0"], "above 0"),
        (["sample", "-o", "x.wav", "--duration", "nan"], "above 0"),
        (["sample", "-o", "x.wav", "--duration", "long"], "'long'"),
        (["sample", "-o", "x.wav", "--num", "0"], "1 or more"),
        (
            ["sample", "-o", "x.wav", "--temperature", "smantic=1"],
            "Did you mean 'semantic'?",
        ),
        (["sample", "-o", "x.wav", "--top-k", "fine=1,2"], "stage=number"),
        (["train", "x", "--out", "y", "--parts", "codecs"], "'codec'"),
        (["tokenize", "x.wav", "-o", "x.npy"], ".npz"),
        (
            ["tokenize", "x", "-o", "y", "--workers=2", "--runner=R"],
            "not allowed with argument --workers",
        ),
        (["sample", "-o", "x.wav", "--sed", "1"], "--sed"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(argv, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    line = error_line(capsys)
    assert expected in line
    assert "--help" in line


def test_misspelt_preset_is_suggested(pipeline, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert run("sample", "-o", out, "--preset", "voice_small") == 1
    line = error_line(capsys)
    assert "'voice_small'" in line and "'voices_small'" in line
    assert pipeline.calls == []


@pytest.mark.parametrize("preset", ["kaggle://a/b/keras/c", "hf://a/b", "mine"])
def test_addresses_and_folders_are_left_to_the_pipeline(
    preset, pipeline, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metadata.json").write_text("{}")
    out = tmp_path / "out.wav"
    assert run("sample", "-o", out, "--preset", preset) == 0
    assert pipeline.calls[0] == ("from_preset", preset, True)


@pytest.mark.parametrize(
    "out, options, expected",
    [
        ("gs://bucket/store", (), "is an address"),
        ("store", ("--beam-options=--a=b",), "--workers or --runner"),
    ],
)
def test_a_store_that_cannot_be_made_costs_no_loading(
    out, options, expected, pipeline, prompt, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run("tokenize", prompt.parent, "-o", out, *options) == 1
    assert expected in error_line(capsys)
    assert pipeline.calls == [] and [*tmp_path.iterdir()] == [prompt]


@pytest.mark.parametrize("command", ["continue", "resynthesize", "tokenize"])
def test_missing_recording_costs_no_loading(
    command, pipeline, tmp_path, capsys
):
    out = tmp_path / ("out.npz" if command == "tokenize" else "out.wav")
    assert run(command, tmp_path / "none.wav", "-o", out) == 1
    assert "none.wav does not exist" in error_line(capsys)
    assert pipeline.calls == []


def test_train_refuses_folders_it_cannot_use(
    pipeline, prompt, tmp_path, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("train", empty, "--out", tmp_path / "new") == 1
    assert "No audio files" in error_line(capsys)
    assert run("train", prompt.parent, "--out", prompt.parent) == 1
    assert "not a preset" in error_line(capsys)
    assert run("train", prompt.parent, "--out", prompt) == 1
    assert "not a preset" in error_line(capsys)
    assert pipeline.calls == []


@pytest.mark.parametrize("place", ["folder.wav", "file/o.wav"])
def test_output_that_cannot_be_written_costs_no_loading(
    place, pipeline, tmp_path, capsys
):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    assert run("sample", "-o", tmp_path / place) == 1
    assert str(tmp_path / place) in error_line(capsys)
    assert pipeline.calls == []


def test_errors_take_one_line(pipeline, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.wav"
    monkeypatch.setattr(pipeline, "error", ValueError("too\n  short"))
    assert run("sample", "-o", out) == 1
    assert error_line(capsys) == "keras-audiolm: error: too short"
    monkeypatch.setattr(pipeline, "error", RuntimeError("no memory"))
    assert run("sample", "-o", out) == 1
    assert "unexpected RuntimeError: no memory" in error_line(capsys)
    missing = ModuleNotFoundError("No module named 'jax'", name="jax")
    monkeypatch.setattr(pipeline, "error", missing)
    assert run("sample", "-o", out) == 1
    assert "keras-audiolm[jax]" in error_line(capsys)
    assert not out.exists()


def test_debug_shows_the_traceback(pipeline, tmp_path, monkeypatch):
    out = tmp_path / "out.wav"
    monkeypatch.setattr(pipeline, "error", ValueError("too short"))
    with pytest.raises(ValueError, match="too short"):
        run("sample", "-o", out, "--debug")
    monkeypatch.setenv("KERAS_AUDIOLM_DEBUG", "1")
    with pytest.raises(ValueError, match="too short"):
        run("sample", "-o", out)


def test_ctrl_c_says_how_to_go_on(
    pipeline, prompt, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pipeline, "error", KeyboardInterrupt())
    out = tmp_path / "mine"
    assert run("train", prompt.parent, "--out", out) == 130
    assert f"goes on from {out}-checkpoints" in capsys.readouterr().err
    assert run("sample", "-o", pathlib.Path("out.wav")) == 130
    assert capsys.readouterr().err.endswith("keras-audiolm: stopped\n")


def test_ctrl_c_while_writing_leaves_no_file(
    pipeline, tmp_path, capsys, monkeypatch
):
    def write(file, *args, **kwargs):
        file.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr("soundfile.write", write)
    assert run("sample", "-o", tmp_path / "out.wav", "--num", 2) == 130
    assert capsys.readouterr().err.endswith("keras-audiolm: stopped\n")
    assert not list(tmp_path.iterdir())


def test_options_name_what_generation_has():
    assert options.STAGES == tuple(generation.TEMPERATURES)
    assert options.STAGES == tuple(generation.OVERLAPS)
    assert options.ACOUSTIC_DECODERS == tuple(generation.ACOUSTIC_DECODERS)


# === Listening tests ===


@pytest.fixture
def listening_tests(monkeypatch):
    """What `make_listening_test` is called with."""
    calls = []

    def make(*args, **kwargs):
        calls.append((args, kwargs))
        return pathlib.Path("the key")

    name = "keras_audiolm.evaluation.listening_test.make_listening_test"
    monkeypatch.setattr(name, make)
    return calls


def test_listening_test(pipeline, prompt, tmp_path, capsys, listening_tests):
    out = tmp_path / "new"
    options = ("--num", 3, "--seed", 5, "--temperature", "coarse=0.7")
    argv = ("librilight", tmp_path, "--out", out, *options)
    assert run("listening-test", *argv) == 0
    assert pipeline.calls == [("from_preset", "librilight", True)]
    ((given, settings),) = listening_tests
    assert isinstance(given[0], pipeline) and given[1:] == ([prompt], out)
    assert (
        settings.items()
        >= {
            "num": 3,
            "seed": 5,
            "duration": 10.0,
            "prompt_duration": 3.0,
            "temperature": {"coarse": 0.7},
        }.items()
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{out}: 3 real and 3 continued clips of 10 s")
    assert "the key" in line and f"listening-score {out}" in line


def test_listening_test_costs_no_loading_where_it_cannot_be_made(
    pipeline, prompt, tmp_path, capsys
):
    argv = ("listening-test", "librilight", tmp_path)
    assert run(*argv, "--out", tmp_path) == 1
    assert f"{tmp_path} exists" in error_line(capsys)
    assert run(*argv[:2], tmp_path / "none", "--out", tmp_path / "new") == 1
    assert "none does not exist" in error_line(capsys)
    assert pipeline.calls == []


def test_listening_score(tmp_path, capsys):
    from keras_audiolm.evaluation.listening_test import write_listening_test

    folder = tmp_path / "test"
    clips = np.random.default_rng(0).normal(0, 0.1, (4, 8000))
    real = np.array([True, False, False, True])
    write_listening_test(folder, clips, real, 8000, 0.3, seed=0)
    seal = (folder / "seal.txt").read_text().strip()
    files = []
    for rater, count in (("Ada", 4), ("", 2)):  # both always say "real"
        answers = {f"0{i}.wav": {"real": True} for i in range(1, count + 1)}
        files.append(tmp_path / f"{count}.json")
        files[-1].write_text(
            json.dumps({"seal": seal, "rater": rater, "answers": answers})
        )
    assert run("listening-score", folder, *files) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Ada ({files[0]}): 2 of 4 right, 50.0 % (95 % interval 6.8 to "
        "93.2 %), p = 1 against guessing",
        f"no name ({files[1]}): 1 of 2 right, 50.0 % (95 % interval 1.3 to "
        "98.7 %), p = 1 against guessing; 2 not rated",
        "all together: 3 of 6 right, 50.0 % (95 % interval 11.8 to 88.2 %), "
        "p = 1 against guessing; 2 not rated",
        "real: 01.wav, 04.wav",
    ]
    assert run("listening-score", tmp_path / "none", *files) == 1
    assert "no test at" in error_line(capsys)


# === The real pipeline ===


@pytest.mark.large
def test_trains_and_uses_what_it_trained(
    tiny_preset, prompt, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    voices, mine = tmp_path / "voices", tmp_path / "mine"
    voices.mkdir()
    prompt.rename(voices / "0.wav")
    few = ("--steps-per-epoch", 1, "--batch-size", 2, "--parts", "coarse_lm")
    where = ("--preset", tiny_preset, "--out", mine)
    assert run("train", voices, *where, *few) == 0
    assert (mine / "metadata.json").is_file()
    # The same again: what is done is not done again.
    assert run("train", voices, *where, *few) == 0

    prompt = voices / "0.wav"
    common = ("--preset", mine, "--seed", 0, "--temperature", "fine=0.5")
    short = ("--duration", 0.2, "--num", 2, "--top-k", 3)
    out = tmp_path / "out.wav"
    assert run("continue", prompt, "-o", out, *short, *common) == 0
    for name in ("out-1.wav", "out-2.wav"):
        made = load_audio(tmp_path / name, 16000)
        assert made.shape == (16000 + 3200,)
    assert run("resynthesize", prompt, "-o", out, *common) == 0
    assert load_audio(out, 16000).shape == (16000,)
    tokens = tmp_path / "tokens.npz"
    assert run("tokenize", prompt, "-o", tokens, "--preset", mine) == 0
    with np.load(tokens) as file:
        assert file["semantic"].shape == (25,)
        assert file["acoustic"].shape == (50, 3)
    store = tmp_path / "store"
    command = ("tokenize", f"{voices}/*", "--out", store, "--preset", mine)
    assert run(*command, "--licence", "CC0-1.0") == 0
    assert "1 recordings, 0.00 h, and 0 skipped" in capsys.readouterr().out
    metadata = json.loads((store / "metadata.json").read_text())
    assert metadata["licence"] == "CC0-1.0"
    assert metadata["codec"]["preset"] == str(mine)
    assert metadata["counts"]["semantic_tokens"] == 25
    again = ("--preset", mine, "--out", tmp_path / "again")
    assert run("train", store, *again, *few) == 0
    assert (tmp_path / "again" / "metadata.json").is_file()
    assert run("train", store, *again, *few[:4], "--parts", "codec") == 1
    assert "'codec' is trained on audio" in error_line(capsys)
    assert run("sample", "-o", out, "--temperature", -1, *common[:2]) == 1
    assert "temperature" in error_line(capsys)


def test_compresses_and_brings_back(tiny_preset, tmp_path, capsys):
    """With the tiny preset's own codec, at half and at all of its levels."""
    from keras_audiolm import SoundStream

    codec = SoundStream.from_preset(tiny_preset)
    rate = codec.sample_rate
    audio = 0.3 * np.sin(np.arange(rate // 2 + 7)).astype("float32")
    prompt, small = tmp_path / "in.wav", tmp_path / "small.ska"
    save_audio(prompt, audio, rate)
    levels = codec.num_quantizers
    per_level = rate / codec.hop_length * np.log2(codec.codebook_size)
    assert run("encode", prompt, "-o", small, "--preset", tiny_preset) == 0
    assert f"{per_level * levels / 1000:g} kbps" in capsys.readouterr().out
    tiny = tmp_path / "tiny.ska"
    limit = ("--bandwidth", per_level * 1.5)
    command = ("encode", prompt, "-o", tiny, "--preset", tiny_preset)
    assert run(*command, *limit) == 0
    assert tiny.stat().st_size < small.stat().st_size

    # The file's own word for where its codec is must not be enough.
    back = tmp_path / "back.wav"
    assert run("decode", small, "-o", back) == 1
    assert "not bundled" in error_line(capsys)
    assert run("decode", small, "-o", back, "--preset", tiny_preset) == 0
    expected = codec.decode(codec.encode(load_audio(prompt, rate)[None]))
    found = load_audio(back, rate)
    assert found.shape == audio.shape
    np.testing.assert_allclose(
        found, expected[0, : len(audio)].clip(-1, 1), atol=1e-3
    )

    small.write_bytes(small.read_bytes()[:-9])
    assert run("decode", small, "-o", back, "--preset", tiny_preset) == 1
    assert "cut short" in error_line(capsys)
