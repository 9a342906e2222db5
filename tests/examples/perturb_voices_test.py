import importlib.util
import pathlib

import numpy as np
import pytest
import soundfile

SCRIPT = (
    pathlib.Path(__file__).parents[2]
    / "examples"
    / "corpora"
    / "perturb_voices.py"
)
RATE = 16000


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


def test_each_speed_is_a_voice_of_its_own(script, recordings, tmp_path):
    assert not script.perturb(recordings, tmp_path / "out", (0.8, 1.0, 1.25))
    made = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*.flac*")
    }
    assert made == {
        "fr/a.flac",
        "fr@0.8/a.flac",
        "fr@1.25/a.flac",
        "b.flac",
        "@0.8/b.flac",
        "@1.25/b.flac",
    }
    for folder, speed in (("fr", 1.0), ("fr@0.8", 0.8), ("fr@1.25", 1.25)):
        samples, rate = soundfile.read(tmp_path / "out" / folder / "a.flac")
        assert rate == RATE
        assert len(samples) == pytest.approx(RATE / speed, abs=2)
        assert loudest_frequency(samples) == pytest.approx(400 * speed, abs=2)


def test_fewer_copies_are_of_each_speed_in_turn(script, recordings, tmp_path):
    out = tmp_path / "out"
    script.perturb(recordings, out, (0.8, 1.0, 1.25), copies=2)
    made = {str(p.relative_to(out)) for p in out.rglob("*.flac")}
    assert made == {"@0.8/b.flac", "b.flac", "fr@1.25/a.flac", "fr@0.8/a.flac"}


def test_goes_on_where_it_was_stopped(script, recordings, tmp_path):
    script.perturb(recordings, tmp_path / "out", (0.8,))
    kept = tmp_path / "out" / "fr@0.8" / "a.flac"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out" / "@0.8" / "b.flac").unlink()
    script.perturb(recordings, tmp_path / "out", (0.8,))
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "@0.8" / "b.flac").is_file()


def test_a_bad_file_is_named_and_the_others_made(script, recordings, tmp_path):
    (recordings / "fr" / "bad.wav").write_bytes(b"no audio")
    skipped = script.perturb(recordings, tmp_path / "out", (0.8,))
    assert [path.name for path in skipped] == ["bad.wav"]
    assert (tmp_path / "out" / "fr@0.8" / "a.flac").is_file()


@pytest.mark.parametrize(
    ("out", "speeds", "message"),
    [
        ("in/more", ("0.8",), "inside"),
        ("out", ("0",), "Speeds"),
        ("out", ("0.8", "--copies", "2"), "Of 1 speeds.* 2 copies"),
    ],
)
def test_refuses(script, recordings, tmp_path, out, speeds, message):
    with pytest.raises(SystemExit, match=message):
        script.main([str(recordings), str(tmp_path / out), "--speeds", *speeds])
