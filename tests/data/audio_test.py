import os

import keras
import numpy as np
import pytest
import soundfile

from keras_audiolm.data import audio as audio_lib
from keras_audiolm.data.audio import (
    AudioFileError,
    check_audio,
    find_audio_files,
    load_audible,
    load_audio,
    save_audio,
    trim_silence,
)
from keras_audiolm.data.spooled import SpooledAudio


def tone(seconds, rate, frequency=440.0):
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype("float32")


def error_beside(audio, expected, edge=800):
    """Root mean square of the difference, without the edges."""
    count = min(len(audio), len(expected))
    return np.sqrt(np.mean((audio - expected[:count])[edge:-edge] ** 2))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".FLAC"])
def test_saved_16_bit_audio_is_loaded_exactly(tmp_path, suffix):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 5000)
    audio = (pcm / 32768).astype("float32")
    path = tmp_path / f"audio{suffix}"
    save_audio(path, audio, 16000)
    assert soundfile.info(path).subtype == "PCM_16"
    loaded = load_audio(path, 16000)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, audio)


@pytest.mark.parametrize(
    "suffix, rate, channels",
    [
        (".wav", 16000, 1),
        (".wav", 8000, 2),
        (".wav", 192000, 8),
        (".flac", 44100, 2),
        (".flac", 48000, 8),
        (".ogg", 44100, 2),
        (".mp3", 44100, 2),
        (".mp3", 22050, 1),
    ],
)
def test_load_audio_gives_the_same_tone_from_any_file(
    tmp_path, suffix, rate, channels
):
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, np.stack([tone(1.0, rate)] * channels, 1), rate)
    audio = load_audio(path, 16000)
    assert audio.shape == (16000,)
    assert audio.dtype == np.float32
    tolerance = 2e-2 if suffix in (".ogg", ".mp3") else 1e-3
    assert error_beside(audio, tone(1.0, 16000)) < tolerance


def test_load_audio_averages_channels(tmp_path):
    path = tmp_path / "stereo.wav"
    left = np.full(1000, 0.5)
    soundfile.write(path, np.stack([left, -left / 2], 1), 16000)
    np.testing.assert_allclose(load_audio(path, 16000), 0.125, atol=1e-4)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_block_size_does_not_change_what_is_loaded(tmp_path, monkeypatch, rate):
    path = tmp_path / "noise.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (9001, 3))
    soundfile.write(path, noise, rate)
    whole = load_audio(path, 16000)
    monkeypatch.setattr(audio_lib, "BLOCK_VALUES", 500)
    np.testing.assert_allclose(load_audio(path, 16000), whole, atol=1e-6)
    assert len(whole) == round(9001 * 16000 / rate)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_what_is_long_is_the_same_on_disk(tmp_path, monkeypatch, rate):
    path = tmp_path / "noise.wav"
    noise = np.random.default_rng(0).uniform(-1.2, 1.2, (40001, 2))
    noise[:14000] = noise[26000:] = 0
    soundfile.write(path, noise, rate, "FLOAT")
    monkeypatch.setattr(audio_lib, "BLOCK_VALUES", 5000)
    whole = load_audible(path, 16000)
    spooled = load_audible(path, 16000, spool=40000 / rate)
    assert isinstance(spooled, SpooledAudio)
    assert isinstance(load_audible(path, 16000, spool=40001 / rate), np.ndarray)
    np.testing.assert_array_equal(np.asarray(spooled), whole)
    trimmed = trim_silence(spooled, 16000)
    assert 0 < len(trimmed) < len(whole)
    np.testing.assert_array_equal(
        np.asarray(trimmed), trim_silence(whole, 16000)
    )


def test_what_is_long_is_refused_as_the_rest(tmp_path):
    path = tmp_path / "audio.wav"
    soundfile.write(path, np.zeros(8000), 16000)
    with pytest.raises(AudioFileError, match="is silent"):
        load_audible(path, 16000, spool=0.1)
    with pytest.raises(AudioFileError, match=r"too short \(0.500"):
        load_audible(path, 16000, min_duration=0.6, spool=0.1)
    for kind in ("NaN", "scale it"):
        write_bad_file(path, kind)
        with pytest.raises(AudioFileError, match=kind):
            load_audible(path, 16000, spool=0.1)


def test_load_audio_does_not_alias(tmp_path):
    path = tmp_path / "high.wav"
    soundfile.write(path, tone(1.0, 48000, frequency=10000.0), 48000)
    audio = load_audio(path, 16000)
    assert np.abs(audio[800:-800]).max() < 1e-3


def test_load_audio_clips_loud_float_files(tmp_path):
    path = tmp_path / "loud.wav"
    soundfile.write(path, 4 * tone(0.1, 16000), 16000, "FLOAT")
    assert np.abs(load_audio(path, 16000)).max() == 1.0


