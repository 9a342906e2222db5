"""The quantizer that gives W2vBert its targets."""

from collections import namedtuple

import keras
from keras import ops

from keras_audiolm.layers.distribution import refuse_replicas
from keras_audiolm.layers.initializers import RandomNormal

QuantizedTargets = namedtuple("QuantizedTargets", ["vectors", "codes"])


def normalize(x):
    """Scales vectors to unit length; a zero vector stays finite."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(square + 1e-8)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class NearestCodeQuantizer(keras.layers.Layer):
    """Projects frames to the unit sphere and replaces each by its nearest code.

    The codes are moving averages of the frames that chose them (spherical
    k-means). The projection starts at random, which alone makes good targets
    (BEST-RQ), and learns slowly from the contrastive loss: targets that run
    away cannot be predicted. Four things keep the codebook from collapsing,
    the classic failure of this kind of training:

    * projected frames are centred by their moving average, so that they point
      in all directions;
    * the codebook starts at frames of the first training batch;
    * a code that falls below a part of uniform usage is replaced, in the very
      step, by a random frame of the batch;
    * a diversity loss on the soft choices, averaged over the batch.

    Args:
        codebook_size: int. Number of codes.
        codebook_dim: int. Dimension of the projected frames and codes.
        decay: float. Of the moving averages. Defaults to `0.99`.
        dead_code_ratio: float. A code used less than this part of uniform
            usage is replaced. Defaults to `0.1`.
        diversity_weight: float. Weight of the diversity loss. Defaults to
            `0.1`.
        commitment_weight: float. Weight of `1 - cosine` between a frame and
            its code. Defaults to `0.1`.
        temperature: float. Of the soft choices. Defaults to `0.1`.
        projection_speed: float. How fast the projection learns, compared with
            other weights. A scale of the weight's change and not of its
            gradient, which Adam would undo. Defaults to `0.03`.
        seed: int or None. Of the projection and the replacements.

    Call arguments:
        x: tensor of shape `(batch, frames, hidden_dim)`.
        training: bool. Learn the codes, add the losses.

    Returns:
        `QuantizedTargets(vectors, codes)`: float32 unit vectors of shape
        `(batch, frames, codebook_dim)` with straight-through gradients, int32
        codes of shape `(batch, frames)`.

    Reference:
     - [wav2vec 2.0, section 3.2](https://arxiv.org/abs/2006.11477)
     - [BEST-RQ](https://arxiv.org/abs/2202.01855)
    """

    def __init__(
        self,
        codebook_size,
        codebook_dim,
        decay=0.99,
        dead_code_ratio=0.1,
        diversity_weight=0.1,
        commitment_weight=0.1,
        temperature=0.1,
        projection_speed=0.03,
        seed=None,
        **kwargs,
    ):
        kwargs["dtype"] = "float32"  # half precision finds wrong neighbours
        super().__init__(**kwargs)
        # === Config ===
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.decay = decay
        self.dead_code_ratio = dead_code_ratio
        self.diversity_weight = diversity_weight
        self.commitment_weight = commitment_weight
        self.temperature = temperature
        self.projection_speed = projection_speed
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        shape = (self.codebook_size, self.codebook_dim)
        self.projection = self.add_weight(
            shape=(input_shape[-1], self.codebook_dim),
            initializer=RandomNormal(
                stddev=input_shape[-1] ** -0.5, seed=self.seed
            ),
            trainable=False,
            name="projection",
        )
        self.projection_change = self.add_weight(
            shape=(input_shape[-1], self.codebook_dim),
            initializer="zeros",
            name="projection_change",
        )
        self.center = self.add_weight(
            shape=shape[1:], initializer="zeros", trainable=False, name="center"
        )
        # Moving average of the sum of a code's frames, per frame of a batch.
        self.code_sum = self.add_weight(
            shape=shape,
            initializer=RandomNormal(seed=self.seed),
            trainable=False,
            name="code_sum",
        )
        # Moving average of the part of all frames that chose a code.
        self.usage = self.add_weight(
            shape=shape[:1],
            initializer=keras.initializers.Constant(1 / self.codebook_size),
            trainable=False,
            name="usage",
        )
        self.started = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="started"
        )

    def call(self, x, training=False):
        if training:
            refuse_replicas()
        change = self.projection_speed * self.projection_change
        frames = ops.matmul(ops.cast(x, "float32"), self.projection + change)
        frames = normalize(frames - self._find_center(frames, training))
        flat = ops.reshape(frames, (-1, self.codebook_dim))
        fixed = ops.stop_gradient(flat)
        code_sum = ops.convert_to_tensor(self.code_sum)
        if training:
            drawn = self._draw(fixed)
            code_sum = ops.where(self.started > 0, code_sum, drawn)
        codebook = ops.stop_gradient(normalize(code_sum))
        cosine = ops.matmul(flat, ops.transpose(codebook))
        codes = ops.cast(ops.argmax(cosine, axis=-1), "int32")
        nearest = ops.take(codebook, codes, axis=0)
        if training:
            self._add_losses(cosine, flat, nearest)
            self._learn_codes(fixed, codes, code_sum, drawn)
        vectors = flat + ops.stop_gradient(nearest - flat)
        return QuantizedTargets(
            ops.reshape(vectors, ops.shape(frames)),
            ops.reshape(codes, ops.shape(frames)[:2]),
        )

    def _find_center(self, frames, training):
        """Where the projected frames lie on average, so far."""
        if not training:
            return self.center
        new = ops.stop_gradient(ops.mean(frames, axis=(0, 1)))
        moved = self.decay * self.center + (1 - self.decay) * new
        center = ops.where(self.started > 0, moved, new)
        self.center.assign(center)
        return center

    def _draw(self, fixed):
        """Random frames at uniform usage, one for every code."""
        index = keras.random.uniform(
            (self.codebook_size,), seed=self.seed_generator
        )
        count = ops.cast(ops.shape(fixed)[0], "float32")
        index = ops.cast(ops.floor(index * count), "int32")
        return ops.take(fixed, index, axis=0) / self.codebook_size

    def _add_losses(self, cosine, flat, nearest):
        soft = ops.softmax(cosine / self.temperature, axis=-1)
        soft = ops.mean(soft, axis=0)
        part = perplexity(soft) / self.codebook_size
        commitment = 1.0 - ops.mean(ops.sum(flat * nearest, axis=-1))
        self.add_loss(self.diversity_weight * (1.0 - part))
        self.add_loss(self.commitment_weight * commitment)

    def _learn_codes(self, fixed, codes, code_sum, drawn):
        chosen = ops.one_hot(codes, self.codebook_size, dtype="float32")
        frames = ops.cast(ops.shape(fixed)[0], "float32")
        new_sum = ops.matmul(ops.transpose(chosen), fixed) / frames
        new_sum = self.decay * code_sum + (1 - self.decay) * new_sum
        usage = ops.mean(chosen, axis=0)
        usage = self.decay * self.usage + (1 - self.decay) * usage
        uniform = 1.0 / self.codebook_size
        dead = usage < self.dead_code_ratio * uniform
        self.code_sum.assign(ops.where(dead[:, None], drawn, new_sum))
        self.usage.assign(ops.where(dead, uniform, usage))
        self.started.assign(ops.ones(()))

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        config.update(
            codebook_size=self.codebook_size,
            codebook_dim=self.codebook_dim,
            decay=self.decay,
            dead_code_ratio=self.dead_code_ratio,
            diversity_weight=self.diversity_weight,
            commitment_weight=self.commitment_weight,
            temperature=self.temperature,
            projection_speed=self.projection_speed,
            seed=self.seed,
        )
        return config


def perplexity(probabilities):
    """`exp(entropy)`: how many codes are in use, were they used evenly."""
    log = ops.log(probabilities + 1e-9)
    return ops.exp(-ops.sum(probabilities * log, axis=-1))
