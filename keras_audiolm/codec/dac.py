"""DAC: a codec of much detail, whose trained weights are public."""

import math

import keras
from keras import ops

from keras_audiolm.codec.audio_codec import AudioCodec
from keras_audiolm.codec.network import CausalStack
from keras_audiolm.codec.quantizer import ResidualVectorQuantizer
from keras_audiolm.layers.centred_conv import (
    CentredConv1D,
    CentredConv1DTranspose,
)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class DAC(AudioCodec):
    """A codec that sees both ways in time, with periodic activations.

    It is not causal: there is no stream, and codes of a cut recording differ
    near the cut.

    Args:
        sample_rate: int. Hertz. Defaults to `16000`.
        channels: int. Width of the encoder's first block, doubled by every
            block. Defaults to `64`.
        decoder_channels: int. Width of the decoder's first block, halved by
            every block. Defaults to `1536`.
        strides: sequence of int. One encoder block each, first to last; the
            decoder mirrors them. Defaults to `(2, 4, 5, 8)`.
        num_quantizers: int. Levels of the quantizer. Defaults to `12`.
        codebook_size: int. Codes of a level. Defaults to `1024`.
        code_dim: int. Of the codes, which are looked up by direction.
            Defaults to `8`.
        seed: int. Of the quantizer.

    Call arguments:
        audio: `(batch, samples)` in [-1, 1] at `sample_rate`.
        training: bool. Whether to drop levels and learn codebooks.

    Returns:
        Audio of the same shape, through all levels of the quantizer.

    Example:

    ```python
    codec = keras_audiolm.codec_from("hf://descript/dac_16khz")
    codes = codec.encode(audio)  # (batch, frames, 12)
    audio = codec.decode(codes)  # (batch, frames * 320)
    ```

    Reference:
     - [Kumar et al., 2023](https://arxiv.org/abs/2306.06546), section 3
    """

    causal = False

    def __init__(
        self,
        sample_rate=16000,
        channels=64,
        decoder_channels=1536,
        strides=(2, 4, 5, 8),
        num_quantizers=12,
        codebook_size=1024,
        code_dim=8,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # === Config ===
        self.sample_rate = sample_rate
        self.channels = channels
        self.decoder_channels = decoder_channels
        self.strides = tuple(strides)
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.seed = seed
        self.hop_length = math.prod(self.strides)
        self.embedding_dim = channels * 2 ** len(self.strides)

        # === Layers ===
        self.encoder = CausalStack(self._encoder_layers(), name="encoder")
        self.decoder = CausalStack(self._decoder_layers(), name="decoder")
        self.quantizer = ResidualVectorQuantizer(
            num_quantizers,
            codebook_size,
            code_dim=code_dim,
            seed=seed,
            name="quantizer",
        )

    def _encoder_layers(self):
        width = self.channels
        layers = [CentredConv1D(width, 7)]
        for stride in self.strides:
            layers += [SnakeUnit(width, dilation) for dilation in (1, 3, 9)]
            width *= 2
            layers += [
                Snake(),
                CentredConv1D(width, 2 * stride, strides=stride),
            ]
        return [*layers, Snake(), CentredConv1D(self.embedding_dim, 3)]

    def _decoder_layers(self):
        width = self.decoder_channels
        layers = [CentredConv1D(width, 7)]
        for stride in reversed(self.strides):
            width //= 2
            layers += [
                Snake(),
                CentredConv1DTranspose(width, 2 * stride, strides=stride),
            ]
            layers += [SnakeUnit(width, dilation) for dilation in (1, 3, 9)]
        return [*layers, Snake(), CentredConv1D(1, 7)]

    def render(self, embeddings, denoise=None):
        audio = ops.tanh(super().render(embeddings))
        # Odd strides lose some of the last samples.
        missing = embeddings.shape[1] * self.hop_length - audio.shape[1]
        return ops.pad(audio, [[0, 0], [0, missing]])

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "decoder_channels": self.decoder_channels,
            "strides": list(self.strides),
            "num_quantizers": self.num_quantizers,
            "codebook_size": self.codebook_size,
            "code_dim": self.code_dim,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class Snake(keras.layers.Layer):
    """`x + sin(alpha * x)^2 / alpha`, with an alpha for each channel.

    Reference:
     - [Ziyin et al., 2020](https://arxiv.org/abs/2006.08195), section 4
    """

    def build(self, input_shape):
        self.alpha = self.add_weight(
            name="alpha", shape=(input_shape[-1],), initializer="ones"
        )

    def call(self, x):
        return x + ops.square(ops.sin(self.alpha * x)) / (self.alpha + 1e-9)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SnakeUnit(keras.layers.Layer):
    """`x + narrow(snake(wide(snake(x))))`, the wide convolution dilated.

    Args:
        filters: int. Channels in and out.
        dilation_rate: int. Of the wide convolution, of 7 steps.

    Call arguments:
        x: `(batch, time, filters)`.
    """

    def __init__(self, filters, dilation_rate, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.dilation_rate = dilation_rate
        self.layers = [
            Snake(name="snake_1"),
            CentredConv1D(filters, 7, dilation_rate=dilation_rate, name="wide"),
            Snake(name="snake_2"),
            CentredConv1D(filters, 1, name="narrow"),
        ]

    def build(self, input_shape):
        for layer in self.layers:
            layer.build(input_shape)

    def call(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "dilation_rate": self.dilation_rate,
        }
