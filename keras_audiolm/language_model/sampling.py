"""Which code is drawn from logits."""

import dataclasses

import numpy as np
from keras import ops

from keras_audiolm.layers.argmax import argmax


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Args:
        temperature: float. `0` always takes the most likely code.
        top_k: int, optional. Only the `k` likeliest codes are drawn.
        top_p: float in (0, 1], optional. Only the likeliest codes whose
            probabilities add up to `p` are drawn.
        repetition_penalty: float. The odds of codes that the sequence has
            already (at that level) are divided by it. Defaults to `1`.

    Raises:
        ValueError: on settings that mean nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                "`temperature` must be zero or more. Received: "
                f"{self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(
                f"`top_k` must be 1 or more. Received: {self.top_k}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"`top_p` must be above 0 and at most 1. Received: {self.top_p}"
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                "`repetition_penalty` must be above 0. Received: "
                f"{self.repetition_penalty}"
            )

    @property
    def truncated(self):
        """Whether any code is out of reach."""
        return self.top_k is not None or self.top_p is not None

    @property
    def penalised(self):
        return self.repetition_penalty != 1

    def numbers(self, codebook_size):
        """The settings as arrays, which one compiled program takes."""
        top_k = min(self.top_k or codebook_size, codebook_size)
        return {
            "temperature": np.float32(self.temperature),
            "top_k": np.int32(top_k),
            "top_p": np.float32(self.top_p or 1.0),
            "penalty": np.float32(np.log(self.repetition_penalty)),
        }


def check_scores(scores, model):
    """Raises `ValueError` for log-likelihoods that are not finite."""
    if not np.isfinite(scores).all():
        raise ValueError(
            f"The logits of {model.name!r} are not finite: its weights are "
            "broken. Load or train them again."
        )


def row_generators(batch, seed):
    """Random generators, one a row.

    Args:
        seed: int, tuple of int, or `None`. Row `i` of a batch depends on the
            seed and `i` alone.
    """
    if seed is None:
        seed = np.random.SeedSequence().entropy
    seed = seed if isinstance(seed, tuple) else (seed,)
    if min(seed) < 0:
        raise ValueError(f"`seed` must be zero or more. Received: {seed}")
    return [
        np.random.Generator(np.random.SFC64([*seed, row]))
        for row in range(batch)
    ]


def gumbel_noise(generators, steps, size):
    """Noise whose argmax with logits samples their softmax.

    Drawn by NumPy, so that one seed gives the same codes on every backend.

    Returns:
        `(batch, steps, size)` float32.
    """
    noise = np.empty((len(generators), steps, size), "float32")
    for row, generator in zip(noise, generators, strict=True):
        generator.standard_exponential(dtype="float32", out=row)
    # In place: fresh memory takes as long as the numbers.
    noise += np.float32(1e-30)
    np.log(noise, out=noise)
    return np.negative(noise, out=noise)


def draw(logits, noise, sampling, truncated):
    """A code for each row of `(batch, codebook_size)`, int32."""
    if truncated:
        logits = cut_tail(
            logits,
            sampling["temperature"],
            sampling["top_k"],
            sampling["top_p"],
        )
    return argmax(logits + sampling["temperature"] * noise)


def cut_tail(logits, temperature, top_k, top_p):
    """Logits with those outside of the top `k` and of the top `p` removed.

    Args:
        logits: `(batch, size)` float32.
        temperature, top_k, top_p: scalars.
    """
    ordered = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    scaled = ordered / ops.maximum(temperature, 1e-6)
    probability = ops.softmax(scaled, axis=-1)
    before = ops.cumsum(probability, axis=-1) - probability
    rank = ops.arange(logits.shape[-1])
    kept = ops.logical_and(before < top_p, rank < top_k)
    lowest = ops.min(ops.where(kept, ordered, float("inf")), axis=-1)
    return ops.where(logits < lowest[:, None], float("-inf"), logits)
