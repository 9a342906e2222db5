"""Which Keras backend is used where the user has not chosen one."""

import importlib.util
import json
import os
import pathlib

# The fastest for generation first.
BACKENDS = ("jax", "tensorflow", "torch")


def choose_backend():
    """Sets `KERAS_BACKEND` to an installed backend, unless one is chosen.

    One is chosen by the environment variable, or by a `keras.json` that names
    another than TensorFlow: Keras writes that file by itself at its first
    import, always with TensorFlow in it, even where none is installed.
    """
    if os.environ.get("KERAS_BACKEND") or _written_choice():
        return
    installed = filter(importlib.util.find_spec, BACKENDS)
    os.environ["KERAS_BACKEND"] = next(installed, BACKENDS[0])


def _written_choice():
    """The backend that `keras.json` names, `None` for Keras's own default."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    try:
        text = (pathlib.Path(home) / "keras.json").read_text()
        backend = json.loads(text).get("backend")
    except (OSError, ValueError, AttributeError):
        return None
    return None if backend == "tensorflow" else backend
