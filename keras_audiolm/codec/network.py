"""The causal convolutional networks at the two ends of the codec.

Everything here remembers what it needs of a signal in an explicit state:
`init_state(batch_size)` is that of silence, `step(x, state)` takes a chunk on
and gives the new state. A whole signal is one chunk after silence.
"""

import keras
from keras import ops

from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose

ACTIVATIONS = {
    "elu": keras.layers.ELU,
    "leaky_relu": lambda: keras.layers.LeakyReLU(0.3),
}
UNITS = ("dense", "separable", "convnext")


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ResidualUnit(keras.layers.Layer):
    """`x + conv1(act(wide(act(x))))`, the wide convolution dilated.

    Args:
        filters: int. Channels in and out.
        dilation_rate: int. Of the wide convolution.
        activation: `"elu"` or `"leaky_relu"`. Defaults to `"elu"`.
        separable: bool. Whether the wide convolution is one of 3 steps in
            each channel and a product between channels, as in Lyra v2,
            instead of the paper's full one of 7 steps.
        groups: int. Of the last, narrow convolution. Defaults to `1`.

    Call arguments:
        x: `(batch, time, filters)`.

    Reference:
     - [SoundStream, section III-A](https://arxiv.org/abs/2107.03312)
    """

    def __init__(
        self,
        filters,
        dilation_rate,
        activation="elu",
        separable=False,
        groups=1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.dilation_rate = dilation_rate
        self.activation = activation
        self.separable = separable
        self.groups = groups
        self.activate = ACTIVATIONS[activation]()
        self.wide = CausalConv1D(
            filters,
            3 if separable else 7,
            dilation_rate=dilation_rate,
            groups=filters if separable else 1,
            name="wide",
        )
        if separable:
            self.mix = CausalConv1D(filters, 1, name="mix")
        self.narrow = CausalConv1D(filters, 1, groups=groups, name="narrow")

    def build(self, input_shape):
        self.wide.build(input_shape)
        if self.separable:
            self.mix.build(input_shape)
        self.narrow.build(input_shape)

    def init_state(self, batch_size):
        return self.wide.init_state(batch_size)

    def call(self, x):
        return x + self._narrow(self.wide(self.activate(x)))

    def step(self, x, state):
        y, state = self.wide.step(self.activate(x), state)
        return x + self._narrow(y), state

    def _narrow(self, y):
        if self.separable:
            y = self.mix(y)
        return self.narrow(self.activate(y))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "dilation_rate": self.dilation_rate,
            "activation": self.activation,
            "separable": self.separable,
            "groups": self.groups,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ConvNeXtUnit(keras.layers.Layer):
    """`x + narrow(gelu(wide(norm(depthwise(x)))))`.

    Most of its arithmetic is two products between channels; only the
    depthwise convolution sees the past.

    Args:
        filters: int. Channels in and out.
        dilation_rate: int. Of the depthwise convolution of 7 steps.
        expansion: int. Inner channels for each outer one. Defaults to `4`.

    Call arguments:
        x: `(batch, time, filters)`.

    Reference:
     - [Liu et al., 2022](https://arxiv.org/abs/2201.03545), Figure 4
    """

    def __init__(self, filters, dilation_rate, expansion=4, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.dilation_rate = dilation_rate
        self.expansion = expansion
        self.depthwise = CausalConv1D(
            filters,
            7,
            dilation_rate=dilation_rate,
            groups=filters,
            name="depthwise",
        )
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, name="norm")
        self.wide = CausalConv1D(expansion * filters, 1, name="wide")
        self.narrow = CausalConv1D(filters, 1, name="narrow")

    def build(self, input_shape):
        self.depthwise.build(input_shape)
        self.norm.build(input_shape)
        self.wide.build(input_shape)
        self.narrow.build((*input_shape[:-1], self.expansion * self.filters))

    def init_state(self, batch_size):
        return self.depthwise.init_state(batch_size)

    def call(self, x):
        return x + self._mix(self.depthwise(x))

    def step(self, x, state):
        y, state = self.depthwise.step(x, state)
        return x + self._mix(y), state

    def _mix(self, y):
        return self.narrow(ops.gelu(self.wide(self.norm(y)), approximate=False))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "dilation_rate": self.dilation_rate,
            "expansion": self.expansion,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class FiLM(keras.layers.Layer):
    """Scales and shifts every channel as a switch says.

    Call arguments:
        x: `(batch, frames, channels)`.
        switch: `(batch, frames)` float, 0 for off and 1 for on; off where
            there is none.

    Reference:
     - [SoundStream, section III-F](https://arxiv.org/abs/2107.03312)
    """

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale", shape=(2, input_shape[-1]), initializer="ones"
        )
        self.shift = self.add_weight(
            name="shift", shape=(2, input_shape[-1]), initializer="zeros"
        )

    def call(self, x, switch=None):
        if switch is None:
            return x * self.scale[0] + self.shift[0]
        on = ops.cast(switch, x.dtype)[..., None]  # (batch, frames, 1)
        scale = (1 - on) * self.scale[0] + on * self.scale[1]
        shift = (1 - on) * self.shift[0] + on * self.shift[1]
        return x * scale + shift

    def compute_output_shape(self, input_shape):
        return input_shape


