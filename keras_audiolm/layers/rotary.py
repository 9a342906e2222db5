"""Rotary position embedding."""

import numpy as np
from keras import ops


def apply_rotary(x, positions, max_wavelength=10000.0):
    """Rotates pairs of features by angles that grow with the position.

    Feature `i` of the first half of a head is paired with feature `i` of the
    second half. After the rotation the dot product of a query and a key
    depends on their distance in frames only, whatever the sequence's length.

    Args:
        x: tensor of shape `(batch, time, heads, head_dim)`, `head_dim` even.
        positions: tensor of shape `(time,)` or `(batch, time)`, in frames.
        max_wavelength: float. Frames in the slowest rotation. Defaults to
            `10000.0`.

    Returns:
        Tensor of `x`'s shape and dtype. The angles are computed in float32.

    Example:

    >>> x = keras.random.normal((1, 50, 4, 16), seed=0)
    >>> tuple(apply_rotary(x, keras.ops.arange(50)).shape)
    (1, 50, 4, 16)

    Reference:
     - [Su et al., 2021](https://arxiv.org/abs/2104.09864)
    """
    x = ops.convert_to_tensor(x)
    head_dim = x.shape[-1]
    if head_dim % 2:
        raise ValueError(
            "Rotary embedding pairs the features of a head, so `head_dim` "
            f"must be even. Received: head_dim={head_dim}."
        )
    half = head_dim // 2
    frequency = max_wavelength ** -(np.arange(half, dtype="float32") / half)
    frequency = ops.convert_to_tensor(frequency, dtype="float32")
    angle = ops.expand_dims(ops.cast(positions, "float32"), -1) * frequency
    if len(angle.shape) == 2:
        angle = ops.expand_dims(angle, 0)
    angle = ops.expand_dims(angle, 2)  # (1 or batch, time, 1, half)
    cos = ops.cast(ops.cos(angle), x.dtype)
    sin = ops.cast(ops.sin(angle), x.dtype)
    first, second = x[..., :half], x[..., half:]
    return ops.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
