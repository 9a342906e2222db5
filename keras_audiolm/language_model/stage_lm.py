"""One stage of the cascade: its loss, and its generation with a cache."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.language_model.backbone import StageBackbone
from keras_audiolm.language_model.decoding import Decoder
from keras_audiolm.language_model.layout import PADDING, TokenLayout
from keras_audiolm.language_model.sampling import Sampling
from keras_audiolm.layers.distribution import (
    ShardedModel,
    refuse_replicas,
)
from keras_audiolm.layers.initializers import RandomNormal


@keras.saving.register_keras_serializable(package="keras_audiolm")
class StageLM(ShardedModel, keras.Model):
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
        Logits `(batch, frames, levels, num_codes)` float32 of the predicted
        segment, each given all that stands before it.

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
        self._decode = Decoder(self)

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
                segment.num_codes,
                self.backbone.hidden_dim,
            ),
            initializer=RandomNormal(
                self.backbone.hidden_dim**-0.5, seed=self.backbone.seed
            ),
        )
        if segment.deduplicated:
            # What `AudioLMPipeline.fit` found in the corpus.
            self.frames_per_token = self.add_weight(
                name="frames_per_token",
                shape=(),
                initializer="ones",
                trainable=False,
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
        refuse_replicas()
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
        seed=None,
        may_end=False,
        return_scores=False,
        **sampling,
    ):
        """Samples the predicted segment frame by frame.

        Args:
            codes: dictionary of NumPy int `(batch, frames, levels)`: all
                conditioning segments, and under the predicted segment's name
                its prompt, if there is one. Prompts of different lengths end
                together, with -1 before the shorter ones.
            num_frames: int. Frames of the predicted segment in the result,
                prompt included.
            seed: int or tuple of int, optional. The same seed gives the same
                codes. Row `i` of a batch depends on the seed and `i` alone.
            may_end: bool. Whether the layout's `end_code` can be drawn: -1
                stands in its place and after it, and nothing more is sampled
                once all rows have ended. Otherwise no row ends.
            return_scores: bool. Whether to return the log-likelihood of
                what is new as well, that of the end included.
            **sampling: `temperature`, `top_k`, `top_p` and
                `repetition_penalty`, as of `Sampling`.

        Returns:
            NumPy int32 `(batch, num_frames, levels)`, the prompt first. With
            `return_scores`, a pair of it and float32 `(batch,)`, in nats: as
            the model gives it, at a temperature of 1 with nothing cut off.

        Raises:
            ValueError: on codes that do not fit the layout, no conditioning,
                sampling settings out of range, or `may_end` where the layout
                has no end.
        """
        sampling = Sampling(**sampling)
        if may_end and not self.layout.predicted.ends:
            raise ValueError(
                f"`may_end` needs a layout with an end, and that of "
                f"{self.name!r} has none: it was never taught where recordings "
                "end. Train one with TokenLayout.semantic(..., ends=True)."
            )
        self.layout.check_generation(codes, num_frames)
        self.build()
        codes = self._windows(codes)
        name = self.layout.predicted.name
        prompt = codes[name][:, :num_frames]
        new = num_frames - prompt.shape[1]
        made, scores = prompt[:, :0], np.zeros(len(prompt), "float32")
        if new > 0:
            codes = {**codes, name: prompt}
            made, scores = self._decode(codes, new, sampling, seed, may_end)
        made = np.concatenate([prompt, made], axis=1)
        return (made, scores) if return_scores else made

    def logits_at(self, hidden, level):
        """`(batch, hidden_dim)` to `(batch, num_codes)` of one level."""
        head = ops.cast(self.head[level], hidden.dtype)
        logits = ops.matmul(hidden, ops.transpose(head))
        return ops.cast(logits, "float32")

    def _windows(self, codes):
        """All segments; those told are padded to their window.

        Shapes, and the distances that the model knows from its training,
        stay the same.
        """
        batch = max([len(block) for block in codes.values()], default=1)
        whole = {}
        for segment in self.layout.segments:
            told = segment != self.layout.predicted
            block = codes.get(segment.name)
            if block is None:
                block = np.zeros((batch, 0, segment.levels), "int32")
            block = np.asarray(block, "int32")
            missing = segment.frames_in(self.crop_duration) - block.shape[1]
            whole[segment.name] = np.pad(
                block,
                [(0, 0), (0, max(missing, 0) if told else 0), (0, 0)],
                constant_values=PADDING,
            )
        return whole

    def get_config(self):
        return {
            **super().get_config(),
            "layout": self.layout.get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "crop_duration": self.crop_duration,
        }

    @staticmethod
    def weight_layouts(data, model):
        """The layouts of `get_layout_map`, given the names of its axes."""
        block = r"[^/]+/backbone/block_\d+/"
        return {
            r"[^/]+/head": (None, None, model),
            r"[^/]+/backbone/token_embedding/embeddings": (None, model),
            block + "(query|key|value|gate|up)/kernel": (data, model),
            block + "(attention_output|down)/kernel": (model, data),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layout"] = TokenLayout(**config["layout"])
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"]
        )
        return cls(**config)
