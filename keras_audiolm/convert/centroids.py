"""Centroids that others fitted, read without executing anything."""

import pathlib
import pickle

import numpy as np

NPY = b"\x93NUMPY"
ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
ESTIMATORS = ("KMeans", "MiniBatchKMeans", "BisectingKMeans")


def read_centroids(path):
    """The centroids in a file.

    Args:
        path: of a `.npy` file, or of scikit-learn's `KMeans` or
            `MiniBatchKMeans` as joblib or pickle keep it. Of such a file
            arrays are built and nothing else; whatever else it asks for is
            refused before it is done.

    Returns:
        float32 `(clusters, dim)`.

    Raises:
        ImportError: if joblib is needed and not installed.
        ValueError: on files that are missing, broken, or hold something else.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file of centroids at {path}.")
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(NPY)) == NPY
        if is_npy:
            centroids = np.load(path, allow_pickle=False)
        else:
            centroids = read_estimator(path)
    except ImportError:
        raise
    except Exception as error:  # whatever a foreign file makes of it
        raise ValueError(
            f"{path} does not hold centroids as .npy, joblib or pickle: {error}"
        ) from None
    centroids = np.asarray(centroids, "float32")
    if centroids.ndim != 2 or not np.isfinite(centroids).all():
        raise ValueError(
            f"{path} must hold finite centroids (clusters, dim). Received: "
            f"shape {centroids.shape}"
        )
    return centroids


def read_estimator(path):
    """`cluster_centers_` of a file that joblib or pickle wrote."""
    try:
        from joblib import numpy_pickle
        from joblib.numpy_pickle_utils import _validate_fileobject_and_memmap
    except ImportError as error:
        raise ImportError(
            "scikit-learn's files are read by joblib: pip install joblib"
        ) from error

    class Wrapper(numpy_pickle.NumpyArrayWrapper):
        """An array in joblib's file, if it holds numbers."""

        def read_array(self, *args):
            if self.dtype.hasobject:
                raise pickle.UnpicklingError("it has an array of objects")
            return super().read_array(*args)

    class Unpickler(numpy_pickle.NumpyUnpickler):
        def find_class(self, module, name):
            if (module, name) in ARRAYS:
                return super().find_class(module, name)
            if (module, name) == (
                "joblib.numpy_pickle",
                "NumpyArrayWrapper",
            ):
                return Wrapper
            if module.startswith("sklearn.cluster") and name in ESTIMATORS:
                return Record
            # The state of a generator that an estimator drew from.
            if module.split(".")[:2] == ["numpy", "random"]:
                return Record
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    with open(path, "rb") as file:
        with _validate_fileobject_and_memmap(file, str(path), None) as (
            content,
            _,
        ):
            if isinstance(content, str):
                raise pickle.UnpicklingError("it is of joblib before 0.10")
            read = Unpickler(str(path), content, True).load()
    if isinstance(read, np.ndarray):
        return read
    return vars(read)["cluster_centers_"]


class Record:
    """Stands for an object of another class: it keeps attributes, no more."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)
