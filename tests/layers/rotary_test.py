import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.rotary import apply_rotary


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def reference(x, positions, max_wavelength):
    """Rotation written as multiplication of complex numbers."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    speed = max_wavelength ** (-np.arange(half) / half)
    z = z * np.exp(1j * positions[:, None, None] * speed)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("max_wavelength", [100.0, 10000.0])
def test_is_a_complex_rotation(max_wavelength):
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 8)).astype("float32")
    positions = np.arange(7) * 3
    y = to_numpy(apply_rotary(x, positions, max_wavelength))
    expected = reference(x, positions, max_wavelength)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_products_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 5, 2, 16)).astype("float32")
    products = []
    for start in (0, 1000):
        positions = np.arange(5) + start
        q = to_numpy(apply_rotary(query, positions))
        k = to_numpy(apply_rotary(key, positions))
        products.append(np.einsum("bqhd,bkhd->bhqk", q, k))
    np.testing.assert_allclose(products[0], products[1], atol=1e-3)


def test_each_row_may_have_its_own_positions():
    x = np.random.default_rng(0).normal(size=(2, 4, 1, 6)).astype("float32")
    positions = np.array([[0, 1, 2, 3], [5, 6, 7, 8]])
    y = to_numpy(apply_rotary(x, positions))
    for row in range(2):
        alone = to_numpy(apply_rotary(x[row : row + 1], positions[row]))
        np.testing.assert_allclose(y[row], alone[0], atol=1e-6)


def test_keeps_the_dtype():
    x = ops.cast(keras.random.normal((1, 3, 2, 4), seed=0), "bfloat16")
    y = apply_rotary(x, ops.arange(3))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"


def test_odd_head_dim():
    with pytest.raises(ValueError, match="head_dim=5"):
        apply_rotary(np.zeros((1, 2, 1, 5), "float32"), np.arange(2))
