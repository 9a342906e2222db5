"""Mimi: a codec of few frames a second, whose trained weights are public."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.codec.audio_codec import AudioCodec
from keras_audiolm.codec.encodec import ShortcutUnit
from keras_audiolm.codec.network import CausalStack
from keras_audiolm.codec.quantizer import ResidualVectorQuantizer
from keras_audiolm.layers.attention import attend
from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose
from keras_audiolm.layers.rotary import apply_rotary


@keras.saving.register_keras_serializable(package="keras_audiolm")
class Mimi(AudioCodec):
    """Causal convolutions, and Transformers between them and the quantizer.

    The first level of codes (`semantic_levels`) was taught what is said; the
    others quantize the same embedding beside it. It is made for use, not to be
    trained here.

    Args:
        sample_rate: int. Hertz. Defaults to `24000`.
        channels: int. Width of the first block, doubled by every block.
            Defaults to `64`.
        strides: sequence of int. One encoder block each, first to last; the
            decoder mirrors them. Defaults to `(4, 5, 6, 8)`.
        frame_stride: int. Of the convolution after the encoder's Transformer.
            Defaults to `2`.
        hidden_dim: int. Width of the Transformers. Defaults to `512`.
        num_layers, num_heads, intermediate_dim: int. Of each Transformer.
            Default to `8`, `8` and `2048`.
        window: int. Frames that attention sees, its own the last. Defaults to
            `250`.
        max_wavelength: float. Of the rotary positions. Defaults to `10000.0`.
        num_quantizers: int. Levels of codes. Defaults to `32`.
        semantic_levels: int. How many of them are the first quantizer's.
            Defaults to `1`.
        codebook_size: int. Codes of a level. Defaults to `2048`.
        code_dim: int. Of the codes. Defaults to `256`.
        kernel_size, residual_kernel_size, last_kernel_size: int. Steps of the
            first convolutions, of those of the units, and of the last ones.
            Default to `7`, `3` and `3`.

    Call arguments:
        audio: `(batch, samples)` in [-1, 1] at `sample_rate`.

    Returns:
        Audio of the same shape, through all levels of codes.

    Example:

    ```python
    codec = keras_audiolm.codec_from("hf://kyutai/mimi")
    codes = codec.encode(audio, bandwidth=1100)  # (batch, frames, 8)
    audio = codec.decode(codes)  # (batch, frames * 1920)
    ```

    Reference:
     - [Défossez et al., 2024](https://arxiv.org/abs/2410.00037), section 3.3
    """

    def __init__(
        self,
        sample_rate=24000,
        channels=64,
        strides=(4, 5, 6, 8),
        frame_stride=2,
        hidden_dim=512,
        num_layers=8,
        num_heads=8,
        intermediate_dim=2048,
        window=250,
        max_wavelength=10000.0,
        num_quantizers=32,
        semantic_levels=1,
        codebook_size=2048,
        code_dim=256,
        kernel_size=7,
        residual_kernel_size=3,
        last_kernel_size=3,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # === Config ===
        self.sample_rate = sample_rate
        self.channels = channels
        self.strides = tuple(strides)
        self.frame_stride = frame_stride
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.window = window
        self.max_wavelength = max_wavelength
        self.num_quantizers = num_quantizers
        self.semantic_levels = semantic_levels
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.kernel_size = kernel_size
        self.residual_kernel_size = residual_kernel_size
        self.last_kernel_size = last_kernel_size
        self.embedding_dim = hidden_dim
        self.hop_length = math.prod(self.strides) * frame_stride

        # === Layers ===
        self.encoder = CausalStack(self._encoder_layers(), name="encoder")
        self.decoder = CausalStack(self._decoder_layers(), name="decoder")
        self.quantizer = SplitQuantizer(
            num_quantizers,
            semantic_levels,
            codebook_size,
            code_dim,
            name="quantizer",
        )

    def _encoder_layers(self):
        width = self.channels
        layers = [CausalConv1D(width, self.kernel_size)]
        for stride in self.strides:
            layers += [self._unit(width), keras.layers.ELU()]
            width *= 2
            layers.append(CausalConv1D(width, 2 * stride, strides=stride))
        return [
            *layers,
            keras.layers.ELU(),
            CausalConv1D(self.hidden_dim, self.last_kernel_size),
            *self._blocks(),
            FirstFrameConv1D(
                self.hidden_dim,
                2 * self.frame_stride,
                strides=self.frame_stride,
            ),
        ]

    def _decoder_layers(self):
        width = self.channels * 2 ** len(self.strides)
        layers = [
            DepthwiseTranspose(self.frame_stride),
            *self._blocks(),
            CausalConv1D(width, self.kernel_size),
        ]
        for stride in reversed(self.strides):
            width //= 2
            layers += [
                keras.layers.ELU(),
                CausalConv1DTranspose(width, 2 * stride, strides=stride),
                self._unit(width),
            ]
        return [
            *layers,
            keras.layers.ELU(),
            CausalConv1D(1, self.last_kernel_size),
        ]

    def _unit(self, width):
        return ShortcutUnit(
            width, self.residual_kernel_size, use_shortcut=False
        )

    def _blocks(self):
        return [
            WindowedBlock(
                self.num_heads,
                self.intermediate_dim,
                self.window,
                self.max_wavelength,
            )
            for _ in range(self.num_layers)
        ]

    def call(self, audio):
        samples = audio.shape[-1]
        codes = self.quantizer.encode(self.embed(self._pad_to_hops(audio)))
        return self.render(self.quantizer.decode(codes))[:, :samples]

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "strides": list(self.strides),
            "frame_stride": self.frame_stride,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "window": self.window,
            "max_wavelength": self.max_wavelength,
            "num_quantizers": self.num_quantizers,
            "semantic_levels": self.semantic_levels,
            "codebook_size": self.codebook_size,
            "code_dim": self.code_dim,
            "kernel_size": self.kernel_size,
            "residual_kernel_size": self.residual_kernel_size,
            "last_kernel_size": self.last_kernel_size,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SplitQuantizer(keras.layers.Layer):
    """Two residual quantizers of the same embedding, each in few dimensions.

    Args:
        num_quantizers: int. Levels of both.
        semantic_levels: int. Levels of the first.
        codebook_size, code_dim: int.
    """

    def __init__(
        self, num_quantizers, semantic_levels, codebook_size, code_dim, **kwargs
    ):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.semantic_levels = semantic_levels
        self.code_dim = code_dim
        counts = (semantic_levels, num_quantizers - semantic_levels)
        self.parts = [
            ResidualVectorQuantizer(count, codebook_size, name=f"levels_{i}")
            for i, count in enumerate(counts)
        ]

    def build(self, input_shape):
        dim = input_shape[-1]
        for name, shape in (
            ("to_code", (2, dim, self.code_dim)),
            ("from_code", (2, self.code_dim, dim)),
        ):
            weight = self.add_weight(name=name, shape=shape)
            setattr(self, name, weight)
        for part in self.parts:
            part.build((*input_shape[:-1], self.code_dim))

    def encode(self, x, levels=None):
        """`(batch, frames, dim)` to codes `(batch, frames, levels)`."""
        x = ops.cast(x, "float32")
        return ops.concatenate(
            [
                part.encode(ops.matmul(x, self.to_code[i]), count)
                for i, part, count in self._split(levels)
            ],
            axis=-1,
        )

    def decode(self, codes):
        """Codes `(batch, frames, levels)` to `(batch, frames, dim)`."""
        made, first = 0.0, 0
        for i, part, count in self._split(codes.shape[-1]):
            some = part.decode(codes[..., first : first + count])
            made += ops.matmul(some, self.from_code[i])
            first += count
        return made

    def _split(self, levels):
        """The quantizers that so many levels need, and how many of each."""
        semantic, acoustic = self.parts
        if levels is None:
            levels = semantic.num_quantizers + acoustic.num_quantizers
        first = min(levels, self.semantic_levels)
        yield 0, semantic, first
        if levels > first:
            yield 1, acoustic, levels - first


@keras.saving.register_keras_serializable(package="keras_audiolm")
class FirstFrameConv1D(CausalConv1D):
    """A causal convolution before whose signal its first frame stands."""

    def call(self, x):
        return self._convolve(
            ops.concatenate([*[x[:, :1]] * self.past, x], axis=1)
        )

    def init_state(self, batch_size):
        """The past, and whether there was any."""
        return [
            super().init_state(batch_size),
            ops.zeros((batch_size, 1, 1), self.compute_dtype),
        ]

    def step(self, x, state):
        past, begun = state
        past = begun * past + (1 - begun) * x[:, :1]
        y, past = super().step(x, past)
        return y, [past, ops.ones_like(begun)]


@keras.saving.register_keras_serializable(package="keras_audiolm")
class DepthwiseTranspose(keras.layers.Layer):
    """The way back up, each channel alone, with a kernel of two strides.

    Args:
        strides: int.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time * strides, channels)`.
    """

    def __init__(self, strides, **kwargs):
        super().__init__(**kwargs)
        self.strides = strides

    def build(self, input_shape):
        self.channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(2 * self.strides, self.channels)
        )

    def init_state(self, batch_size):
        """The step before."""
        return ops.zeros((batch_size, 1, self.channels), self.compute_dtype)

    def call(self, x):
        return self._spread(ops.pad(x, [[0, 0], [1, 0], [0, 0]]))

    def step(self, x, state):
        x = ops.concatenate([state, x], axis=1)
        return self._spread(x), x[:, -1:]

    def _spread(self, x):
        now, before = x[:, 1:, None], x[:, :-1, None]
        y = now * self.kernel[: self.strides]
        y = y + before * self.kernel[self.strides :]
        return ops.reshape(
            y, (-1, now.shape[1] * self.strides, self.channels)
        )  # from (batch, time, strides, channels)

    def compute_output_shape(self, input_shape):
        batch, time, channels = input_shape
        time = None if time is None else time * self.strides
        return (batch, time, channels)

    def get_config(self):
        return {**super().get_config(), "strides": self.strides}


@keras.saving.register_keras_serializable(package="keras_audiolm")
class WindowedBlock(keras.layers.Layer):
    """A Transformer block whose attention sees the last few frames.

    Args:
        num_heads, intermediate_dim: int.
        window: int. Frames that are seen, the own one the last.
        max_wavelength: float. Of the rotary positions.

    Call arguments:
        x: `(batch, frames, hidden_dim)`.

    Its state is the keys and values of the last `window - 1` frames, and how
    many frames there were.
    """

    def __init__(
        self, num_heads, intermediate_dim, window, max_wavelength, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.window = window
        self.max_wavelength = max_wavelength

    def build(self, input_shape):
        self.dim = dim = input_shape[-1]
        self.head_dim = dim // self.num_heads
        for name, units in (
            ("query", dim),
            ("key", dim),
            ("value", dim),
            ("output", dim),
            ("wide", self.intermediate_dim),
            ("narrow", dim),
        ):
            layer = keras.layers.Dense(units, use_bias=False, name=name)
            wide = (*input_shape[:-1], self.intermediate_dim)
            layer.build(wide if name == "narrow" else input_shape)
            setattr(self, f"{name}_dense", layer)
        for name in ("attention", "feed_forward"):
            norm = keras.layers.LayerNormalization(
                epsilon=1e-5, name=f"{name}_norm"
            )
            norm.build(input_shape)
            setattr(self, f"{name}_norm", norm)
            scale = self.add_weight(
                name=f"{name}_scale", shape=(dim,), initializer="ones"
            )
            setattr(self, f"{name}_scale", scale)

    def init_state(self, batch_size):
        shape = (batch_size, self.window - 1, self.num_heads, self.head_dim)
        zeros = ops.zeros(shape, self.compute_dtype)
        return [zeros, zeros, ops.zeros((batch_size,), "int32")]

    def call(self, x):
        query, key, value = self._projected(x, ops.arange(x.shape[1]))
        places = np.arange(x.shape[1])
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance < self.window)
        return self._finish(x, query, key, value, seen[None])

    def step(self, x, state):
        keys, values, count = state
        frames, past = x.shape[1], self.window - 1
        places = count[:, None] + ops.arange(frames)  # (batch, frames)
        query, key, value = self._projected(x, places)
        key = ops.concatenate([keys, key], axis=1)
        value = ops.concatenate([values, value], axis=1)
        there = np.arange(past + frames) - past  # relative to the chunk
        distance = np.arange(frames)[:, None] - there
        seen = (distance >= 0) & (distance < self.window)
        there = ops.convert_to_tensor(there, "int32")
        begun = there >= -count[:, None]  # (batch, past + frames)
        seen = ops.logical_and(seen[None], begun[:, None])
        y = self._finish(x, query, key, value, seen)
        last = key.shape[1] - past
        return y, [key[:, last:], value[:, last:], count + frames]

    def _projected(self, x, places):
        """Queries, keys and values `(batch, frames, heads, head_dim)`."""
        y = self.attention_norm(x)
        shape = (-1, x.shape[1], self.num_heads, self.head_dim)
        query, key, value = (
            ops.reshape(dense(y), shape)
            for dense in (self.query_dense, self.key_dense, self.value_dense)
        )
        query, key = (
            apply_rotary(part, places, self.max_wavelength)
            for part in (query, key)
        )
        return query, key, value

    def _finish(self, x, query, key, value, seen):
        """What attention and the feed-forward layer add to x.

        `seen` is bool `(batch or 1, frames, frames of key)`.
        """
        query, key, value = (
            ops.swapaxes(part, 1, 2) for part in (query, key, value)
        )
        y = self.output_dense(attend(query, key, value, seen[:, None]))
        x = x + self.attention_scale * y
        y = self.wide_dense(self.feed_forward_norm(x))
        y = self.narrow_dense(ops.gelu(y, approximate=False))
        return x + self.feed_forward_scale * y

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "window": self.window,
            "max_wavelength": self.max_wavelength,
        }
