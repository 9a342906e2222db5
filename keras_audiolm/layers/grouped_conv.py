"""A strided convolution in many groups, as products of matrices."""

import keras
from keras import ops

from keras_audiolm.layers.initializers import GlorotUniform


@keras.saving.register_keras_serializable(package="keras_audiolm")
class GroupedConv1D(keras.layers.Layer):
    """`keras.layers.Conv1D(padding="same")` with groups, made for gradients.

    A processor's own grouped convolution takes seconds for the gradient of a
    discriminator's layer (XLA's is a plain loop). Here the input is cut into
    hops of one stride; the kernel reaches over a window of several of them,
    and one product of matrices meets all windows of a group.

    Args:
        filters: int.
        kernel_size: int. At least `strides`.
        strides: int.
        groups: int.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, ceil(time / strides), filters)`.
    """

    def __init__(self, filters, kernel_size, strides, groups, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                self.kernel_size,
                input_shape[-1] // self.groups,
                self.filters,
            ),
            initializer=GlorotUniform(),
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.filters,), initializer="zeros"
        )

    def call(self, x):
        reach = -(-self.kernel_size // self.strides)  # hops of a window
        frames = -(-x.shape[1] // self.strides)
        hops = self._hops(x, frames + reach - 1)
        windows = ops.concatenate(
            [hops[:, :, i : i + frames] for i in range(reach)], axis=-1
        )
        size = windows.shape[-1]
        windows = ops.reshape(windows, (self.groups, -1, size))
        # (groups, batch * frames, filters / groups)
        y = ops.matmul(windows, self._grouped_kernel(size))
        y = ops.transpose(y, (1, 0, 2))
        return ops.reshape(y, (-1, frames, self.filters)) + self.bias

    def _hops(self, x, count):
        """`(groups, batch, count, strides * channels / groups)`, padded."""
        time, channels = x.shape[1:]
        frames = -(-time // self.strides)
        padding = (frames - 1) * self.strides + self.kernel_size - time
        before = max(padding, 0) // 2
        after = count * self.strides - time - before
        x = ops.pad(x, [[0, 0], [before, after], [0, 0]])
        width = channels // self.groups
        x = ops.reshape(x, (-1, count, self.strides, self.groups, width))
        x = ops.transpose(x, (3, 0, 1, 2, 4))
        return ops.reshape(x, (self.groups, -1, count, self.strides * width))

    def _grouped_kernel(self, size):
        """`(groups, size, filters / groups)`, zeros after the kernel's end."""
        taps, width, filters = self.kernel.shape
        kernel = ops.pad(
            self.kernel, [[0, size // width - taps], [0, 0], [0, 0]]
        )
        out = filters // self.groups
        kernel = ops.reshape(kernel, (-1, width, self.groups, out))
        kernel = ops.transpose(kernel, (2, 0, 1, 3))
        return ops.reshape(kernel, (self.groups, size, out))

    def compute_output_shape(self, input_shape):
        batch, time, _ = input_shape
        time = None if time is None else -(-time // self.strides)
        return (batch, time, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "groups": self.groups,
        }
