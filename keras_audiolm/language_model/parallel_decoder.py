"""All acoustic tokens of a stretch of time at once, in a few passes."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.language_model.layout import (
    PADDING,
    TokenLayout,
    absent_frames,
)
from keras_audiolm.language_model.sampling import (
    Sampling,
    check_scores,
    draw,
    gumbel_noise,
    row_generators,
)
from keras_audiolm.layers.compiled import CompiledFunction, padded_frames
from keras_audiolm.layers.conformer import ConformerBlock, conformer_layouts
from keras_audiolm.layers.distribution import (
    ShardedModel,
    refuse_replicas,
)
from keras_audiolm.layers.initializers import RandomNormal
from keras_audiolm.layers.remat import recomputed

# Passes of the first level; each of the others takes one.
FIRST_PASSES = 16


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ParallelDecoder(ShardedModel, keras.Model):
    """SoundStorm: a bidirectional Conformer that fills in acoustic tokens.

    It stands in for the coarse and the fine stage. A frame is one position,
    whatever its levels: the sum of their embeddings and of the semantic
    token's of that time. In training a random level is masked in part and
    all finer ones whole, and what is masked of the level is predicted. In
    generation level after level is filled in, the first one in several
    passes that each keep what the model is surest of. Unlike SoundStorm's,
    the other levels are drawn, too: the likeliest codes come out too loud.

    Args:
        layout: `TokenLayout.coarse` whose second segment has all levels of
            the codec. Semantic tokens are aligned with frames, not
            de-duplicated.
        num_layers, num_heads, hidden_dim, intermediate_dim: ints. Default to
            SoundStorm's 12, 16, 1024 and 4096.
        kernel_size: int, odd. Of the convolutions. Defaults to `5`.
        dropout: float. Defaults to `0.1`.
        crop_duration: float. Seconds of the training crops, and of the
            windows of generation.
        seed: int. Of weights, dropout and masks.

    Call arguments:
        codes: dictionary of int32 `(batch, frames, levels)` by segment name.
        training: bool. Whether masks are drawn anew each time; otherwise a
            batch always gets the same ones.

    Returns:
        A dictionary: `logits` `(batch, frames, codebook_size)` float32 of one
        level in each row, their `target` `(batch, frames)` int32, and
        `masked` `(batch, frames)` float32, 1 where the target was hidden.

    Attributes:
        remat: bool. Whether training recomputes the activations of the blocks
            in the backward pass, to save memory.

    Example:

    ```python
    layout = keras_audiolm.TokenLayout.coarse(1024, 12, 1024, 25.0, 50.0)
    decoder = keras_audiolm.ParallelDecoder(layout, num_layers=4)
    decoder.compile("adamw")
    decoder.fit(token_crops)
    codes = decoder.generate({"semantic": z}, num_frames=500, seed=0)
    ```

    Reference:
     - [SoundStorm, section 3](https://arxiv.org/abs/2305.09636)
     - [MaskGIT, section 3.2](https://arxiv.org/abs/2202.04200)
    """

    def __init__(
        self,
        layout,
        num_layers=12,
        num_heads=16,
        hidden_dim=1024,
        intermediate_dim=4096,
        kernel_size=5,
        dropout=0.1,
        crop_duration=30.0,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(layout.segments) != 2:
            raise ValueError(
                "The layout must have two segments, what is told and what is "
                "predicted, as TokenLayout.coarse. Received: "
                f"{[s.name for s in layout.segments]}"
            )

        if layout.segments[0].deduplicated or layout.predicted.ends:
            raise ValueError(
                "The parallel decoder needs semantic tokens that are aligned "
                "with frames, and has no end. Received: a layout of "
                f"{layout.segments}. Make it without `deduplicated` and `ends`."
            )

        # === Layers ===
        self.blocks = [
            ConformerBlock(
                num_heads,
                intermediate_dim,
                kernel_size,
                dropout,
                seed=seed + i,
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.accuracy = keras.metrics.Mean(name="accuracy")

        self.remat = False

        # === Config ===
        self.layout = layout
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.crop_duration = crop_duration
        self.seed = seed
        self._pass = CompiledFunction(self, self._fill_once)

    def build(self, input_shape=None):
        if self.built:
            return
        told, segment = self.layout.segments
        dim = self.hidden_dim

        def embedding(name, *shape, stddev=1.0):
            return self.add_weight(
                name=name,
                shape=(*shape, dim),
                initializer=RandomNormal(stddev, seed=self.seed),
            )

        self.told_embedding = embedding(
            "told_embedding", told.codebook_size + 1
        )
        # The last entry of a level stands for a mask.
        self.code_embedding = embedding(
            "code_embedding",
            segment.levels,
            segment.codebook_size + 1,
            stddev=segment.levels**-0.5,
        )
        self.head = embedding(
            "head", segment.levels, segment.codebook_size, stddev=dim**-0.5
        )
        for block in self.blocks:
            block.build((None, None, dim))
        self.built = True

    # === Training ===

    def call(self, codes, training=False):
        told, segment = self.layout.segments
        target = ops.cast(codes[segment.name], "int32")
        seed = self.seed_generator if training else self.seed
        # TensorFlow knows the batch size when it runs.
        size = ops.shape(target)[0], target.shape[1]
        level, masked = self.draw_masks(*size, seed)
        levels = ops.arange(segment.levels)
        finer = levels[None] > level[:, None]  # (batch, levels)
        after = masked["after"][..., None]
        here = levels[None, None] == level[:, None, None]
        hidden_codes = ops.logical_or(
            ops.logical_and(finer[:, None], after),
            ops.logical_and(here, masked["level"][..., None]),
        )
        there = target[..., 0] != PADDING
        x = self._hidden(
            codes[told.name], target, hidden_codes, there, training
        )
        chosen = ops.take_along_axis(target, level[:, None, None], axis=2)
        counted = ops.logical_and(masked["level"], there)
        return {
            "logits": self._logits(x, level),
            "target": chosen[..., 0],
            "masked": ops.cast(counted, "float32"),
        }

    def draw_masks(self, batch, frames, seed):
        """What is hidden in training.

        Returns:
            `level` `(batch,)` int32, and a dictionary of `(batch, frames)`
            bools: `after`, where the prompt is over, and `level`, what is
            hidden there of that level, a part `cos(u)` with `u` uniform.
        """

        def uniform(*shape):
            nonlocal seed
            if isinstance(seed, int):
                seed += 1
            return keras.random.uniform(shape, seed=seed)

        def below(size):
            drawn = ops.cast(uniform(batch) * size, "int32")
            return ops.minimum(drawn, size - 1)

        level = below(self.layout.predicted.levels)
        start = below(frames)[:, None]
        part = ops.cos(uniform(batch, 1) * (math.pi / 2))
        after = ops.arange(frames)[None] >= start
        hidden = ops.logical_and(after, uniform(batch, frames) < part)
        return level, {"after": after, "level": hidden}

    def _hidden(self, told_codes, codes, hidden_codes, there, training=False):
        """`(batch, frames, hidden_dim)` of what is seen.

        Args:
            told_codes: `(batch, told frames, 1)` int32.
            codes: `(batch, frames, levels)` int32.
            hidden_codes: bool of that shape.
            there: `(batch, frames)` bool, false at padding.
        """
        told, segment = self.layout.segments
        size = segment.codebook_size
        rate = told.frame_rate / segment.frame_rate
        frames = codes.shape[1]
        moment = (np.arange(frames) * rate + 1e-6).astype("int32")
        moment = np.minimum(moment, told_codes.shape[1] - 1)
        aligned = ops.take(told_codes[..., 0], moment, axis=1)
        aligned = ops.where(aligned == PADDING, told.codebook_size, aligned)
        x = ops.take(self.told_embedding, aligned, axis=0)
        ids = ops.where(hidden_codes, size, ops.maximum(codes, 0))
        for level in range(segment.levels):
            x = x + ops.take(
                self.code_embedding[level], ids[..., level], axis=0
            )
        x = ops.cast(x, self.compute_dtype)
        for block in self.blocks:
            if self.remat and training:
                x = recomputed(block, x, there, training=True)
            else:
                x = block(x, padding_mask=there, training=training)
        return x

    def _logits(self, x, level):
        """Of one level for each row, `(batch, frames, codebook_size)`."""
        head = ops.take(ops.cast(self.head, x.dtype), level, axis=0)
        logits = ops.einsum("bfd,bnd->bfn", x, head)
        return ops.cast(logits, "float32")

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Cross entropy in nats of the tokens that were hidden."""
        refuse_replicas()
        masked, target = y_pred["masked"], ops.maximum(y_pred["target"], 0)
        count = ops.maximum(ops.sum(masked), 1.0)
        losses = keras.losses.sparse_categorical_crossentropy(
            target, y_pred["logits"], from_logits=True
        )
        right = ops.argmax(y_pred["logits"], axis=-1) == target
        right = ops.sum(ops.cast(right, "float32") * masked)
        self.accuracy.update_state(right / count, sample_weight=count)
        return ops.sum(losses * masked) / count

    # === Generation ===

    def generate(
        self, codes, num_frames, seed=None, return_scores=False, **sampling
    ):
        """Samples what a prompt lacks, `FIRST_PASSES + levels - 1` passes.

        Args:
            codes: dictionary of NumPy int `(batch, frames, levels)`: what it
                is told, and maybe a prompt. Prompts of different lengths end
                together, with -1 before the shorter ones; what is told of
                each row begins where its prompt does.
            num_frames: int. Frames in the result, prompt included.
            seed: int or tuple of int, optional.
            return_scores: bool. Whether to return the log-likelihood of what
                is new as well.
            **sampling: as of `Sampling`, without `repetition_penalty`.

        Returns:
            NumPy int32 `(batch, num_frames, levels)`. With `return_scores`, a
            pair of it and float32 `(batch,)`, in nats.

        Raises:
            ValueError: on codes that do not fit the layout, no conditioning,
                sampling settings out of range, or logits that are not finite.
        """
        sampling = Sampling(**sampling)
        if sampling.penalised:
            raise ValueError(
                "The parallel decoder fills in all frames at once and has no "
                "`repetition_penalty`. Give it for the semantic stage alone: "
                "repetition_penalty={'semantic': ...}"
            )
        self.layout.check_generation(codes, num_frames)
        told, segment = self.layout.segments
        self.build()
        batch = len(codes[told.name])
        nothing = np.zeros((batch, 0, segment.levels), "int32")
        prompt = np.asarray(codes.get(segment.name, nothing))[:, :num_frames]
        rows = self._rows(np.asarray(codes[told.name]), prompt, num_frames)
        made, scores = self._fill(*rows, sampling, row_generators(batch, seed))
        result = self._aligned(made, prompt, num_frames)
        return (result, scores) if return_scores else result

    def _rows(self, told_codes, prompt, num_frames):
        """Rows that begin at once, padded to one of few lengths.

        Returns:
            `told_codes`, `codes` and `known` `(batch, frames)`, true in the
            prompt, and `there` `(batch, frames)`, false in the padding.
        """
        told, segment = self.layout.segments
        batch, frames = len(prompt), padded_frames(num_frames)
        codes = np.zeros((batch, frames, segment.levels), "int32")
        known = np.zeros((batch, frames), "bool")
        there = np.zeros((batch, frames), "bool")
        for row, absent in enumerate(absent_frames(prompt)):
            own = prompt.shape[1] - absent
            codes[row, :own] = prompt[row, absent:]
            known[row, :own] = True
            there[row, : num_frames - absent] = True
        ratio = told.frame_rate / segment.frame_rate
        missing = max(math.ceil(frames * ratio) - told_codes.shape[1], 0)
        told_codes = np.pad(
            told_codes,
            [(0, 0), (0, missing), (0, 0)],
            constant_values=PADDING,
        )
        return told_codes, codes, known, there

    def _aligned(self, made, prompt, num_frames):
        """Rows that end together, as the prompts do."""
        result = np.full(
            (len(made), num_frames, made.shape[2]), PADDING, "int32"
        )
        for row, absent in enumerate(absent_frames(prompt)):
            result[row, absent:] = made[row, : num_frames - absent]
        return result

    def _fill(self, told_codes, codes, known, there, sampling, generators):
        segment = self.layout.predicted
        batch, frames, size = *codes.shape[:2], segment.codebook_size
        score = np.zeros(batch, "float32")
        numbers = sampling.numbers(size)
        still = there & ~known  # what is not yet decided of a level
        wanted = still.sum(axis=1)  # (batch,)
        for level in range(segment.levels):
            passes = FIRST_PASSES if level == 0 else 1
            open_ = still
            for number in range(passes):
                left = np.zeros(batch, "int32")
                if number + 1 < passes:
                    share = math.cos(math.pi / 2 * (number + 1) / passes)
                    left = np.floor(wanted * share).astype("int32")
                codes, open_, score = self._pass(
                    told_codes,
                    codes,
                    {"known": known, "there": there, "open": open_},
                    np.int32(level),
                    gumbel_noise(generators, frames, size),
                    numbers,
                    left,
                    score,
                    truncated=sampling.truncated,
                )
        score = ops.convert_to_numpy(score)
        check_scores(score, self)
        return ops.convert_to_numpy(codes), score

    def _fill_once(
        self,
        told_codes,
        codes,
        where,
        level,
        noise,
        sampling,
        left,
        score,
        truncated,
    ):
        """One pass: draws what is open, and decides what it is surest of.

        Args:
            where: dictionary of `(batch, frames)` bools: `known`, the prompt;
                `there`; `open`, what is undecided of the level.
            left: `(batch,)` int32, how many frames stay open.

        Returns:
            The new codes, open frames and scores.
        """
        segment = self.layout.predicted
        levels = ops.arange(segment.levels)
        new = ops.logical_not(where["known"])[..., None]
        hidden_codes = ops.logical_or(
            ops.logical_and(levels > level, new),
            ops.logical_and(levels == level, where["open"][..., None]),
        )
        x = self._hidden(told_codes, codes, hidden_codes, where["there"])
        batch, frames = codes.shape[:2]
        logits = self._logits(x, ops.broadcast_to(level, (batch,)))
        flat = ops.reshape(logits, (batch * frames, segment.codebook_size))
        code = draw(flat, ops.reshape(noise, flat.shape), sampling, truncated)[
            :, None
        ]
        likelihood = ops.take_along_axis(flat, code, axis=1)[:, 0]
        likelihood = likelihood - ops.logsumexp(flat, axis=1)
        likelihood = ops.reshape(likelihood, (batch, frames))

        # The least sure of what is open stays open.
        doubt = ops.where(where["open"], likelihood, float("inf"))
        rank = ops.argsort(ops.argsort(doubt, axis=1), axis=1)
        open_ = ops.logical_and(where["open"], rank < left[:, None])
        decided = ops.logical_and(where["open"], ops.logical_not(open_))
        score = score + ops.sum(ops.where(decided, likelihood, 0.0), axis=1)
        # Comparing with an infinity hides what is not a number.
        score = score + 0.0 * ops.sum(likelihood, axis=1)
        here = ops.logical_and(levels == level, decided[..., None])
        code = ops.reshape(code, (batch, frames, 1))
        return ops.where(here, code, codes), open_, score

    def get_config(self):
        return {
            **super().get_config(),
            "layout": self.layout.get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "kernel_size": self.kernel_size,
            "dropout": self.dropout,
            "crop_duration": self.crop_duration,
            "seed": self.seed,
        }

    @staticmethod
    def weight_layouts(data, model):
        """The layouts of `get_layout_map`, given the names of its axes."""
        return {
            r"[^/]+/told_embedding": (None, model),
            r"[^/]+/code_embedding": (None, None, model),
            r"[^/]+/head": (None, None, model),
            **conformer_layouts(data, model),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layout"] = TokenLayout(**config["layout"])
        return cls(**config)
