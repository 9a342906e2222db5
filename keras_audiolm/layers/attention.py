"""Plain multi-head attention, for weights that come from elsewhere."""

from keras import ops

EXCLUDED = -1e9


def split_heads(x, num_heads):
    """`(batch, time, dim)` to `(batch, heads, time, dim / heads)`."""
    x = ops.reshape(x, (-1, x.shape[1], num_heads, x.shape[2] // num_heads))
    return ops.swapaxes(x, 1, 2)


def attend(query, key, value, seen, bias=0.0):
    """What each query makes of the values.

    Args:
        query: `(batch, heads, time, head_dim)`.
        key, value: the same of another time.
        seen: bool, broadcast to `(batch, heads, time, time of key)`.
        bias: added to the products of queries and keys.

    Returns:
        `(batch, time, heads * head_dim)`. The softmax is in float32.
    """
    scores = ops.matmul(query, ops.swapaxes(key, 2, 3)) + bias
    scores = ops.cast(scores, "float32") * query.shape[-1] ** -0.5
    scores = ops.where(seen, scores, EXCLUDED)
    weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
    y = ops.swapaxes(ops.matmul(weights, value), 1, 2)
    return ops.reshape(y, (-1, y.shape[1], y.shape[2] * y.shape[3]))
