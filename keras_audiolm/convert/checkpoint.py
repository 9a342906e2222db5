"""Tensors of public checkpoints, read without executing anything in them."""

import json
import pathlib

import numpy as np

SAFE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"


class Checkpoint:
    """A folder's configuration and tensors, each of which is taken once.

    `model.safetensors` is read tensor by tensor, so that a large one is never
    in memory twice. Of older checkpoints `pytorch_model.bin` is read by
    `torch.load(weights_only=True)`, which builds tensors and nothing else.

    Args:
        folder: path.

    Attributes:
        config: dictionary, the folder's `config.json`.

    Raises:
        ImportError: without the package that reads the file.
        ValueError: on files that are missing or broken.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.config = self._read_json("config.json")
        if not isinstance(self.config, dict):
            raise ValueError(f"{self.folder / 'config.json'} is no dictionary.")
        self.config = Config(self.config)
        self.readers = self._find_tensors()
        self.left = set(self.readers)

    def _read_json(self, name):
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder} is not a checkpoint: it has no {name}."
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{self.folder / name} is not valid JSON: {error}"
            ) from None

    def _find_tensors(self):
        """Dictionary by name of functions that give a tensor."""
        if (self.folder / INDEX).is_file():
            index = self._read_json(INDEX)
            try:
                names = sorted(set(index["weight_map"].values()))
            except (TypeError, KeyError, AttributeError):
                raise ValueError(
                    f"{self.folder / INDEX} does not say where tensors are."
                ) from None
            parts = [self._read_safe(name) for name in names]
            return {k: v for part in parts for k, v in part.items()}
        if (self.folder / SAFE).is_file():
            return self._read_safe(SAFE)
        if (self.folder / PICKLED).is_file():
            return self._read_pickled()
        raise ValueError(f"{self.folder} has no {SAFE} and no {PICKLED}.")

    def _read_safe(self, name):
        try:
            import ml_dtypes  # noqa: F401 tells NumPy of bfloat16
            import safetensors
        except ImportError as error:
            raise ImportError(
                "Checkpoints are read by safetensors: pip install "
                "'keras-audiolm[convert]'"
            ) from error
        path = self.folder / pathlib.Path(name).name

        def read(key):
            # Opened for each tensor: what a file that stays open has shown
            # stays in memory.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(key)

        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                keys = list(file.keys())
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        return {key: lambda key=key: read(key) for key in keys}

    def _read_pickled(self):
        path = self.folder / PICKLED
        try:
            import torch
        except ImportError as error:
            raise ImportError(
                f"{path} is read by PyTorch: pip install torch. Or give a "
                f"folder with {SAFE}."
            ) from error
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a foreign file makes of it
            raise ValueError(
                f"{path} cannot be read as tensors alone: {error}"
            ) from None
        if not isinstance(tensors, dict) or not all(
            isinstance(x, torch.Tensor) for x in tensors.values()
        ):
            raise ValueError(f"{path} holds more than tensors.")
        return {
            key: lambda x=x: x.float().numpy() for key, x in tensors.items()
        }

    def __contains__(self, name):
        return name in self.readers

    def take(self, name):
        """A tensor as NumPy float32.

        Raises:
            ValueError: if it is missing.
        """
        if name not in self.readers:
            raise ValueError(
                f"{self.folder} lacks the tensor {name}: it is another model, "
                "or incomplete."
            )
        self.left.discard(name)
        return np.asarray(self.readers[name](), "float32")

    def take_normalized(self, prefix, kept_axis=0):
        """`prefix.weight`, of a weight-normalized layer in either spelling.

        Each slice of `kept_axis` has a size of its own.
        """
        old = [f"{prefix}.weight_{x}" for x in "gv"]
        new = [f"{prefix}.parametrizations.weight.original{x}" for x in "01"]
        for size, direction in (old, new):
            if direction in self:
                v = self.take(direction)
                axes = tuple(a for a in range(v.ndim) if a != kept_axis)
                norm = np.sqrt(np.sum(v**2, axis=axes, keepdims=True))
                return self.take(size) * v / norm
        return self.take(f"{prefix}.weight")

    def ignore(self, *names):
        """Says that tensors are of no use here; they may be missing."""
        self.left -= set(names)

    def ignore_all(self, prefix):
        """`ignore`, of all whose names begin so."""
        self.ignore(*[n for n in self.left if n.startswith(prefix)])

    def check_all_taken(self):
        """Raises `ValueError` if there are tensors that nobody took."""
        if self.left:
            some = ", ".join(sorted(self.left)[:5])
            raise ValueError(
                f"{self.folder} has {len(self.left)} tensors that this model "
                f"has no place for, like {some}: it is another model."
            )


class Config(dict):
    """A configuration whose lack of an entry is a `ValueError`."""

    def __missing__(self, name):
        raise ValueError(
            f"The checkpoint's config.json says nothing of {name}: it is "
            "another model's, or incomplete."
        )


def put(variable, value, name):
    """Assigns a tensor to a variable of the same shape.

    Raises:
        ValueError: that names the tensor, if the shapes differ.
    """
    if tuple(variable.shape) != value.shape:
        raise ValueError(
            f"The tensor {name} has shape {value.shape}, and "
            f"{tuple(variable.shape)} is wanted: its config.json is another "
            "model's."
        )
    variable.assign(value)


def put_conv(layer, checkpoint, prefix, kept_axis=0):
    """A convolution's tensors, plain or transposed.

    There, kernels are `(filters, channels, time)` and of transposed ones
    `(channels, filters, time)`; here `(time, channels, filters)` and `(time,
    filters, channels)`.
    """
    kernel = checkpoint.take_normalized(prefix, kept_axis).transpose(2, 1, 0)
    put(layer.kernel, kernel, f"{prefix}.weight")
    put(layer.bias, checkpoint.take(f"{prefix}.bias"), f"{prefix}.bias")


def put_dense(layer, checkpoint, prefix):
    put(layer.kernel, checkpoint.take(f"{prefix}.weight").T, prefix)
    put(layer.bias, checkpoint.take(f"{prefix}.bias"), prefix)


def put_norm(layer, checkpoint, prefix):
    put(layer.gamma, checkpoint.take(f"{prefix}.weight"), prefix)
    put(layer.beta, checkpoint.take(f"{prefix}.bias"), prefix)


def check_fixed(config, fixed, family):
    """Raises `ValueError` where a configuration is not what is read.

    Args:
        config: dictionary, of a checkpoint.
        fixed: dictionary of what it must say, if it says anything.
        family: str, for the message.
    """
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"{family} is read with {name}={value!r} alone. Received: "
                f"{name}={config[name]!r}"
            )


def check_layers(num_layers, there):
    """How many of the blocks there are to keep, all by default."""
    if not 1 <= (num_layers or 1) <= there:
        raise ValueError(
            f"The encoder has {there} blocks. Received: {num_layers}"
        )
    return num_layers or there
