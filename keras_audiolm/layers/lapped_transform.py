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
    """Frames of some hops, a hop apart, to coefficients and back.

    Frame `i` ends with hop `i` (zeros stand before the first), so it is
    causal; the inverse completes hop `i - overlap + 1` when frame `i`
    arrives, which costs `overlap - 1` hops of latency. `inverse(self(x))` is
    `x`, so many hops short.

    What a stream must remember is what frames share: the last hops of
    samples before `step`, the half-complete hops before `inverse_step`.
    `init_state` and `init_inverse_state` are those of silence.

    Args:
        hop_length: int. Samples of a hop.
        overlap: int. Hops of a frame.

    Call arguments:
        x: `(batch, samples)`, with a multiple of `hop_length` samples.

    Returns:
        `(batch, samples / hop_length, num_coefficients)` float32.
    """

    # NumPy arrays that a subclass makes: `analysis` from frames to
    # coefficients, `(overlap * hop, coefficients)`, and `synthesis` back.
    def __init__(self, hop_length, overlap, analysis, synthesis, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.hop_length = hop_length
        self.overlap = overlap
        self.analysis = analysis.astype("float32")
        self.synthesis = synthesis.astype("float32")
        self.num_coefficients = analysis.shape[1]

    @property
    def delay(self):
        """Samples that come out later than they went in."""
        return (self.overlap - 1) * self.hop_length

    def init_state(self, batch_size):
        return ops.zeros((batch_size, self.delay))

    def init_inverse_state(self, batch_size):
        return ops.zeros((batch_size, self.delay))

    def call(self, x):
        silence = ops.zeros_like(x[:, :1])
        frames, _ = self.step(x, ops.repeat(silence, self.delay, axis=1))
        return frames

    def step(self, x, state):
        """`call` on a chunk of whole hops: its frames, and the new state."""
        hop, count = self.hop_length, x.shape[1] // self.hop_length
        x = ops.concatenate([state, ops.cast(x, "float32")], axis=1)
        hops = ops.reshape(x, (-1, count + self.overlap - 1, hop))
        frames = ops.concatenate(
            [hops[:, i : i + count] for i in range(self.overlap)], axis=-1
        )
        return ops.matmul(frames, self.analysis), x[:, count * hop :]

    def inverse(self, frames):
        """Coefficients to samples by overlap and add.

        Args:
            frames: `(batch, frames, num_coefficients)`, from `call`.

        Returns:
            `(batch, (frames - overlap + 1) * hop_length)`: the hops that
            `overlap` frames cover.
        """
        state = self.init_inverse_state(ops.shape(frames)[0])
        samples, _ = self.inverse_step(frames, state)
        return samples[:, self.delay :]

    def inverse_step(self, frames, state):
        """As many hops as frames, `delay` late, and the new state."""
        hop, count, after = self.hop_length, frames.shape[1], self.overlap - 1
        parts = ops.matmul(ops.cast(frames, "float32"), self.synthesis)
        parts = ops.reshape(parts, (-1, count, self.overlap, hop))
        before = ops.reshape(state, (-1, after, hop))
        hops = ops.pad(before, [[0, 0], [0, count], [0, 0]])
        for i in range(self.overlap):
            hops += ops.pad(parts[:, :, i], [[0, 0], [i, after - i], [0, 0]])
        samples = ops.reshape(hops, (-1, (count + after) * hop))
        return samples[:, : count * hop], samples[:, count * hop :]

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
        super().__init__(hop_length, 2, basis, basis.T, **kwargs)
