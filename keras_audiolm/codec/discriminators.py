"""The judges of SoundStream: one listens to waves, one looks at spectra."""

import keras
from keras import ops

from keras_audiolm.layers.grouped_conv import GroupedConv1D
from keras_audiolm.layers.initializers import GlorotUniform


@keras.saving.register_keras_serializable(package="keras_audiolm")
class WaveDiscriminator(keras.layers.Layer):
    """MelGAN's discriminator of waveforms, at one scale.

    A plain convolution, four grouped ones with stride 4 whose channels grow
    fourfold up to `max_channels`, and two plain ones to the logits.

    Args:
        channels: int. Of the first convolution. Defaults to `16`.
        max_channels: int. Defaults to `1024`.
        downsampling: int. The audio is averaged down by it first.

    Call arguments:
        audio: `(batch, samples)`.

    Returns:
        A list of feature maps `(batch, time, channels)`, the logits last.

    Reference:
     - [SoundStream, section III-D](https://arxiv.org/abs/2107.03312)
     - [MelGAN, section 2.3](https://arxiv.org/abs/1910.06711)
    """

    def __init__(
        self, channels=16, max_channels=1024, downsampling=1, **kwargs
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.max_channels = max_channels
        self.downsampling = downsampling
        self.pool = keras.layers.AveragePooling1D(
            2 * downsampling, strides=downsampling, padding="same"
        )
        self.convolutions = [conv1d(channels, 15, name="conv_0")]
        width = channels
        for i in range(4):
            # Groups of four input channels, as MelGAN's 4, 16, 64, 256.
            groups = max(width // 4, 1)
            width = min(4 * width, max_channels)
            self.convolutions.append(
                GroupedConv1D(width, 41, 4, groups, name=f"conv_{i + 1}")
            )
        self.convolutions.append(conv1d(width, 5, name="conv_5"))
        self.to_logits = conv1d(1, 3, name="to_logits", dtype="float32")

    def build(self, input_shape):
        shape = (None, None, 1)
        for layer in self.convolutions:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.to_logits.build(shape)

    def call(self, audio):
        x = audio[..., None]
        if self.downsampling > 1:
            x = self.pool(x)
        features = []
        for layer in self.convolutions:
            x = ops.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.to_logits(x)]

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "max_channels": self.max_channels,
            "downsampling": self.downsampling,
        }


def conv1d(filters, kernel_size, **kwargs):
    return keras.layers.Conv1D(
        filters,
        kernel_size,
        padding="same",
        kernel_initializer=GlorotUniform(),
        **kwargs,
    )


def conv2d(filters, kernel_size, strides=1, **kwargs):
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        kernel_initializer=GlorotUniform(),
        **kwargs,
    )


