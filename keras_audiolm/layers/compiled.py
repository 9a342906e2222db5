"""Inference functions of a model, compiled where the backend compiles."""

import os
import pathlib
import platform

import keras


def keep_compiled_programs():
    """Has JAX keep what it compiles, so that the next process starts at once.

    The folder, `keras_audiolm/jax` in the user's cache folder, is this
    machine's own: programs are compiled for its processor. Nothing is changed
    where JAX has a folder already (`JAX_COMPILATION_CACHE_DIR`), is to keep
    nothing (`JAX_ENABLE_COMPILATION_CACHE=0`), or the folder cannot be
    written to.
    """
    if keras.backend.backend() != "jax":
        return
    import jax

    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "keras_audiolm" / "jax" / platform.node()
    config = jax.config
    if (
        config.jax_compilation_cache_dir is not None
        or not config.jax_enable_compilation_cache
        or not can_be_written(folder)
    ):
        return
    config.update("jax_compilation_cache_dir", str(folder))
    # Many programs here are small.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def can_be_written(folder):
    """Whether a folder is there, or can be made, and files in it."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def padded_frames(frames):
    """The next of few lengths, each of which compiles once.

    From 32 frames on at most a quarter is added; four lengths compile per
    octave.
    """
    step = max(2 ** (frames.bit_length() - 3), 8)
    return -(-frames // step) * step


# Products of a batch that are as well computed one by one; more of them take
# too long to compile.
MAX_PRODUCTS = 32


def has_slow_batched_products():
    """Whether products of a batch of small matrices are slower than as many
    single ones: XLA on a processor calls no library for them."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() == "cpu"
    if backend == "tensorflow":
        import tensorflow as tf

        return not tf.config.list_physical_devices("GPU")
    return False


def host_numbers(numbers):
    """A dictionary of integer scalars, as Python's own on PyTorch: it loops
    on the host, which then never waits for a device to know them."""
    if keras.backend.backend() != "torch":
        return numbers
    return {name: int(number) for name, number in numbers.items()}


def repeat(steps, body, carry):
    """`carry = body(done, *carry)`, for `done` from 0 to `steps`, exclusive.

    Args:
        steps: of `host_numbers`.
        body: callable that returns a tuple like `carry`.
        carry: tuple of tensors, or nested structures of them.

    Returns:
        The last carry.
    """
    if keras.backend.backend() == "torch":
        for done in range(steps):
            carry = body(done, *carry)
        return carry
    _, *carry = keras.ops.while_loop(
        lambda done, *_: done < steps,
        lambda done, *carry: (done + 1, *body(done, *carry)),
        (keras.ops.zeros((), "int32"), *carry),
    )
    return tuple(carry)


class CompiledFunction:
    """Runs `function(*args)`, which reads `model`'s variables, compiled.

    JAX traces the function once for each set of shapes with the variables as
    arguments (so that new weights need no new trace); TensorFlow wraps it in
    a `tf.function`; PyTorch runs it eagerly without gradients. The function
    must not assign to variables: JAX would drop what the others keep.

    Args:
        model: keras.Model or Layer whose variables the function reads.
        function: callable of tensors (or nested structures of them).
        jit_compile: bool. Whether TensorFlow compiles by XLA, as JAX always
            does: loops of small operations are faster, convolutions and first
            calls slower.

    Call arguments:
        *args: arrays, or nested structures of them.
        **static: ints, bools or strings, known when the function is traced;
            another value is another trace.
    """

    def __init__(self, model, function, jit_compile=False):
        keep_compiled_programs()
        self.model = model
        self.function = function
        self.num_traces = 0
        backend = keras.backend.backend()
        if backend == "jax":
            import jax

            self._run = jax.jit(self._stateless, static_argnums=2)
        elif backend == "tensorflow":
            import tensorflow as tf

            self._run = tf.function(self._traced, jit_compile=jit_compile)
        else:
            self._run = self._traced

    def __call__(self, *args, **static):
        args = keras.tree.map_structure(keras.ops.convert_to_tensor, args)
        backend = keras.backend.backend()
        if backend == "jax":
            values = [v.value for v in self.model.variables]
            return self._run(values, args, tuple(sorted(static.items())))
        if backend == "torch":
            import torch

            with torch.no_grad():
                return self._run(*args, **static)
        # One trace a shape is what is wanted, and calling `_run` itself would
        # warn of them, all models counted together.
        run = self._run.get_concrete_function(*args, **static)
        return run(*args, **static)

    def _traced(self, *args, **static):
        self.num_traces += 1
        return self.function(*args, **static)

    def _stateless(self, values, args, static):
        mapping = zip(self.model.variables, values, strict=True)
        with keras.StatelessScope(state_mapping=mapping):
            return self._traced(*args, **dict(static))
