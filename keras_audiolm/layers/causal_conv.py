"""One-dimensional convolutions that see the past only.

Both layers work on `(batch, time, channels)` and pad with zeros, on the past
side only, in training as in inference. What one of them must remember of a
signal that comes in chunks is its state: `init_state` gives that of silence,
and `step` takes a chunk and a state to what `call` would have given there,
and the state for the chunk after it.

Reference:
 - [SoundStream, section III-A](https://arxiv.org/abs/2107.03312)
"""

import keras
from keras import ops

from keras_audiolm.layers.initializers import GlorotUniform


@keras.saving.register_keras_serializable(package="keras_audiolm")
class CausalConv1D(keras.layers.Layer):
    """A strided, dilated convolution whose output never sees later input.

    With kernel 4 and stride 2, two zeros stand before the signal; output
    frame `i` ends with the last sample of hop `i`:

        0 0 1 2 3 4 5 6
        [  1  ]
            [  2  ]
                [  3  ]

    Args:
        filters: int. The number of output channels.
        kernel_size: int. The width of the kernel, in steps.
        strides: int. Input steps for one output step. The input's length
            must be a multiple of it. Defaults to `1`.
        dilation_rate: int. Input steps between two taps. Defaults to `1`.
        groups: int. Groups of channels that do not see each other.
            Defaults to `1`.
        kernel_initializer: Defaults to `GlorotUniform`.
        padding: `"zeros"`, or `"reflect"` for layers of others who mirror
            what is there into what `call` (not `step`) lacks beside it.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time / strides, filters)`.

    Example:

    >>> layer = CausalConv1D(8, kernel_size=7)
    >>> tuple(layer(np.zeros((2, 10, 3), "float32")).shape)
    (2, 10, 8)
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        dilation_rate=1,
        groups=1,
        kernel_initializer=None,
        padding="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if padding not in ("zeros", "reflect"):
            raise ValueError(
                f"`padding` must be 'zeros' or 'reflect'. Received: {padding!r}"
            )
        self.padding = padding
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.groups = groups
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or GlorotUniform()
        )
        reach = dilation_rate * (kernel_size - 1) + 1
        if reach < strides:
            raise ValueError(
                "A kernel must reach over its stride. Received: "
                f"kernel_size={kernel_size}, dilation_rate={dilation_rate}, "
                f"strides={strides}"
            )
        self.past = reach - strides

    def build(self, input_shape):
        self.channels = input_shape[-1]
        check_groups(self, self.channels)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                self.kernel_size,
                self.channels // self.groups,
                self.filters,
            ),
            initializer=self.kernel_initializer,
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.filters,), initializer="zeros"
        )

    def call(self, x):
        return self._convolve(self._padded(x, self.past, 0))

    def _padded(self, x, before, after):
        """`x` between so many steps of what `padding` says."""
        sides = [[0, 0], [before, after], [0, 0]]
        if self.padding == "zeros":
            return ops.pad(x, sides)
        time = x.shape[1]
        # Of what is too short to be mirrored, silence after it is.
        missing = max(before + 1 - time, after + 1 - time, 0)
        x = ops.pad(x, [[0, 0], [0, missing], [0, 0]])
        x = ops.pad(x, sides, mode="reflect")
        return x[:, : before + time + after]

    def init_state(self, batch_size):
        """The past of a signal that is about to begin: zeros."""
        shape = (batch_size, self.past, self.channels)
        return ops.zeros(shape, self.compute_dtype)

    def step(self, x, state):
        """`call` on a chunk of whole strides: its output, and the new state."""
        x = ops.concatenate([state, x], axis=1)
        return self._convolve(x), x[:, x.shape[1] - self.past :]

    def _convolve(self, x):
        # Grouped convolutions are slow or lack a gradient on some processors:
        # few groups are few dense ones, and of one channel they are a sum.
        if self.kernel.shape[1] == 1 and self.strides == 1:
            if self.groups in (1, self.filters):
                return self._sum_of_taps(x) + self.bias
        parts = zip(
            ops.split(x, self.groups, axis=-1),
            ops.split(self.kernel, self.groups, axis=-1),
            strict=True,
        )
        parts = [
            ops.conv(
                x,
                kernel,
                strides=self.strides,
                padding="valid",
                dilation_rate=self.dilation_rate,
                data_format="channels_last",
            )
            for x, kernel in parts
        ]
        # (batch, time / strides, filters)
        return ops.concatenate(parts, axis=-1) + self.bias

    def _sum_of_taps(self, x):
        time = x.shape[1] - self.past
        starts = range(0, self.past + 1, self.dilation_rate)
        return sum(
            x[:, start : start + time] * self.kernel[tap]
            for tap, start in enumerate(starts)
        )

    def compute_output_shape(self, input_shape):
        batch, time, _ = input_shape
        time = None if time is None else time // self.strides
        return (batch, time, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "padding": self.padding,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class CausalConv1DTranspose(keras.layers.Layer):
    """The way back up: each input step becomes `strides` output steps.

    The tail of `kernel_size - strides` steps, which only later input would
    complete, is cut on the right and nowhere else.

    Args:
        filters: int. The number of output channels.
        kernel_size: int. The width of the kernel, at least `strides`.
        strides: int. Output steps for one input step. Defaults to `1`.
        groups: int. Groups of channels that do not see each other.
            Defaults to `1`.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time * strides, filters)`.

    Example:

    >>> layer = CausalConv1DTranspose(8, kernel_size=4, strides=2)
    >>> tuple(layer(np.zeros((2, 10, 3), "float32")).shape)
    (2, 20, 8)
    """

    def __init__(self, filters, kernel_size, strides=1, groups=1, **kwargs):
        super().__init__(**kwargs)
        if kernel_size < strides:
            raise ValueError(
                "A transposed kernel must cover its stride. Received: "
                f"kernel_size={kernel_size}, strides={strides}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups
        self.tail = kernel_size - strides

    def build(self, input_shape):
        channels = input_shape[-1]
        check_groups(self, channels)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.filters // self.groups, channels),
            initializer=GlorotUniform(),
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.filters,), initializer="zeros"
        )

    def call(self, x):
        time = x.shape[1] * self.strides
        return self._spread(x)[:, :time] + self.bias

    def init_state(self, batch_size):
        """What earlier steps still add to the next: nothing."""
        shape = (batch_size, self.tail, self.filters)
        return ops.zeros(shape, self.compute_dtype)

    def step(self, x, state):
        """`call` on a chunk: its output, and the new state."""
        time = x.shape[1] * self.strides
        x = self._spread(x)
        x = x + ops.pad(state, [[0, 0], [0, time], [0, 0]])
        return x[:, :time] + self.bias, x[:, time:]

    def _spread(self, x):
        """`(batch, time * strides + tail, filters)`, without the bias."""
        parts = zip(
            ops.split(x, self.groups, axis=-1),
            ops.split(self.kernel, self.groups, axis=-1),
            strict=True,
        )
        parts = [self._spread_group(x, kernel) for x, kernel in parts]
        return ops.concatenate(parts, axis=-1)

    def _spread_group(self, x, kernel):
        # A product gives what every step adds to the hops it reaches, and
        # shifted sums add them up: convolutions with a dilated input, which
        # is what backends make of this, multiply mostly zeros.
        width, filters, channels = kernel.shape
        hops = -(-width // self.strides)
        kernel = ops.pad(
            kernel, [[0, hops * self.strides - width], [0, 0], [0, 0]]
        )
        kernel = ops.reshape(kernel, (hops * self.strides * filters, channels))
        x = ops.matmul(x, ops.transpose(kernel))
        hop = self.strides * filters
        x = sum(
            ops.pad(
                x[..., i * hop : (i + 1) * hop],
                [[0, 0], [i, hops - 1 - i], [0, 0]],
            )
            for i in range(hops)
        )  # (batch, time + hops - 1, strides * filters)
        time = x.shape[1] * self.strides
        x = ops.reshape(x, (-1, time, filters))
        return x[:, : time - hops * self.strides + width]

    def compute_output_shape(self, input_shape):
        batch, time, _ = input_shape
        time = None if time is None else time * self.strides
        return (batch, time, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "groups": self.groups,
        }


def check_groups(layer, channels):
    """Raises `ValueError` where groups do not divide the channels."""
    if channels % layer.groups or layer.filters % layer.groups:
        raise ValueError(
            "`groups` must divide the channels in and out. Received: "
            f"groups={layer.groups}, {channels} channels in, "
            f"filters={layer.filters}"
        )
