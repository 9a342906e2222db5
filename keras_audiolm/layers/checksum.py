"""A checksum of weights: whether two models are the same."""

import zlib

import numpy as np
from keras import ops


def weights_checksum(*models):
    """CRC-32 of all weights of built models, in order.

    States of random generators, which are integers, do not count.
    """
    checksum = 0
    for model in models:
        for variable in model.weights:
            value = ops.convert_to_numpy(variable)
            if np.issubdtype(value.dtype, np.floating):
                checksum = zlib.crc32(np.ascontiguousarray(value), checksum)
    return checksum
