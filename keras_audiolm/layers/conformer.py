"""Conformer block with rotary self-attention; padding never leaks."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.compiled import (
    MAX_PRODUCTS,
    has_slow_batched_products,
)
from keras_audiolm.layers.initializers import GlorotUniform, RandomNormal
from keras_audiolm.layers.rotary import apply_rotary

# Output frames computed by one small matrix in `DepthwiseConv`: long enough
# to fill a matrix multiplication, short enough to waste little on zeros.
_BLOCK = 25


def split_seed(seed, count):
    """`count` independent integer seeds, or `None`s when `seed` is `None`."""
    if seed is None:
        return [None] * count
    state = np.random.SeedSequence(seed).generate_state(count)
    return [int(s) // 2 for s in state]  # below 2^31 for every backend


def dense(units, seed, name, dtype):
    """A dense layer whose weights `seed` makes."""
    return keras.layers.Dense(
        units,
        kernel_initializer=GlorotUniform(seed=seed),
        dtype=dtype,
        name=name,
    )


def _norm(name, dtype):
    return keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name)


def _mask_frames(x, mask):
    """Zeroes the frames outside `mask` (batch, frames); `None` keeps all."""
    if mask is None:
        return x
    return x * ops.cast(ops.expand_dims(mask, -1), x.dtype)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class RotarySelfAttention(keras.layers.Layer):
    """Bidirectional multi-head self-attention with rotary positions.

    Args:
        num_heads: int. `hidden_dim` must be a multiple of it.
        max_wavelength: float. See `apply_rotary`. Defaults to `10000.0`.
        dropout: float. Dropout on the attention weights. Defaults to `0.0`.
        seed: int or None. Seed of the kernels and of dropout.

    Call arguments:
        x: tensor of shape `(batch, frames, hidden_dim)`.
        padding_mask: optional boolean tensor of shape `(batch, frames)`,
            `False` at padding: no frame attends to those.
        training: bool.
    """

    def __init__(
        self,
        num_heads,
        max_wavelength=10000.0,
        dropout=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # === Config ===
        self.num_heads = num_heads
        self.max_wavelength = max_wavelength
        self.dropout = dropout
        self.seed = seed

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        if hidden_dim % (2 * self.num_heads):
            raise ValueError(
                "`hidden_dim` must be a multiple of `2 * num_heads` (each "
                f"head's features are rotated in pairs). Received: hidden_dim="
                f"{hidden_dim}, num_heads={self.num_heads}."
            )
        seeds = split_seed(self.seed, 5)
        for i, name in enumerate(("query", "key", "value", "output")):
            layer = dense(hidden_dim, seeds[i], name, dtype=self.dtype_policy)
            layer.build(input_shape)
            setattr(self, f"{name}_dense", layer)
        self.dropout_layer = keras.layers.Dropout(
            self.dropout, seed=seeds[4], dtype=self.dtype_policy
        )

    def call(self, x, padding_mask=None, training=False):
        batch, frames, hidden_dim = ops.shape(x)
        head_dim = x.shape[-1] // self.num_heads
        split = (batch, frames, self.num_heads, head_dim)
        positions = ops.arange(frames)
        query, key = (
            apply_rotary(
                ops.reshape(dense(x), split), positions, self.max_wavelength
            )
            for dense in (self.query_dense, self.key_dense)
        )
        value = ops.reshape(self.value_dense(x), split)
        # Head before time, so that both products are plain matrix products.
        query = ops.transpose(query, (0, 2, 1, 3))  # (batch, heads, frames, d)
        key = ops.transpose(key, (0, 2, 3, 1))  # (batch, heads, d, frames)
        value = ops.transpose(value, (0, 2, 1, 3))
        mask = None
        if padding_mask is not None:
            mask = padding_mask[:, None, None, :]
        if self._goes_one_by_one(x, training):
            pairs = [
                (row, head)
                for row in range(batch)
                for head in range(self.num_heads)
            ]
            out = [
                self._attend(
                    *(a[row, head] for a in (query, key, value)),
                    None if mask is None else mask[row, 0],
                )
                for row, head in pairs
            ]
            out = ops.reshape(
                ops.stack(out), (batch, self.num_heads, frames, head_dim)
            )
        else:
            out = self._attend(query, key, value, mask, training)
        out = ops.transpose(out, (0, 2, 1, 3))
        return self.output_dense(ops.reshape(out, ops.shape(x)))

    def _goes_one_by_one(self, x, training):
        """Whether heads attend one after the other: on JAX, which computes
        batches of small products slowly on a processor."""
        return (
            keras.backend.backend() == "jax"
            and not training
            and has_slow_batched_products()
            and x.shape[0] is not None
            and x.shape[0] * self.num_heads <= MAX_PRODUCTS
        )

    def _attend(self, query, key, value, mask, training=False):
        """One head, or all of them with `(batch, heads)` in front.

        Args:
            query, value: `(frames, head_dim)`.
            key: `(head_dim, frames)`.
            mask: bool, broadcast to `(frames, frames)`, or `None`.
        """
        scores = ops.matmul(query, key)
        scores = ops.cast(scores, "float32") * query.shape[-1] ** -0.5
        if mask is not None:
            scores = ops.where(mask, scores, -1e9)
        weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
        weights = self.dropout_layer(weights, training=training)
        return ops.matmul(weights, value)

    def get_config(self):
        config = super().get_config()
        config.update(
            num_heads=self.num_heads,
            max_wavelength=self.max_wavelength,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


@keras.saving.register_keras_serializable(package="keras_audiolm")
class DepthwiseConv(keras.layers.Layer):
    """Depthwise convolution over time, `same` length, zeros at both ends.

    Each channel's convolution is computed as products with one small banded
    matrix per channel, `_BLOCK` output frames at a time:

        in    0 0 a b c d e f g 0 0     kernel_size 5, blocks of 4 frames
              [-- block 1 ---]
                      [-- block 2 ---]  (its last frame is dropped)
        out       A B C D E F G

    XLA's grouped convolution is about twenty times slower than this on a CPU
    (forward and backward), and a sum of shifted products gets recomputed
    inside the reductions that follow it.

    Args:
        kernel_size: int, odd.
        seed: int or None. Seed of the kernel.

    Call arguments:
        x: tensor of shape `(batch, frames, channels)`.
    """

    def __init__(self, kernel_size, seed=None, **kwargs):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                "`kernel_size` must be odd, so that the window is centred. "
                f"Received: kernel_size={kernel_size}."
            )
        # === Config ===
        self.kernel_size = kernel_size
        self.seed = seed

    def build(self, input_shape):
        # A standard deviation that keeps the variance of the input.
        self.kernel = self.add_weight(
            shape=(self.kernel_size, input_shape[-1]),
            initializer=RandomNormal(self.kernel_size**-0.5, seed=self.seed),
            name="kernel",
        )
        self.bias = self.add_weight(
            shape=(input_shape[-1],), initializer="zeros", name="bias"
        )
        # band[s, n, k] is 1 where output n reads input s with tap k.
        window = _BLOCK + self.kernel_size - 1
        band = np.zeros((window, _BLOCK, self.kernel_size), "float32")
        for n in range(_BLOCK):
            for k in range(self.kernel_size):
                band[n + k, n, k] = 1.0
        self.band = band.reshape(-1, self.kernel_size)

    def call(self, x):
        frames, channels = ops.shape(x)[1], x.shape[-1]
        window = _BLOCK + self.kernel_size - 1
        blocks = (frames + _BLOCK - 1) // _BLOCK
        x = self._windows(x, window, blocks)
        band = ops.cast(self.band, x.dtype)
        kernel = ops.cast(self.kernel, x.dtype)
        matrix = ops.matmul(band, kernel)  # (window * _BLOCK, channels)
        matrix = ops.reshape(matrix, (window, _BLOCK, channels))
        y = ops.einsum("bmsc,snc->bmnc", x, matrix)
        y = ops.reshape(y, (-1, blocks * _BLOCK, channels))
        return y[:, :frames] + ops.cast(self.bias, y.dtype)

    def _windows(self, x, window, blocks):
        """`(batch, frames, c)` to `(batch, blocks, window, c)`."""
        pieces = -(-window // _BLOCK)
        x = ops.pad(
            x, [[0, 0], [self.kernel_size // 2, pieces * _BLOCK], [0, 0]]
        )
        size = blocks * _BLOCK
        parts = [x[:, i * _BLOCK : i * _BLOCK + size] for i in range(pieces)]
        shape = (-1, blocks, _BLOCK, x.shape[-1])
        parts = [ops.reshape(part, shape) for part in parts]
        return ops.concatenate(parts, axis=2)[:, :, :window]

    def get_config(self):
        config = super().get_config()
        config.update(kernel_size=self.kernel_size, seed=self.seed)
        return config


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ConvolutionModule(keras.layers.Layer):
    """Conformer's convolution module.

    Layer norm, gated pointwise layer, depthwise convolution, norm, swish,
    pointwise layer. The norm in the middle is a layer norm and not a batch
    norm, so that an example's output depends on that example only.

    Args:
        kernel_size: int, odd. Of the depthwise convolution.
        dropout: float. On the output. Defaults to `0.0`.
        seed: int or None. Seed of the kernels and of dropout.

    Call arguments:
        x: tensor of shape `(batch, frames, hidden_dim)`.
        padding_mask: optional boolean tensor of shape `(batch, frames)`.
        training: bool.

    Reference:
     - [Conformer, section 2.2](https://arxiv.org/abs/2005.08100)
    """

    def __init__(self, kernel_size, dropout=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        # === Config ===
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.seed = seed

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        dtype = self.dtype_policy
        seeds = split_seed(self.seed, 4)
        self.norm = _norm("norm", dtype)
        self.gate = dense(2 * hidden_dim, seeds[0], "gate", dtype=dtype)
        self.depthwise = DepthwiseConv(
            self.kernel_size, seed=seeds[1], dtype=dtype, name="depthwise"
        )
        self.middle_norm = _norm("middle_norm", dtype)
        self.out = dense(hidden_dim, seeds[2], "out", dtype=dtype)
        for layer in (
            self.norm,
            self.gate,
            self.depthwise,
            self.middle_norm,
            self.out,
        ):
            layer.build(input_shape)
        self.dropout_layer = keras.layers.Dropout(
            self.dropout, seed=seeds[3], dtype=dtype
        )

    def call(self, x, padding_mask=None, training=False):
        value, gate = ops.split(self.gate(self.norm(x)), 2, axis=-1)
        # Padding is zeroed where the kernel could carry it into the audio.
        x = _mask_frames(value * ops.sigmoid(gate), padding_mask)
        x = ops.silu(self.middle_norm(self.depthwise(x)))
        return self.dropout_layer(self.out(x), training=training)

    def get_config(self):
        config = super().get_config()
        config.update(
            kernel_size=self.kernel_size,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


@keras.saving.register_keras_serializable(package="keras_audiolm")
class FeedForward(keras.layers.Layer):
    """Layer norm, dense, swish, dense: Conformer's feed-forward module.

    Args:
        intermediate_dim: int. Width of the inner layer.
        dropout: float. After both dense layers. Defaults to `0.0`.
        seed: int or None. Seed of the kernels and of dropout.

    Call arguments:
        x: tensor of shape `(batch, frames, hidden_dim)`.
        training: bool.
    """

    def __init__(self, intermediate_dim, dropout=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        # === Config ===
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.seed = seed

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        dtype = self.dtype_policy
        seeds = split_seed(self.seed, 4)
        self.norm = _norm("norm", dtype)
        self.norm.build(input_shape)
        self.inner = dense(
            self.intermediate_dim, seeds[0], "inner", dtype=dtype
        )
        self.inner.build(input_shape)
        self.outer = dense(hidden_dim, seeds[1], "outer", dtype=dtype)
        self.outer.build((*input_shape[:-1], self.intermediate_dim))
        self.inner_dropout, self.outer_dropout = (
            keras.layers.Dropout(self.dropout, seed=s, dtype=dtype)
            for s in seeds[2:]
        )

    def call(self, x, training=False):
        x = ops.silu(self.inner(self.norm(x)))
        x = self.outer(self.inner_dropout(x, training=training))
        return self.outer_dropout(x, training=training)

    def get_config(self):
        config = super().get_config()
        config.update(
            intermediate_dim=self.intermediate_dim,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ConformerBlock(keras.layers.Layer):
    """Half feed-forward, self-attention, convolution, half feed-forward.

    Each of the four is added to its input; a layer norm ends the block. What
    stands at frames outside `padding_mask` never changes the others, so a
    padded example gives what it gives alone. The outputs at those frames
    themselves mean nothing.

    Args:
        num_heads: int. Of the self-attention, which has rotary positions.
        intermediate_dim: int. Inner width of the feed-forward modules.
        kernel_size: int, odd. Of the depthwise convolution.
        dropout: float. Defaults to `0.0`.
        seed: int or None. Seed of the kernels and of dropout.

    Call arguments:
        x: tensor of shape `(batch, frames, hidden_dim)`.
        padding_mask: optional boolean tensor of shape `(batch, frames)`,
            `False` at padding.
        training: bool.

    Example:

    >>> block = ConformerBlock(num_heads=2, intermediate_dim=32, kernel_size=5)
    >>> tuple(block(keras.random.normal((1, 50, 16), seed=0)).shape)
    (1, 50, 16)

    Reference:
     - [Gulati et al., 2020](https://arxiv.org/abs/2005.08100)
    """

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        kernel_size,
        dropout=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # === Config ===
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.seed = seed

    def build(self, input_shape):
        dtype, dropout = self.dtype_policy, self.dropout
        seeds = split_seed(self.seed, 5)
        self.feed_forward_start, self.feed_forward_end = (
            FeedForward(
                self.intermediate_dim, dropout, seed, dtype=dtype, name=name
            )
            for seed, name in zip(
                seeds[:2],
                ("feed_forward_start", "feed_forward_end"),
                strict=True,
            )
        )
        self.attention_norm = _norm("attention_norm", dtype)
        self.attention = RotarySelfAttention(
            self.num_heads,
            dropout=dropout,
            seed=seeds[2],
            dtype=dtype,
            name="attention",
        )
        self.attention_dropout = keras.layers.Dropout(
            dropout, seed=seeds[3], dtype=dtype
        )
        self.convolution = ConvolutionModule(
            self.kernel_size, dropout, seeds[4], dtype=dtype, name="convolution"
        )
        self.norm = _norm("norm", dtype)
        for layer in (
            self.feed_forward_start,
            self.attention_norm,
            self.attention,
            self.convolution,
            self.feed_forward_end,
            self.norm,
        ):
            layer.build(input_shape)

    def call(self, x, padding_mask=None, training=False):
        x = x + 0.5 * self.feed_forward_start(x, training=training)
        y = self.attention_norm(x)
        y = self.attention(y, padding_mask=padding_mask, training=training)
        x = x + self.attention_dropout(y, training=training)
        x = x + self.convolution(
            x, padding_mask=padding_mask, training=training
        )
        x = x + 0.5 * self.feed_forward_end(x, training=training)
        return self.norm(x)

    def get_config(self):
        config = super().get_config()
        config.update(
            num_heads=self.num_heads,
            intermediate_dim=self.intermediate_dim,
            kernel_size=self.kernel_size,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


def conformer_layouts(data, model):
    """The axes that the weights of blocks named `block_0`, ... are split along.

    Args:
        data, model: str. Names of the axes of batches, and of heads and inner
            units.
    """
    block = r"[^/]+/block_\d+/"
    into = "(feed_forward_(start|end)/inner|attention/(query|key|value))"
    out_of = "(feed_forward_(start|end)/outer|attention/output|convolution/out)"
    return {
        block + into + "/kernel": (data, model),
        block + into + "/bias": (model,),
        block + out_of + "/kernel": (model, data),
        # Its halves are multiplied with each other.
        block + "convolution/gate/kernel": (data, model),
        block + "convolution/depthwise/kernel": (None, model),
    }
