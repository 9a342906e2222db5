"""Noise filling: the envelope is coded, and noise fills what is missing of it.

Most of speech above a kilohertz takes more bits as a waveform than there are.
Told how loud each band is, the decoder makes up what its coefficients lack by
noise, as every transform codec at low rates does.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

# Frames after which the noise begins anew: five seconds of 20 ms are too long
# to be heard as a period.
PERIOD = 256
# Bands are as wide as the ear's, and no narrower than this many coefficients.
MIN_WIDTH = 4
# Of the envelope beside the coefficients, as inputs of the encoder.
SCALE = 2.0
FLOOR = 1e-8


class NoiseFilling(keras.layers.Layer):
    """Band levels of coefficients, and noise up to such levels.

    A level is the fourth root of a band's mean square: the square root of an
    amplitude, like compressed coefficients.

    Args:
        num_coefficients: int. From 0 to half the sampling rate.
        sample_rate: int. Hertz.

    Reference:
     - [Valin et al., 2016](https://arxiv.org/abs/1602.04845), section 4.2.1
    """

    def __init__(self, num_coefficients, sample_rate, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        edges = band_edges(num_coefficients, sample_rate)
        self.num_bands = len(edges) - 1
        # (coefficients, bands): 1 where a coefficient is of a band
        places = np.digitize(np.arange(num_coefficients), edges) - 1
        self.member = np.eye(self.num_bands, dtype="float32")[places]
        self.mean = self.member / self.member.sum(0)

    def levels(self, coefficients):
        """`(..., num_coefficients)` to `(..., num_bands)`, scaled."""
        power = ops.matmul(ops.square(coefficients), self.mean)
        return SCALE * (ops.power(power + FLOOR, 0.25) - FLOOR**0.25)

    def fill(self, coefficients, levels, place=None):
        """Coefficients with as much noise as they lack of the levels.

        Args:
            coefficients: `(batch, frames, num_coefficients)`.
            levels: `(batch, frames, num_bands)`, as of `levels`.
            place: as of `noise_like`.
        """
        levels = ops.relu(levels) / SCALE + FLOOR**0.25
        wanted = ops.square(ops.square(levels)) - FLOOR
        there = ops.matmul(ops.square(coefficients), self.mean)
        missing = ops.sqrt(ops.relu(wanted - there) + FLOOR**2) - FLOOR
        amplitude = ops.matmul(missing, ops.transpose(self.member))
        return coefficients + amplitude * noise_like(coefficients, place)


def band_edges(num_coefficients, sample_rate):
    """First coefficients of bands of equal width in mels, and the end."""
    top = math.log1p(sample_rate / 2 / 700)
    width = num_coefficients / (sample_rate / 2)  # coefficients per hertz
    edges, hertz = [0], 0.0
    step = math.log1p(MIN_WIDTH / width / 700)
    while edges[-1] < num_coefficients:
        mel = math.log1p(hertz / 700) + step
        hertz = 700 * math.expm1(min(mel, top))
        edges.append(round(hertz * width))
    return edges


def noise_like(frames, place=None):
    """White noise of unit variance for some frames of a recording.

    Args:
        frames: `(batch, frames, coefficients)`; their shape counts alone.
        place: `(batch,)` int, where in the recording the frames begin, the
            start by default.

    Returns:
        float32 of that shape.
    """
    rows = ops.arange(frames.shape[1])[None]
    if place is not None:
        rows = rows + place[:, None]
    table = ops.convert_to_tensor(noise_table(frames.shape[2]))
    return ops.take(table, rows % PERIOD, axis=0)


@functools.lru_cache
def noise_table(coefficients):
    """NumPy float32 `(PERIOD, coefficients)`."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(PERIOD, coefficients)).astype("float32")
