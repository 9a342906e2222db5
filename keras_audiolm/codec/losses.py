"""What the codec is trained to keep: spectra, features, and a judge's favour.

All of it is computed in float32. Sums over time in the papers are means here,
so that the weights do not depend on the length of a crop.
"""

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.lapped_transform import MDCT, compress


@keras.saving.register_keras_serializable(package="keras_audiolm")
class MelSpectralLoss(keras.layers.Layer):
    """SoundStream's multi-scale log-mel distance.

    For each window of 2^6 to 2^11 samples with a hop of a quarter: the L1
    distance of mel spectra plus sqrt(window / 2) times the L2 norm of the
    difference of their logarithms. Short windows are transformed with 512
    points, since 33 bins leave most of 64 mels empty.

    Args:
        sample_rate: int. Hertz.
        windows: sequence of int. Samples.
        num_mels: int. Defaults to `64`.

    Call arguments:
        real, fake: audio `(batch, samples)`.

    Returns:
        A scalar: summed over windows and mels, averaged over time and batch.

    Reference:
     - [SoundStream, equations 4 and 5](https://arxiv.org/abs/2107.03312)
    """

    def __init__(
        self,
        sample_rate=16000,
        windows=(64, 128, 256, 512, 1024, 2048),
        num_mels=64,
        **kwargs,
    ):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.windows = tuple(windows)
        self.num_mels = num_mels
        self.filters = [
            mel_filters(num_mels, max(window, 512), sample_rate)
            for window in self.windows
        ]

    def call(self, real, fake):
        total = 0.0
        for window, filters in zip(self.windows, self.filters, strict=True):
            a = mel_spectrum(real, window, filters)  # (batch, frames, mels)
            b = mel_spectrum(fake, window, filters)
            total += ops.mean(ops.sum(ops.abs(a - b), axis=-1))
            difference = ops.log(a + 1e-5) - ops.log(b + 1e-5)
            norm = ops.sqrt(ops.sum(ops.square(difference), axis=-1) + 1e-12)
            total += (window / 2) ** 0.5 * ops.mean(norm)
        return total

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "windows": list(self.windows),
            "num_mels": self.num_mels,
        }


