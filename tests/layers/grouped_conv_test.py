import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.grouped_conv import GroupedConv1D


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("time", [1, 3, 4, 41, 64, 101])
@pytest.mark.parametrize("size, stride", [(41, 4), (5, 2), (4, 4), (7, 1)])
def test_it_is_a_convolution_in_each_group(time, size, stride):
    """NumPy's, tap by tap, with Keras's "same" padding."""
    layer = GroupedConv1D(6, size, stride, 2)
    layer.build((None, None, 4))
    kernel, bias = normal(size, 2, 6, seed=1), normal(6, seed=2)
    layer.set_weights([kernel, bias])
    x = normal(2, time, 4)
    frames = -(-time // stride)
    padding = max((frames - 1) * stride + size - time, 0)
    padded = np.pad(
        x, [(0, 0), (padding // 2, padding - padding // 2 + stride), (0, 0)]
    )
    expected = np.zeros((2, frames, 6)) + bias
    for frame in range(frames):
        window = padded[:, frame * stride : frame * stride + size]
        for group in range(2):
            expected[:, frame, 3 * group : 3 * group + 3] += np.einsum(
                "bki,kio->bo",
                window[..., 2 * group : 2 * group + 2],
                kernel[..., 3 * group : 3 * group + 3],
            )
    y = ops.convert_to_numpy(layer(x))
    assert y.shape == layer.compute_output_shape(x.shape)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_it_has_the_weights_of_conv1d_and_a_config():
    layer = GroupedConv1D(8, 41, 4, groups=4)
    layer.build((None, None, 8))
    plain = keras.layers.Conv1D(8, 41, 4, groups=4)
    plain.build((None, None, 8))
    for a, b in zip(layer.weights, plain.weights, strict=True):
        assert (a.name, a.shape) == (b.name, b.shape)
    copy = GroupedConv1D.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
