"""HuBERT: a self-supervised speech encoder whose trained weights are public."""

import math

import keras
from keras import ops

from keras_audiolm.layers.attention import attend, split_heads
from keras_audiolm.layers.centred_conv import CentredConv1D
from keras_audiolm.semantic.log_mel import frame_mask


@keras.saving.register_keras_serializable(package="keras_audiolm")
class Hubert(keras.Model):
    """Convolutions over samples, then Transformer blocks over frames.

    A frame of the first convolutions reaches over more samples than a hop;
    zeros after the recording complete the last, so that there are `ceil(samples
    / hop_length)` frames. What comes after a row's `lengths` changes nothing,
    where the original's group norm sees it.

    Args:
        sample_rate: int. Hertz. Defaults to `16000`.
        filters, kernel_sizes, strides: sequences of int, one for each
            convolution.
        use_conv_bias: bool. Of these. Defaults to `False`.
        conv_norm: `"group"`, where the first convolution's channels are
            normalized over time, or `"layer"`, where each one's are frame by
            frame. Defaults to `"group"`.
        hidden_dim: int. Width of the blocks. Defaults to `768`.
        num_layers: int. Blocks. Defaults to `12`.
        num_heads: int. Attention heads. Defaults to `12`.
        intermediate_dim: int. Defaults to `3072`.
        position_kernel_size, position_groups: int. Of the convolution that
            tells positions. Default to `128` and `16`.
        scale_positions: bool. Whether a learned scale and shift stand before
            it, as in models of 25 Hz. Defaults to `False`.
        norm_first: bool. Whether blocks normalize what comes in and not what
            goes out, as in large models. Defaults to `False`.
        normalize_audio: bool. Whether recordings are scaled to zero mean and
            unit variance, as large models want. Defaults to `False`.

    Call arguments:
        audio: float tensor `(batch, samples)` at `sample_rate`.
        lengths: optional integer tensor `(batch,)`: valid samples.

    Returns:
        Activations of the last block, normalized, `(batch, frames,
        hidden_dim)`.

    Reference:
     - [Hsu et al., 2021](https://arxiv.org/abs/2106.07447)
    """

    def __init__(
        self,
        sample_rate=16000,
        filters=(512,) * 7,
        kernel_sizes=(10, 3, 3, 3, 3, 2, 2),
        strides=(5, 2, 2, 2, 2, 2, 2),
        use_conv_bias=False,
        conv_norm="group",
        hidden_dim=768,
        num_layers=12,
        num_heads=12,
        intermediate_dim=3072,
        position_kernel_size=128,
        position_groups=16,
        scale_positions=False,
        norm_first=False,
        normalize_audio=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if conv_norm not in ("group", "layer"):
            raise ValueError(
                "`conv_norm` must be 'group' or 'layer'. Received: "
                f"{conv_norm!r}"
            )
        # === Config ===
        self.sample_rate = sample_rate
        self.filters = tuple(filters)
        self.kernel_sizes = tuple(kernel_sizes)
        self.strides = tuple(strides)
        self.use_conv_bias = use_conv_bias
        self.conv_norm = conv_norm
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.position_kernel_size = position_kernel_size
        self.position_groups = position_groups
        self.scale_positions = scale_positions
        self.norm_first = norm_first
        self.normalize_audio = normalize_audio
        self.hop_length = math.prod(self.strides)

        # === Layers ===
        self.convolutions = [
            keras.layers.Conv1D(
                width, size, stride, use_bias=use_conv_bias, name=f"conv_{i}"
            )
            for i, (width, size, stride) in enumerate(
                zip(filters, kernel_sizes, strides, strict=True)
            )
        ]
        count = 1 if conv_norm == "group" else len(self.filters)
        self.conv_norms = [norm(f"conv_norm_{i}") for i in range(count)]
        self.feature_norm = norm("feature_norm")
        self.projection = keras.layers.Dense(hidden_dim, name="projection")
        self.positions = CentredConv1D(
            hidden_dim,
            position_kernel_size,
            groups=position_groups,
            name="positions",
        )
        self.position_scale = ScaleAndShift(name="position_scale")
        self.norm = norm("norm")
        self.blocks = [
            HubertBlock(
                num_heads, intermediate_dim, norm_first, name=f"block_{i}"
            )
            for i in range(num_layers)
        ]

    def build(self, input_shape=None):
        shape = (None, None, 1)
        for i, convolution in enumerate(self.convolutions):
            convolution.build(shape)
            shape = (None, None, self.filters[i])
            if i < len(self.conv_norms):
                self.conv_norms[i].build(shape)
        self.feature_norm.build(shape)
        self.projection.build(shape)
        shape = (None, None, self.hidden_dim)
        for layer in (self.positions, self.norm, *self.blocks):
            layer.build(shape)
        if self.scale_positions:
            self.position_scale.build(shape)
        self.built = True

    @property
    def num_masked_layers(self):
        """How many blocks there are to choose activations from."""
        return self.num_layers

    @property
    def reach(self):
        """Samples that a frame of the convolutions sees."""
        reach, hop = 1, 1
        for size, stride in zip(self.kernel_sizes, self.strides, strict=True):
            reach += (size - 1) * hop
            hop *= stride
        return reach

    def call(self, audio, lengths=None):
        x = self.encode(audio, self.num_layers, lengths)
        return self.norm(x) if self.norm_first else x

    def encode(self, audio, layer, lengths=None):
        """Activations of a block, as they leave it.

        Args:
            audio, lengths: as of the call.
            layer: int. The block, from 1 to `num_layers`.

        Returns:
            `(batch, ceil(samples / hop_length), hidden_dim)`.
        """
        audio = ops.cast(audio, self.compute_dtype)
        if lengths is None:
            lengths = ops.full(ops.shape(audio)[:1], audio.shape[1], "int32")
        x = self._convolve(audio, lengths)
        mask = frame_mask(lengths, self.hop_length, x.shape[1])
        x = self.projection(self.feature_norm(x))
        x = x * ops.cast(mask, x.dtype)[..., None]
        placed = self.position_scale(x) if self.scale_positions else x
        placed = placed * ops.cast(mask, x.dtype)[..., None]
        x = x + gelu(self.positions(placed))
        if not self.norm_first:
            x = self.norm(x)
        for block in self.blocks[:layer]:
            x = block(x, mask)
        return x

    def _convolve(self, audio, lengths):
        """Features `(batch, frames, filters)` of samples."""
        mask = frame_mask(lengths, 1, audio.shape[1], audio.dtype)
        audio = audio * mask
        if self.normalize_audio:
            count = ops.sum(mask, axis=1, keepdims=True)
            audio -= ops.sum(audio, axis=1, keepdims=True) / count
            power = ops.sum(ops.square(audio * mask), axis=1, keepdims=True)
            audio = audio * mask * ops.rsqrt(power / count + 1e-7)
        frames = -(-audio.shape[1] // self.hop_length)
        whole = (frames - 1) * self.hop_length + self.reach
        x = ops.pad(audio, [[0, 0], [0, whole - audio.shape[1]]])[..., None]
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if i < len(self.conv_norms):
                x = self._normalize(i, x, lengths)
            x = gelu(x)
        return x

    def _normalize(self, i, x, lengths):
        if self.conv_norm == "layer":
            return self.conv_norms[i](x)
        # Each channel over the time that the row's last frame reaches to.
        valid = -(-lengths // self.hop_length) - 1
        valid = valid * self.hop_length + self.reach - self.kernel_sizes[0]
        valid = ops.maximum(valid // self.strides[0] + 1, 1)
        mask = frame_mask(valid, 1, x.shape[1], x.dtype)[..., None]
        count = ops.sum(mask, axis=1, keepdims=True)
        mean = ops.sum(x * mask, axis=1, keepdims=True) / count
        power = ops.sum(ops.square((x - mean) * mask), axis=1, keepdims=True)
        x = (x - mean) * ops.rsqrt(power / count + 1e-5)
        return x * self.conv_norms[i].gamma + self.conv_norms[i].beta

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "filters": list(self.filters),
            "kernel_sizes": list(self.kernel_sizes),
            "strides": list(self.strides),
            "use_conv_bias": self.use_conv_bias,
            "conv_norm": self.conv_norm,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "position_kernel_size": self.position_kernel_size,
            "position_groups": self.position_groups,
            "scale_positions": self.scale_positions,
            "norm_first": self.norm_first,
            "normalize_audio": self.normalize_audio,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class HubertBlock(keras.layers.Layer):
    """Self-attention and a feed-forward layer, each with a way around it.

    Args:
        num_heads, intermediate_dim: int.
        norm_first: bool. As of `Hubert`.

    Call arguments:
        x: `(batch, frames, hidden_dim)`.
        mask: bool `(batch, frames)`: which frames are there.
    """

    def __init__(self, num_heads, intermediate_dim, norm_first, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.norm_first = norm_first

    def build(self, input_shape):
        dim = input_shape[-1]
        for name in ("query", "key", "value", "output"):
            dense = keras.layers.Dense(dim, name=name)
            dense.build(input_shape)
            setattr(self, f"{name}_dense", dense)
        self.attention_norm = norm("attention_norm")
        self.final_norm = norm("final_norm")
        self.wide = keras.layers.Dense(self.intermediate_dim, name="wide")
        self.narrow = keras.layers.Dense(dim, name="narrow")
        for layer in (self.attention_norm, self.final_norm, self.wide):
            layer.build(input_shape)
        self.narrow.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, x, mask):
        if self.norm_first:
            x = x + self._attend(self.attention_norm(x), mask)
            return x + self._feed_forward(self.final_norm(x))
        x = self.attention_norm(x + self._attend(x, mask))
        return self.final_norm(x + self._feed_forward(x))

    def _feed_forward(self, x):
        return self.narrow(gelu(self.wide(x)))

    def _attend(self, x, mask):
        query, key, value = (
            split_heads(dense(x), self.num_heads)
            for dense in (self.query_dense, self.key_dense, self.value_dense)
        )
        return self.output_dense(
            attend(query, key, value, seen=mask[:, None, None])
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "norm_first": self.norm_first,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ScaleAndShift(keras.layers.Layer):
    """`x * scale + shift`, channel by channel: a batch norm that has learnt."""

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.scale = self.add_weight(
            name="scale", shape=shape, initializer="ones"
        )
        self.shift = self.add_weight(
            name="shift", shape=shape, initializer="zeros"
        )

    def call(self, x):
        return x * self.scale + self.shift


def norm(name):
    return keras.layers.LayerNormalization(epsilon=1e-5, name=name)


def gelu(x):
    return ops.gelu(x, approximate=False)