def mel_filters(num_mels, fft_length, sample_rate):
    """Triangles on HTK's mel scale with peaks of 1, without the DC bin.

    Returns:
        NumPy float32 `(fft_length // 2 + 1, num_mels)`.
    """
    frequencies = np.linspace(0, sample_rate / 2, fft_length // 2 + 1)
    mels = np.log1p(frequencies / 700)[:, None]
    edges = np.linspace(0, mels[-1, 0], num_mels + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (mels - low) / (middle - low)
    falling = (high - mels) / (high - middle)
    filters = np.maximum(np.minimum(rising, falling), 0)
    filters[0] = 0
    return filters.astype("float32")


def mel_spectrum(audio, window, filters):
    """`(batch, samples)` to mel magnitudes `(batch, frames, num_mels)`."""
    power = power_spectrum(audio, window, filters.shape[0])
    # The root of nothing has no slope, and a mute decoder must learn too.
    return ops.matmul(ops.sqrt(power + 1e-12), filters)


def power_spectrum(audio, window, bins):
    """`(batch, samples)` to `(batch, frames, bins)`, hop a quarter window."""
    re, im = ops.stft(audio, window, window // 4, 2 * (bins - 1))
    return ops.square(re) + ops.square(im)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class PerceptualLoss(keras.layers.Layer):
    """A reconstruction loss that spends bits where ears listen.

    Three terms: magnitudes of STFTs compressed by the power 0.3; loudness in
    bands of mels (the power 0.25 of their energy); and square-root compressed
    MDCT coefficients, the only term that knows phases. Differences count by
    the square of the mels that a hertz covers there: above a kilohertz or two
    errors disturb less, and a waveform takes more bits than a few kilobits per
    second have.

    Log-mel spectra spend their gradient on near-silent frames and leave a
    young codec 10 dB too quiet for thousands of steps; these do not.

    Args:
        sample_rate: int. Hertz.
        spectral_weight, loudness_weight, transform_weight: floats.
        windows: sequence of int. Samples of the STFTs, hop a quarter; shorter
            ones than 512 are transformed with 512 points.
        num_mels: sequence of int, one for each window.
        transform_hop: int. Samples of an MDCT frame.

    Call arguments:
        real, fake: audio `(batch, samples)`, a multiple of `transform_hop`.

    Returns:
        A scalar.
    """

    def __init__(
        self,
        sample_rate=16000,
        spectral_weight=20.0,
        loudness_weight=10.0,
        transform_weight=1.0,
        windows=(256, 512, 1024, 2048),
        num_mels=(32, 48, 64, 64),
        transform_hop=320,
        **kwargs,
    ):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.spectral_weight = spectral_weight
        self.loudness_weight = loudness_weight
        self.transform_weight = transform_weight
        self.windows = tuple(windows)
        self.num_mels = tuple(num_mels)
        self.transform_hop = transform_hop
        self.scales = [
            mel_filters(mels, max(window, 512), sample_rate)
            for window, mels in zip(windows, num_mels, strict=True)
        ]
        self.mdct = MDCT(transform_hop, name="mdct")
        centres = (np.arange(transform_hop) + 0.5) / transform_hop
        self.transform_weights = importance(centres * sample_rate / 2)

    def call(self, real, fake):
        spectral, loudness = 0.0, 0.0
        for window, filters in zip(self.windows, self.scales, strict=True):
            bins = filters.shape[0]
            a, b = (power_spectrum(x, window, bins) for x in (real, fake))
            spectral += self._spectral_distance(a, b)
            loudness += self._loudness_distance(a, b, filters / window)
        coefficients = [compress(self.mdct(x)) for x in (real, fake)]
        return (
            self.spectral_weight * spectral / len(self.windows)
            + self.loudness_weight * loudness / len(self.windows)
            + self.transform_weight
            * relative_distance(*coefficients, self.transform_weights)
        )

    def _spectral_distance(self, real, fake):
        """L1 distance of compressed magnitudes of power spectra."""
        weights = importance(self._hertz(real.shape[-1]))
        a, b = (ops.power(x + 1e-8, 0.15) for x in (real, fake))
        return ops.mean(ops.multiply(ops.abs(a - b), weights))

    def _loudness_distance(self, real, fake, filters):
        """Relative L1 distance of the loudness in bands of equal mels."""
        hertz = self._hertz(len(filters)) @ filters / (filters.sum(0) + 1e-9)
        a, b = (
            ops.power(ops.matmul(x, filters) + 1e-6, 0.25) for x in (real, fake)
        )
        # A band holds as many mels as any: one power is left of the square.
        return relative_distance(a, b, importance(hertz, power=1))

    def _hertz(self, bins):
        return np.linspace(0, self.sample_rate / 2, bins)

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "spectral_weight": self.spectral_weight,
            "loudness_weight": self.loudness_weight,
            "transform_weight": self.transform_weight,
            "windows": list(self.windows),
            "num_mels": list(self.num_mels),
            "transform_hop": self.transform_hop,
        }


def importance(hertz, power=2):
    """A power of the mels that a hertz is, on average one. NumPy float32."""
    weights = (700.0 + hertz) ** -power
    return (weights / weights.mean()).astype("float32")


def relative_distance(real, fake, weights=1.0):
    """The mean absolute difference as a part of the real signal's size."""
    size = ops.mean(ops.multiply(ops.abs(real), weights)) + 1e-5
    return ops.mean(ops.multiply(ops.abs(real - fake), weights)) / size


# === Adversarial ===


def discriminator_loss(real, fake):
    """Hinge loss of the judges.

    Args:
        real, fake: lists, one entry a discriminator, of lists of feature maps
            that end with the logits.

    Reference:
     - [SoundStream, equation 1](https://arxiv.org/abs/2107.03312)
    """
    losses = [
        ops.mean(ops.relu(1.0 - r[-1])) + ops.mean(ops.relu(1.0 + f[-1]))
        for r, f in zip(real, fake, strict=True)
    ]
    return sum(losses) / len(losses)


def adversarial_loss(fake):
    """Hinge loss of the generator: SoundStream, equation 2."""
    losses = [ops.mean(ops.relu(1.0 - f[-1])) for f in fake]
    return sum(losses) / len(losses)


def feature_loss(real, fake, relative=False):
    """Mean absolute difference of inner layers: SoundStream, equation 3.

    Args:
        real, fake: as of `discriminator_loss`.
        relative: bool. Whether each layer's difference counts as a part of
            its size on real audio, as in EnCodec, so that no layer outweighs
            the others.
    """

    def difference(a, b):
        a = ops.stop_gradient(a)
        size = ops.mean(ops.abs(a)) + 1e-5 if relative else 1.0
        return ops.mean(ops.abs(a - b)) / size

    losses = [
        difference(a, b)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r[:-1], f[:-1], strict=True)
    ]
    return sum(losses) / len(losses)
