"""Fixed transforms of overlapping frames, there and back."""

import keras
import numpy as np
from keras import ops

# Keeps the slope of the square root finite where a coefficient is zero.
COMPRESSION_FLOOR = 1e-5


def compress(coefficients):
    """The signed square root: small coefficients count as a listener hears."""
    floor = COMPRESSION_FLOOR
    size = ops.sqrt(ops.abs(coefficients) + floor) - floor**0.5
    return ops.sign(coefficients) * size


def expand(compressed):
    """The inverse of `compress`, up to its floor."""
    return compressed * ops.abs(compressed)


class LappedTransform(keras.layers.Layer):
    """Frames of two hops, a hop apart, to coefficients and back.

    Frame `i` looks at hops `i - 1` and `i` (zeros stand before the first), so
    it is causal; the inverse completes hop `i - 1` when frame `i` arrives,
    which costs one hop of latency. `inverse(self(x))` is `x`, one hop short.

    What a stream must remember is half a frame each way: the last hop of
    samples before `step`, the half-complete hop before `inverse_step`.
    `init_state` is that of silence, for either.

    Args:
        hop_length: int. Samples of a hop.

    Call arguments:
        x: `(batch, samples)`, with a multiple of `hop_length` samples.

    Returns:
        `(batch, samples / hop_length, num_coefficients)` float32.
    """

    # NumPy arrays that a subclass makes: `analysis` from frames to
    # coefficients, `(2 * hop, coefficients)`, and `synthesis` back.
    def __init__(self, hop_length, analysis, synthesis, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.hop_length = hop_length
        self.analysis = analysis.astype("float32")
        self.synthesis = synthesis.astype("float32")
        self.num_coefficients = analysis.shape[1]

    def init_state(self, batch_size):
        return ops.zeros((batch_size, self.hop_length))

    def call(self, x):
        frames, _ = self.step(x, ops.zeros_like(x[:, : self.hop_length]))
        return frames

    def step(self, x, state):
        """`call` on a chunk of whole hops: its frames, and the new state."""
        hop = self.hop_length
        x = ops.concatenate([state, ops.cast(x, "float32")], axis=1)
        hops = ops.reshape(x, (-1, x.shape[1] // hop, hop))
        pairs = ops.concatenate([hops[:, :-1], hops[:, 1:]], axis=-1)
        return ops.matmul(pairs, self.analysis), hops[:, -1]

    def inverse(self, frames):
        """Coefficients to samples by overlap and add.

        Args:
            frames: `(batch, frames, num_coefficients)`, from `call`.

        Returns:
            `(batch, (frames - 1) * hop_length)`: the hops that two frames
            cover.
        """
        frames = ops.cast(frames, "float32")
        state = ops.zeros_like(frames[:, 0, :1])  # broadcast over a hop
        samples, _ = self.inverse_step(frames, state)
        return samples[:, self.hop_length :]

    def inverse_step(self, frames, state):
        """As many hops as frames, a hop late, and the new state."""
        hop, frames = self.hop_length, ops.cast(frames, "float32")
        pairs = ops.matmul(frames, self.synthesis)
        early = ops.pad(pairs[:, :-1, hop:], [[0, 0], [1, 0], [0, 0]])
        late = ops.pad(
            state[:, None], [[0, 0], [0, frames.shape[1] - 1], [0, 0]]
        )
        hops = pairs[:, :, :hop] + early + late
        samples = ops.reshape(hops, (-1, frames.shape[1] * hop))
        return samples, pairs[:, -1, hop:]

    def compute_output_shape(self, input_shape):
        batch, samples = input_shape
        frames = None if samples is None else samples // self.hop_length
        return (batch, frames, self.num_coefficients)

    def get_config(self):
        return {**super().get_config(), "hop_length": self.hop_length}


def sine_window(hop_length):
    """The window whose square, overlapped by half, adds up to one."""
    time = np.arange(2 * hop_length)
    return np.sin(np.pi * (time + 0.5) / (2 * hop_length))


@keras.saving.register_keras_serializable(package="keras_audiolm")
class MDCT(LappedTransform):
    """The modified discrete cosine transform, scaled to be orthonormal.

    A `LappedTransform` with as many numbers as samples.

    Args:
        hop_length: int. Samples of a hop, and coefficients of a frame.

    Example:

    >>> mdct = MDCT(320)
    >>> tuple(mdct(np.zeros((1, 16000), "float32")).shape)
    (1, 50, 320)

    Reference:
     - [Princen, Johnson and Bradley, 1987](https://ieeexplore.ieee.org/document/1169405)
    """

    def __init__(self, hop_length, **kwargs):
        time = np.arange(2 * hop_length)[:, None]
        frequency = np.arange(hop_length)[None]
        phase = (
            (time + 0.5 + hop_length / 2)
            * (frequency + 0.5)
            * (np.pi / hop_length)
        )
        scale = np.sqrt(2 / hop_length)
        basis = scale * sine_window(hop_length)[:, None] * np.cos(phase)
        super().__init__(hop_length, basis, basis.T, **kwargs)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class STFT(LappedTransform):
    """The short-time Fourier transform as real numbers: all real parts of the
    `hop_length + 1` bins, then all imaginary parts.

    A `LappedTransform` with about twice as many numbers as samples, by two
    products with fixed matrices instead of an FFT: at frames of some hundred
    samples as fast, and the same on every backend.

    Args:
        hop_length: int. Samples of a hop, half of a frame.

    Example:

    >>> stft = STFT(320)
    >>> tuple(stft(np.zeros((1, 16000), "float32")).shape)
    (1, 50, 642)
    """

    def __init__(self, hop_length, **kwargs):
        size = 2 * hop_length
        window = sine_window(hop_length)[:, None]
        time = np.arange(size)[:, None]
        phase = 2 * np.pi / size * time * np.arange(hop_length + 1)[None]
        scale = size**-0.5
        waves = np.concatenate([np.cos(phase), -np.sin(phase)], axis=1)
        # All bins but the first and the last stand for their mirrors too.
        twice = np.full(hop_length + 1, 2.0)
        twice[[0, -1]] = 1.0
        back = (waves * np.tile(twice, 2)).T
        super().__init__(
            hop_length,
            scale * window * waves,
            scale * back * window[:, 0],
            **kwargs,
        )
