"""Training the codec: a GAN written as one loss."""

import keras
from keras import ops

from keras_audiolm.codec import losses
from keras_audiolm.codec.discriminators import Discriminators
from keras_audiolm.codec.losses import MelSpectralLoss
from keras_audiolm.codec.soundstream import SoundStream


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SoundStreamTrainer(keras.Model):
    """Trains a `SoundStream` by plain `compile` and `fit`.

    The discriminators' loss and the generator's are one sum whose terms are
    detached from each other's weights, so that a single backward pass serves
    both optimizers on every backend.

    Args:
        codec: `SoundStream`.
        discriminators: a layer that gives a list of feature lists for audio,
            `"paper"` for SoundStream's four at full size, or `None` to train
            on reconstruction alone.
        reconstruction_loss: a layer of `(real, fake)`. Defaults to the
            paper's `MelSpectralLoss`.
        adversarial_weight: float. Defaults to the paper's `1`.
        feature_weight: float. Defaults to the paper's `100`.
        reconstruction_weight: float. Defaults to the paper's `1`.
        commitment_weight: float. The paper states none. Defaults to `1`.
        relative_features: bool. Whether feature losses are relative, as in
            EnCodec. Defaults to `False`, the paper's.
        judged_samples: int, optional. The discriminators judge a random
            stretch of so many samples of each batch instead of all: at the
            paper's size they cost ten times the codec.
        seed: int. Of those stretches.

    Raises:
        ValueError: on another codec than a `SoundStream`.

    Call arguments:
        audio: `(batch, samples)`, or to learn to denoise, a dictionary of
            `audio`, which may be noisy, and `denoise`, `(batch,)` or `(batch,
            frames)`. The target of `fit` is then what should come out: clean
            audio where `denoise` is on, `audio` itself elsewhere.

    Example:

    ```python
    trainer = keras_audiolm.SoundStreamTrainer(codec)
    trainer.compile(trainer.make_optimizer(1e-4))
    trainer.fit(crops, epochs=10)
    ```

    Reference:
     - [SoundStream, sections III-D and III-E](https://arxiv.org/abs/2107.03312)
    """

    def __init__(
        self,
        codec,
        discriminators="paper",
        reconstruction_loss=None,
        adversarial_weight=1.0,
        feature_weight=100.0,
        reconstruction_weight=1.0,
        commitment_weight=1.0,
        relative_features=False,
        judged_samples=None,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_trainable(codec)
        if discriminators == "paper":
            discriminators = Discriminators(name="discriminators")
        self.codec = codec
        self.discriminators = discriminators
        self.reconstruction_loss = reconstruction_loss or MelSpectralLoss(
            codec.sample_rate
        )
        self.adversarial_weight = adversarial_weight
        self.feature_weight = feature_weight
        self.reconstruction_weight = reconstruction_weight
        self.commitment_weight = commitment_weight
        self.relative_features = relative_features
        self.judged_samples = judged_samples
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        names = ["reconstruction", "commitment"]
        if discriminators is not None:
            names += ["adversarial", "feature", "discriminator"]
        self.trackers = {
            name: keras.metrics.Mean(name=f"{name}_loss") for name in names
        }

    @property
    def metrics(self):
        return [*super().metrics, *self.trackers.values()]

    def build(self, input_shape=None):
        self.codec.build(input_shape)
        if self.discriminators is not None:
            self.discriminators.build((None, None))
        self.built = True

    def call(self, audio, training=False):
        if isinstance(audio, dict):
            return self.codec(
                audio["audio"], denoise=audio["denoise"], training=training
            )
        return self.codec(audio, training=training)

    def make_optimizer(self, learning_rate=1e-4, discriminator_rate=None):
        """Adam for each side, as `compile` wants it."""

        def adam(rate):
            return keras.optimizers.Adam(rate, beta_1=0.5, beta_2=0.9)

        if self.discriminators is None:
            return adam(learning_rate)
        if discriminator_rate is None:
            discriminator_rate = learning_rate
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                adam(learning_rate),
                {r".*discriminators/.*": adam(discriminator_rate)},
            )
        )

    def fit(self, x=None, **kwargs):
        """`keras.Model.fit`; starts the codebooks from `x` when needed.

        Args:
            x: a `PyDataset` (or array) of audio `(batch, samples)`.
        """
        self.initialize_codebooks(x)
        return super().fit(x, **kwargs)

    def initialize_codebooks(self, x):
        """Starts the codebooks from the audio of `fit`, if they are not."""
        if not float(ops.convert_to_numpy(self.codec.initialized)):
            self.codec.initialize_codebooks(audio_batches(x))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        real = ops.cast(x if y is None else y, "float32")
        fake = ops.cast(y_pred, "float32")
        terms = {"reconstruction": self.reconstruction_loss(real, fake)}
        commitment = sum(self.losses) if self.losses else 0.0
        terms["commitment"] = ops.convert_to_tensor(commitment, "float32")
        weights = {
            "reconstruction": self.reconstruction_weight,
            "commitment": self.commitment_weight,
        }
        if self.discriminators is not None:
            terms.update(self._adversarial_terms(*self._judged(real, fake)))
            weights["adversarial"] = self.adversarial_weight
            weights["feature"] = self.feature_weight
            weights["discriminator"] = 1.0
        for name, value in terms.items():
            self.trackers[name].update_state(value)
        return sum(weights[name] * value for name, value in terms.items())

    def _judged(self, *audios):
        """The same random stretch of each."""
        samples, length = audios[0].shape[1], self.judged_samples
        if length is None or length >= samples:
            return audios
        start = keras.random.randint(
            (), 0, samples - length + 1, seed=self.seed_generator
        )
        places = start + ops.arange(length)
        return tuple(ops.take(audio, places, axis=1) for audio in audios)

    def _adversarial_terms(self, real, fake):
        judged_real = self.discriminators(real)
        judged_fake = self.discriminators(ops.stop_gradient(fake))
        frozen_fake = self._judge_frozen(fake)
        return {
            "adversarial": losses.adversarial_loss(frozen_fake),
            "feature": losses.feature_loss(
                judged_real, frozen_fake, self.relative_features
            ),
            "discriminator": losses.discriminator_loss(
                judged_real, judged_fake
            ),
        }

    def _judge_frozen(self, audio):
        """The judges as a fixed function: gradients reach `audio` alone."""
        judges = self.discriminators
        frozen = [
            ops.stop_gradient(v.value) for v in judges.trainable_variables
        ]
        rest = [v.value for v in judges.non_trainable_variables]
        features, _ = judges.stateless_call(frozen, rest, audio)
        return features

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "codec": serialize(self.codec),
            "discriminators": serialize(self.discriminators),
            "reconstruction_loss": serialize(self.reconstruction_loss),
            "adversarial_weight": self.adversarial_weight,
            "feature_weight": self.feature_weight,
            "reconstruction_weight": self.reconstruction_weight,
            "commitment_weight": self.commitment_weight,
            "relative_features": self.relative_features,
            "judged_samples": self.judged_samples,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("codec", "discriminators", "reconstruction_loss"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def check_trainable(codec):
    """Raises `ValueError` for a codec that comes with weights alone."""
    if not isinstance(codec, SoundStream):
        raise ValueError(
            "Only a SoundStream is trained here, and others come with their "
            f"weights. Received: {type(codec).__name__}. In a pipeline, "
            'AudioLMPipeline(parts, trained=["codec"]), train the other parts: '
            'fit(..., parts=["semantic_lm", "coarse_lm", "fine_lm"])'
        )


def audio_batches(data):
    """The audio of a `PyDataset`'s batches, or an array as its one batch."""
    if hasattr(data, "shape"):
        return [data]
    if isinstance(data, keras.utils.PyDataset):
        return (audio_of(data[i]) for i in range(data.num_batches))
    return map(audio_of, data)


def audio_of(batch):
    """What a batch has the codec hear."""
    if isinstance(batch, tuple):
        batch = batch[0]
    return batch["audio"] if isinstance(batch, dict) else batch
