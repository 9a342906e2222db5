"""Backups of a training, from which it goes on at the very same step."""

import json
import os
import warnings
import zipfile

import keras
import numpy as np

from keras_audiolm.layers.distribution import process

# What reading a file that is cut off or spoilt can raise.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# The newest, and the one before it in case the newest cannot be read.
KEPT = 2


class Backup(keras.callbacks.Callback):
    """Keeps all that a training depends on, every so many steps.

    That is the weights, codebooks and other averages, the optimizers, the
    counters of the seed generators, the metrics of the epoch so far, and the
    position in the data. `keras.callbacks.BackupAndRestore` leaves out the
    last three, and writes over the file that it restores from.

    A backup is an `.npz` file, whose zip format has a checksum for each
    array. It is written under a temporary name, read back, and renamed; a
    full disk leaves the backups that there are.

    Args:
        folder: `pathlib.Path`.
        settings: dictionary, JSON-able. What must be as it was for a training
            to go on.
        every: int. Steps between backups; there is one after each epoch too.

    Attributes:
        epoch, step: int. How many epochs are done, and how many steps of the
            next one, as of the last `restore` or the end of an epoch.
        history: dictionary of lists as of `keras.callbacks.History`, of all
            epochs, also those before a stop.
    """

    def __init__(self, folder, settings, every):
        super().__init__()
        self.folder = folder
        self.settings = settings
        self.every = every
        self.epoch = self.step = 0
        self.history = {}
        self._saved = 0  # step of this epoch at which the last backup was made
        self._metrics = None
        self._state = None
        folder.mkdir(parents=True, exist_ok=True)

    def files(self):
        """The backups, the oldest first."""
        return sorted(self.folder.glob("backup-*.npz"))

    # === Going on ===

    def restore(self, model):
        """Sets a built and compiled model to the last backup, if any is good.

        Raises:
            ValueError: if it is of another training.
        """
        # Only an optimizer that is built has moments.
        model.optimizer.build(model.trainable_variables)
        for path in reversed(self.files()):
            try:
                about, arrays = read_backup(path)
            except UNREADABLE as error:
                warnings.warn(
                    f"The backup {path} cannot be read ({error}). Going on "
                    "from the one before it or, if there is none, from the "
                    "start.",
                    stacklevel=2,
                )
                if process()[0] == 0:
                    path.rename(path.with_suffix(".unreadable"))
                continue
            self._check(path, about["settings"])
            self._set(model, about, arrays)
            return

    def restore_end_of_epoch(self, model):
        """Sets the model to where the epoch that `restore` cut short ended.

        The end of `fit` has put the averages of an optimizer with `use_ema`
        in the place of the weights.
        """
        self._set(model, *self._state)
        self._state = None

    def _check(self, path, found):
        if found != self.settings:
            raise ValueError(
                f"The backup {path} is of another training: found {found}, "
                f"expected {self.settings}. Train with the settings of that "
                "one, give another checkpoint_dir, or delete the backup."
            )

    def _set(self, model, about, arrays):
        groups = variables(model)
        # Keras resets the metrics when an epoch begins.
        self._metrics = arrays["metrics"] if about["step"] else None
        for group in ("model", "optimizer"):
            assign(groups[group], arrays[group])
        self.epoch, self.step = about["epoch"], about["step"]
        self.history = about["history"]
        self._saved = self.step

    def on_train_begin(self, logs=None):
        # Random weights to begin with are a part of the training.
        if not self.files():
            self._save(0)

    def on_epoch_begin(self, epoch, logs=None):
        if self._metrics is not None:
            assign(variables(self.model)["metrics"], self._metrics)
            self._metrics = None

    # === Keeping ===

    def on_train_batch_end(self, batch, logs=None):
        done = self.step + batch + 1
        if done - self._saved >= self.every:
            self._save(done)

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        was_cut_short = self.step > 0
        self.epoch, self.step = epoch + 1, 0
        state = self._save(0)
        if was_cut_short:
            self._state = state

    def _save(self, step):
        self._saved = step
        about = {
            "epoch": self.epoch,
            "step": step,
            "settings": self.settings,
            "history": self.history,
        }
        arrays = {
            group: [to_numpy(v) for v in members]
            for group, members in variables(self.model).items()
        }
        name = f"backup-{self.epoch:06d}-{step:09d}.npz"
        if process()[0] > 0:
            # All processes have the same state, and read the same folder.
            return about, arrays
        try:
            write_backup(self.folder / name, about, arrays)
            for path in self.files()[:-KEPT]:
                path.unlink()
        except UNREADABLE as error:
            warnings.warn(
                f"No backup could be written to {self.folder} ({error}). "
                "Training goes on; a stop now would lose what was learned "
                "since the last backup.",
                stacklevel=2,
            )
        return about, arrays


def variables(model):
    """All state of a training, in lists."""
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def assign(members, arrays):
    shapes = [tuple(v.shape) for v in members]
    found = [a.shape for a in arrays]
    if shapes != found:
        raise ValueError(
            "The backup is of another model or another optimizer: it holds "
            f"{len(found)} arrays for {len(shapes)} variables, or their shapes "
            "differ. Give the same ones, or another checkpoint_dir."
        )
    for variable, array in zip(members, arrays, strict=True):
        variable.assign(array)


def to_numpy(variable):
    """The value as an array that NumPy can save."""
    value = keras.ops.convert_to_numpy(variable)
    # NumPy has no bfloat16; float32 holds all of its values.
    return value.astype("float32") if variable.dtype == "bfloat16" else value


def write_backup(path, about, arrays):
    """Writes a file that `read_backup` reads, or nothing at all.

    Args:
        path: `pathlib.Path`.
        about: JSON-able dictionary.
        arrays: dictionary of lists of arrays.

    Raises:
        OSError: if the disk is full, or what was written is not what is read.
    """
    named = {
        f"{group}/{i}": array
        for group, members in arrays.items()
        for i, array in enumerate(members)
    }
    sizes = {group: len(members) for group, members in arrays.items()}
    about = json.dumps({"about": about, "sizes": sizes})
    temporary = path.with_name("unfinished.tmp")
    try:
        with open(temporary, "wb") as out:
            np.savez(out, about=np.array(about), **named)
            out.flush()
            os.fsync(out.fileno())
        with zipfile.ZipFile(temporary) as file:
            broken = file.testzip()
        if broken:
            raise OSError(f"{broken} was not written as it should be")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_backup(path):
    """What `write_backup` was given: `about` and `arrays`."""
    with np.load(path, allow_pickle=False) as file:
        found = json.loads(str(file["about"]))
        arrays = {
            group: [file[f"{group}/{i}"] for i in range(size)]
            for group, size in found["sizes"].items()
        }
    return found["about"], arrays
