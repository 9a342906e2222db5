import importlib.util
import pathlib

import numpy as np
import parselmouth
import pytest
import soundfile

from keras_audiolm import load_audio

SCRIPT = (
    pathlib.Path(__file__).parents[2]
    / "examples"
    / "corpora"
    / "perturb_voices.py"
)
RATE = 16000
RECORDING = SCRIPT.parents[1] / "recordings" / "fr.flac"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("perturb_voices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recordings(tmp_path):
    time = np.arange(RATE) / RATE
    for path in ("fr/a.wav", "b.flac"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        tone = 0.5 * np.sin(2 * np.pi * 400 * time)
        soundfile.write(tmp_path / "in" / path, tone, RATE)
    return tmp_path / "in"


def loudest_frequency(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.fft.rfftfreq(len(samples), 1 / RATE)[spectrum.argmax()]


@pytest.fixture
def played(script, recordings, tmp_path):
    """A function that makes copies at speeds."""

    def perturb(*speeds, **kwargs):
        out = tmp_path / "out"
        return script.perturb(recordings, out, speeds, (1.0,), (1.0,), **kwargs)

    return perturb


def test_each_speed_is_a_voice_of_its_own(played, tmp_path):
    assert not played(0.8, 1.0, 1.25)
    made = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*.flac*")
    }
    assert made == {
        "fr/a.flac",
        "fr@s0.8/a.flac",
        "fr@s1.25/a.flac",
        "b.flac",
        "@s0.8/b.flac",
        "@s1.25/b.flac",
    }
    for folder, speed in (("fr", 1.0), ("fr@s0.8", 0.8), ("fr@s1.25", 1.25)):
        samples, rate = soundfile.read(tmp_path / "out" / folder / "a.flac")
        assert rate == RATE
        assert len(samples) == pytest.approx(RATE / speed, abs=2)
        assert loudest_frequency(samples) == pytest.approx(400 * speed, abs=2)


def test_fewer_copies_are_of_each_voice_in_turn(played, tmp_path):
    out = tmp_path / "out"
    played(0.8, 1.0, 1.25, copies=2)
    made = {str(p.relative_to(out)) for p in out.rglob("*.flac")}
    assert made == {
        "@s0.8/b.flac",
        "b.flac",
        "fr@s1.25/a.flac",
        "fr@s0.8/a.flac",
    }


def test_goes_on_where_it_was_stopped(played, tmp_path):
    played(0.8)
    kept = tmp_path / "out" / "fr@s0.8" / "a.flac"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out" / "@s0.8" / "b.flac").unlink()
    played(0.8)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "@s0.8" / "b.flac").is_file()


def test_a_bad_file_is_named_and_the_others_made(played, recordings, tmp_path):
    (recordings / "fr" / "bad.wav").write_bytes(b"no audio")
    skipped = played(0.8)
    assert [path.name for path in skipped] == ["bad.wav"]
    assert (tmp_path / "out" / "fr@s0.8" / "a.flac").is_file()


def test_another_speaker_says_it_at_the_same_moments(script):
    audio = load_audio(RECORDING, RATE)[:, None]
    smaller = script.Change(formants=1.17, pitch=1.25)
    changed = script.apply(smaller, audio, RATE)
    assert changed.shape == audio.shape
    assert pitch(changed) == pytest.approx(1.25 * pitch(audio), rel=0.05)
    # Loud where it was loud.
    loudness = [
        np.sqrt(np.mean(x[: len(x) // 800 * 800].reshape(-1, 800) ** 2, axis=1))
        for x in (audio, changed)
    ]
    assert np.corrcoef(*loudness)[0, 1] > 0.9


def test_silence_stays_silent(script):
    silence = np.zeros((RATE, 2), "float32")
    changed = script.apply(script.Change(formants=0.8), silence, RATE)
    assert changed.shape == silence.shape
    assert not changed.any()


def pitch(samples):
    sound = parselmouth.Sound(samples[:, 0].astype("float64"), RATE)
    frequency = sound.to_pitch().selected_array["frequency"]
    return np.median(frequency[frequency > 0])


def test_an_original_is_found_by_its_copy(script, recordings, tmp_path):
    for path in ("fr/a.wav", "b.flac"):
        copy = script.copy_path(
            recordings / path,
            recordings,
            tmp_path / "out",
            script.Change(formants=0.9, pitch=1.2),
        )
        found = script.original_path(copy, recordings, tmp_path / "out")
        assert found == recordings / path


@pytest.mark.parametrize(
    ("out", "speeds", "message"),
    [
        ("in/more", ("0.8",), "inside"),
        ("out", ("0",), "Speeds"),
        ("out", ("0.8", "--copies", "16"), "Of 15 voices.* 16 copies"),
    ],
)
def test_refuses(script, recordings, tmp_path, out, speeds, message):
    with pytest.raises(SystemExit, match=message):
        script.main([str(recordings), str(tmp_path / out), "--speeds", *speeds])
