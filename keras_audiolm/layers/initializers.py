"""Initial weights drawn by NumPy.

Keras draws them on the backend, and XLA compiles a program for every shape:
most of the time of loading a preset, whose weights then replace them. The
distributions are those of Keras's initializers of the same names.
"""

import math

import keras
import numpy as np
from keras import ops


class NumpyInitializer(keras.initializers.Initializer):
    """Draws by NumPy.

    Args:
        seed: int, optional. The same seed and shape give the same values. By
            default they follow NumPy's global state, which
            `keras.utils.set_random_seed` sets.
    """

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None, **kwargs):
        seed = self.seed
        if seed is None:
            seed = np.random.randint(2**31)
        # Weights of one seed but of two shapes are not alike.
        rng = np.random.default_rng((seed, *shape))
        values = self.draw(rng, tuple(shape))
        return ops.convert_to_tensor(values.astype("float32"), dtype)

    def get_config(self):
        return {"seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_audiolm")
class GlorotUniform(NumpyInitializer):
    """Uniform within `sqrt(6 / (fan_in + fan_out))`."""

    def draw(self, rng, shape):
        field = math.prod(shape[:-2])
        limit = math.sqrt(6 / (field * (shape[-2] + shape[-1])))
        return rng.uniform(-limit, limit, shape)


@keras.saving.register_keras_serializable(package="keras_audiolm")
class RandomNormal(NumpyInitializer):
    """Normal with mean zero.

    Args:
        stddev: float. Defaults to `0.05`.
        seed: as of `NumpyInitializer`.
    """

    def __init__(self, stddev=0.05, seed=None):
        super().__init__(seed)
        self.stddev = stddev

    def draw(self, rng, shape):
        return rng.normal(0.0, self.stddev, shape)

    def get_config(self):
        return {"stddev": self.stddev, **super().get_config()}
