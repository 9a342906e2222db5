"""Residual vector quantization with codebooks learned by moving averages."""

from collections import namedtuple

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.argmax import argmax
from keras_audiolm.layers.distribution import refuse_replicas
from keras_audiolm.layers.initializers import RandomNormal

# What `smallest` divides a row into.
GROUPS = 512
Quantized = namedtuple("Quantized", ["embeddings", "codes", "commitment_loss"])


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ResidualVectorQuantizer(keras.layers.Layer):
    """Each level quantizes what the levels before it left over.

    A code's centroid is `embedding_sum / usage`: both are moving averages of
    *sums* over the batch, so that one source of truth holds the codebook.

    Buffers:
        embedding_sum: `(num_quantizers, codebook_size, dim)`, the moving
            average of the sum of the vectors that chose a code in a step.
        usage: `(num_quantizers, codebook_size)`, the moving average of how
            many they were.

    Args:
        num_quantizers: int. The number of levels `Q`.
        codebook_size: int. Codes of a level.
        decay: float. Of the moving averages. Defaults to `0.99`.
        dead_code_ratio: float. A code whose usage falls under this part of
            uniform usage is replaced, in the same step, by a random vector of
            the batch. A ratio and not a count, so that it means the same at
            every batch size. Defaults to `0.1`.
        dropout: float. The part of training examples that are quantized with
            a number of levels drawn from 1 to `num_quantizers`; the others
            use all. `1.0` is SoundStream's. Defaults to `1.0`.
        code_dim: int, optional. Each level projects what is left over to so
            few dimensions, looks up the code whose direction is nearest, and
            projects it back, as in DAC (8 there). By default codes have the
            embeddings' dimension and are looked up by distance.
        split_first: bool. Whether the levels after the first quantize the
            embedding itself and not what the first left over, as in Mimi.
            Needs a `code_dim`, whose projections can then share the work.
        beam_width: int. How many choices of codes `encode` keeps in play from
            level to level. With `1`, the paper's, each level takes the code
            nearest to what is left over; more find codes whose sum is nearer,
            at as many times the comparisons. Training always takes the
            nearest. Defaults to `1`.
        seed: int. Of the level dropout and of the revival.

    Call arguments:
        x: `(batch, frames, dim)`.
        training: bool. Whether to drop levels and learn the codebooks. With
            `trainable = False` levels are dropped alone.

    Returns:
        A named tuple: `embeddings` `(batch, frames, dim)` with straight-through
        gradient, `codes` `(batch, frames, num_quantizers)` int32, and the
        scalar `commitment_loss`: the mean over levels of the squared distance
        to the chosen code, as a part of the embeddings' mean square.

    Reference:
     - [SoundStream, section III-C](https://arxiv.org/abs/2107.03312)
     - [VQ-VAE, appendix A.1](https://arxiv.org/abs/1711.00937)
     - [DAC, section 3.2](https://arxiv.org/abs/2306.06546)
     - [Mimi, section 3.3](https://arxiv.org/abs/2410.00037)
     - LeBlanc et al., 1993, "Efficient search and design procedures for robust
       multi-stage VQ of LPC coefficients for 4 kb/s speech coding"
    """

    def __init__(
        self,
        num_quantizers,
        codebook_size,
        decay=0.99,
        dead_code_ratio=0.1,
        dropout=1.0,
        code_dim=None,
        split_first=False,
        beam_width=1,
        seed=0,
        **kwargs,
    ):
        # Distances and averages in half precision pick wrong neighbours.
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.decay = decay
        self.dead_code_ratio = dead_code_ratio
        self.dropout = dropout
        self.code_dim = code_dim
        self.split_first = split_first
        if split_first and not code_dim:
            raise ValueError(
                "`split_first` needs a `code_dim`: only projections let two "
                "levels of the same embedding add up to it."
            )
        if beam_width < 1 or (beam_width > 1 and code_dim):
            raise ValueError(
                "`beam_width` must be 1 or more, and 1 with a `code_dim`, "
                "whose codes are looked up by direction. Received: "
                f"beam_width={beam_width}, code_dim={code_dim}"
            )
        self.beam_width = beam_width
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        dim = input_shape[-1]
        shape = (
            self.num_quantizers,
            self.codebook_size,
            self.code_dim or dim,
        )
        self.embedding_sum = self.add_weight(
            name="embedding_sum",
            shape=shape,
            initializer=RandomNormal(seed=self.seed),
            trainable=False,
        )
        self.usage = self.add_weight(
            name="usage", shape=shape[:2], initializer="ones", trainable=False
        )
        if self.code_dim:
            initializer = RandomNormal(dim**-0.5, seed=self.seed)
            self.to_code = self.add_weight(
                name="to_code",
                shape=(self.num_quantizers, dim, self.code_dim),
                initializer=initializer,
            )
            self.from_code = self.add_weight(
                name="from_code",
                shape=(self.num_quantizers, self.code_dim, dim),
                initializer=initializer,
            )
            self.to_bias = self.add_weight(
                name="to_bias",
                shape=(self.num_quantizers, self.code_dim),
                initializer="zeros",
            )
            self.from_bias = self.add_weight(
                name="from_bias",
                shape=(self.num_quantizers, dim),
                initializer="zeros",
            )

    # === Inference ===

    def codebook(self, level):
        """The centroids of a level, `(codebook_size, code_dim or dim)`."""
        return self.embedding_sum[level] / self.usage[level][:, None]

    def encode(self, x, levels=None):
        """`(batch, frames, dim)` to codes `(batch, frames, levels)` int32.

        `levels` are as many as wanted, all by default.
        """
        x = ops.cast(x, "float32")
        levels = levels or self.num_quantizers
        if self.beam_width > 1:
            return self._search(x, levels)
        residual = x
        codes = []
        for level in range(levels):
            codes.append(self._look_up(level, self._project(level, residual)))
            if level or not self.split_first:
                residual = residual - self._embedding(level, codes[-1])
        return ops.stack(codes, axis=-1)

    def _search(self, x, levels):
        """The codes of `encode`, found by keeping several in play."""
        residual = x[:, :, None]  # (batch, frames, beams, dim)
        codes = None  # (batch, frames, beams, levels so far)
        for level in range(levels):
            codebook = self.codebook(level)
            distance = whole_distances(residual, codebook)
            batch, frames, beams, size = distance.shape
            distance = ops.reshape(distance, (-1, frames, beams * size))
            best = smallest(distance, min(self.beam_width, beams * size))
            parent, code = best // size, best % size  # (batch, frames, width)
            residual = take_beams(residual, parent) - ops.take(
                codebook, code, axis=0
            )
            code = ops.cast(code[..., None], "int32")
            if codes is not None:
                kept = take_beams(codes, parent)
                code = ops.concatenate([kept, code], axis=-1)
            codes = code
        # The nearest comes first.
        return codes[:, :, 0]

    def decode(self, codes):
        """Codes `(batch, frames, levels)` to the sum of their centroids.

        Any number of levels from one to `num_quantizers`, coarsest first.
        """
        return sum(
            self._embedding(level, codes[..., level])
            for level in range(codes.shape[-1])
        )  # (batch, frames, dim)

    def _project(self, level, x):
        """What a level's codebook is made of: x, or few dimensions of it."""
        if not self.code_dim:
            return x
        return ops.matmul(x, self.to_code[level]) + self.to_bias[level]

    def _unproject(self, level, x):
        if not self.code_dim:
            return x
        return ops.matmul(x, self.from_code[level]) + self.from_bias[level]

    def _look_up(self, level, x):
        """The code of each vector of `_project`."""
        codebook = self.codebook(level)
        if self.code_dim:
            x, codebook = direction(x), direction(codebook)
        return nearest(x, codebook)

    def _embedding(self, level, code):
        """What a level's codes stand for, `(batch, frames, dim)`."""
        choice = ops.take(self.codebook(level), code, axis=0)
        return self._unproject(level, choice)

    # === Training ===

    def call(self, x, training=False):
        if training:
            refuse_replicas()
        x = ops.cast(x, "float32")
        # (batch,): how many levels each example gets
        levels = self._draw_levels(ops.shape(x)[0], training)
        if training and not self.trainable:
            return self._as_it_is(x, levels)
        residual, quantized = x, 0.0
        codes, losses, averages = [], [], []
        for level in range(self.num_quantizers):
            used = ops.cast(levels > level, "float32")[:, None]  # (batch, 1)
            low = self._project(level, residual)
            code = self._look_up(level, low)
            # Only the constant is taken off, so that every level's
            # commitment reaches the encoder.
            choice = ops.take(self.codebook(level), code, axis=0)
            choice = ops.stop_gradient(choice)
            error = ops.mean(ops.square(low - choice), axis=-1)
            error = ops.sum(error * used) / mass(used, error)
            losses.append(error / self._energy(x, low))
            if training:
                averages.append(self._averages(level, low, code, used))
            made = choice
            if self.code_dim:
                # Straight through the choice, to both projections and to x.
                choice = low + ops.stop_gradient(choice - low)
                made = self._unproject(level, choice)
            quantized = quantized + made * used[..., None]
            if level or not self.split_first:
                residual = residual - ops.stop_gradient(made)
            codes.append(code)
        if training:
            sums, usages = zip(*averages, strict=True)
            self.embedding_sum.assign(ops.stack(sums))
            self.usage.assign(ops.stack(usages))
        if not self.code_dim:
            quantized = x + ops.stop_gradient(quantized - x)
        return Quantized(
            quantized, ops.stack(codes, axis=-1), ops.mean(ops.stack(losses))
        )

    def _as_it_is(self, x, levels):
        """The codes that `encode` gives: nothing is to be learned here."""
        codes = self.encode(ops.stop_gradient(x))
        quantized = sum(
            self._embedding(level, codes[..., level])
            * ops.cast(levels > level, "float32")[:, None, None]
            for level in range(self.num_quantizers)
        )
        return Quantized(ops.stop_gradient(quantized), codes, ops.zeros(()))

    def _energy(self, x, low):
        """What a commitment counts as a part of.

        As an absolute distance it would be outgrown by an encoder that
        amplifies its output; with projections, by these.
        """
        whole = ops.stop_gradient(low if self.code_dim else x)
        return ops.mean(ops.square(whole)) + 1e-8

    def _draw_levels(self, batch_size, training):
        everything = ops.full((batch_size,), self.num_quantizers, "int32")
        if not training or not self.dropout:
            return everything
        levels = keras.random.randint(
            (batch_size,), 1, self.num_quantizers + 1, seed=self.seed_generator
        )
        drop = keras.random.uniform((batch_size,), seed=self.seed_generator)
        return ops.where(drop < self.dropout, levels, everything)

    def _averages(self, level, residual, code, used):
        """A level's moving averages after a step, with dead codes revived.

        Returns:
            The new row of `embedding_sum`, and that of `usage`.
        """
        vectors = ops.stop_gradient(residual)
        vectors = ops.reshape(vectors, (-1, vectors.shape[-1]))
        weight = ops.broadcast_to(used, ops.shape(code))
        weight = ops.reshape(weight, (-1,))
        chosen = ops.one_hot(ops.reshape(code, (-1,)), self.codebook_size)
        chosen = chosen * weight[:, None]  # (vectors, codebook_size)

        decay = self.decay
        usage = decay * self.usage[level] + (1 - decay) * ops.sum(chosen, 0)
        sums = ops.matmul(ops.transpose(chosen), vectors)
        sums = decay * self.embedding_sum[level] + (1 - decay) * sums

        fair = ops.mean(usage)
        dead = usage < self.dead_code_ratio * fair
        picks = self._draw_vectors(weight)
        fresh = ops.take(vectors, picks, axis=0) * fair
        usage = ops.where(dead, fair, usage)
        return ops.where(dead[:, None], fresh, sums), usage

    def _draw_vectors(self, weight):
        """Indices of `codebook_size` vectors of those of weight 1, not 0."""
        used_first = ops.argsort(1 - weight)
        count = ops.maximum(ops.sum(weight), 1.0)
        part = keras.random.uniform(
            (self.codebook_size,), seed=self.seed_generator
        )
        # Rounding may lift a part just under 1 to the whole.
        place = ops.minimum(ops.floor(part * count), count - 1)
        return ops.take(used_first, ops.cast(place, "int32"))

    # === Start ===

    def initialize(self, vectors, num_iterations=10):
        """Starts every level by k-means on what the levels before leave over.

        Args:
            vectors: NumPy array `(n, dim)`, the encoder's outputs. At least
                `codebook_size` of them.
            num_iterations: int. Lloyd iterations of each level.

        Raises:
            ValueError: if there are fewer vectors than codes.
        """
        if len(vectors) < self.codebook_size:
            raise ValueError(
                f"{self.codebook_size} codes need at least as many frames to "
                f"start from. Received: {len(vectors)} frames. Give more "
                "audio or a smaller codebook_size."
            )
        generator = np.random.default_rng(self.seed)
        residual = np.asarray(vectors, "float32")
        sums, usages, bases = [], [], []
        for level in range(self.num_quantizers):
            basis = np.eye(residual.shape[1], dtype="float32")
            if self.code_dim:
                basis = principal_components(residual, self.code_dim)
            centroids, usage, codes = lloyd(
                residual @ basis, self.codebook_size, num_iterations, generator
            )
            # The averages hold sums: a mean times how often it was chosen,
            # as a step of an average batch would see it.
            usage = np.maximum(usage / usage.mean(), 0.1)
            sums.append(centroids * usage[:, None])
            usages.append(usage)
            bases.append(basis)
            if level or not self.split_first:
                residual = residual - centroids[codes] @ basis.T
        self.embedding_sum.assign(np.stack(sums))
        self.usage.assign(np.stack(usages))
        if self.code_dim:
            self.to_code.assign(np.stack(bases))
            self.from_code.assign(np.stack([b.T for b in bases]))

    def compute_output_shape(self, input_shape):
        return Quantized(
            input_shape, (*input_shape[:-1], self.num_quantizers), ()
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_quantizers": self.num_quantizers,
            "codebook_size": self.codebook_size,
            "decay": self.decay,
            "dead_code_ratio": self.dead_code_ratio,
            "dropout": self.dropout,
            "code_dim": self.code_dim,
            "split_first": self.split_first,
            "beam_width": self.beam_width,
            "seed": self.seed,
        }


