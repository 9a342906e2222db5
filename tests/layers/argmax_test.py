import numpy as np
from keras import ops

from keras_audiolm.layers.argmax import argmax


def test_is_the_first_largest_and_never_out_of_range():
    rng = np.random.default_rng(0)
    x = rng.integers(9, size=(200, 7)).astype("float32")  # with ties
    x[:50, 2:] = -np.inf
    result = ops.convert_to_numpy(argmax(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(result, x.argmax(axis=1))
    assert result.dtype == np.int32
    x[:] = np.nan
    result = ops.convert_to_numpy(argmax(ops.convert_to_tensor(x)))
    assert (result == 6).all()
