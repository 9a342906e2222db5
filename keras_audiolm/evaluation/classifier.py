"""AudioClassifier: who speaks, or in which language, as AudioLM measures it."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.presets import PresetPart
from keras_audiolm.semantic.log_mel import LogMel

# Windows classified at once: one shape, and so one compiled program.
WINDOW_BATCH = 32


@keras.saving.register_keras_serializable(package="keras_audiolm")
class AudioClassifier(PresetPart, keras.Model):
    """The paper's classifier: six convolutional blocks on a log-mel.

    Each block convolves along time (3x1), then along frequency (1x3), and
    ends with ReLU and batch normalisation; where the channels grow, the block
    starts with 2x2 max-pooling. Mean over time and frequency, then one dense
    layer.

    Args:
        labels: sequence of str, the name of each class.
        sample_rate: int. Hertz of the audio. Defaults to `16000`.
        channels: sequence of int, one a block. Defaults to the paper's
            `(64, 128, 256, 256, 512, 512)` for 291 speakers. A tenth of the
            work tells a handful apart: `(16, 32, 64, 64, 96, 96)`.
        num_mels: int. Defaults to `64`.
        window_duration: float. Seconds that are classified at once, and of
            the crops to train on. Defaults to `1.0`.
        hop_duration: float. Seconds from one window of `classify` to the
            next. Defaults to `0.25`.
        seed: int. Of the initial weights. Defaults to `0`.

    Call arguments:
        audio: float tensor `(batch, samples)` in [-1, 1].
        training: bool.

    Returns:
        Logits `(batch, len(labels))`.

    Example:

    ```python
    files = {"ann": ["ann/1.flac", "ann/2.flac"], "bob": ["bob/1.flac"]}
    classifier = keras_audiolm.AudioClassifier(list(files))
    classifier.compile(keras.optimizers.Adam(1e-3))
    classifier.fit(LabelledCrops(files), epochs=5)
    classifier.classify(audio)  # (2,): the probabilities of ann and bob
    ```

    Reference:
     - [AudioLM, section IV-D](https://arxiv.org/abs/2209.03143)
    """

    part = "detector"

    def __init__(
        self,
        labels,
        sample_rate=16000,
        channels=(64, 128, 256, 256, 512, 512),
        num_mels=64,
        window_duration=1.0,
        hop_duration=0.25,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        labels = tuple(labels)
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(
                "`labels` must be two or more different names. Received: "
                f"labels={labels}"
            )
        _check_positive(
            sample_rate=sample_rate,
            window_duration=window_duration,
            hop_duration=hop_duration,
        )

        # === Config ===
        self.labels = labels
        self.sample_rate = sample_rate
        self.channels = tuple(channels)
        self.num_mels = num_mels
        self.window_duration = window_duration
        self.hop_duration = hop_duration
        self.seed = seed

        # === Layers ===
        self.log_mel = LogMel(sample_rate, num_mels, name="log_mel")
        self.network = keras.Sequential(self._make_layers(), name="network")
        # Now: the mel matrix cannot be made while `fit` traces the model.
        self.build((None, None))
        self._classify_windows = CompiledFunction(
            self, lambda windows: ops.softmax(self(windows, training=False))
        )

    def _make_layers(self):
        # One generator: the layers start from different weights.
        seeds = keras.random.SeedGenerator(self.seed)

        def conv(filters, kernel_size):
            return keras.layers.Conv2D(
                filters,
                kernel_size,
                padding="same",
                kernel_initializer=keras.initializers.HeNormal(seeds),
                data_format="channels_last",
            )

        layers = []
        for before, width in zip(
            (self.channels[0], *self.channels), self.channels, strict=False
        ):
            if width > before:
                pool = keras.layers.MaxPooling2D(
                    2, padding="same", data_format="channels_last"
                )
                layers.append(pool)
            layers += [
                conv(width, (3, 1)),
                conv(width, (1, 3)),
                keras.layers.ReLU(),
                # Settles within the few hundred steps that a few voices take.
                keras.layers.BatchNormalization(momentum=0.95),
            ]
        layers += [
            keras.layers.GlobalAveragePooling2D(data_format="channels_last"),
            keras.layers.Dense(
                len(self.labels),
                kernel_initializer=keras.initializers.GlorotUniform(seeds),
            ),
        ]
        return layers

    def build(self, input_shape):
        if self.built:
            return
        self.log_mel.build((None, None))
        self.network.build((None, None, self.num_mels, 1))
        self.built = True

    def call(self, audio, training=False):
        x = self.log_mel(audio)  # (batch, frames, num_mels)
        return self.network(x[..., None], training=training)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], len(self.labels))

    def compile(self, optimizer="adam", loss="auto", metrics="auto", **kwargs):
        """`keras.Model.compile`, by default for integer labels."""
        if loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if metrics == "auto":
            metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        super().compile(optimizer, loss=loss, metrics=metrics, **kwargs)

    def classify(self, audio):
        """Probabilities of the classes, averaged over windows.

        Args:
            audio: as of `classify_windows`.

        Returns:
            NumPy float32 `(len(labels),)` or `(batch, len(labels))`, in the
            order of `labels`.
        """
        return self.classify_windows(audio).mean(axis=-2)

    def classify_windows(self, audio):
        """Probabilities of the classes in each window.

        Windows start every `hop_duration` and none is padded; what is left
        after the last is not heard. Audio that is shorter than a window is
        repeated until it fills one.

        Args:
            audio: float `(samples,)` or `(batch, samples)` in [-1, 1] at
                `sample_rate`.

        Returns:
            NumPy float32 `(windows, len(labels))`, or `(batch, windows,
            len(labels))` where `audio` had a batch axis.

        Raises:
            ValueError: on another rank, no samples, or samples that are not
                finite.
        """
        audio = np.asarray(ops.convert_to_numpy(audio), "float32")
        if audio.ndim not in (1, 2) or 0 in audio.shape:
            raise ValueError(
                "Audio to classify must be (samples,) or (batch, samples), "
                f"none of them zero. Received: shape {audio.shape}"
            )
        if not np.isfinite(audio).all():
            raise ValueError(
                "Audio to classify holds "
                f"{int((~np.isfinite(audio)).sum())} samples that are not "
                "finite."
            )
        windows = self._windows(np.atleast_2d(audio))
        batch, count, samples = windows.shape
        windows = windows.reshape(batch * count, samples)
        probabilities = np.concatenate(
            [
                self._classify_padded(windows[start : start + WINDOW_BATCH])
                for start in range(0, len(windows), WINDOW_BATCH)
            ]
        )
        # (batch * windows, classes) -> (batch, windows, classes)
        probabilities = probabilities.reshape(batch, count, -1)
        return probabilities if audio.ndim == 2 else probabilities[0]

    def _windows(self, audio):
        """A view `(batch, windows, samples)` of audio `(batch, samples)`."""
        window = round(self.window_duration * self.sample_rate)
        hop = max(round(self.hop_duration * self.sample_rate), 1)
        if audio.shape[1] < window:
            repeats = -(-window // audio.shape[1])
            audio = np.tile(audio, (1, repeats))[:, :window]
        view = np.lib.stride_tricks.sliding_window_view(audio, window, axis=1)
        return view[:, ::hop]

    def _classify_padded(self, windows):
        count = len(windows)
        windows = np.pad(windows, [(0, WINDOW_BATCH - count), (0, 0)])
        return ops.convert_to_numpy(self._classify_windows(windows))[:count]

    def get_config(self):
        return {
            **super().get_config(),
            "labels": list(self.labels),
            "sample_rate": self.sample_rate,
            "channels": list(self.channels),
            "num_mels": self.num_mels,
            "window_duration": self.window_duration,
            "hop_duration": self.hop_duration,
            "seed": self.seed,
        }


class LabelledCrops(keras.utils.PyDataset):
    """Batches of random crops, as many of each class.

    Crops are those of `AudioCrops`: never padded, and batch `i` of epoch `e`
    depends on `(seed, e, i)` alone. Augmentation changes what a recording
    chain changes and a voice does not: gain, a smooth equaliser curve, and
    white noise, so that a classifier cannot go by a studio's noise floor.

    Args:
        files: dictionary from label to a list of paths. Files of one folder
            are taken to be one voice.
        sample_rate: int. Defaults to `16000`.
        duration: float. Seconds of a crop. Defaults to `1.0`.
        crops_per_class: int. Crops of each label in a batch.
        steps_per_epoch: int.
        gain_db: pair of floats, or `None`. Of the gain.
        equaliser_db: float. Each of five points of the curve, evenly over
            the spectrum, is moved by up to so many decibels.
        noise_db: pair of floats, or `None`. Signal-to-noise ratio.
        seed: int.
        **kwargs: of `keras.utils.PyDataset`.

    Example:

    ```python
    crops = LabelledCrops({"ann": ann_files, "bob": bob_files})
    audio, labels = crops[0]  # (16, 16000) float32, (16,) int32
    ```
    """

    def __init__(
        self,
        files,
        sample_rate=16000,
        duration=1.0,
        crops_per_class=8,
        steps_per_epoch=100,
        gain_db=(-12.0, 6.0),
        equaliser_db=6.0,
        noise_db=(15.0, 50.0),
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.labels = tuple(files)
        self.steps_per_epoch = steps_per_epoch
        self.equaliser_db = equaliser_db
        self.noise_db = noise_db
        self.seed = seed
        self.crops = [
            AudioCrops(
                files[label],
                sample_rate=sample_rate,
                duration=duration,
                batch_size=crops_per_class,
                steps_per_epoch=steps_per_epoch,
                gain_db=gain_db,
                seed=seed * len(files) + number,
            )
            for number, label in enumerate(self.labels)
        ]

    @property
    def epoch(self):
        return self.crops[0].epoch

    @epoch.setter
    def epoch(self, epoch):
        for crops in self.crops:
            crops.epoch = epoch

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, index):
        audio = np.concatenate([crops[index] for crops in self.crops])
        labels = np.repeat(
            np.arange(len(self.crops), dtype="int32"),
            self.crops[0].batch_size,
        )
        rng = np.random.default_rng((self.seed, self.epoch, index))
        audio = equalise(rng, audio, self.equaliser_db)
        if self.noise_db is not None:
            audio = with_noise(rng, audio, self.noise_db)
        return audio, labels

    def on_epoch_end(self):
        self.epoch += 1


def with_noise(rng, audio, decibels):
    """Adds white noise to each row of `(batch, samples)`.

    Args:
        rng: `numpy.random.Generator`.
        audio: `(batch, samples)` float32.
        decibels: pair of floats. Range of the signal-to-noise ratio.
    """
    ratio = 10.0 ** (rng.uniform(*decibels, (len(audio), 1)) / 20.0)
    rms = np.sqrt(np.mean(np.square(audio), axis=1, keepdims=True))
    noise = rng.standard_normal(audio.shape, dtype="float32")
    return (audio + noise * (rms / ratio)).astype("float32")


def equalise(rng, audio, decibels, points=5):
    """Colours each row by a random smooth curve over the spectrum.

    Args:
        rng: `numpy.random.Generator`.
        audio: `(batch, samples)`.
        decibels: float. The most that a point of the curve moves.
        points: int. Points of the curve, joined by lines.
    """
    spectrum = np.fft.rfft(audio)
    places = np.linspace(0, points - 1, spectrum.shape[1])
    curves = rng.uniform(-decibels, decibels, (len(audio), points))
    curves = [np.interp(places, np.arange(points), c) for c in curves]
    gain = 10.0 ** (np.stack(curves) / 20.0)
    return np.fft.irfft(spectrum * gain, audio.shape[1]).astype("float32")


def _check_positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(
                f"`{name}` must be above zero. Received: {name}={value}"
            )