def write_bad_file(path, kind):
    if kind == "foreign":
        path.write_text("This is not audio, whatever its name says. " * 20)
    elif kind == "0 bytes":
        path.write_bytes(b"")
    elif kind == "no audio":
        soundfile.write(path, np.zeros(0), 16000)
    elif kind == "NaN":
        samples = tone(1.0, 16000)
        samples[9000] = np.nan
        soundfile.write(path, samples, 16000, "FLOAT")
    elif kind == "infinite":
        samples = tone(1.0, 16000)
        samples[100] = -np.inf
        soundfile.write(path, samples, 16000, "FLOAT")
    elif kind == "scale it":
        soundfile.write(path, 32768 * tone(1.0, 16000), 16000, "FLOAT")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("foreign", "cannot be read.*ffmpeg"),
        ("0 bytes", "empty"),
        ("no audio", "holds no audio"),
        ("NaN", "NaN or infinite"),
        ("infinite", "NaN or infinite"),
        ("scale it", "scale it to"),
    ],
)
def test_load_audio_says_what_is_wrong_with_a_file(tmp_path, kind, message):
    path = tmp_path / "bad.wav"
    write_bad_file(path, kind)
    with pytest.raises(ValueError, match=message) as info:
        load_audio(path, 16000)
    assert str(path) in str(info.value)


def test_false_mp3_is_not_said_to_be_missing(tmp_path):
    path = tmp_path / "bad.mp3"
    write_bad_file(path, "foreign")
    with pytest.raises(ValueError, match="Format not recognised"):
        load_audio(path, 16000)


@pytest.mark.parametrize("rate", [0, -1])
def test_load_audio_rejects_a_sample_rate(tmp_path, rate):
    with pytest.raises(ValueError, match="sample_rate"):
        load_audio(tmp_path / "any.wav", rate)


def test_load_audio_too_short_for_one_resampled_sample(tmp_path):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.ones(1) * 0.5, 192000)
    with pytest.raises(ValueError, match="one.wav holds no audio"):
        load_audio(path, 16000)


def test_truncated_file_is_an_error_or_its_beginning(tmp_path):
    path = tmp_path / "whole.wav"
    soundfile.write(path, tone(1.0, 16000), 16000)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(path.read_bytes()[:16044])
    audio = load_audio(cut, 16000)
    np.testing.assert_allclose(audio, tone(0.5, 16000), atol=1e-4)


def test_save_audio_clips_and_takes_one_row(tmp_path):
    path = tmp_path / "deep" / "er" / "loud.wav"
    save_audio(path, 2 * tone(0.1, 8000)[None], 8000)
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == 8000 and samples.shape == (800,)
    assert samples.max() == 32767 and samples.min() == -32768


@pytest.mark.core
def test_audio_may_be_a_tensor_of_the_backend(tmp_path):
    audio = tone(0.1, 16000)
    tensor = keras.ops.convert_to_tensor(audio)
    np.testing.assert_array_equal(check_audio(tensor), audio[None])
    save_audio(tmp_path / "a.wav", tensor, 16000)
    assert len(load_audio(tmp_path / "a.wav", 16000)) == 1600
    low = keras.ops.cast(tensor, "bfloat16")
    assert check_audio(low).dtype == np.float32


@pytest.mark.parametrize(
    "audio, name, message",
    [
        (np.zeros((2, 100), "float32"), "a.wav", "one recording"),
        (np.zeros(0, "float32"), "a.wav", "empty"),
        (np.full(9, np.nan, "float32"), "a.wav", "9 NaN"),
        (np.zeros((1, 1, 9), "float32"), "a.wav", "shape"),
        (np.zeros(9, "int16"), "a.wav", "floats"),
        (np.zeros(9, "float32"), "a.mp3", "wav or .flac"),
        (np.zeros(9, "float32"), "a", "wav or .flac"),
    ],
)
def test_save_audio_rejects(tmp_path, audio, name, message):
    with pytest.raises(ValueError, match=message):
        save_audio(tmp_path / name, audio, 16000)
    assert os.listdir(tmp_path) == []


