"""The cascade: semantic, coarse and fine tokens one after the other.

Time is counted in units here: the shortest stretch that holds whole semantic
and whole acoustic frames (40 ms at the paper's rates).
"""

import dataclasses
import math
from collections import namedtuple

import numpy as np

from keras_audiolm.language_model.layout import (
    PADDING,
    absent_frames,
    from_start,
    without_repeats,
)
from keras_audiolm.language_model.sampling import Sampling

Tokens = namedtuple("Tokens", ["semantic", "acoustic"])

# What makes acoustic tokens, and the parts of a pipeline that it takes by
# stage. A fine stage that is not there is left out.
ACOUSTIC_DECODERS = {
    "cascade": {"coarse": "coarse_lm", "fine": "fine_lm"},
    "coarse": {"coarse": "coarse_lm"},
    "parallel": {"parallel": "parallel_decoder"},
}

# The paper's, section IV-B. The parallel decoder is a coarse stage of all
# levels.
TEMPERATURES = {"semantic": 0.6, "coarse": 0.8, "fine": 0.6, "parallel": 0.8}
# Seconds that a window shares with what stands before it. Chunks of the fine
# stage share nothing, so that they run as one batch.
OVERLAPS = {"semantic": 3.0, "coarse": 3.0, "fine": 0.0, "parallel": 3.0}


def one_a_stage(name, value):
    """A setting as a dictionary by stage.

    Args:
        name: str, for the message.
        value: one for all stages, or a dictionary for some. What is `None`
            is left out.

    Raises:
        ValueError: on a stage that does not exist.
    """
    if not isinstance(value, dict):
        value = dict.fromkeys(TEMPERATURES, value)
    for stage in value:
        if stage not in TEMPERATURES:
            raise ValueError(
                f"`{name}` names a stage {stage!r}. Stages are "
                f"{', '.join(TEMPERATURES)}."
            )
    return {stage: one for stage, one in value.items() if one is not None}


def by_stage(settings, defaults=()):
    """Settings of `Sampling` as each stage takes them.

    Args:
        settings: dictionary by name (`temperature`, ...) of a value for all
            stages, or of a dictionary for some.
        defaults: the same, of what `settings` does not say.

    Returns:
        Dictionary by stage of dictionaries by name.

    Raises:
        TypeError: on a name that does not exist.
        ValueError: on a stage that does not exist.
    """
    names = [field.name for field in dataclasses.fields(Sampling)]
    stages = {stage: {"temperature": t} for stage, t in TEMPERATURES.items()}
    for name, value in (*dict(defaults).items(), *settings.items()):
        if name not in names:
            raise TypeError(
                f"There is no argument {name!r} of generation. Those of "
                f"sampling are {', '.join(names)}."
            )
        for stage, one in one_a_stage(name, value).items():
            stages[stage][name] = one
    for settings in stages.values():
        Sampling(**settings)  # refuses values that mean nothing
    return stages


def check_stages(settings, stages):
    """Raises `ValueError` on settings for a stage that has no part in it.

    Args:
        settings: as of `by_stage`.
        stages: the names of those that have.
    """
    for name, value in settings.items():
        given = value if isinstance(value, dict) else ()
        for stage in TEMPERATURES:
            if stage in given and stage not in stages:
                raise ValueError(
                    f"`{name}` is given for the stage {stage!r}, which has no "
                    f"part in this: the stages are {', '.join(stages)}. Give "
                    "it for these, or choose another `acoustic_decoder`."
                )


def check_decoder(name):
    """Raises `ValueError` if there is no such acoustic decoder."""
    if name not in ACOUSTIC_DECODERS:
        raise ValueError(
            "`acoustic_decoder` must be one of "
            f"{', '.join(map(repr, ACOUSTIC_DECODERS))}. Received: {name!r}"
        )


def split_decoder(settings):
    """The `acoustic_decoder` of a dictionary, `"cascade"` where it has none,
    and the rest of it, for `by_stage`."""
    settings = dict(settings)
    return settings.pop("acoustic_decoder", "cascade"), settings


