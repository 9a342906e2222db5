"""Convolutions in time that see as much of what comes as of the past."""

import keras

from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose


@keras.saving.register_keras_serializable(package="keras_audiolm")
class CentredConv1D(CausalConv1D):
    """A convolution that is padded on both sides.

    Output frame `i` stands in the middle of hop `i` and its neighbours. Of an
    odd number of steps the past gets one more.

    Args:
        Those of `CausalConv1D`.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time / strides, filters)`.
    """

    def call(self, x):
        after = self.past // 2
        return self._convolve(self._padded(x, self.past - after, after))


@keras.saving.register_keras_serializable(package="keras_audiolm")
class CentredConv1DTranspose(CausalConv1DTranspose):
    """The way back up, cut on both sides.

    `(tail + 1) // 2` steps are cut on each, where `tail` is `kernel_size -
    strides`: of an odd tail the output is a step short.

    Args:
        Those of `CausalConv1DTranspose`.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time * strides, filters)`, or a step less.
    """

    def call(self, x):
        cut = (self.tail + 1) // 2
        x = self._spread(x)
        return x[:, cut : x.shape[1] - cut] + self.bias

    def compute_output_shape(self, input_shape):
        batch, time, filters = super().compute_output_shape(input_shape)
        time = None if time is None else time - self.tail % 2
        return (batch, time, filters)