class CausalStack(keras.layers.Layer):
    """Causal layers one after the other, with one state for all.

    Args:
        layers: list of layers. Those with a memory have `init_state` and
            `step`; a `FiLM` also gets the switch.

    Call arguments:
        x: `(batch, time, channels)`.
        switch: `(batch, frames)`, where there is a `FiLM`.
    """

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.layers = layers

    def build(self, input_shape):
        for layer in self.layers:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def init_state(self, batch_size):
        return [
            layer.init_state(batch_size)
            for layer in self.layers
            if hasattr(layer, "step")
        ]

    def call(self, x, switch=None):
        for layer in self.layers:
            if isinstance(layer, FiLM):
                x = layer(x, switch)
            else:
                x = layer(x)
        return x

    def step(self, x, state, switch=None):
        state, new = iter(state), []
        for layer in self.layers:
            if isinstance(layer, FiLM):
                x = layer(x, switch)
            elif hasattr(layer, "step"):
                x, after = layer.step(x, next(state))
                new.append(after)
            else:
                x = layer(x)
        return x, new

    def compute_output_shape(self, input_shape):
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape


class Architecture:
    """The layers of encoder and decoder, mirrors of each other.

    The encoder is a stem, and for every stride residual units, one of each
    dilation, and a strided convolution that doubles the width.

    Args: those of `SoundStream`.
    """

    def __init__(
        self,
        channels,
        strides,
        stem_stride=1,
        activation="elu",
        unit="dense",
        dilations=(1, 3, 9),
        max_groups=1,
    ):
        self.channels = channels
        self.strides = strides
        self.stem_stride = stem_stride
        self.activation = activation
        self.unit = unit
        self.dilations = dilations
        self.max_groups = max_groups

    def encoder(self, dim, film=False, last_kernel=None):
        """Layers to `(batch, frames, dim)`."""
        layers = [self._stem()]
        for block, stride in enumerate(self.strides):
            layers += self._units(block)
            layers += self._activate()
            layers.append(
                CausalConv1D(
                    self._width(block + 1),
                    2 * stride,
                    strides=stride,
                    groups=self._groups(block),
                )
            )
        layers += [FiLM()] if film else []
        layers += self._activate()
        layers.append(
            CausalConv1D(
                dim,
                3,
                groups=self._groups(len(self.strides)),
                kernel_initializer=last_kernel,
            )
        )
        return layers

    def decoder(self, dim, film=False, last_kernel=None):
        """Layers from embeddings to `(batch, time, dim)`."""
        last = len(self.strides)
        layers = [
            CausalConv1D(
                self._width(last),
                3 if self.unit == "separable" else 7,
                groups=self._groups(last),
            )
        ]
        layers += [FiLM()] if film else []
        for block in reversed(range(last)):
            stride = self.strides[block]
            layers += self._activate()
            layers.append(
                CausalConv1DTranspose(
                    self._width(block),
                    2 * stride,
                    strides=stride,
                    groups=self._groups(block),
                )
            )
            layers += self._units(block)
        layers += self._activate()
        layers.append(self._head(dim, last_kernel))
        return layers

    def _width(self, block):
        return self.channels * 2**block

    def _groups(self, block):
        return min(2**block, self.max_groups)

    def _units(self, block):
        width = self._width(block)
        if self.unit == "convnext":
            return [ConvNeXtUnit(width, d) for d in self.dilations]
        return [
            ResidualUnit(
                width,
                dilation,
                self.activation,
                self.unit == "separable",
                self._groups(block),
            )
            for dilation in self.dilations
        ]

    def _activate(self):
        return [ACTIVATIONS[self.activation]()]

    def _stem(self):
        stride = self.stem_stride
        kernel = 7 if stride == 1 else 4 * stride
        return CausalConv1D(self.channels, kernel, strides=stride)

    def _head(self, dim, kernel_initializer):
        stride = self.stem_stride
        if stride == 1:
            return CausalConv1D(dim, 7, kernel_initializer=kernel_initializer)
        return CausalConv1DTranspose(dim, 4 * stride, strides=stride)
