import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.semantic.log_mel import LogMel, frame_mask


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def run(layer, *args):
    return to_numpy(CompiledFunction(layer, layer)(*args))


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).normal(size=shape).astype("f")


def make():
    layer = LogMel(num_mels=20)
    layer.build((None, None))
    return layer


@pytest.mark.parametrize("samples", [1, 160, 161, 1000])
def test_frames_are_hops_rounded_up(samples):
    y = run(make(), noise(2, samples))
    assert y.shape == (2, -(-samples // 160), 20)
    assert np.isfinite(y).all()


def test_matches_numpy():
    layer, audio = make(), noise(1, 2000)
    scaled = audio[0] / np.sqrt(np.square(audio[0]).mean())
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for frame in (3, 7):
        start = frame * 160 + 80 - 200  # centred on the hop's middle
        spectrum = np.fft.rfft(scaled[start : start + 400] * hann, 512)
        mel = np.square(np.abs(spectrum)) @ layer.mel_matrix
        expected = (np.log(mel + 0.3) - 2.0) / 3.0
        y = run(layer, audio)[0, frame]
        np.testing.assert_allclose(y, expected, atol=1e-3)


def test_a_tone_stands_in_its_band():
    time = np.arange(8000) / 16000
    layer = make()
    peaks = [
        run(layer, np.sin(2 * np.pi * hertz * time)[None].astype("f"))
        .mean(axis=(0, 1))
        .argmax()
        for hertz in (300, 1000, 4000)
    ]
    bins = np.round(np.array([300, 1000, 4000]) / 31.25).astype(int)
    assert peaks == layer.mel_matrix[bins].argmax(axis=1).tolist()


@pytest.mark.parametrize("window, apart", [(0.025, False), (0.064, True)])
def test_a_long_window_tells_a_semitone(window, apart):
    """C6 and C sharp: two peaks of the spectrum, or one."""
    layer = LogMel(num_mels=128, window_duration=window)
    layer.build((None, None))
    time = np.arange(8000) / 16000
    notes = np.sin(
        2 * np.pi * 1046.5 * 2 ** (np.arange(2)[:, None] / 12) * time
    )
    y = run(layer, notes.sum(axis=0, keepdims=True).astype("f"))[0]
    y = np.median(y[10:-10], axis=0)
    inner = y[1:-1]
    loud = inner > y.max() - 1.0  # in units of the layer's scale
    peaks = loud & (inner > y[:-2]) & (inner >= y[2:])
    assert (peaks.sum() == 2) == apart


def test_gain_changes_nothing():
    layer, audio = make(), noise(1, 1600)
    np.testing.assert_allclose(
        run(layer, audio), run(layer, 0.05 * audio), atol=1e-4
    )


def test_silence_is_not_amplified():
    layer = make()
    silence = run(layer, np.zeros((1, 1600), "f"))
    np.testing.assert_allclose(
        silence, run(layer, 1e-6 * noise(1, 1600)), atol=0.02
    )


def test_padding_changes_nothing():
    layer, audio = make(), noise(3, 1600)
    lengths = np.array([1600, 1281, 5], "int32")
    padded = np.pad(audio, [(0, 0), (0, 800)], constant_values=0.5)
    y = run(layer, padded, lengths)
    for row, length in enumerate(lengths):
        alone = run(layer, audio[row : row + 1, :length])[0]
        np.testing.assert_allclose(y[row, : len(alone)], alone, atol=1e-4)
        assert not y[row, len(alone) :].any()


def test_perturbation():
    layer = make()
    x = run(layer, noise(8, 1600))

    def perturb(strength, seed):
        return to_numpy(layer.perturb(ops.convert_to_tensor(x), strength, seed))

    y = perturb(1.0, 0)
    assert y.shape == x.shape and np.isfinite(y).all()
    np.testing.assert_array_equal(y, perturb(1.0, 0))
    assert np.abs(y - perturb(1.0, 1)).max() > 0.1
    assert np.abs(y - x).mean() > 3 * np.abs(perturb(0.01, 0) - x).mean()


def test_frame_mask():
    mask = frame_mask(np.array([0, 1, 640, 641]), 640, 3)
    expected = [[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]]
    np.testing.assert_array_equal(to_numpy(mask), np.array(expected, "bool"))