def nearest(x, codebook):
    """The nearest code of each vector: `(..., dim)` to `(...)` int32."""
    distance = distances(ops.stop_gradient(x), codebook)
    return ops.cast(argmax(-distance), "int32")


def distances(x, codebook):
    """Squared distances to each code, less the constant |x|^2.

    `(..., dim)` to `(..., codebook_size)`.
    """
    return ops.sum(ops.square(codebook), axis=-1) - 2 * ops.matmul(
        x, ops.transpose(codebook)
    )


def smallest(x, count):
    """The places of the `count` smallest of the last axis, smallest first.

    As `top_k`, which takes ten times as long on rows of thousands: the
    smallest are in those groups whose own smallest are the smallest.
    """
    *shape, size = x.shape
    groups = GROUPS if size % GROUPS == 0 else 1
    if groups <= count:
        return ops.top_k(-x, count)[1]
    inner = size // groups
    grouped = ops.reshape(x, (-1, *shape[1:], groups, inner))
    _, kept = ops.top_k(-ops.min(grouped, axis=-1), count)
    # (..., count, inner)
    found = ops.take_along_axis(grouped, kept[..., None], axis=-2)
    found = ops.reshape(found, (-1, *shape[1:], count * inner))
    _, best = ops.top_k(-found, count)
    group = ops.take_along_axis(kept, best // inner, axis=-1)
    return group * inner + best % inner


def whole_distances(x, codebook):
    """`distances` with the square of x itself, `(..., codebook_size)`.

    All in one product: of so many, each pass over them takes as long.
    """

    def square(a):
        return ops.sum(ops.square(a), axis=-1, keepdims=True)

    x = ops.concatenate([-2 * x, square(x), ops.ones_like(x[..., :1])], -1)
    ones = ops.ones_like(codebook[:, :1])
    codebook = ops.concatenate([codebook, ones, square(codebook)], -1)
    return ops.matmul(x, ops.transpose(codebook))


def take_beams(x, beams):
    """`(batch, frames, beams, ...)` to those at `beams`, each frame its own."""
    return ops.take_along_axis(x, beams[..., None], axis=2)


def direction(x):
    """Vectors scaled to length one."""
    return x / (ops.norm(x, axis=-1, keepdims=True) + 1e-8)


def principal_components(vectors, count):
    """The `count` directions of most energy, `(dim, count)` float32."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return directions[:, ::-1][:, :count].astype("float32")


def mass(used, error):
    """How many frames `used` stands for, never zero."""
    frames = ops.cast(ops.shape(error)[1], "float32")
    return ops.maximum(ops.sum(used), 1.0) * frames


def lloyd(vectors, num_codes, num_iterations, generator):
    """Plain k-means in NumPy; empty clusters restart at random vectors.

    Returns:
        Centroids `(num_codes, dim)`, how many vectors chose each, and the
        choice of every vector.
    """
    picks = generator.choice(len(vectors), num_codes, replace=False)
    centroids = vectors[picks]
    for _ in range(num_iterations):
        codes = numpy_nearest(vectors, centroids)
        count = np.bincount(codes, minlength=num_codes)
        sums = np.zeros_like(centroids)
        np.add.at(sums, codes, vectors)
        restart = vectors[generator.integers(len(vectors), size=num_codes)]
        centroids = np.where(
            count[:, None] > 0, sums / np.maximum(count, 1)[:, None], restart
        )
    codes = numpy_nearest(vectors, centroids)
    return centroids, np.bincount(codes, minlength=num_codes), codes


def numpy_nearest(vectors, centroids, rows=8192):
    """`nearest` in NumPy, a block of rows at a time to bound the memory."""
    norms = np.square(centroids).sum(-1)
    return np.concatenate(
        [
            (norms - 2 * vectors[i : i + rows] @ centroids.T).argmin(-1)
            for i in range(0, len(vectors), rows)
        ]
    )