class Cascade:
    """Samples the tokens of a stretch of time, stage by stage.

    Args:
        stages: dictionary of the models by stage: `"semantic"`, `"coarse"`
            and maybe `"fine"`, or `"semantic"` and `"parallel"`, which is
            a coarse stage of all levels.
        unit: `(semantic frames, acoustic frames)` of a unit.
        unit_duration: float. Seconds of a unit.
        sampling: dictionary by stage of dictionaries of what
            `StageLM.generate` takes.
        overlap: seconds that a window shares with what stands before it: one
            number, or a dictionary by stage. Defaults to `OVERLAPS`, or half
            a window where that is less.
        seed: int or `None`.
        stop_at_end: bool. Whether a row is over where the semantic stage
            says so.

    Raises:
        ValueError: on an overlap that leaves no room in a window, or a seed
            below zero.

    `progress` is called with what is done next. `log_likelihood`, `(batch,)`,
    is that of everything sampled so far, in nats. `ends`, `(batch,)`, is
    where each row is over, in units and parts of them, as far as that is known
    yet; infinity where it is not.
    """

    def __init__(
        self,
        stages,
        unit,
        unit_duration,
        sampling,
        overlap=None,
        seed=None,
        stop_at_end=False,
    ):
        self.stages = stages
        self.coarse = "parallel" if "parallel" in stages else "coarse"
        self.unit = unit
        self.unit_duration = unit_duration
        if stop_at_end:
            semantic = {**sampling["semantic"], "may_end": True}
            sampling = {**sampling, "semantic": semantic}
        self.sampling = sampling
        self.overlaps = self._overlaps(overlap)
        self.progress = lambda message: None
        if seed is not None and seed < 0:
            raise ValueError(f"`seed` must be zero or more. Received: {seed}")
        if seed is None:
            seed = np.random.SeedSequence().entropy % 2**63
        self.seed = seed
        self.draws = 0
        self.log_likelihood = 0.0
        self.ends = np.zeros(0)

    @property
    def levels(self):
        """Levels of the codec that it fills in, from the first on."""
        return sum(
            lm.layout.predicted.levels
            for stage, lm in self.stages.items()
            if stage != "semantic"
        )

    def continuation(self, prompt, units):
        """What follows a prompt, a window of the coarse stage at a time.

        Each stage goes no further than the next one needs, and what no
        window will see again is forgotten: memory does not grow with time.

        Args:
            prompt: `Tokens` of whole units, maybe of none. Semantic tokens
                may go on after the acoustic ones; they are then kept. Of
                prompts of different lengths the shorter ones begin with -1.
            units: int, or infinity. Where it ends, prompt included, at most.

        Yields:
            `Tokens` of new units, `(batch, frames)` and `(batch, frames,
            levels)` int32. Of a row that is over, the semantic ones are -1
            and the others mean nothing.
        """
        self.ends = np.full(len(prompt.semantic), math.inf)
        layout = self.stages[self.coarse].layout
        levels = layout.predicted.levels
        semantic = Track(prompt.semantic[..., None], self.unit[0])
        coarse = Track(prompt.acoustic[..., :levels], self.unit[1])
        fine = Track(prompt.acoustic[..., levels:], self.unit[1])
        while coarse.end < units:
            known = coarse.end
            start, stop = self.window(self.coarse, known, units)
            while semantic.end < stop:
                self.progress("semantic tokens")
                self._say(semantic, units)
                units = min(units, self.ends.max())
                units = units if units == math.inf else math.ceil(units)
                start, stop = self.window(self.coarse, known, units)
            if stop <= known:
                return
            self.progress("coarse acoustic tokens")
            said = semantic.between(start, stop)
            if layout.segments[0].deduplicated:
                said = without_repeats(said)
            told = {"semantic": from_start(said)}
            self._extend(self.coarse, coarse, start, stop, told)
            tracks = [coarse]
            if "fine" in self.stages:
                self.progress("fine acoustic tokens")
                self._refine(coarse, fine, units)
                tracks.append(fine)
            acoustic = [track.between(known, stop) for track in tracks]
            yield Tokens(
                semantic.between(known, stop)[..., 0],
                np.concatenate(acoustic, axis=-1),
            )
            # No later window begins before that of `stop`.
            starts = {
                stage: self.window(stage, stop, units)[0]
                for stage in self.stages
            }
            fine.forget(starts.get("fine", stop))
            coarse.forget(min(starts[self.coarse], starts.get("fine", stop)))
            again = self.window("semantic", semantic.end, units)[0]
            semantic.forget(min(starts[self.coarse], again))

    def _window_units(self, stage):
        duration = self.stages[stage].crop_duration
        return max(round(duration / self.unit_duration), 2)

    def _overlaps(self, overlap):
        """Units by stage that a window shares with what stands before it."""
        given = one_a_stage("overlap", overlap)
        units = {}
        for stage, lm in self.stages.items():
            window = self._window_units(stage)
            seconds = given.get(stage, OVERLAPS[stage])
            if not 0 <= seconds < math.inf:
                raise ValueError(
                    "`overlap` must be a number of seconds, zero or more. "
                    f"Received: {seconds} for the {stage} stage"
                )
            units[stage] = round(seconds / self.unit_duration)
            if stage not in given:
                units[stage] = min(units[stage], window // 2)
            if units[stage] >= window:
                raise ValueError(
                    f"An overlap of {seconds} seconds leaves no room in a "
                    f"window of the {stage} stage, which lasts "
                    f"{lm.crop_duration} seconds. Give a shorter one, like "
                    f"overlap={{{stage!r}: {window // 2 * self.unit_duration}}}"
                )
        return units

    def window(self, stage, known, units):
        """The units that a stage's next call spans, from `start` to `stop`.

        A stretch that fits the stage's window takes one; a longer one goes on
        in windows that share their first seconds with what is known.
        """
        window = self._window_units(stage)
        if units <= window:
            return 0, units
        start = max(0, known - self.overlaps[stage])
        return start, min(start + window, units)

    def _say(self, track, units):
        """Samples one window of the semantic stage.

        The tokens of a de-duplicated stage are taken to last as long as each
        other, which is how long they do in its corpus: `Track`s are of frames.
        """
        lm, known = self.stages["semantic"], track.end
        segment = lm.layout.predicted
        start, stop = self.window("semantic", known, units)
        over = self.ends < math.inf
        prompt = track.between(start, known)
        # What a row that is over goes on with does not matter.
        prompt = np.where(
            over[:, None, None], np.maximum(prompt, 0), prompt
        ).astype("int32")
        frames = tokens = (stop - known) * track.step
        if segment.deduplicated:
            prompt = without_repeats(prompt)
            tokens = math.ceil(frames / float(lm.frames_per_token))
        length = prompt.shape[1]
        made = self._sample(
            "semantic", lm, {segment.name: prompt}, length + tokens, len(prompt)
        )[:, length:]
        made = made[:, np.arange(frames) * tokens // frames]
        made[over] = PADDING
        track.append(made)
        done = made[..., 0] == PADDING
        over = done.any(axis=1) & ~over
        self.ends[over] = known + done.argmax(axis=1)[over] / track.step

    def _extend(self, stage, track, start, stop, told=None):
        """Samples one window of a stage."""
        lm = self.stages[stage]
        prompt = track.between(start, track.end)
        codes = {**(told or {}), lm.layout.predicted.name: prompt}
        frames = (stop - start) * track.step
        made = self._sample(stage, lm, codes, frames, len(prompt))
        track.append(made[:, prompt.shape[1] :])

    def _refine(self, coarse, fine, units):
        """Samples the fine levels of the coarse tokens that have none."""
        if not self.overlaps["fine"]:
            fine.append(self._fine_chunks(coarse.between(fine.end, coarse.end)))
        while fine.end < coarse.end:
            start, stop = self.window("fine", fine.end, units)
            start = max(start, fine.start)  # an end may be found late
            stop = min(stop, coarse.end)
            told = {"coarse": from_start(coarse.between(start, stop))}
            self._extend("fine", fine, start, stop, told)

    def _fine_chunks(self, coarse):
        """The fine levels of coarse tokens, in chunks that run as one batch.

        Args:
            coarse: `(batch, frames, levels)` int32.

        Returns:
            `(batch, frames, fine levels)` int32.
        """
        lm = self.stages["fine"]
        chunk = lm.layout.predicted.frames_in(lm.crop_duration)
        batch, frames, levels = coarse.shape
        chunks = math.ceil(frames / chunk)
        padded = np.full((batch, chunks * chunk, levels), PADDING, "int32")
        padded[:, :frames] = coarse
        made = self._sample(
            "fine",
            lm,
            {"coarse": padded.reshape(batch * chunks, chunk, levels)},
            chunk,
            batch,
        )
        made = made.reshape(batch, chunks * chunk, -1)
        return made[:, :frames]

    def _sample(self, stage, lm, codes, frames, batch):
        self.draws += 1
        made, scores = lm.generate(
            codes,
            frames,
            seed=(self.seed, self.draws),
            return_scores=True,
            **self.sampling[stage],
        )
        self.log_likelihood += scores.reshape(batch, -1).sum(axis=1)
        return made


class Track:
    """The codes of a stretch of time, from `start` to `end` units.

    Args:
        codes: `(batch, frames, levels)` int32, whole units.
        step: int. Frames of a unit.
    """

    def __init__(self, codes, step):
        self.codes = codes
        self.step = step
        self.start = 0

    @property
    def end(self):
        return self.start + self.codes.shape[1] // self.step

    def between(self, start, stop):
        """The codes of the units `start .. stop`, those there are of them."""
        first, last = (
            (unit - self.start) * self.step for unit in (start, stop)
        )
        return self.codes[:, first:last]

    def append(self, codes):
        self.codes = np.concatenate([self.codes, codes], axis=1)

    def forget(self, unit):
        """Keeps what stands at `unit` and after."""
        unit = max(unit, self.start)
        self.codes = self.between(unit, self.end)
        self.start = unit


class Player:
    """Turns tokens to audio piece by piece, without a seam.

    A codec that cannot stream decodes each piece among its neighbours: a second
    before it is decoded again, and the last second is held back until the next
    piece is there.

    Args:
        codec: any codec.
        prompt: acoustic tokens `(batch, frames, levels)` int32 that stand
            before the first piece, -1 where shorter rows have none.
    """

    def __init__(self, codec, prompt):
        self.codec = codec
        self.prompt = prompt
        absent = absent_frames(prompt)
        # Rows of one length run together: a decoder that starts has heard
        # nothing, which is not the same as tokens that are not there.
        self.groups = [
            (np.flatnonzero(absent == count), count)
            for count in np.unique(absent)
        ]
        self.states = [None] * len(self.groups)

    def play(self, acoustic, last):
        """The audio of the next tokens.

        Args:
            acoustic: `(batch, frames, levels)` int32.
            last: bool. Whether nothing follows.

        Returns:
            `(batch, samples)` float32, without the prompt. What is not the
            last comes `codec.delay` samples late, of a codec that cannot
            stream a second.
        """
        audio = {}
        for group, (rows, absent) in enumerate(self.groups):
            codes, state = acoustic[rows], self.states[group]
            if state is None:
                prompt = self.prompt[rows, absent:]
                part, state = self._begin(prompt, codes, last)
            else:
                part, state = self._go_on(codes, state, last)
            self.states[group] = state
            audio.update(zip(rows.tolist(), part, strict=True))
        return np.stack([audio[row] for row in range(len(acoustic))])

    def finish(self):
        """What `play` still holds back, where its last tokens were not said
        to be the last: `(batch, samples)` float32."""
        audio = {}
        for (rows, _), state in zip(self.groups, self.states, strict=True):
            if self.codec.can_stream:
                state, ahead = state
                rest = self.codec.flush(state)[:, ahead:]
            else:
                rest, _ = self._decode_among(state, last=True)
            audio.update(zip(rows.tolist(), rest, strict=True))
        return np.stack([audio[row] for row in range(len(audio))])

    def _begin(self, prompt, codes, last):
        known = prompt.shape[1] * self.codec.hop_length
        codes = np.concatenate([prompt, codes], axis=1)
        if last:
            return self.codec.decode(codes)[:, known:], None
        if not self.codec.can_stream:
            return self._decode_among((codes, prompt.shape[1]), last)
        state = self.codec.init_state(len(codes)), known + self.codec.delay
        return self._decode_step(codes, state, last)

    def _go_on(self, codes, state, last):
        if not self.codec.can_stream:
            before, played = state
            codes = np.concatenate([before, codes], axis=1)
            return self._decode_among((codes, played), last)
        return self._decode_step(codes, state, last)

    def _decode_step(self, codes, state, last):
        """The next audio of a stream.

        Args:
            state: the codec's, and how many samples come ahead of the first
                that are to be heard.

        Returns:
            Audio, and the state after it.
        """
        state, ahead = state
        audio, state = self.codec.decode_step(codes, state)
        if last:
            rest = self.codec.flush(state)
            audio = np.concatenate([audio, rest], axis=1)
        return audio[:, ahead:], (state, max(ahead - audio.shape[1], 0))

    def _decode_among(self, state, last):
        """The next audio of codes of which a number of frames was played.

        Args:
            state: these codes `(batch, frames, levels)`, and that number.
            last: bool. Whether nothing is to be held back.

        Returns:
            Audio, and the state after it: the codes that the next piece needs
            beside its own.
        """
        codes, played = state
        hop = self.codec.hop_length
        second = round(self.codec.sample_rate / hop)  # frames
        stop = codes.shape[1] - (0 if last else second)
        stop = max(stop, played)
        audio = self.codec.decode(codes)[:, played * hop : stop * hop]
        start = max(stop - second, 0)
        start -= start % self.codec.window_step
        return audio, (codes[:, start:], stop - start)
