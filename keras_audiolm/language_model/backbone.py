"""The decoder-only Transformer that all three stages share."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.compiled import (
    MAX_PRODUCTS,
    has_slow_batched_products,
)
from keras_audiolm.layers.initializers import GlorotUniform, RandomNormal
from keras_audiolm.layers.remat import recomputed
from keras_audiolm.layers.rotary import apply_rotary

# Scores that count as "not at all", safe in every float type.
MASKED = -1e9
# Queries that attend at once in a whole sequence. What lies ahead of a block
# of them is never computed, and its scores fit in a processor's cache.
QUERY_BLOCK = 256


def relative_buckets(length, num_buckets, max_distance):
    """T5's causal buckets of the distances `0 .. length - 1`.

    Half of the buckets are single distances, the others grow
    logarithmically up to `max_distance`, and the last holds all beyond.
    """
    distance = np.arange(length)
    exact = num_buckets // 2
    spread = np.log(np.maximum(distance, exact) / exact)
    spread = spread / math.log(max_distance / exact) * (num_buckets - exact)
    far = np.minimum(exact + spread.astype("int32"), num_buckets - 1)
    return np.where(distance < exact, distance, far).astype("int32")


@keras.saving.register_keras_serializable(package="keras_audiolm")
class RelativeBias(keras.layers.Layer):
    """T5's learned bias by distance, one value a bucket and head.

    One table serves all layers. The bias of a whole sequence is laid out from
    one value a distance without a gather (and so without a scatter in the
    backward pass).

    Args:
        num_heads: int.
        num_buckets: int. Defaults to `32`.
        max_distance: int. Where the last bucket begins. T5's 128 is 0.64
            seconds in the coarse stage, so the default is `2048`.

    Call arguments:
        length: int. Of the sequence.

    Returns:
        `(heads, length, length)`, query by key; above the diagonal it has no
        meaning.

    Reference:
     - [T5, section 2.1](https://arxiv.org/abs/1910.10683)
    """

    def __init__(self, num_heads, num_buckets=32, max_distance=2048, **kwargs):
        super().__init__(**kwargs)
        if not 2 <= num_buckets or not num_buckets // 2 < max_distance:
            raise ValueError(
                "`num_buckets` must be 2 or more, and `max_distance` above "
                f"half of it. Received: num_buckets={num_buckets}, "
                f"max_distance={max_distance}"
            )
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance

    def build(self, input_shape=None):
        self.table = self.add_weight(
            name="table",
            shape=(self.num_heads, self.num_buckets),
            initializer=RandomNormal(0.02, seed=0),
        )

    def by_distance(self, length):
        """`(heads, length)`: the bias of each distance."""
        buckets = relative_buckets(length, self.num_buckets, self.max_distance)
        return ops.take(self.table, buckets, axis=1)

    def call(self, length):
        values = self.by_distance(length)
        # row[k] is the bias of key - query = k, modulo 2 * length. Repeated
        # and cut into rows one shorter than its period, it starts each row
        # one step further to the right.
        ahead = ops.zeros((self.num_heads, length), values.dtype)
        behind = ops.flip(values[:, 1:], axis=1)
        row = ops.concatenate(
            [values[:, :1], ahead, behind], axis=1
        )  # (heads, 2 * length)
        rows = ops.broadcast_to(
            row[:, None], (self.num_heads, length, 2 * length)
        )
        flat = ops.reshape(rows, (self.num_heads, 2 * length * length))
        flat = flat[:, : length * (2 * length - 1)]
        square = ops.reshape(flat, (self.num_heads, length, 2 * length - 1))
        return square[:, :, :length]

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class DecoderBlock(keras.layers.Layer):
    """Pre-norm causal self-attention and a gated GELU, without biases.

    Args:
        num_heads: int.
        hidden_dim: int.
        intermediate_dim: int. Width of the gated feed-forward layer.
        dropout: float.
        seed: int.

    Call arguments:
        x: `(batch, length, hidden_dim)`.
        bias: additive, broadcast to `(batch, heads, length, keys)`.
        times: `(length,)` positions for rotary embedding, or `None`.
        training: bool.
    """

    def __init__(
        self,
        num_heads,
        hidden_dim,
        intermediate_dim,
        dropout=0.1,
        seed=0,
        **kwargs,
    ):
        # Bias and times stay float32, and x comes in the right type.
        super().__init__(autocast=False, **kwargs)
        if hidden_dim % num_heads:
            raise ValueError(
                "`hidden_dim` must be a multiple of `num_heads`. Received: "
                f"hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.seed = seed

        # === Layers ===
        def dense(units, name):
            return keras.layers.Dense(
                units,
                use_bias=False,
                kernel_initializer=GlorotUniform(),
                name=name,
                dtype=self.dtype_policy,
            )

        def norm(name):
            return keras.layers.RMSNormalization(
                epsilon=1e-6, name=name, dtype=self.dtype_policy
            )

        self.attention_norm = norm("attention_norm")
        self.query = dense(hidden_dim, "query")
        self.key = dense(hidden_dim, "key")
        self.value = dense(hidden_dim, "value")
        self.attention_output = dense(hidden_dim, "attention_output")
        self.feed_forward_norm = norm("feed_forward_norm")
        self.gate = dense(intermediate_dim, "gate")
        self.up = dense(intermediate_dim, "up")
        self.down = dense(hidden_dim, "down")
        self.drop = keras.layers.Dropout(
            dropout, seed=seed, dtype=self.dtype_policy
        )

    def build(self, input_shape):
        inner = (*input_shape[:-1], self.intermediate_dim)
        for layer in (
            self.attention_norm,
            self.query,
            self.key,
            self.value,
            self.attention_output,
            self.feed_forward_norm,
            self.gate,
            self.up,
        ):
            layer.build(input_shape)
        self.down.build(inner)

    def call(self, x, bias, times=None, training=False):
        q, k, v = self._project(x, times)
        mixed = self._attend_in_blocks(q, k, v, bias)
        x = x + self.drop(mixed, training=training)
        return x + self.drop(self._feed_forward(x), training=training)

    def prefill(self, x, bias, times=None):
        """`call`, with the keys and values for the cache beside."""
        q, k, v = self._project(x, times)
        x = x + self._attend_in_blocks(q, k, v, bias)
        return x + self._feed_forward(x), (k, v)

    def step(self, x, cache, index, bias, times=None):
        """`call` for the one token at `index`, given the keys before it.

        Args:
            x: `(batch, 1, hidden_dim)`.
            cache: keys and values, each `(batch, heads, length, head_dim)`.
            index: scalar int32.
            bias: `(batch, heads or 1, 1, length)`, masking what is ahead.
            times: `(batch, 1)` or `None`.
        """
        q, k, v = self._project(x, times)
        start = (0, 0, index, 0)
        keys = ops.slice_update(cache[0], start, k)
        values = ops.slice_update(cache[1], start, v)
        x = x + self._attend_once(q, keys, values, bias)
        return x + self._feed_forward(x), (keys, values)

    def _project(self, x, times):
        x = self.attention_norm(x)
        q = self._split_heads(self.query(x))
        k = self._split_heads(self.key(x))
        v = self._split_heads(self.value(x))
        if times is not None:
            q, k = apply_rotary(q, times), apply_rotary(k, times)
        # (batch, heads, length, head_dim)
        return tuple(ops.transpose(a, (0, 2, 1, 3)) for a in (q, k, v))

    def _split_heads(self, x):
        heads = self.num_heads
        return ops.reshape(x, (-1, x.shape[1], heads, self.hidden_dim // heads))

    def _attend_in_blocks(self, q, k, v, bias):
        """`_attend` of a whole sequence to itself."""
        length = q.shape[2]
        ends = [*range(QUERY_BLOCK, length, QUERY_BLOCK), length]
        parts = [
            self._attend(
                q[:, :, start:end],
                k[:, :, :end],
                v[:, :, :end],
                bias[:, :, start:end, :end],
            )
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        return ops.concatenate(parts, axis=1)

    def _attend_once(self, q, k, v, bias):
        """`_attend` of one token."""
        rows, heads = q.shape[0], self.num_heads
        if not has_slow_batched_products() or rows * heads > MAX_PRODUCTS:
            return self._attend(q, k, v, bias)
        q = q * (self.hidden_dim // heads) ** -0.5
        bias = ops.broadcast_to(bias, (rows, heads, 1, k.shape[2]))
        mixed = [
            self._mix(q[row, head], k[row, head], v[row, head], bias[row, head])
            for row in range(rows)
            for head in range(heads)
        ]
        mixed = ops.reshape(
            ops.concatenate(mixed, axis=1), (rows, 1, self.hidden_dim)
        )
        return self.attention_output(mixed)

    def _mix(self, q, k, v, bias):
        """One head of one row: `(1, head_dim)`."""
        scores = ops.matmul(q, ops.transpose(k))
        scores = ops.cast(scores, "float32") + bias
        return ops.matmul(ops.cast(ops.softmax(scores, axis=-1), v.dtype), v)

    def _attend(self, q, k, v, bias):
        scale = (self.hidden_dim // self.num_heads) ** -0.5
        scores = ops.matmul(q * scale, ops.transpose(k, (0, 1, 3, 2)))
        scores = ops.cast(scores, "float32") + bias
        weights = ops.cast(ops.softmax(scores, axis=-1), v.dtype)
        mixed = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
        mixed = ops.reshape(mixed, (-1, mixed.shape[1], self.hidden_dim))
        return self.attention_output(mixed)

    def _feed_forward(self, x):
        x = self.feed_forward_norm(x)
        gate = ops.gelu(self.gate(x), approximate=True)
        return self.down(gate * self.up(x))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class StageBackbone(keras.Model):
    """A decoder-only Transformer over one vocabulary.

    Args:
        vocabulary_size: int.
        num_layers: int. Defaults to the paper's `12`, as are the others.
        num_heads: int. Defaults to `16`.
        hidden_dim: int. Defaults to `1024`.
        intermediate_dim: int. Width of the gated GELU. Defaults to `4096`.
        dropout: float. Defaults to `0.1`.
        position: `"relative"`, T5's bias by the distance of tokens in the
            sequence (the paper's), or `"rotary"`, by the time at which
            tokens sound, so that a semantic and an acoustic token of the
            same moment find each other.
        num_buckets, max_distance: of `RelativeBias`.
        pad_id: int. Tokens of this id are never attended to.
        seed: int. Of the dropout.

    Call arguments:
        token_ids: `(batch, length)` int32.
        times: NumPy `(length,)`, for rotary positions.
        training: bool.

    Returns:
        `(batch, length, hidden_dim)`.

    Attributes:
        remat: bool. Whether training recomputes the activations of the blocks
            in the backward pass, to save memory.

    Reference:
     - [AudioLM, section IV-B](https://arxiv.org/abs/2209.03143)
     - [GLU variants](https://arxiv.org/abs/2002.05202): the paper's "0.3B
       a stage" and MusicLM's 430M both fit a gated layer.
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers=12,
        num_heads=16,
        hidden_dim=1024,
        intermediate_dim=4096,
        dropout=0.1,
        position="relative",
        num_buckets=32,
        max_distance=2048,
        pad_id=None,
        seed=0,
        **kwargs,
    ):
        # Times stay float32: bfloat16 has no frame 257.
        super().__init__(autocast=False, **kwargs)
        if position not in ("relative", "rotary"):
            raise ValueError(
                "`position` must be 'relative' or 'rotary'. "
                f"Received: position={position!r}"
            )

        # === Layers ===
        self.token_embedding = keras.layers.Embedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=RandomNormal(0.02, seed=seed),
            name="token_embedding",
            dtype=self.dtype_policy,
        )
        self.blocks = [
            DecoderBlock(
                num_heads,
                hidden_dim,
                intermediate_dim,
                dropout,
                seed=seed + i,
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = keras.layers.RMSNormalization(
            epsilon=1e-6, name="final_norm", dtype=self.dtype_policy
        )
        if position == "relative":
            self.relative_bias = RelativeBias(
                num_heads,
                num_buckets,
                max_distance,
                dtype="float32",
                name="relative_bias",
            )
        # A seed that no block has: they would drop the same places.
        self.embedding_drop = keras.layers.Dropout(
            dropout, seed=seed + num_layers, dtype=self.dtype_policy
        )

        self.remat = False

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.position = position
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.pad_id = pad_id
        self.seed = seed

    def build(self, input_shape=None):
        if self.token_embedding.built:
            return
        shape = (None, None, self.hidden_dim)
        self.token_embedding.build((None, None))
        for block in self.blocks:
            block.build(shape)
        self.final_norm.build(shape)
        if self.position == "relative":
            self.relative_bias.build()

    def call(self, token_ids, times=None, training=False):
        x = self.token_embedding(token_ids)
        x = self.embedding_drop(x, training=training)
        bias = self._bias(token_ids)
        times = self._times(times)
        for block in self.blocks:
            if self.remat and training:
                x = recomputed(block, x, bias, times, training=True)
            else:
                x = block(x, bias, times=times, training=training)
        return self.final_norm(x)

    # === Generation ===

    def prefill(self, token_ids, times=None):
        """One pass over a sequence that fills the caches.

        What stands after the part that is known yet does no harm: causality
        keeps it out of the keys before it, and `step` overwrites its own.

        Returns:
            A list of `(keys, values)`, one a layer, each
            `(batch, heads, length, head_dim)`.
        """
        x = self.token_embedding(token_ids)
        bias = self._bias(token_ids)
        times = self._times(times)
        caches = []
        for block in self.blocks:
            x, cache = block.prefill(x, bias, times)
            caches.append(cache)
        return caches

    def step(self, token_id, caches, index, mask, distances, time=None):
        """The hidden state of one more token.

        Args:
            token_id: `(batch, 1)` int32, the token at `index`.
            caches: from `prefill`, or the last step.
            index: scalar int32.
            mask: `(batch, length)` bool, false where a token is padding.
            distances: from `distance_bias` of the caches' length.
            time: `(batch, 1)`, for rotary positions.

        Returns:
            `(batch, hidden_dim)`, and the new caches.
        """
        x = self.token_embedding(token_id)
        length = mask.shape[1]
        row = ops.slice(
            distances, (0, length - 1 - index), (distances.shape[0], length)
        )
        bias = ops.where(mask[:, None, None], row[None, :, None], MASKED)
        time = self._times(time)
        new = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.step(x, cache, index, bias, time)
            new.append(cache)
        return self.final_norm(x)[:, 0], new

    def distance_bias(self, length):
        """What the tokens of a sequence add to each other's scores.

        Returns:
            `(heads or 1, 2 * length)`. The `length` entries from `length - 1
            - index` on are for the token at `index`, and mask what is ahead.
        """
        behind = ops.zeros((1, length))
        if self.position == "relative":
            behind = ops.flip(self.relative_bias.by_distance(length), axis=1)
        ahead = ops.full((behind.shape[0], length), MASKED)
        return ops.concatenate([behind, ahead], axis=1)

    def _times(self, times):
        return times if self.position == "rotary" else None

    def _bias(self, token_ids):
        """Causality, padding and distance: `(batch or 1, heads or 1, t, t)`."""
        length = token_ids.shape[1]
        ahead = np.triu(np.full((length, length), MASKED, "float32"), 1)
        bias = ops.convert_to_tensor(ahead)[None, None]
        if self.pad_id is not None:
            padding = ops.cast(token_ids == self.pad_id, "float32")
            bias = bias + MASKED * padding[:, None, None, :]
        if self.position == "relative":
            bias = bias + self.relative_bias(length=length)[None]
        return bias

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "position": self.position,
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "pad_id": self.pad_id,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
