"""Crops made in a tf.data graph, in an environment of its own (`make
test-tfio`)."""

import numpy as np
import pytest
import soundfile

from keras_audiolm import AudioCrops

pytest.importorskip("tensorflow_io", reason="make test-tfio")

from keras_audiolm.data.tfio import alignment, tfio_batches

RATE = 16000
# Within this of full scale, of sound below four fifths of half the lower rate.
TOLERANCE = 1e-4


def tones(rate, seconds, seed):
    """Sound below 3 kHz, so that all rates here keep it whole, that fades in
    and out: a step has all frequencies."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds)) / rate
    sound = [
        rng.uniform(0.02, 0.1) * np.sin(2 * np.pi * (f * time + rng.random()))
        for f in rng.uniform(80, 3000, 12)
    ]
    fade = np.minimum(np.minimum(time, time[::-1]) / 0.05, 1.0)
    return np.sum(sound, axis=0).clip(-1, 1) * np.sin(np.pi / 2 * fade) ** 2


def write(folder, rate, suffix=".flac", subtype=None, channels=1):
    """Files of some lengths, of two voices."""
    for k, seconds in enumerate((0.3, 1.1, 0.7, 2.0)):
        path = folder / "ab"[k % 2] / f"{k}{suffix}"
        path.parent.mkdir(exist_ok=True)
        sound = [tones(rate, seconds, k + 10 * c) for c in range(channels)]
        soundfile.write(path, np.stack(sound, 1), rate, subtype=subtype)
    return folder


def crops_of(folder, **kwargs):
    kwargs = {"duration": 0.5, "batch_size": 3, "steps_per_epoch": 4, **kwargs}
    kwargs = {"cache_bytes": 0, "seed": 5, **kwargs}
    return AudioCrops(folder, RATE, **kwargs)


def assert_same_crops(crops, epochs=2, tolerance=1e-6):
    found = list(tfio_batches(crops, epochs).as_numpy_iterator())
    assert len(found) == epochs * len(crops)
    for place, batch in enumerate(found):
        expected = crops.batch(*divmod(place, len(crops)))
        assert batch.dtype == np.float32
        np.testing.assert_allclose(batch, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "suffix, subtype",
    [
        (".flac", "PCM_16"),
        (".flac", "PCM_24"),
        (".wav", "PCM_16"),
        (".wav", "PCM_24"),
        (".wav", "FLOAT"),
        (".ogg", "VORBIS"),
        (".aiff", "PCM_16"),  # by libsndfile
    ],
)
def test_every_format_gives_the_crops_of_audio_crops(tmp_path, suffix, subtype):
    write(tmp_path, RATE, suffix, subtype, channels=2)
    assert_same_crops(crops_of(tmp_path))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000])
def test_resampled_crops_agree_within_the_tolerance(tmp_path, rate):
    crops = crops_of(write(tmp_path, rate))
    assert_same_crops(crops, tolerance=TOLERANCE)


def test_files_of_several_rates(tmp_path):
    write(tmp_path, 44100)
    soundfile.write(tmp_path / "a" / "9.wav", tones(RATE, 1.0, 9), RATE)
    assert_same_crops(crops_of(tmp_path), tolerance=TOLERANCE)


def test_gains_are_the_same(tmp_path):
    crops = crops_of(write(tmp_path, RATE), gain_db=(-12.0, 12.0))
    assert_same_crops(crops)


def test_the_same_crops_every_epoch_if_asked_for(tmp_path):
    crops = crops_of(write(tmp_path, RATE), same_every_epoch=True)
    batches = list(tfio_batches(crops, 2).as_numpy_iterator())
    for one, other in zip(batches[:4], batches[4:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_silent_places_are_drawn_again_as_by_audio_crops(tmp_path):
    write(tmp_path, RATE)
    soundfile.write(tmp_path / "a" / "8.flac", np.zeros(6 * RATE), RATE)
    crops = crops_of(tmp_path)
    assert_same_crops(crops, epochs=3)
    for batch in tfio_batches(crops).as_numpy_iterator():
        assert np.abs(batch).max(axis=1).min() >= 1e-4


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_the_delay_is_a_whole_number_of_samples(rate):
    zeros, delay, after = map(int, alignment(rate, RATE))
    assert zeros >= 0
    # What comes `delay` late begins after the zeros and half the filter.
    assert delay * rate % RATE == 0
    assert 0 <= delay * rate // RATE - zeros <= after


@pytest.mark.parametrize(
    "kwargs", [{"cache_bytes": 10**9}, {"speed_range": (0.9, 1.1)}]
)
def test_crops_that_a_graph_cannot_make_are_refused(tmp_path, kwargs):
    crops = crops_of(write(tmp_path, RATE), **kwargs)
    with pytest.raises(ValueError, match="cache_bytes=0 and without speed"):
        tfio_batches(crops)
