"""The tutorials run from beginning to end, on tiny models."""

import pathlib
import runpy

import pytest

from keras_audiolm import AudioLMPipeline, SoundStream, load_audio
from tests.tiny import tiny_pipeline

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
HEADER = (
    "Title",
    "Author",
    "Date created",
    "Last modified",
    "Description",
    "Accelerator",
)
TUTORIALS = ("continue_speech.py", "train_on_your_own_audio.py")


def run(name, monkeypatch, **settings):
    """Runs a tutorial with `settings` as its environment variables."""
    for key, value in settings.items():
        monkeypatch.setenv(f"EXAMPLE_{key.upper()}", str(value))
    return runpy.run_path(str(EXAMPLES / name))


def seconds(path):
    return len(load_audio(path, 16000)) / 16000


def test_continue_speech(tiny_preset, tmp_path, monkeypatch, capsys):
    run(
        "continue_speech.py",
        monkeypatch,
        preset=tiny_preset,
        prompt_duration=0.5,
        duration=0.4,
        out=tmp_path,
    )
    assert {path.name: seconds(path) for path in tmp_path.iterdir()} == {
        "prompt.wav": 0.5,
        "continuation-1.wav": 0.9,
        "continuation-2.wav": 0.9,
        "continuation-3.wav": 0.9,
        "bold.wav": 0.9,
        "other-voice-0.wav": 0.5,
        "other-voice-1.wav": 0.5,
        "sample.wav": 0.4,
    }
    printed = capsys.readouterr().out
    assert "Semantic tokens: (13,)" in printed
    assert "Acoustic tokens: (25, 3)" in printed


@pytest.fixture
def untrained_preset(tmp_path):
    """The sizes to train: as in `voices_small`, without discriminators."""
    pipeline = tiny_pipeline(trained=False)
    parts = {name: pipeline.part(name) for name in pipeline.part_names}
    parts["codec"] = SoundStream(
        channels=2,
        strides=(1,),
        embedding_dim=8,
        num_quantizers=3,
        codebook_size=16,
        transform="mdct",
    )
    AudioLMPipeline(parts).save_to_preset(tmp_path / "sizes")
    return tmp_path / "sizes"


@pytest.mark.large
def test_train_on_your_own_audio(untrained_preset, tmp_path, monkeypatch):
    names = run(
        "train_on_your_own_audio.py",
        monkeypatch,
        preset=untrained_preset,
        steps=1,
        batch_size=2,
        duration=0.4,
        out=tmp_path,
    )
    trained = AudioLMPipeline.from_preset(tmp_path / "preset")
    assert trained.trained_parts == trained.part_names
    assert len(names["files"]) == 5
    prompt = len(names["prompt"]) / 16000
    made = seconds(tmp_path / "continuation.wav")
    assert made == pytest.approx(prompt + 0.4)
    decoded = seconds(tmp_path / "codec.wav")
    assert decoded == len(names["recording"]) / 16000


@pytest.mark.parametrize("name", TUTORIALS)
def test_header_is_what_keras_io_wants(name):
    header = (EXAMPLES / name).read_text().split('"""')[1]
    lines = dict(line.split(": ", 1) for line in header.strip().splitlines())
    assert tuple(lines) == HEADER
