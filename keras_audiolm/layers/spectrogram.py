"""Magnitudes of spectra, and sound of magnitudes alone."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.lapped_transform import LappedTransform

# Hops of a frame: Hann windows, squared, add up to a constant.
OVERLAP = 4
# Below the magnitudes of 16-bit noise: keeps slopes and logarithms finite.
FLOOR = 1e-5
# Twice to the neighbour that is louder, and so on: peaks are found from bins
# that are up to `2 ** CLIMBS` away.
CLIMBS = 3


@keras.saving.register_keras_serializable(package="keras_audiolm")
class Spectrogram(LappedTransform):
    """The magnitudes of a short-time Fourier transform, and back.

    Phases are not among the coefficients. The inverse takes every peak of a
    frame for a partial, whose frequency a parabola through the logarithms of
    the peak and its neighbours gives; its phase goes on from frame to frame
    with that frequency, and the bins around it follow the peak. No iteration
    and no look-ahead is needed, so that it works in a stream. A stationary
    sound stays one, which is what few bits can say of music.

    Args:
        hop_length: int. Samples of a hop, a quarter of a frame.

    Call arguments:
        x: `(batch, samples)`, with a multiple of `hop_length` samples.

    Returns:
        `(batch, samples / hop_length, 2 * hop_length + 1)` float32, at least
        zero.

    Example:

    >>> spectrogram = Spectrogram(320)
    >>> tuple(spectrogram(np.zeros((1, 16000), "float32")).shape)
    (1, 50, 641)

    Reference:
     - [Beauregard, Harish and Wyse, 2015: Single pass spectrogram
       inversion](https://ieeexplore.ieee.org/document/7251907)
    """

    def __init__(self, hop_length, **kwargs):
        size = OVERLAP * hop_length
        bins = size // 2 + 1
        time = np.arange(size)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * time / size)
        phase = 2 * np.pi / size * (time[:, None] * np.arange(bins) % size)
        waves = np.concatenate([np.cos(phase), -np.sin(phase)], axis=1)
        # All bins but the first and the last stand for their mirrors too.
        twice = np.full(bins, 2.0)
        twice[[0, -1]] = 1.0
        scale = size**-0.5
        # What the squared windows of overlapping frames add up to.
        total = np.square(window).reshape(OVERLAP, -1).sum(0)[0]
        super().__init__(
            hop_length,
            OVERLAP,
            scale * window[:, None] * waves,
            scale / total * (waves * np.tile(twice, 2)).T * window,
            **kwargs,
        )
        self.num_coefficients = bins

    def step(self, x, state):
        frames, state = super().step(x, state)
        real, imaginary = ops.split(frames, 2, axis=-1)
        power = ops.square(real) + ops.square(imaginary)
        return ops.sqrt(power + FLOOR**2) - FLOOR, state

    def init_inverse_state(self, batch_size):
        """Of the samples, and the phases of the last frame."""
        samples = super().init_inverse_state(batch_size)
        return [samples, ops.zeros((batch_size, self.num_coefficients))]

    def inverse_step(self, frames, state):
        samples, phase = state
        size = ops.relu(ops.cast(frames, "float32"))
        phases, phase = self._phases(ops.stop_gradient(size), phase)
        frames = ops.concatenate(
            [size * ops.cos(phases), size * ops.sin(phases)], axis=-1
        )
        audio, samples = super().inverse_step(frames, samples)
        return audio, [samples, phase]

    def _phases(self, size, last):
        """Phases of magnitudes `(batch, frames, bins)`, and the last ones."""
        bins = ops.arange(self.num_coefficients, dtype="int32")
        peak, offset = find_peaks(size)
        # A hop is a quarter of the period of the first bin.
        turn = ops.cast(bins % OVERLAP, "float32") + offset
        advance = turn * (2 * math.pi / OVERLAP)
        # The window begins at its frame's first sample: beside a peak the
        # phases of its bins alternate.
        beside = ops.cast((bins - peak) % 2, "float32") * math.pi

        def follow(phase, frame):
            peak, advance, beside = frame
            phase = ops.take_along_axis(phase + advance, peak, axis=-1)
            phase = ops.mod(phase + beside, 2 * math.pi)
            return phase, phase

        in_time = [ops.swapaxes(x, 0, 1) for x in (peak, advance, beside)]
        last, phases = ops.scan(follow, last, tuple(in_time))
        return ops.swapaxes(phases, 0, 1), last


def find_peaks(size):
    """The peak that each bin belongs to, and where bins' partials are.

    Args:
        size: magnitudes `(batch, frames, bins)`.

    Returns:
        Int32 indices of bins, and float32 bins, from -0.5 to 0.5, by which
        the frequency of a peak at each bin is higher than the bin's own; both
        `(batch, frames, bins)`.
    """
    bins = ops.arange(size.shape[-1], dtype="int32")
    level = ops.log(size + FLOOR)
    lower = ops.concatenate([level[..., :1], level[..., :-1]], axis=-1)
    upper = ops.concatenate([level[..., 1:], level[..., -1:]], axis=-1)
    up = ops.logical_and(upper > level, upper >= lower)
    down = ops.logical_and(lower > level, lower > upper)
    peak = bins + ops.cast(up, "int32") - ops.cast(down, "int32")
    for _ in range(CLIMBS):
        peak = ops.take_along_axis(peak, peak, axis=-1)
    curvature = ops.minimum(lower - 2.0 * level + upper, -1e-3)
    offset = 0.5 * (lower - upper) / curvature
    return peak, ops.clip(offset, -0.5, 0.5)
