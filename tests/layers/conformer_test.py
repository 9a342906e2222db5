import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers import conformer
from keras_audiolm.layers.compiled import CompiledFunction


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(layer, x, mask=None):
    """Calls a layer compiled: one trace is faster than many small ones."""
    if mask is None:
        return to_numpy(CompiledFunction(layer, layer)(x))
    compiled = CompiledFunction(
        layer, lambda x, mask: layer(x, padding_mask=mask)
    )
    return to_numpy(compiled(x, mask))


def make_block(**kwargs):
    config = dict(num_heads=2, intermediate_dim=16, kernel_size=5, seed=0)
    config.update(kwargs)
    block = conformer.ConformerBlock(**config)
    block.build((None, None, 8))
    return block


# === Depthwise convolution ===


@pytest.mark.parametrize("kernel_size", [1, 15, 31, 55])
@pytest.mark.parametrize("frames", [1, 25, 26, 60])
def test_depthwise_conv_matches_numpy(kernel_size, frames):
    layer = conformer.DepthwiseConv(kernel_size, seed=0)
    x = normal(2, frames, 3)
    layer.build(x.shape)
    layer.bias.assign([1.0, 2.0, 3.0])
    kernel = to_numpy(layer.kernel)
    side = kernel_size // 2
    padded = np.pad(x, [(0, 0), (side, side), (0, 0)])
    expected = sum(padded[:, i : i + frames] * k for i, k in enumerate(kernel))
    expected = expected + np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [0, 4])
def test_depthwise_conv_needs_an_odd_kernel(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size={kernel_size}"):
        conformer.DepthwiseConv(kernel_size)


# === Attention ===


def test_attention_matches_numpy():
    layer = conformer.RotarySelfAttention(num_heads=2, seed=0)
    x = normal(1, 6, 8)
    layer.build(x.shape)
    project = [
        x[0] @ to_numpy(dense.kernel) + to_numpy(dense.bias)
        for dense in (layer.query_dense, layer.key_dense, layer.value_dense)
    ]
    query, key, value = (p.reshape(6, 2, 4) for p in project)
    angle = np.arange(6)[:, None, None] * 10000.0 ** (-np.arange(2) / 2)

    def rotate(z):
        z = (z[..., :2] + 1j * z[..., 2:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=-1)

    scores = np.einsum("qhd,khd->hqk", rotate(query), rotate(key)) / 2.0
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", weights, value).reshape(6, 8)
    out = out @ to_numpy(layer.output_dense.kernel)
    np.testing.assert_allclose(to_numpy(layer(x))[0], out, atol=1e-5)


def test_attention_rejects_odd_heads():
    with pytest.raises(ValueError, match="hidden_dim=6, num_heads=2"):
        conformer.RotarySelfAttention(num_heads=2).build((None, None, 6))


# === Block ===


def test_padding_never_leaks():
    block = make_block()
    x = normal(2, 30, 8)
    mask = np.arange(30)[None] < np.array([[30], [11]])
    garbage = np.where(mask[:, :, None], x, 1e3 * normal(2, 30, 8, seed=1))
    y = run(block, garbage, mask)
    np.testing.assert_allclose(y[0], run(block, x[:1])[0], atol=1e-5)
    alone = run(block, x[1:, :11])[0]
    np.testing.assert_allclose(y[1, :11], alone, atol=1e-5)


def test_a_row_without_frames_stays_finite():
    block = make_block()
    mask = np.zeros((1, 4), "bool")
    assert np.isfinite(run(block, normal(1, 4, 8), mask)).all()


def test_examples_of_a_batch_are_independent():
    block = make_block()
    x = normal(2, 9, 8)
    together = run(block, x)
    for i in range(2):
        alone = run(block, x[i : i + 1])[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_every_frame_sees_every_frame():
    block = make_block()
    x = normal(1, 40, 8)
    base = run(block, x)
    x[0, 39] = normal(8, seed=1)
    assert np.abs(run(block, x) - base)[0, 0].max() > 1e-7


def test_seed_decides_all_weights():
    a, b, c = make_block(), make_block(), make_block(seed=1)
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(x), to_numpy(y))
    query = to_numpy(a.attention.query_dense.kernel)
    assert np.abs(query - to_numpy(c.attention.query_dense.kernel)).max() > 0.01
    assert np.abs(query - to_numpy(a.attention.key_dense.kernel)).max() > 0.01


def test_dropout_in_training_only():
    block = make_block(dropout=0.5)
    x = normal(1, 9, 8)
    base = run(block, x)
    np.testing.assert_array_equal(base, run(block, x))
    assert np.abs(base - to_numpy(block(x, training=True))).max() > 1e-3
    # The same seed drops the same features.
    again, other = (
        to_numpy(make_block(dropout=0.5)(x, training=True)) for _ in range(2)
    )
    np.testing.assert_array_equal(again, other)


@pytest.mark.parametrize(
    "layer",
    [
        conformer.RotarySelfAttention(2, 100.0, 0.1, 3),
        conformer.DepthwiseConv(3, seed=1),
        conformer.ConvolutionModule(3, 0.1, 2),
        conformer.FeedForward(16, 0.1, 2),
        conformer.ConformerBlock(2, 16, 3, 0.1, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_config_round_trip(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    x = normal(1, 4, 8)
    np.testing.assert_array_equal(run(layer, x), run(again, x))


def test_half_precision_stays_close():
    block, half = make_block(), make_block(dtype="mixed_bfloat16")
    x = normal(1, 9, 8)
    y = half(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    difference = to_numpy(ops.cast(y, "float32")) - to_numpy(block(x))
    assert np.abs(difference).max() < 0.1


def test_split_seed():
    seeds = conformer.split_seed(7, 4)
    assert len(set(seeds)) == 4 and seeds == conformer.split_seed(7, 4)
    assert all(0 <= s < 2**31 for s in seeds)
    assert conformer.split_seed(None, 2) == [None, None]
