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


class ShardedModel:
    """A mix-in for models whose weights can be split over devices.

    `weight_layouts(data, model)`, given the names of two axes, is the
    dictionary that `make_layout_map` takes.
    """

    @classmethod
    def get_layout_map(
        cls,
        device_mesh,
        model_parallel_dim_name="model",
        data_parallel_dim_name="batch",
    ):
        """Which axis of a mesh each weight is split along.

        Args:
            device_mesh: `keras.distribution.DeviceMesh` with both axes.
            model_parallel_dim_name: str. The axis that heads and inner units
                are split along.
            data_parallel_dim_name: str. The axis that batches are split
                along, and the other side of large weights with them.

        Returns:
            `keras.distribution.LayoutMap`. Weights that it does not name
            stand on every device.

        Raises:
            ValueError: if the mesh lacks an axis.

        Example:

        ```python
        mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
        layout_map = keras_audiolm.StageLM.get_layout_map(mesh)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout_map)
        )
        ```
        """
        layouts = cls.weight_layouts(
            data_parallel_dim_name, model_parallel_dim_name
        )
        return make_layout_map(device_mesh, layouts)


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
