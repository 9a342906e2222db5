import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose
from keras_audiolm.layers.compiled import CompiledFunction


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(layer, channels=4):
    """The layer with weights that NumPy drew."""
    layer.build((None, None, channels))
    for i, weight in enumerate(layer.weights):
        weight.assign(normal(*weight.shape, seed=i))
    return layer


def run(layer, x):
    return to_numpy(CompiledFunction(layer, layer)(x))


def slow_conv(layer, x):
    """Tap by tap, frame by frame: a frame ends with its hop."""
    kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
    width = layer.filters // layer.groups
    inputs = kernel.shape[1]
    frames = x.shape[1] // layer.strides
    y = np.zeros((len(x), frames, layer.filters)) + bias
    for i in range(frames):
        for k in range(layer.kernel_size):
            back = (layer.kernel_size - 1 - k) * layer.dilation_rate
            time = (i + 1) * layer.strides - 1 - back
            for g in range(layer.groups * (time >= 0)):
                out = slice(g * width, (g + 1) * width)
                part = x[:, time, g * inputs : (g + 1) * inputs]
                y[:, i, out] += part @ kernel[k, :, out]
    return y


def slow_transpose(layer, x):
    kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
    batch, time, _ = x.shape
    y = np.zeros((batch, time * layer.strides, layer.filters)) + bias
    for i in range(time):
        for k in range(layer.kernel_size):
            if i * layer.strides + k < y.shape[1]:
                y[:, i * layer.strides + k] += x[:, i] @ kernel[k].T
    return y


CONVOLUTIONS = [
    dict(kernel_size=1),
    dict(kernel_size=7),
    dict(kernel_size=7, dilation_rate=3),
    dict(kernel_size=4, strides=2),
    dict(kernel_size=10, strides=5),
    dict(kernel_size=3, strides=3),
    dict(kernel_size=3, groups=2),
]
TRANSPOSED = [
    dict(kernel_size=1),
    dict(kernel_size=4, strides=2),
    dict(kernel_size=10, strides=5),
    dict(kernel_size=3, strides=3),
    dict(kernel_size=7, strides=3),
]


@pytest.mark.parametrize("config", CONVOLUTIONS)
def test_conv_matches_numpy(config):
    layer = built(CausalConv1D(6, **config))
    x = normal(2, 30, 4)
    y = run(layer, x)
    assert y.shape == layer.compute_output_shape(x.shape)
    np.testing.assert_allclose(y, slow_conv(layer, x), atol=1e-4)


@pytest.mark.parametrize("config", TRANSPOSED)
def test_transpose_matches_numpy(config):
    layer = built(CausalConv1DTranspose(6, **config))
    x = normal(2, 7, 4)
    y = run(layer, x)
    assert y.shape == layer.compute_output_shape(x.shape)
    np.testing.assert_allclose(y, slow_transpose(layer, x), atol=1e-4)


@pytest.mark.parametrize("config", CONVOLUTIONS)
def test_conv_is_causal(config):
    layer = built(CausalConv1D(6, **config))
    stride = layer.strides
    x = normal(1, 30, 4)
    before = run(layer, x)
    for time in (0, 1, 13, 29):
        changed = x.copy()
        changed[:, time] += 1.0
        after = run(layer, changed)
        frame = time // stride
        np.testing.assert_array_equal(after[:, :frame], before[:, :frame])
        if stride == 1:  # the newest tap sees the step at once
            assert (after[:, frame] != before[:, frame]).all()


@pytest.mark.parametrize("config", TRANSPOSED)
def test_transpose_is_causal(config):
    layer = built(CausalConv1DTranspose(6, **config))
    x = normal(1, 7, 4)
    before = run(layer, x)
    for time in (0, 3, 6):
        changed = x.copy()
        changed[:, time] += 1.0
        after = run(layer, changed)
        start = time * layer.strides
        np.testing.assert_array_equal(after[:, :start], before[:, :start])
        assert (after[:, start] != before[:, start]).all()


def test_batch_equals_single():
    layer = built(CausalConv1D(6, 4, strides=2))
    x = normal(3, 30, 4)
    alone = np.concatenate([run(layer, row[None]) for row in x])
    np.testing.assert_allclose(run(layer, x), alone, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        CausalConv1D(
            6, 5, 2, dilation_rate=2, groups=2, kernel_initializer="zeros"
        ),
        CausalConv1DTranspose(6, 4, strides=2),
    ],
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert layer.compute_output_shape((None, None, 4)) == (None, None, 6)


@pytest.mark.parametrize("layer", [CausalConv1D, CausalConv1DTranspose])
def test_groups_that_do_not_divide_are_an_error(layer):
    with pytest.raises(ValueError, match="groups=3, 4 channels.*filters=6"):
        layer(6, kernel_size=3, groups=3).build((None, None, 4))


@pytest.mark.parametrize("layer", [CausalConv1D, CausalConv1DTranspose])
def test_kernel_shorter_than_the_stride_is_an_error(layer):
    with pytest.raises(ValueError, match="kernel_size=3.*strides=4"):
        layer(8, kernel_size=3, strides=4)
