import numpy as np
import pytest
import scipy.signal
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.layers.spectrogram import OVERLAP, Spectrogram, find_peaks

RATE = 16000


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tones(hertz, seconds=1.0, amplitudes=None):
    """A sum of sines, `(1, samples)`."""
    time = np.arange(round(seconds * RATE)) / RATE
    amplitudes = amplitudes or [0.2] * len(hertz)
    waves = [
        a * np.sin(2 * np.pi * f * time + i)
        for i, (f, a) in enumerate(zip(hertz, amplitudes, strict=True))
    ]
    return np.sum(waves, axis=0, keepdims=True).astype("float32")


def forward(layer, x):
    return to_numpy(CompiledFunction(layer, layer)(x))


def inverse(layer, frames):
    return to_numpy(CompiledFunction(layer, layer.inverse)(frames))


@pytest.mark.parametrize("hop", [4, 80])
def test_matches_scipy(hop):
    x = normal(2, 6 * hop)
    size = OVERLAP * hop
    padded = np.pad(x, [(0, 0), (size - hop, 0)])
    _, _, spectrum = scipy.signal.stft(
        padded,
        nperseg=size,
        noverlap=size - hop,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    # SciPy divides by the sum of the window.
    expected = np.abs(spectrum) * (size / 2) / np.sqrt(size)
    np.testing.assert_allclose(
        forward(Spectrogram(hop), x), expected.swapaxes(1, 2), atol=1e-4
    )


@pytest.mark.parametrize(
    "hertz", [[440.0], [440.0, 554.4, 659.3], [101.3, 1000.0, 5003.7]]
)
def test_tones_come_back_as_tones(hertz):
    """In the spectrum of half a second, far from the edges."""
    layer = Spectrogram(320)
    x = tones(hertz, 2.0)
    back = inverse(layer, forward(layer, x))
    assert back.shape == (1, x.shape[1] - 3 * 320)
    middle = slice(RATE // 2, RATE)
    window = np.hanning(RATE // 2)
    a, b = (np.abs(np.fft.rfft(y[0, middle] * window)) for y in (x, back))
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a)


def test_a_gliding_tone_and_its_loudness_come_back():
    layer = Spectrogram(320)
    time = np.arange(2 * RATE) / RATE
    x = 0.3 * np.sin(2 * np.pi * (300 * time + 50 * time**2))
    x = (x * np.linspace(0.2, 1, len(x)))[None].astype("float32")
    size = forward(layer, x)
    again = forward(layer, inverse(layer, size))
    size, again = size[:, 8:-3], again[:, 8:]
    error = np.linalg.norm(size - again) / np.linalg.norm(size)
    assert error < 0.15


def test_inverse_in_steps_is_the_whole():
    layer = Spectrogram(20)
    size = np.abs(normal(2, 9, 41))
    whole = inverse(layer, size)
    state, parts = layer.init_inverse_state(2), []
    for count in (1, 3, 5):
        frames, size = size[:, :count], size[:, count:]
        audio, state = layer.inverse_step(frames, state)
        parts.append(to_numpy(audio))
    stream = np.concatenate(parts, axis=1)[:, layer.delay :]
    np.testing.assert_allclose(stream, whole, atol=1e-4)


def test_rows_do_not_meet():
    layer = Spectrogram(20)
    size = np.abs(normal(3, 6, 41))
    together = inverse(layer, size)
    for row in range(3):
        np.testing.assert_allclose(
            inverse(layer, size[row : row + 1])[0], together[row], atol=1e-4
        )


def test_later_frames_do_not_change_earlier_samples():
    layer = Spectrogram(20)
    size = np.abs(normal(1, 12, 41))
    other = size.copy()
    other[:, 8:] = 1.0
    a, b = inverse(layer, size), inverse(layer, other)
    # Hop 5 is the first that frame 8 is in.
    np.testing.assert_allclose(a[:, :100], b[:, :100], atol=1e-5)
    assert np.abs(a - b)[:, 100:].max() > 0.1


def test_silence_and_what_is_below_it():
    layer = Spectrogram(20)
    assert not forward(layer, np.zeros((1, 100), "float32")).any()
    assert not inverse(layer, np.full((1, 6, 41), -1.0, "float32")).any()


def test_frequency_of_a_peak():
    """A sine between two bins, by the parabola: within 4 % of a bin."""
    layer = Spectrogram(320)
    for shift in (-0.4, -0.1, 0.0, 0.3):
        hertz = (40 + shift) * RATE / 1280
        size = forward(layer, tones([hertz]))[:, 10:20]
        peak, offset = (to_numpy(x) for x in find_peaks(size))
        assert (peak[..., 38:43] == 40).all()
        np.testing.assert_allclose(offset[..., 40], shift, atol=0.04)


def test_audio_is_linear_in_magnitudes_of_the_same_peaks():
    """So the phases, which are no function that is learned through, are
    constants of the gradient."""
    layer = Spectrogram(4)
    size = np.abs(normal(1, 6, 9)) + 0.5
    change = 1e-2 * size  # the peaks stay where they are
    a, b, c = (inverse(layer, size + k * change) for k in (0, 1, 2))
    np.testing.assert_allclose(c - b, b - a, atol=1e-4)
    assert np.abs(b - a).max() > 1e-4


def test_config():
    copy = Spectrogram.from_config(Spectrogram(16).get_config())
    assert copy.compute_output_shape((3, 160)) == (3, 10, 33)
    assert copy.delay == 48
