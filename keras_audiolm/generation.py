"""The cascade: semantic, coarse and fine tokens one after the other.

Time is counted in units here: the shortest stretch that holds whole semantic
and whole acoustic frames (40 ms at the paper's rates).
"""

import math

import numpy as np

# Seconds that a window shares with the one before it.
WINDOW_OVERLAP = 3.0
# The paper's, section IV-B.
TEMPERATURES = {"semantic": 0.6, "coarse": 0.8, "fine": 0.6}


def per_stage(name, value, default):
    """A number for all stages, or a dictionary for some, as one for all.

    Raises:
        ValueError: if a dictionary names a stage that does not exist.
    """
    if not isinstance(value, dict):
        value = {} if value is None else dict.fromkeys(TEMPERATURES, value)
    for stage in value:
        if stage not in TEMPERATURES:
            raise ValueError(
                f"`{name}` names a stage {stage!r}. Stages are "
                f"{', '.join(TEMPERATURES)}."
            )
    given = {stage: v for stage, v in value.items() if v is not None}
    return {stage: given.get(stage, default[stage]) for stage in TEMPERATURES}


class Cascade:
    """Samples the tokens of a stretch of time, stage by stage.

    Args:
        semantic_lm, coarse_lm, fine_lm: the `StageLM`s; `fine_lm` may be
            `None`.
        unit: `(semantic frames, acoustic frames)` of a unit.
        unit_duration: float. Seconds of a unit.
        sampling: dictionary by stage of dictionaries of `temperature`,
            `top_k` and `top_p`.
        seed: int or `None`.
        progress: callable that is told what is done, or `None`.
    """

    def __init__(
        self,
        semantic_lm,
        coarse_lm,
        fine_lm,
        unit,
        unit_duration,
        sampling,
        seed=None,
        progress=None,
    ):
        self.semantic_lm = semantic_lm
        self.coarse_lm = coarse_lm
        self.fine_lm = fine_lm
        self.unit = unit
        self.unit_duration = unit_duration
        self.sampling = sampling
        self.progress = progress or (lambda message: None)
        if seed is not None and seed < 0:
            raise ValueError(f"`seed` must be zero or more. Received: {seed}")
        if seed is None:
            seed = np.random.SeedSequence().entropy % 2**63
        self.seed = seed
        self.draws = 0

    def semantic(self, prompt, units):
        """Continues semantic tokens to `units`.

        Args:
            prompt: `(batch, frames)` int32, maybe without frames.
            units: int. Length of the result.

        Returns:
            `(batch, units * unit[0])` int32.
        """
        self.progress("semantic tokens")
        step = self.unit[0]
        known = prompt[..., None]

        def extend(start, stop):
            return self._sample(
                "semantic",
                self.semantic_lm,
                {"semantic": known[:, start * step : stop * step]},
                (stop - start) * step,
            )

        for start, stop in self._windows(
            self.semantic_lm, known.shape[1] // step, units
        ):
            made = extend(start, stop)
            known = np.concatenate([known[:, : start * step], made], axis=1)
        return known[:, : units * step, 0]

    def coarse(self, semantic, prompt, units):
        """Continues the coarse levels, given all semantic tokens.

        Args:
            semantic: `(batch, units * unit[0])` int32.
            prompt: `(batch, frames, levels)` int32, maybe without frames.
            units: int. Length of the result.

        Returns:
            `(batch, units * unit[1], levels)` int32.
        """
        self.progress("coarse acoustic tokens")
        s, a = self.unit
        known = prompt
        for start, stop in self._windows(
            self.coarse_lm, known.shape[1] // a, units
        ):
            made = self._sample(
                "coarse",
                self.coarse_lm,
                {
                    "semantic": semantic[:, start * s : stop * s, None],
                    "coarse": known[:, start * a : stop * a],
                },
                (stop - start) * a,
            )
            known = np.concatenate([known[:, : start * a], made], axis=1)
        return known[:, : units * a]

    def fine(self, coarse):
        """The fine levels of coarse tokens, in chunks that run as one batch.

        Args:
            coarse: `(batch, frames, levels)` int32.

        Returns:
            `(batch, frames, fine levels)` int32.
        """
        self.progress("fine acoustic tokens")
        lm = self.fine_lm
        chunk = lm.window_frames(lm.layout.predicted)
        batch, frames, levels = coarse.shape
        chunks = math.ceil(frames / chunk)
        padded = np.full((batch, chunks * chunk, levels), -1, "int32")
        padded[:, :frames] = coarse
        made = self._sample(
            "fine",
            lm,
            {"coarse": padded.reshape(batch * chunks, chunk, levels)},
            chunk,
        )
        made = made.reshape(batch, chunks * chunk, -1)
        return made[:, :frames]

    def _windows(self, lm, known, units):
        """The `(start, stop)` units of each call that a stretch takes.

        A stretch that fits the stage's window takes one; a longer one goes on
        in windows that share their first seconds with what is known.
        """
        window = max(round(lm.crop_duration / self.unit_duration), 2)
        overlap = round(WINDOW_OVERLAP / self.unit_duration)
        overlap = min(overlap, window // 2)
        while known < units:
            start = 0 if units <= window else max(0, known - overlap)
            stop = min(start + window, units)
            yield start, stop
            known = stop

    def _sample(self, stage, lm, codes, frames):
        self.draws += 1
        return lm.generate(
            codes,
            frames,
            **self.sampling[stage],
            seed=(self.seed, self.draws),
        )
