import numpy as np
import pytest
import soundfile

from keras_audiolm import AudioCrops, NoisyCrops

RATE = 8000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tone to keep, and noise."""
    top = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    tone = 0.9 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    for name, audio in (("tone", tone), ("hiss", rng.normal(0, 0.2, RATE))):
        (top / name).mkdir()
        soundfile.write(top / name / "0.wav", audio, RATE)
    return top


def crops(folder, batch_size=64, **kwargs):
    return AudioCrops(folder, RATE, 0.1, batch_size, 2, **kwargs)


def test_the_four_kinds_of_examples(folders):
    data = NoisyCrops(crops(folders / "tone"), crops(folders / "hiss"))
    inputs, target = data[0]
    audio, denoise = inputs["audio"], inputs["denoise"] > 0
    assert audio.shape == target.shape == (64, 800)
    assert np.abs(audio).max() <= 1

    def noise_in(x):
        """What is left of `x` without its tone, as a part of it."""
        bins = np.abs(np.fft.rfft(x * np.hanning(800)))
        top = bins.argmax(axis=1)
        assert (np.abs(top * RATE / 800 - 440) <= 10).all()
        bins[:, 40:49] = 0
        return np.linalg.norm(bins, axis=1) / np.linalg.norm(x, axis=1)

    noisy = noise_in(audio) > 0.3
    for kind in (noisy, denoise):
        assert 0.25 < kind.mean() < 0.75
    assert (noisy & denoise).any() and (~noisy & denoise).any()
    changed = (audio != target).any(axis=1)
    np.testing.assert_array_equal(changed, noisy & denoise)
    assert (noise_in(target)[denoise] < 0.3).all()


def test_noise_is_as_loud_as_asked(folders):
    clean, noise = crops(folders / "tone"), crops(folders / "hiss")
    data = NoisyCrops(clean, noise, snr_db=(6, 6))
    inputs, target = data[0]
    added = inputs["audio"] - target
    heard = (added != 0).any(axis=1)
    power = [np.square(x[heard]).mean(axis=1) for x in (target, added)]
    ratio = 10 * np.log10(power[0] / power[1])
    np.testing.assert_allclose(ratio, 6, atol=1e-3)


def test_a_batch_depends_on_seed_epoch_and_index(folders):
    def make(seed=0, epoch=0):
        data = NoisyCrops(
            crops(folders / "tone"), crops(folders / "hiss"), seed=seed
        )
        data.epoch = epoch
        return data

    same, again = make()[1], make()[1]
    np.testing.assert_array_equal(same[0]["audio"], again[0]["audio"])
    np.testing.assert_array_equal(same[0]["denoise"], again[0]["denoise"])
    for other in (make()[0], make(seed=1)[1], make(epoch=1)[1]):
        assert (same[0]["audio"] != other[0]["audio"]).any()
    moved = make()
    moved.on_epoch_end()
    np.testing.assert_array_equal(
        moved[1][0]["audio"], make(epoch=1)[1][0]["audio"]
    )


def test_what_does_not_fit(folders):
    clean = crops(folders / "tone")
    with pytest.raises(ValueError, match="batch_size 64 and 3"):
        NoisyCrops(clean, crops(folders / "hiss", batch_size=3))
    with pytest.raises(ValueError, match=r"snr_db=\(5, 1\)"):
        NoisyCrops(clean, crops(folders / "hiss"), snr_db=(5, 1))
    short = AudioCrops(folders / "hiss", RATE, 0.1, 64, 1)
    with pytest.raises(ValueError, match="2 batches.*noise 1"):
        NoisyCrops(clean, short)