def test_failed_save_keeps_the_old_file_and_leaves_nothing(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.wav"
    save_audio(path, tone(0.1, 16000), 16000)
    before = path.read_bytes()

    def half_write(file, *args, **kwargs):
        file.write(b"RIFF half")
        raise OSError("No space left on device")

    monkeypatch.setattr(audio_lib.soundfile, "write", half_write)
    with pytest.raises(OSError, match="No space"):
        save_audio(path, tone(0.2, 16000), 16000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_save_says_why_it_cannot_write(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    name = "n" * 250 + ".wav"  # the temporary name is longer still
    with pytest.raises(OSError, match="too long"):
        save_audio(folder / name, tone(0.1, 16000), 16000)
    assert not os.listdir(folder)


def test_channels_last_are_recognised():
    with pytest.raises(ValueError, match=r"too short.*mean\(axis=1\)"):
        check_audio(np.full((900, 8), 0.1), min_samples=640)
    with pytest.raises(ValueError, match="640 samples needed.$"):
        check_audio(np.full((1, 8), 0.1), min_samples=640)


def test_find_audio_files(tmp_path):
    names = ["b/2.WAV", "b/1.flac", "a.ogg", "c/d/e.mp3", "z.opus"]
    others = ["notes.txt", ".hidden.wav", ".git/x.wav", "b/._2.wav"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.wav").mkdir()
    assert find_audio_files(str(tmp_path)) == sorted(
        tmp_path / name for name in names
    )


def test_find_audio_files_errors(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="No audio files in .*flac.*wav"):
        find_audio_files(tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_audio_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="notes.txt is a file"):
        find_audio_files(tmp_path / "notes.txt")


@pytest.mark.parametrize("shape", [(640,), (1, 640), (3, 640)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_check_audio_makes_a_float32_batch(shape, dtype):
    audio = np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)
    checked = check_audio(audio, min_samples=640)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(
        checked, audio.reshape(-1, 640).astype("float32")
    )


def test_check_audio_takes_lists():
    assert check_audio([0.1, 0.2]).shape == (1, 2)


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.float32(0.5), "shape"),
        (np.ones((1, 2, 3), "float32"), "shape"),
        (np.zeros(0, "float32"), "is empty"),
        ([], "is empty"),
        (np.zeros((0, 100), "float32"), "is empty"),
        (np.zeros(2000, "float32"), "`prompt` is silent"),
        (np.stack([tone(0.2, 16000), np.zeros(3200)]), "Row 1 of `prompt`"),
        (np.full(2000, 9e-5), "is silent"),
        (np.array([0.1, np.nan] * 500), "500 NaN"),
        (np.array([0.1, np.inf] * 500), "500 NaN or infinite"),
        (np.full(1000, 0.1), "too short: 0.06.*at least 0.125 seconds"),
        (np.ones(2000, "int16"), "floats.*32768"),
        (np.full(2000, 12000.0), "up to 12000.*Scale"),
        ([[0.1, 0.2], [0.3]], "one length"),
        (["a", "b"], "floats"),
    ],
)
def test_check_audio_rejects(audio, message):
    with pytest.raises(ValueError, match=message) as info:
        check_audio(audio, min_samples=2000, name="prompt", sample_rate=16000)
    assert "prompt" in str(info.value)


def test_check_audio_counts_samples_without_a_sample_rate():
    with pytest.raises(ValueError, match="2 samples given, at least 3"):
        check_audio([0.1, 0.2], min_samples=3)


# === Pauses ===


def spoken(before, voice, after, rate=8000):
    """Noise of some seconds between pauses 50 dB below it."""
    rng = np.random.default_rng(0)
    seconds = np.array([before, voice, after])
    level = np.repeat([0.0003, 0.1, 0.0003], (seconds * rate).astype(int))
    return (level * rng.normal(0, 1, len(level))).astype("float32")


@pytest.mark.parametrize(
    "seconds, kept",
    [
        ((1.0, 2.0, 3.0), (0.8, 3.2)),
        ((0.1, 2.0, 0.1), (0.0, 2.2)),
        ((0.0, 0.3, 4.0), (0.0, 0.5)),
        ((3.0, 0.3, 0.0), (2.8, 3.3)),
    ],
)
def test_pauses_at_the_ends_are_cut_off(seconds, kept):
    sound = spoken(*seconds)
    start, end = (round(8000 * k) for k in kept)
    trimmed = audio_lib.trim_silence(sound, 8000)
    assert abs(len(trimmed) - (end - start)) <= 2 * 160
    offset = (trimmed.ctypes.data - sound.ctypes.data) // 4  # a view
    assert abs(offset - start) <= 160


def test_pauses_inside_and_the_shortest_duration_are_kept():
    twice = np.concatenate([spoken(0, 1, 2), spoken(0, 1, 0)])
    np.testing.assert_array_equal(audio_lib.trim_silence(twice, 8000), twice)
    sound = spoken(2, 0.1, 2)
    assert len(audio_lib.trim_silence(sound, 8000, 3.0)) == 3 * 8000
    assert len(audio_lib.trim_silence(sound, 8000, 9.0)) == len(sound)


def test_a_click_in_digital_silence_is_found():
    sound = np.zeros(8000, "float32")
    sound[6000] = 1.0
    assert 1.0 in audio_lib.trim_silence(sound, 8000)
