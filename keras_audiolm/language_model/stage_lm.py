"""One stage of the cascade: its loss, and its generation with a cache."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.language_model.backbone import StageBackbone
from keras_audiolm.language_model.layout import PADDING, TokenLayout
from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.layers.initializers import RandomNormal


@keras.saving.register_keras_serializable(package="keras_audiolm")
class StageLM(keras.Model):
    """Predicts the last segment of a layout from the segments before it.

    Every level of the predicted segment has an output head of its own, so
    that exactly the ids that are legal at a position can be chosen there, in
    the loss as in generation.

    Args:
        layout: `TokenLayout`.
        backbone: `StageBackbone` over the layout's vocabulary, or a dictionary
            of its arguments; `vocabulary_size` and `pad_id` come from the
            layout.
        crop_duration: float. Seconds of the training crops, and of the
            windows of generation.

    Call arguments:
        codes: dictionary of int32 `(batch, frames, levels)` by segment name,
            with -1 for frames that are not there.
        training: bool.

    Returns:
        Logits `(batch, frames, levels, codebook_size)` float32 of the
        predicted segment, each given all that stands before it.

    Example:

    ```python
    layout = keras_audiolm.TokenLayout.semantic(1024, 25.0)
    lm = keras_audiolm.StageLM(layout, {"num_layers": 6, "hidden_dim": 512})
    lm.compile("adamw")
    lm.fit(token_crops)
    codes = lm.generate({}, num_frames=250, seed=0)  # (1, 250, 1)
    ```

    Reference:
     - [AudioLM, section III-C](https://arxiv.org/abs/2209.03143)
    """

    def __init__(self, layout, backbone=None, crop_duration=30.0, **kwargs):
        super().__init__(**kwargs)
        if isinstance(backbone, dict) or backbone is None:
            backbone = StageBackbone(
                **{
                    **(backbone or {}),
                    "vocabulary_size": layout.vocabulary_size,
                    "pad_id": layout.pad_id,
                },
                dtype=self.dtype_policy,
                name="backbone",
            )
        if backbone.vocabulary_size != layout.vocabulary_size:
            raise ValueError(
                f"The layout has {layout.vocabulary_size} ids and the backbone "
                f"{backbone.vocabulary_size}; they must be the same."
            )
        if backbone.pad_id != layout.pad_id:
            raise ValueError(
                f"The backbone's pad_id must be the layout's {layout.pad_id}. "
                f"Received: pad_id={backbone.pad_id}"
            )
        self.layout = layout
        self.backbone = backbone
        self.crop_duration = crop_duration
        self.accuracy = keras.metrics.Mean(name="accuracy")
        self._generate = CompiledFunction(self, self._generate_frames)

    def build(self, input_shape=None):
        # A backbone that comes from a configuration may be built already.
        if self.built:
            return
        self.backbone.build()
        segment = self.layout.predicted
        self.head = self.add_weight(
            name="head",
            shape=(
                segment.levels,
                segment.codebook_size,
                self.backbone.hidden_dim,
            ),
            initializer=RandomNormal(
                self.backbone.hidden_dim**-0.5, seed=self.backbone.seed
            ),
        )

    def call(self, codes, training=False):
        layout = self.layout
        token_ids = layout.flatten(codes)[:, :-1]
        frames = [codes[s.name].shape[1] for s in layout.segments]
        hidden = self.backbone(
            token_ids, times=layout.times(frames)[:-1], training=training
        )
        segment = layout.predicted
        count = frames[-1] * segment.levels
        # The token at the end of the prefix predicts the segment's first.
        hidden = ops.reshape(
            hidden[:, -count:],
            (-1, frames[-1], segment.levels, self.backbone.hidden_dim),
        )
        head = ops.cast(self.head, hidden.dtype)
        logits = ops.einsum("bfld,lnd->bfln", hidden, head)
        return ops.cast(logits, "float32")

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Cross entropy in nats a token, over the frames that are there."""
        target = ops.cast(x[self.layout.predicted.name], "int32")
        there = ops.cast(target != PADDING, "float32")
        count = ops.maximum(ops.sum(there), 1.0)
        losses = keras.losses.sparse_categorical_crossentropy(
            ops.maximum(target, 0), y_pred, from_logits=True
        )
        right = ops.cast(ops.argmax(y_pred, axis=-1), "int32") == target
        right = ops.sum(ops.cast(right, "float32") * there)
        self.accuracy.update_state(right / count, sample_weight=count)
        return ops.sum(losses * there) / count

    # === Generation ===

    def generate(
        self,
        codes,
        num_frames,
        temperature=1.0,
        top_k=None,
        top_p=None,
        seed=None,
    ):
        """Samples the predicted segment frame by frame.

        Args:
            codes: dictionary of NumPy int `(batch, frames, levels)`: all
                conditioning segments, and under the predicted segment's name
                its prompt, if there is one.
            num_frames: int. Frames of the predicted segment in the result,
                prompt included.
            temperature: float. `0` always takes the most likely code.
            top_k: int, optional. Only the `k` likeliest codes are drawn.
            top_p: float in (0, 1], optional. Only the likeliest codes whose
                probabilities add up to `p` are drawn.
            seed: int or tuple of int, optional. The same seed gives the same
                codes. Row `i` of a batch depends on the seed and `i` alone.

        Returns:
            NumPy int32 `(batch, num_frames, levels)`, the prompt first.

        Raises:
            ValueError: on codes that do not fit the layout, no conditioning,
                or sampling settings out of range.
        """
        check_sampling(temperature, top_k, top_p)
        self._check(codes, num_frames)
        self.build()
        buffers, prompt_frames = self._windows(codes, num_frames)
        name = self.layout.predicted.name
        if prompt_frames >= num_frames:
            return buffers[name][:, :num_frames]
        batch, frames, levels = buffers[name].shape
        noise = gumbel_noise(
            batch,
            frames * levels,
            self.layout.predicted.codebook_size,
            seed,
            skip=prompt_frames * levels,
        )
        size = self.layout.predicted.codebook_size
        generated = self._generate(
            buffers,
            noise,
            np.array([prompt_frames, num_frames], "int32"),
            np.float32(temperature),
            # Out of reach unless asked for, so that one program serves all.
            np.int32(min(top_k or size, size)),
            np.float32(top_p or 1.0),
            np.zeros(int(bool(top_k or top_p)), "int32"),
        )
        return ops.convert_to_numpy(generated)[:, :num_frames]

    def _check(self, codes, num_frames):
        if num_frames < 1:
            raise ValueError(
                f"`num_frames` must be 1 or more. Received: {num_frames}"
            )
        self.layout.check(codes)
        batches = {name: len(block) for name, block in codes.items()}
        if len(set(batches.values())) > 1:
            raise ValueError(
                f"All codes must have the same batch size. Received: {batches}"
            )
        name = self.layout.predicted.name
        if np.any(np.asarray(codes.get(name, 0)) == PADDING):
            raise ValueError(
                f"The {name} prompt must be whole. It holds -1, which stands "
                "for frames that are not there; cut them off."
            )

    def _windows(self, codes, num_frames):
        """Every segment padded to its window, so that shapes stay the same."""
        batch = max([len(block) for block in codes.values()], default=1)
        buffers = {}
        for segment in self.layout.segments:
            predicted = segment == self.layout.predicted
            block = codes.get(segment.name)
            if block is None:
                if not predicted:
                    raise ValueError(
                        f"The {segment.name!r} codes that this stage is "
                        f"conditioned on are missing. Received: {list(codes)}"
                    )
                block = np.zeros((batch, 0, segment.levels), "int32")
            block = np.asarray(block)[:, : num_frames if predicted else None]
            window = self.window_frames(segment)
            total = max(window, num_frames if predicted else block.shape[1])
            buffer = np.full((batch, total, segment.levels), PADDING, "int32")
            buffer[:, : block.shape[1]] = block
            buffers[segment.name] = buffer
        return buffers, block.shape[1]

    def window_frames(self, segment):
        """Frames of a segment in a window of `crop_duration`."""
        return max(round(self.crop_duration * segment.frame_rate), 1)

    def _generate_frames(
        self, buffers, noise, span, temperature, top_k, top_p, truncate
    ):
        """Fills the predicted segment's frames `span[0] .. span[1]`.

        Args:
            buffers: dictionary of `(batch, frames, levels)` int32, -1 where
                nothing is known.
            noise: `(batch, frames * levels, codebook_size)` float32 Gumbel.
            truncate: `(0,)` or `(1,)`: whether top_k and top_p do anything,
                as a shape, which the compiler sees.
        """
        layout, backbone = self.layout, self.backbone
        segment = layout.predicted
        times = layout.times(
            [buffers[s.name].shape[1] for s in layout.segments]
        )
        token_ids = layout.flatten(buffers)
        batch, length = token_ids.shape
        count = noise.shape[1]
        first = length - count - 1  # where the predicted segment starts
        # What is generated is never padding.
        known = token_ids != layout.pad_id
        mask = ops.logical_or(known, ops.arange(length)[None] > first)
        offsets = ops.convert_to_tensor(layout.offsets(segment.name))

        caches = backbone.prefill(token_ids, times)
        begin, end = span[0] * segment.levels, span[1] * segment.levels
        token = ops.take(token_ids, first + begin, axis=1)[:, None]
        codes = ops.reshape(buffers[segment.name], (batch, count))

        def go_on(step, *_):
            return step < end

        def add_token(step, token, codes, caches):
            hidden, caches = backbone.step(
                token, caches, first + step, mask, times
            )
            level = ops.mod(step, segment.levels)
            head = ops.cast(ops.take(self.head, level, axis=0), hidden.dtype)
            logits = ops.matmul(hidden, ops.transpose(head))
            logits = ops.cast(logits, "float32")  # (batch, codebook_size)
            if truncate.shape[0]:
                logits = cut_tail(logits, temperature, top_k, top_p)
            row = ops.take(noise, step, axis=1)
            code = ops.argmax(logits + temperature * row, axis=-1)
            code = ops.cast(code, "int32")[:, None]  # (batch, 1)
            codes = ops.slice_update(codes, (0, step), code)
            return step + 1, code + ops.take(offsets, level), codes, caches

        _, _, codes, _ = ops.while_loop(
            go_on, add_token, (begin, token, codes, caches)
        )
        return ops.reshape(codes, (batch, -1, segment.levels))

    def get_config(self):
        return {
            **super().get_config(),
            "layout": self.layout.get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "crop_duration": self.crop_duration,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layout"] = TokenLayout(**config["layout"])
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"]
        )
        return cls(**config)


def check_sampling(temperature, top_k, top_p):
    """Raises `ValueError` for sampling settings that mean nothing."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"`temperature` must be zero or more. Received: {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"`top_k` must be 1 or more. Received: {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f"`top_p` must be above 0 and at most 1. Received: {top_p}"
        )


def gumbel_noise(batch, steps, size, seed, skip=0):
    """Noise whose argmax with logits samples their softmax.

    Drawn by NumPy, so that one seed gives the same codes on every backend.

    Args:
        skip: int. The first steps are not drawn (they are the prompt's).

    Returns:
        `(batch, steps, size)` float32.
    """
    if seed is None:
        seed = np.random.SeedSequence().entropy
    seed = seed if isinstance(seed, tuple) else (seed,)
    if min(seed) < 0:
        raise ValueError(f"`seed` must be zero or more. Received: {seed}")
    noise = np.zeros((batch, steps, size), "float32")
    for row in range(batch):
        generator = np.random.Generator(np.random.SFC64([*seed, row]))
        noise[row, skip:] = -np.log(
            generator.standard_exponential(
                (steps - skip, size), dtype="float32"
            )
            + np.float32(1e-30)
        )
    return noise


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
