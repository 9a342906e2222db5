"""Code after code, with caches that grow as they fill."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.language_model.layout import PADDING
from keras_audiolm.language_model.sampling import (
    check_scores,
    draw,
    gumbel_noise,
    row_generators,
)
from keras_audiolm.layers.compiled import (
    CompiledFunction,
    host_numbers,
    padded_frames,
    repeat,
)

# Tokens of the smallest cache. The next ones are twice as long, so that a
# step attends to little more than what is there, and few programs compile.
SMALLEST_CACHE = 256
# Codes of one call of the compiled loop, which bounds the noise in memory.
MAX_STEPS = 256


def cache_length(tokens):
    """The length of the cache for so many tokens."""
    length = SMALLEST_CACHE
    while length < tokens:
        length *= 2
    return length


class Decoder:
    """Continues the predicted segment of a `StageLM`.

    Every row of a batch ends at the same place: what it lacks of the longest
    prompt stands before its first token, where it is never attended to. The
    distances between tokens are those of the row alone, so that its codes
    are, too.

    Args:
        lm: `StageLM`.
    """

    def __init__(self, lm):
        self.lm = lm
        self._start = CompiledFunction(lm, self._read)
        self._go_on = CompiledFunction(lm, self._loop, jit_compile=True)

    @property
    def num_traces(self):
        return self._start.num_traces + self._go_on.num_traces

    def __call__(self, codes, num_frames, sampling, seed, may_end=False):
        """New codes after those of a prompt.

        Args:
            codes: dictionary of NumPy int32 `(batch, frames, levels)` of
                every segment; prompts may begin with -1.
            num_frames: int. New frames.
            sampling: `Sampling`.
            seed: int, tuple of int or `None`.
            may_end: bool. Whether rows may end.

        Returns:
            NumPy int32 `(batch, num_frames, levels)`, -1 from where a row has
            ended, and float32 `(batch,)`, the log-likelihood of all new codes
            in nats, as the model gives it: at a temperature of 1, nothing cut
            off.

        Raises:
            ValueError: if the logits are not finite.
        """
        segment = self.lm.layout.predicted
        codes = {**codes, segment.name: with_room(codes[segment.name])}
        length = self.lm.layout.length(
            [codes[s.name].shape[1] for s in self.lm.layout.segments]
        )
        prompt_steps = codes[segment.name].shape[1] * segment.levels
        used = codes_used(codes[segment.name], segment.num_codes)
        generators = row_generators(len(used), seed)

        total = num_frames * segment.levels
        state = self._start(codes, cache_length=cache_length(length + 1))
        state["used"] = used if sampling.penalised else used[:, :, :0]
        state["log_likelihood"] = np.zeros(len(used), "float32")
        state["ended"] = np.zeros(len(used), "bool")
        made = np.full((len(used), total), PADDING, "int32")
        done = 0
        while done < total and not np.all(state["ended"]):
            # The token at `length - 1` predicts the first new code.
            room = state["mask"].shape[1] - (length - 1 + done)
            if room < 1:
                state = grown(state, cache_length(length + done))
                continue
            steps = min(total - done, room, MAX_STEPS)
            noise = np.zeros(
                (len(used), MAX_STEPS, segment.num_codes), "float32"
            )
            noise[:, :steps] = gumbel_noise(
                generators, steps, segment.num_codes
            )
            part, state = self._go_on(
                state,
                noise,
                {
                    "index": np.int32(length - 1 + done),
                    "step": np.int32(prompt_steps + done),
                    "steps": np.int32(steps),
                },
                sampling.numbers(segment.num_codes),
                truncated=sampling.truncated,
                penalised=sampling.penalised,
                may_end=may_end,
            )
            part = ops.convert_to_numpy(part)
            made[:, done : done + steps] = part[:, :steps]
            state["ended"] = ops.convert_to_numpy(state["ended"])
            done += steps
            score = ops.convert_to_numpy(state["log_likelihood"])
            check_scores(score, self.lm)
        return made.reshape(-1, num_frames, segment.levels), score

    # === Compiled ===

    def _read(self, codes, cache_length):
        """The caches after all that is known.

        Returns:
            A dictionary: `caches`, a list of keys and values, each `(batch,
            heads, cache_length, head_dim)`; `mask` `(batch, cache_length)`,
            false where nothing stands; `token` and `time`, `(batch, 1)`, the
            last token and when it sounds; `absent` `(batch,)`, the frames
            that a row's prompt is shorter than the longest.
        """
        layout, backbone = self.lm.layout, self.lm.backbone
        segment = layout.predicted
        frames = [codes[s.name].shape[1] for s in layout.segments]
        token_ids = layout.flatten(codes)
        times = ops.convert_to_tensor(layout.times(frames))[None]
        length = token_ids.shape[1]

        absent = ops.sum(
            ops.cast(codes[segment.name][:, :, 0] == PADDING, "int32"), axis=1
        )
        shift = absent[:, None] * segment.levels  # (batch, 1)
        opened = length - frames[-1] * segment.levels  # before the prompt
        place = ops.arange(length)[None]
        later = place >= opened + shift  # in the prompt
        source = ops.where(later, place, ops.maximum(place - shift, 0))
        nothing = place < shift
        token_ids = ops.take_along_axis(token_ids, source, axis=1)
        token_ids = ops.where(nothing, layout.pad_id, token_ids)
        times = ops.take_along_axis(
            ops.broadcast_to(times, token_ids.shape), source, axis=1
        )
        away = ops.cast(absent[:, None], "float32")
        times = times - ops.where(later, away, 0.0)

        caches = backbone.prefill(token_ids, times)
        state = {
            "caches": caches,
            "mask": token_ids != layout.pad_id,
            "token": token_ids[:, -1:],
            "time": times[:, -1:],
            "absent": absent,
        }
        return grown(state, cache_length)

    def _loop(
        self, state, noise, span, sampling, truncated, penalised, may_end
    ):
        """Up to `MAX_STEPS` codes.

        Args:
            state: from `_read`; `used` `(batch, levels, num_codes)`;
                `log_likelihood` `(batch,)`; `ended` `(batch,)` bool.
            noise: `(batch, MAX_STEPS, num_codes)` float32 Gumbel.
            span: dictionary of int32 scalars: the `index` of the state's
                token in the sequence, the `step` in the predicted segment
                that comes after it, and how many `steps` are taken.
            sampling: from `Sampling.numbers`.

        Returns:
            `(batch, MAX_STEPS)` int32 codes, and the new state.
        """
        segment = self.lm.layout.predicted
        offsets = ops.convert_to_tensor(self.lm.layout.offsets(segment.name))
        distances = self.lm.backbone.distance_bias(state["mask"].shape[1])
        absent = ops.cast(state["absent"][:, None], "float32")
        span = host_numbers(span)

        def add_code(done, codes, token, time, caches, used, score, ended):
            hidden, caches = self.lm.backbone.step(
                token,
                caches,
                span["index"] + done,
                state["mask"],
                distances,
                time,
            )
            step = span["step"] + done
            level = step % segment.levels
            logits = self.lm.logits_at(hidden, level)
            scores = logits
            if segment.ends and not may_end:
                end = ops.arange(segment.num_codes) == segment.end_code
                scores = ops.where(end, float("-inf"), scores)
            if penalised:
                before = ops.take(used, level, axis=1)
                scores = scores - sampling["penalty"] * before
            code = draw(
                scores, ops.take(noise, done, axis=1), sampling, truncated
            )[:, None]  # (batch, 1)
            chosen = ops.take_along_axis(logits, code, axis=1)[:, 0]
            gain = chosen - ops.logsumexp(logits, axis=1)
            if may_end:
                gain = ops.where(ended, 0.0, gain)
                ended = ops.logical_or(ended, code[:, 0] == segment.end_code)
            score = score + gain
            if penalised:
                now = ops.one_hot(code, segment.num_codes)
                used = ops.slice_update(
                    used, (0, level, 0), ops.maximum(now, before[:, None])
                )
            shown = code
            if may_end:
                shown = ops.where(ended[:, None], PADDING, code)
            codes = ops.slice_update(codes, (0, done), shown)
            token = code + ops.take(offsets, level)
            time = ops.cast(step, "float32") / segment.levels - absent
            return codes, token, time, caches, used, score, ended

        codes, token, time, caches, used, score, ended = repeat(
            span["steps"],
            add_code,
            (
                ops.zeros(noise.shape[:2], "int32"),
                state["token"],
                state["time"],
                state["caches"],
                state["used"],
                state["log_likelihood"],
                state["ended"],
            ),
        )
        after = {
            "caches": caches,
            "token": token,
            "time": time,
            "used": used,
            "log_likelihood": score,
            "ended": ended,
        }
        return codes, {**state, **after}


def with_room(prompt):
    """A prompt with frames of -1 before it, up to one of few lengths, none of
    which is zero: what is known is never a single token."""
    frames = prompt.shape[1]
    missing = padded_frames(frames) - frames if frames else 1
    return np.pad(
        prompt, [(0, 0), (missing, 0), (0, 0)], constant_values=PADDING
    )


def codes_used(codes, num_codes):
    """1 where a row has a code, `(batch, levels, num_codes)` float32."""
    used = np.zeros((len(codes), codes.shape[2], num_codes + 1), "float32")
    rows = np.arange(len(codes))[:, None, None]
    levels = np.arange(codes.shape[2])
    used[rows, levels, codes] = 1  # -1 is the last
    return used[:, :, :-1]


def grown(state, length):
    """A state whose caches have room for `length` tokens."""
    there = state["mask"].shape[1]
    missing = length - there

    def pad(cache):
        return ops.pad(cache, [[0, 0], [0, 0], [0, missing], [0, 0]])

    mask = ops.pad(state["mask"], [[0, 0], [0, missing]], constant_values=True)
    caches = keras.tree.map_structure(pad, state["caches"])
    return {**state, "caches": caches, "mask": mask}
