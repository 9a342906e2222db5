import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.initializers import GlorotUniform, RandomNormal


def draw(initializer, *shape, **kwargs):
    return ops.convert_to_numpy(initializer(shape, **kwargs))


@pytest.mark.parametrize("shape", [(200, 300), (7, 40, 60), (3, 3, 50, 40)])
def test_glorot_uniform_is_keras_own_in_distribution(shape):
    ours = draw(GlorotUniform(0), *shape)
    theirs = draw(keras.initializers.GlorotUniform(0), *shape)
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours.max(), theirs.max(), rtol=1e-2)
    np.testing.assert_allclose(ours.min(), theirs.min(), rtol=1e-2)
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=2e-2)
    assert abs(ours.mean()) < 3 * ours.std() / ours.size**0.5


def test_random_normal():
    values = draw(RandomNormal(0.3, seed=0), 400, 400)
    np.testing.assert_allclose(values.std(), 0.3, rtol=1e-2)
    assert abs(values.mean()) < 3 * 0.3 / 400


@pytest.mark.parametrize("kind", [GlorotUniform, RandomNormal])
def test_seeds(kind):
    same, again = draw(kind(seed=1), 3, 4), draw(kind(seed=1), 3, 4)
    np.testing.assert_array_equal(same, again)
    assert (draw(kind(seed=2), 3, 4) != same).all()
    # Two weights of one seed are not alike.
    assert (draw(kind(seed=1), 4, 3).ravel() != same.ravel()).all()
    keras.utils.set_random_seed(5)
    first = draw(kind(), 3, 4)
    assert (draw(kind(), 3, 4) != first).all()
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(draw(kind(), 3, 4), first)


@pytest.mark.parametrize("kind", [GlorotUniform, RandomNormal])
def test_type_and_config(kind):
    values = kind(seed=3)((2, 2), dtype="bfloat16")
    assert keras.backend.standardize_dtype(values.dtype) == "bfloat16"
    config = keras.saving.serialize_keras_object(kind(seed=3))
    copy = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(draw(copy, 2, 3), draw(kind(seed=3), 2, 3))
