"""The modified discrete cosine transform, there and back."""

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


@keras.saving.register_keras_serializable(package="keras_audiolm")
class MDCT(keras.layers.Layer):
    """An orthonormal lapped transform with as many numbers as samples.

    Frame `i` looks at hops `i - 1` and `i` (zeros stand before the first), so
    it is causal; the inverse completes hop `i - 1` when frame `i` arrives,
    which costs one hop of latency. `inverse(self(x))` is `x`, one hop short.

    Args:
        hop_length: int. Samples of a hop, and coefficients of a frame.

    Call arguments:
        x: `(batch, samples)`, with a multiple of `hop_length` samples.

    Returns:
        `(batch, samples / hop_length, hop_length)` float32.

    Example:

    >>> mdct = MDCT(320)
    >>> tuple(mdct(np.zeros((1, 16000), "float32")).shape)
    (1, 50, 320)

    Reference:
     - [Princen, Johnson and Bradley, 1987](https://ieeexplore.ieee.org/document/1169405)
    """

    def __init__(self, hop_length, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.hop_length = hop_length
        time = np.arange(2 * hop_length)
        frequency = np.arange(hop_length)
        window = np.sin(np.pi * (time + 0.5) / (2 * hop_length))
        phase = (
            (time[:, None] + 0.5 + hop_length / 2)
            * (frequency[None, :] + 0.5)
            * (np.pi / hop_length)
        )
        scale = np.sqrt(2 / hop_length)
        basis = scale * window[:, None] * np.cos(phase)
        self.basis = basis.astype("float32")  # (2 * hop, coefficients)

    def call(self, x):
        hop = self.hop_length
        x = ops.cast(x, "float32")
        x = ops.pad(x, [[0, 0], [hop, 0]])
        hops = ops.reshape(x, (ops.shape(x)[0], -1, hop))
        pairs = ops.concatenate([hops[:, :-1], hops[:, 1:]], axis=-1)
        return ops.matmul(pairs, self.basis)  # (batch, frames, hop)

    def inverse(self, frames):
        """Coefficients to samples by overlap and add.

        Args:
            frames: `(batch, frames, hop_length)`, from `call`.

        Returns:
            `(batch, (frames - 1) * hop_length)`: the hops that two frames
            cover.
        """
        hop = self.hop_length
        frames = ops.cast(frames, "float32")
        pairs = ops.matmul(frames, ops.transpose(self.basis))
        hops = pairs[:, :-1, hop:] + pairs[:, 1:, :hop]
        return ops.reshape(hops, (ops.shape(frames)[0], -1))

    def compute_output_shape(self, input_shape):
        batch, samples = input_shape
        frames = None if samples is None else samples // self.hop_length
        return (batch, frames, self.hop_length)

    def get_config(self):
        return {**super().get_config(), "hop_length": self.hop_length}
