"""What models need to know of other devices and processes."""

import keras


def refuse_replicas():
    """Raises `ValueError` where each replica would learn for itself.

    Codebooks learn from sums over the batch, and losses are means over the
    tokens in it. `keras.distribution` on JAX computes both for the whole
    batch. A strategy of TensorFlow and the processes of `torch.distributed`
    compute them for each replica's part: the codebooks of replicas drift
    apart, and the loss depends on how many there are.
    """
    backend, found = keras.backend.backend(), None
    if backend != "jax" and keras.distribution.distribution() is not None:
        found = "keras.distribution"
    elif backend == "tensorflow":
        import tensorflow as tf

        if tf.distribute.has_strategy():
            found = type(tf.distribute.get_strategy()).__name__
    elif backend == "torch":
        import torch.distributed as processes

        if processes.is_available() and processes.is_initialized():
            if processes.get_world_size() > 1:
                found = "torch.distributed"
    if found:
        raise ValueError(
            f"Training on several devices works on JAX alone, and this is "
            f"{found} on {backend}: it would learn wrong codebooks. Train on "
            "one device, or set KERAS_BACKEND=jax and "
            "keras.distribution.set_distribution(...)."
        )


def process():
    """The number of this process, from 0 on, and how many there are."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def make_layout_map(device_mesh, layouts):
    """A `keras.distribution.LayoutMap`.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        layouts: dictionary of tuples of axis names, or `None`, by regular
            expressions for whole paths of variables.

    Raises:
        ValueError: if the mesh lacks an axis.
    """
    wanted = {axis for axes in layouts.values() for axis in axes if axis}
    missing = sorted(wanted - set(device_mesh.axis_names))
    if missing:
        raise ValueError(
            f"The layouts need mesh axes named {missing}. Received: "
            f"axis_names={tuple(device_mesh.axis_names)}. Name them so, or "
            "give model_parallel_dim_name and data_parallel_dim_name."
        )
    layout_map = keras.distribution.LayoutMap(device_mesh)
    for pattern, axes in layouts.items():
        layout_map[pattern] = axes
    return layout_map
