"""w2v-BERT 2.0: a multilingual speech encoder whose weights are public."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.attention import attend, split_heads
from keras_audiolm.layers.causal_conv import CausalConv1D
from keras_audiolm.semantic.log_mel import frame_mask


@keras.saving.register_keras_serializable(package="keras_audiolm")
class FilterBank(keras.layers.Layer):
    """Kaldi's log-mel filter bank, every 10 ms, normalized band by band.

    Frames of 25 ms begin with their hop; zeros after the recording complete
    the last. Each loses its mean, is pre-emphasized, and meets a Povey window.

    Args:
        sample_rate: int. Hertz. Defaults to `16000`.
        num_mels: int. Bands from 20 Hz to half the rate. Defaults to `80`.
        multiple: int. The frames are a multiple of it. Defaults to `1`.

    Call arguments:
        audio: `(batch, samples)`.
        lengths: integer `(batch,)`: valid samples.

    Returns:
        Float32 `(batch, frames, num_mels)`, with zero mean and unit variance
        over the frames that begin before a row's end.

    Reference:
     - [Kaldi](https://kaldi-asr.org/doc/feat.html), fbank
    """

    FLOOR = 2.0**-23
    EMPHASIS = 0.97
    SCALE = 2.0**15  # its samples are 16-bit integers

    def __init__(self, sample_rate=16000, num_mels=80, multiple=1, **kwargs):
        kwargs.update(dtype="float32", trainable=False)
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.num_mels = num_mels
        self.multiple = multiple
        self.hop_length = sample_rate // 100
        self.window_length = sample_rate // 40
        self.fft_length = 2 ** (self.window_length - 1).bit_length()
        size = self.window_length
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))
        self.window = (hann**0.85).astype("float32")
        self.filters = self._filters().astype("float32")

    def _filters(self):
        """Triangles in mels, without the bin of half the rate."""
        bins = self.fft_length // 2 + 1
        hertz = np.linspace(0, self.sample_rate / 2, bins)
        mels = 1127 * np.log1p(hertz / 700)[:, None]
        low = 1127 * np.log1p(20 / 700)
        edges = np.linspace(low, mels[-1, 0], self.num_mels + 2)
        left, middle, right = edges[:-2], edges[1:-1], edges[2:]
        rising = (mels - left) / (middle - left)
        falling = (right - mels) / (right - middle)
        return np.maximum(np.minimum(rising, falling), 0)

    def call(self, audio, lengths):
        audio = ops.cast(audio, "float32")
        audio = audio * frame_mask(lengths, 1, audio.shape[1], "float32")
        step = self.hop_length * self.multiple
        frames = -(-audio.shape[1] // step) * self.multiple
        x = self._log_mel(audio * self.SCALE, frames)
        valid = -(-ops.cast(lengths, "int32") // step) * self.multiple
        mask = frame_mask(valid, 1, frames, "float32")[..., None]
        count = ops.sum(mask, axis=1, keepdims=True)
        mean = ops.sum(x * mask, axis=1, keepdims=True) / count
        x = (x - mean) * mask
        power = ops.sum(ops.square(x), axis=1, keepdims=True)
        return x * ops.rsqrt(power / ops.maximum(count - 1, 1.0) + 1e-7)

    def _log_mel(self, audio, frames):
        size, hop = self.window_length, self.hop_length
        whole = (frames - 1) * hop + size
        audio = ops.pad(audio, [[0, 0], [0, whole - audio.shape[1]]])
        places = np.arange(frames)[:, None] * hop + np.arange(size)
        x = ops.take(audio, places, axis=1)  # (batch, frames, size)
        x = x - ops.mean(x, axis=-1, keepdims=True)
        before = ops.concatenate([x[..., :1], x[..., :-1]], axis=-1)
        x = (x - self.EMPHASIS * before) * self.window
        real, imaginary = ops.rfft(x, fft_length=self.fft_length)
        power = ops.square(real) + ops.square(imaginary)
        return ops.log(ops.maximum(ops.matmul(power, self.filters), self.FLOOR))

    def get_config(self):
        config = super().get_config()
        del config["dtype"], config["trainable"]
        config.update(
            sample_rate=self.sample_rate,
            num_mels=self.num_mels,
            multiple=self.multiple,
        )
        return config


@keras.saving.register_keras_serializable(package="keras_audiolm")
class W2vBert2(keras.Model):
    """Conformer blocks over a filter bank, two of whose frames are one here.

    There are `ceil(samples / hop_length)` frames, 50 a second; what comes
    after a row's `lengths` changes nothing.

    Args:
        sample_rate: int. Hertz. Defaults to `16000`.
        num_mels: int. Defaults to `80`.
        stride: int. Frames of the filter bank that are one. Defaults to `2`.
        hidden_dim: int. Defaults to `1024`.
        num_layers: int. Blocks. Defaults to `24`.
        num_heads: int. Attention heads. Defaults to `16`.
        intermediate_dim: int. Defaults to `4096`.
        kernel_size: int. Of the causal depthwise convolutions. Defaults to
            `31`.
        max_before, max_after: int. Distances that are told apart, in frames.
            Default to `64` and `8`.

    Call arguments:
        audio: float tensor `(batch, samples)` at `sample_rate`.
        lengths: optional integer tensor `(batch,)`: valid samples.

    Returns:
        Activations of the last block, `(batch, frames, hidden_dim)`.

    Reference:
     - [Seamless Communication, 2023](https://arxiv.org/abs/2312.05187),
       section 3.2.1
    """

    def __init__(
        self,
        sample_rate=16000,
        num_mels=80,
        stride=2,
        hidden_dim=1024,
        num_layers=24,
        num_heads=16,
        intermediate_dim=4096,
        kernel_size=31,
        max_before=64,
        max_after=8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # === Config ===
        self.sample_rate = sample_rate
        self.num_mels = num_mels
        self.stride = stride
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.kernel_size = kernel_size
        self.max_before = max_before
        self.max_after = max_after

        # === Layers ===
        self.filter_bank = FilterBank(
            sample_rate, num_mels, stride, name="filter_bank"
        )
        self.hop_length = self.filter_bank.hop_length * stride
        self.feature_norm = norm("feature_norm")
        self.projection = keras.layers.Dense(hidden_dim, name="projection")
        self.blocks = [
            W2vBert2Block(
                num_heads,
                intermediate_dim,
                kernel_size,
                max_before,
                max_after,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]

    def build(self, input_shape=None):
        shape = (None, None, self.num_mels * self.stride)
        self.feature_norm.build(shape)
        self.projection.build(shape)
        for block in self.blocks:
            block.build((None, None, self.hidden_dim))
        self.built = True

    @property
    def num_masked_layers(self):
        """How many blocks there are to choose activations from."""
        return self.num_layers

    def call(self, audio, lengths=None):
        return self.encode(audio, self.num_layers, lengths)

    def encode(self, audio, layer, lengths=None):
        """Activations of a block.

        Args:
            audio, lengths: as of the call.
            layer: int. The block, from 1 to `num_layers`.

        Returns:
            `(batch, ceil(samples / hop_length), hidden_dim)`.
        """
        if lengths is None:
            lengths = ops.full(ops.shape(audio)[:1], audio.shape[1], "int32")
        x = self.filter_bank(audio, lengths)
        frames = x.shape[1] // self.stride
        x = ops.reshape(x, (-1, frames, self.stride * self.num_mels))
        x = self.projection(self.feature_norm(x))
        mask = frame_mask(lengths, self.hop_length, frames)
        x = x * ops.cast(mask, x.dtype)[..., None]
        for block in self.blocks[:layer]:
            x = block(x, mask)
        return x

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "num_mels": self.num_mels,
            "stride": self.stride,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "kernel_size": self.kernel_size,
            "max_before": self.max_before,
            "max_after": self.max_after,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class W2vBert2Block(keras.layers.Layer):
    """Half a feed-forward, attention, a causal convolution, the other half.

    Args:
        num_heads, intermediate_dim, kernel_size, max_before, max_after: as of
            `W2vBert2`.

    Call arguments:
        x: `(batch, frames, hidden_dim)`.
        mask: bool `(batch, frames)`: which frames are there.
    """

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        kernel_size,
        max_before,
        max_after,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.kernel_size = kernel_size
        self.max_before = max_before
        self.max_after = max_after

    def build(self, input_shape):
        dim = input_shape[-1]
        wide = (*input_shape[:-1], self.intermediate_dim)
        for half in ("first", "second"):
            self._add(f"{half}_norm", norm(f"{half}_norm"), input_shape)
            self._add(
                f"{half}_wide",
                keras.layers.Dense(self.intermediate_dim, name=f"{half}_wide"),
                input_shape,
            )
            self._add(
                f"{half}_narrow",
                keras.layers.Dense(dim, name=f"{half}_narrow"),
                wide,
            )
        for name in ("query", "key", "value", "output"):
            dense = keras.layers.Dense(dim, name=name)
            self._add(f"{name}_dense", dense, input_shape)
        for name in ("attention_norm", "conv_norm", "depth_norm", "final_norm"):
            self._add(name, norm(name), input_shape)
        self.distances = self.add_weight(
            name="distances",
            shape=(self.max_before + self.max_after + 1, dim // self.num_heads),
            initializer="zeros",
        )
        for name, units in (("gate", 2 * dim), ("mix", dim)):
            dense = keras.layers.Dense(units, use_bias=False, name=name)
            self._add(f"conv_{name}", dense, input_shape)
        self._add(
            "depthwise",
            CausalConv1D(dim, self.kernel_size, groups=dim, name="depthwise"),
            input_shape,
        )

    def _add(self, name, layer, input_shape):
        layer.build(input_shape)
        setattr(self, name, layer)

    def call(self, x, mask):
        y = self.first_wide(self.first_norm(x))
        x = x + 0.5 * self.first_narrow(ops.silu(y))
        x = x + self._attend(self.attention_norm(x), mask)
        x = x + self._convolve(self.conv_norm(x), mask)
        y = self.second_wide(self.second_norm(x))
        x = x + 0.5 * self.second_narrow(ops.silu(y))
        return self.final_norm(x)

    def _convolve(self, x, mask):
        x = x * ops.cast(mask, x.dtype)[..., None]
        x, gate = ops.split(self.conv_gate(x), 2, axis=-1)
        x = self.depthwise(x * ops.sigmoid(gate))
        return self.conv_mix(ops.silu(self.depth_norm(x)))

    def _attend(self, x, mask):
        query, key, value = (
            split_heads(dense(x), self.num_heads)
            for dense in (self.query_dense, self.key_dense, self.value_dense)
        )
        return self.output_dense(
            attend(
                query,
                key,
                value,
                seen=mask[:, None, None],
                bias=self._by_distance(query),
            )
        )

    def _by_distance(self, query):
        """What a query makes of each distance, `(batch, heads, frames,
        frames)`."""
        frames = query.shape[2]
        places = np.arange(frames)
        distance = np.clip(
            places - places[:, None], -self.max_before, self.max_after
        )
        made = ops.matmul(query, ops.transpose(self.distances))
        index = (distance + self.max_before).astype("int32")[None, None]
        index = ops.broadcast_to(index, (*ops.shape(made)[:2], frames, frames))
        return ops.take_along_axis(made, index, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "kernel_size": self.kernel_size,
            "max_before": self.max_before,
            "max_after": self.max_after,
        }


def norm(name):
    return keras.layers.LayerNormalization(epsilon=1e-5, name=name)
