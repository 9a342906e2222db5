"""EnCodec: SoundStream's successor, whose trained weights are public."""

import math

import keras
from keras import ops

from keras_audiolm.codec.audio_codec import AudioCodec
from keras_audiolm.codec.network import CausalStack
from keras_audiolm.codec.quantizer import ResidualVectorQuantizer
from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose


@keras.saving.register_keras_serializable(package="keras_audiolm")
class EnCodec(AudioCodec):
    """A causal codec with short residual units and two LSTMs in the middle.

    Args:
        sample_rate: int. Hertz. Defaults to `24000`.
        channels: int. Width of the first block, doubled by every block.
            Defaults to `32`.
        strides: sequence of int. One encoder block each, first to last; the
            decoder mirrors them. Defaults to `(2, 4, 5, 8)`.
        embedding_dim: int. Defaults to `128`.
        num_quantizers: int. Levels of the quantizer. Defaults to `32`.
        codebook_size: int. Codes of a level. Defaults to `1024`.
        num_lstm_layers: int. Defaults to `2`.
        kernel_size, residual_kernel_size: int. Steps of the first and last
            convolutions, and of those of the units. Default to `7` and `3`.
        padding: `"reflect"` or `"zeros"`: what stands before the first
            sample. The public weights were trained with reflections, which
            are of samples to come: only with zeros is a stream exactly what
            the whole would be. Defaults to `"reflect"`.
        seed: int. Of the quantizer.

    Call arguments:
        audio: `(batch, samples)` in [-1, 1] at `sample_rate`.
        training: bool. Whether to drop levels and learn codebooks.

    Returns:
        Audio of the same shape, through all levels of the quantizer.

    Example:

    ```python
    codec = keras_audiolm.codec_from("hf://facebook/encodec_24khz")
    codes = codec.encode(audio, bandwidth=6000)  # (batch, frames, 8)
    audio = codec.decode(codes)  # (batch, frames * 320)
    ```

    Reference:
     - [Défossez et al., 2022](https://arxiv.org/abs/2210.13438), section 3
    """

    audio_channels = 1

    def __init__(
        self,
        sample_rate=24000,
        channels=32,
        strides=(2, 4, 5, 8),
        embedding_dim=128,
        num_quantizers=32,
        codebook_size=1024,
        num_lstm_layers=2,
        kernel_size=7,
        residual_kernel_size=3,
        padding="reflect",
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # === Config ===
        self.sample_rate = sample_rate
        self.channels = channels
        self.strides = tuple(strides)
        self.embedding_dim = embedding_dim
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.num_lstm_layers = num_lstm_layers
        self.kernel_size = kernel_size
        self.residual_kernel_size = residual_kernel_size
        self.padding = padding
        self.seed = seed
        self.hop_length = math.prod(self.strides)

        # === Layers ===
        self.encoder = CausalStack(self._encoder_layers(), name="encoder")
        self.decoder = CausalStack(self._decoder_layers(), name="decoder")
        self.quantizer = ResidualVectorQuantizer(
            num_quantizers, codebook_size, seed=seed, name="quantizer"
        )

    def _conv(self, filters, kernel_size, **kwargs):
        return CausalConv1D(
            filters, kernel_size, padding=self.padding, **kwargs
        )

    def _transposed_conv(self, filters, stride):
        return CausalConv1DTranspose(filters, 2 * stride, strides=stride)

    def _unit(self, filters):
        return ShortcutUnit(filters, self.residual_kernel_size, self.padding)

    def _encoder_layers(self):
        width = self.channels
        layers = [self._conv(width, self.kernel_size)]
        for stride in self.strides:
            layers += [self._unit(width), keras.layers.ELU()]
            width *= 2
            layers.append(self._conv(width, 2 * stride, strides=stride))
        layers += [SkipLSTM(self.num_lstm_layers), keras.layers.ELU()]
        return [*layers, self._conv(self.embedding_dim, self.kernel_size)]

    def _decoder_layers(self):
        width = self.channels * 2 ** len(self.strides)
        layers = [self._conv(width, self.kernel_size)]
        layers.append(SkipLSTM(self.num_lstm_layers))
        for stride in reversed(self.strides):
            width //= 2
            layers += [
                keras.layers.ELU(),
                self._transposed_conv(width, stride),
                self._unit(width),
            ]
        last = self._conv(self.audio_channels, self.kernel_size)
        return [*layers, keras.layers.ELU(), last]

    @property
    def can_stream(self):
        return self.padding == "zeros"

    def initial_state(self, batch_size):
        if not self.can_stream:
            raise ValueError(
                "A stream has no samples to come, which this codec's padding "
                'reflects. Convert it with padding="zeros" to stream; the '
                f"first frames differ a little. Received: {self.padding!r}"
            )
        return super().initial_state(batch_size)

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "strides": list(self.strides),
            "embedding_dim": self.embedding_dim,
            "num_quantizers": self.num_quantizers,
            "codebook_size": self.codebook_size,
            "num_lstm_layers": self.num_lstm_layers,
            "kernel_size": self.kernel_size,
            "residual_kernel_size": self.residual_kernel_size,
            "padding": self.padding,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ShortcutUnit(keras.layers.Layer):
    """`shortcut(x) + narrow(elu(wide(elu(x))))`, half as wide inside.

    Args:
        filters: int. Channels in and out.
        kernel_size: int. Of the wide convolution.
        padding: as of `CausalConv1D`.
        use_shortcut: bool. Whether there is a convolution on the way around,
            and not x itself.

    Call arguments:
        x: `(batch, time, filters)`.
    """

    conv = CausalConv1D

    def __init__(
        self,
        filters,
        kernel_size,
        padding="zeros",
        use_shortcut=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.padding = padding
        self.use_shortcut = use_shortcut
        self.wide = self.conv(
            filters // 2, kernel_size, padding=padding, name="wide"
        )
        self.narrow = self.conv(filters, 1, name="narrow")
        if use_shortcut:
            self.shortcut = self.conv(filters, 1, name="shortcut")

    def build(self, input_shape):
        self.wide.build(input_shape)
        self.narrow.build(self.wide.compute_output_shape(input_shape))
        if self.use_shortcut:
            self.shortcut.build(input_shape)

    def init_state(self, batch_size):
        return self.wide.init_state(batch_size)

    def call(self, x):
        return self._add(x, self.wide(ops.elu(x)))

    def step(self, x, state):
        y, state = self.wide.step(ops.elu(x), state)
        return self._add(x, y), state

    def _add(self, x, y):
        around = self.shortcut(x) if self.use_shortcut else x
        return around + self.narrow(ops.elu(y))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "use_shortcut": self.use_shortcut,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SkipLSTM(keras.layers.Layer):
    """`x + lstm(... lstm(x))`, as wide inside as outside.

    Args:
        num_layers: int.

    Call arguments:
        x: `(batch, time, channels)`.
    """

    def __init__(self, num_layers, **kwargs):
        super().__init__(**kwargs)
        self.num_layers = num_layers

    def build(self, input_shape):
        self.channels = input_shape[-1]
        self.lstms = [
            keras.layers.LSTM(
                self.channels,
                return_sequences=True,
                return_state=True,
                name=f"lstm_{i}",
            )
            for i in range(self.num_layers)
        ]
        for lstm in self.lstms:
            lstm.build((None, None, self.channels))

    def init_state(self, batch_size):
        zeros = ops.zeros((batch_size, self.channels), self.compute_dtype)
        return [[zeros, zeros] for _ in range(self.num_layers)]

    def call(self, x):
        return self._run(x, [None] * self.num_layers)[0]

    def step(self, x, state):
        return self._run(x, state)

    def _run(self, x, states):
        y, after = x, []
        for lstm, state in zip(self.lstms, states, strict=True):
            y, *state = lstm(y, initial_state=state)
            after.append(state)
        return x + y, after

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "num_layers": self.num_layers}