@keras.saving.register_keras_serializable(package="keras_audiolm")
class STFTDiscriminator(keras.layers.Layer):
    """SoundStream's judge of the complex STFT, one logit for each time step.

    Args:
        channels: int. `C` of the paper's Figure 4. Defaults to `32`.
        window: int. Samples of the STFT. Defaults to `1024`.
        hop: int. Samples. Defaults to `256`.

    Call arguments:
        audio: `(batch, samples)`.

    Returns:
        A list of feature maps `(batch, time, bins, channels)`, the logits
        `(batch, time, 1)` last.

    Reference:
     - [SoundStream, section III-D, Figure 4](https://arxiv.org/abs/2107.03312)
    """

    def __init__(self, channels=32, window=1024, hop=256, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.window = window
        self.hop = hop
        c = channels
        self.first = conv2d(c, 7, name="first")
        self.units = [
            STFTUnit(n, n * m, strides, name=f"unit_{i}")
            for i, (n, m, strides) in enumerate(
                [
                    (c, 2, (1, 2)),
                    (2 * c, 2, (2, 2)),
                    (4 * c, 1, (1, 2)),
                    (4 * c, 2, (2, 2)),
                    (8 * c, 1, (1, 2)),
                    (8 * c, 2, (2, 2)),
                ]
            )
        ]
        # The paper's 1 x F/2^6 convolution spans all bins that are left, so
        # it is a dense layer of them.
        self.bins = -(-(window // 2) // 2**6)
        self.to_logits = keras.layers.Dense(
            1, name="to_logits", dtype="float32"
        )

    def build(self, input_shape):
        shape = (None, None, self.window // 2, 2)
        self.first.build(shape)
        shape = (*shape[:-1], self.channels)
        for unit in self.units:
            unit.build(shape)
            shape = (*shape[:-1], unit.filters)
        self.to_logits.build((None, None, self.bins * shape[-1]))

    def call(self, audio):
        re, im = ops.stft(
            ops.cast(audio, "float32"), self.window, self.hop, self.window
        )
        # The highest bin goes, so that the bins halve evenly.
        x = ops.stack([re, im], axis=-1)[:, :, : self.window // 2]
        x = self.first(x)  # (batch, time, bins, channels)
        features = [x]
        for unit in self.units:
            x = unit(x)
            features.append(x)
        x = ops.reshape(
            ops.elu(x), (ops.shape(x)[0], -1, self.bins * x.shape[-1])
        )
        return [*features, self.to_logits(x)]  # logits (batch, time, 1)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "window": self.window,
            "hop": self.hop,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class STFTUnit(keras.layers.Layer):
    """A residual unit: a 3 x 3 convolution, then a strided one that widens.

    Args:
        width: int. Channels of the first convolution.
        filters: int. Channels out.
        strides: `(time, frequency)`.
    """

    def __init__(self, width, filters, strides, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.filters = filters
        self.strides = tuple(strides)
        s_t, s_f = self.strides
        self.inner = conv2d(width, 3, name="inner")
        self.outer = conv2d(
            filters, (s_t + 2, s_f + 2), self.strides, name="outer"
        )
        # A strided 1 x 1 convolution, as what it is: PyTorch 2.13 crashes in
        # the gradient of the convolution itself.
        self.shortcut = keras.layers.Dense(
            filters, kernel_initializer=GlorotUniform(), name="shortcut"
        )

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.outer.build((*input_shape[:-1], self.width))
        self.shortcut.build(input_shape)

    def call(self, x):
        y = self.inner(ops.elu(x))
        s_t, s_f = self.strides
        return self.shortcut(x[:, ::s_t, ::s_f]) + self.outer(ops.elu(y))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "filters": self.filters,
            "strides": list(self.strides),
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class Discriminators(keras.layers.Layer):
    """SoundStream's jury: three wave judges and one of the STFT.

    With several `stft_windows` and no `scales` it is EnCodec's kind of jury,
    which looks at spectra of several resolutions.

    Args:
        wave_channels: int. First channels of each wave judge.
        max_wave_channels: int. Their widest layer.
        stft_channels: int.
        scales: sequence of int. Downsampling of each wave judge.
        stft_windows: sequence of int. Samples of each STFT judge's window;
            its hop is a quarter.

    Call arguments:
        audio: `(batch, samples)`.

    Returns:
        A list of lists of feature maps, one list a judge, logits last.
    """

    def __init__(
        self,
        wave_channels=16,
        max_wave_channels=1024,
        stft_channels=32,
        scales=(1, 2, 4),
        stft_windows=(1024,),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.wave_channels = wave_channels
        self.max_wave_channels = max_wave_channels
        self.stft_channels = stft_channels
        self.scales = tuple(scales)
        self.stft_windows = tuple(stft_windows)
        self.judges = [
            WaveDiscriminator(
                wave_channels, max_wave_channels, scale, name=f"wave_{scale}"
            )
            for scale in self.scales
        ]
        self.judges += [
            STFTDiscriminator(
                stft_channels, window, window // 4, name=f"stft_{window}"
            )
            for window in self.stft_windows
        ]

    def build(self, input_shape):
        for judge in self.judges:
            judge.build(input_shape)

    def call(self, audio):
        return [judge(audio) for judge in self.judges]

    def get_config(self):
        return {
            **super().get_config(),
            "wave_channels": self.wave_channels,
            "max_wave_channels": self.max_wave_channels,
            "stft_channels": self.stft_channels,
            "scales": list(self.scales),
            "stft_windows": list(self.stft_windows),
        }
