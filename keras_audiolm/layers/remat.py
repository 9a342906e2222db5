"""Gradient checkpointing: memory for arithmetic."""

import keras


def recomputed(layer, *args, **kwargs):
    """`layer(*args, **kwargs)` that keeps no activations for the backward pass.

    They are computed again there. What the layer assigns, such as the counters
    of its dropout, goes in and comes out as values: so the second pass drops
    the same places, and an assignment happens once.

    Args:
        layer: built `keras.layers.Layer`.
        *args: tensors or `None`.
        **kwargs: what is known when the layer is traced.

    Raises:
        ValueError: on TensorFlow, where it was not shown to train alike.
    """
    if keras.backend.backend() == "tensorflow":
        raise ValueError(
            "Recomputed activations (remat) work on JAX and PyTorch. Train "
            "with KERAS_BACKEND=jax, or without remat."
        )

    def call(trainable, rest, *args):
        return layer.stateless_call(trainable, rest, *args, **kwargs)

    outputs, rest = keras.remat(call)(
        [v.value for v in layer.trainable_variables],
        # PyTorch assigns in place, also to what the second pass goes by.
        [keras.ops.copy(v.value) for v in layer.non_trainable_variables],
        *args,
    )
    for variable, value in zip(
        layer.non_trainable_variables, rest, strict=True
    ):
        variable.assign(value)
    return outputs
