import os
import random
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from keras_audiolm import save_audio, training
from keras_audiolm.backup import Backup, read_backup, write_backup
from tests.killed_training import EPOCHS, STEPS, train
from tests.tiny import SAMPLE_RATE, tiny_pipeline

SETTINGS = {"seed": 0}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(7)
    for i in range(3):
        audio = rng.normal(0, 0.1, SAMPLE_RATE).astype("float32")
        save_audio(folder / f"{i}.wav", audio, SAMPLE_RATE)
    return folder


# === A process that is killed ===


def start(recordings, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.killed_training", recordings, folder],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.large
def test_killed_again_and_again_equals_uninterrupted(recordings, tmp_path):
    history, weights = train(recordings, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    steps = 0
    for _ in range(2):
        process = start(recordings, folder)
        # At least one backup, and never the end.
        for _ in range(random.randint(4, 7)):
            assert process.stdout.readline() == "step\n"
            steps += 1
        process.kill()
        process.wait()
    process = start(recordings, folder)
    steps += process.communicate()[0].count("step")
    assert process.returncode == 0
    # What was done before a kill is not done again, but for the last steps.
    assert steps < EPOCHS * STEPS + 2 * 4
    with np.load(folder / "weights.npz") as found:
        for name, values in history.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5)
        for i, array in enumerate(weights):
            np.testing.assert_array_equal(found[f"arr_{i}"], array)
    # What a finished training leaves is its result alone.
    left = sorted(p.name for p in (folder / "checkpoints" / "codec").iterdir())
    assert left == ["done.json", "model.weights.h5"]


# === Stopped at a step ===


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch, step):
        super().__init__()
        self.place = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise KeyboardInterrupt


def fit_lm(recordings, folder, callbacks=()):
    """An LM with dropout whose optimizer averages the weights at the end."""
    pipeline = tiny_pipeline()
    pipeline.compile(semantic_lm=keras.optimizers.Adam(0.01, use_ema=True))
    history = pipeline.fit(
        recordings,
        parts="semantic_lm",
        epochs=2,
        steps_per_epoch=5,
        batch_size=2,
        validation_data=recordings,
        token_dir=folder.parent / "tokens",
        checkpoint_dir=folder,
        backup_every=2,
        callbacks=callbacks,
        verbose=0,
    )
    return history["semantic_lm"], pipeline.semantic_lm.get_weights()


@pytest.mark.parametrize(
    "place",
    [
        (0, 3),
        # On JAX alone: what makes them differ is no matter of the backend.
        pytest.param((0, 0), marks=pytest.mark.large),
        pytest.param((1, 4), marks=pytest.mark.large),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(recordings, tmp_path, place):
    history, weights = fit_lm(recordings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_lm(recordings, tmp_path / "parts", [Stop(*place)])
    resumed, found = fit_lm(recordings, tmp_path / "parts")
    assert len(history["loss"]) == len(history["val_loss"]) == 2
    assert list(resumed) == list(history)
    for name in history:
        np.testing.assert_allclose(resumed[name], history[name], rtol=1e-5)
    for a, b in zip(weights, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7)


def test_a_callback_that_ends_training_ends_it_in_the_rest_of_an_epoch(
    recordings, tmp_path
):
    class End(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    folder = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        fit_lm(recordings, folder, [Stop(0, 3)])
    history, _ = fit_lm(recordings, folder, [End()])
    assert len(history["loss"]) == 1


# === Files that are spoilt, and disks that are full ===


def make_model(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 3))
    model.compile(keras.optimizers.Adam(), "mse")
    return model


def weight(model):
    return np.array(keras.ops.convert_to_numpy(model.layers[0].kernel))


def backed_up(folder, epochs=3):
    """Backups of a model whose weights are the number of epochs."""
    model = make_model()
    backup = Backup(folder, SETTINGS, 1000)
    backup.set_model(model)
    backup.restore(model)
    for epoch in range(epochs):
        model.layers[0].kernel.assign(np.full((3, 2), epoch + 1.0))
        backup.on_epoch_end(epoch, {"loss": epoch})
    return backup


def restored(folder):
    model = make_model()
    backup = Backup(folder, SETTINGS, 1000)
    backup.restore(model)
    return backup.epoch, float(weight(model)[0, 0])


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path):
    with zipfile.ZipFile(path) as file:
        place = file.getinfo("model/0.npy").header_offset
    content = bytearray(path.read_bytes())
    content[place + 180] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [cut_off, flip_a_bit, empty])
def test_the_last_good_backup_is_used(tmp_path, spoil):
    backup = backed_up(tmp_path)
    assert restored(tmp_path) == (3, 3.0)
    assert len(backup.files()) == 2
    spoil(backup.files()[-1])
    with pytest.warns(UserWarning, match="backup-000003.*cannot be read"):
        assert restored(tmp_path) == (2, 2.0)
    # It is out of the way, and its message comes once.
    assert restored(tmp_path) == (2, 2.0)
    assert len(list(tmp_path.glob("*.unreadable"))) == 1


def test_a_full_disk_leaves_the_last_good_backup(tmp_path):
    backup = backed_up(tmp_path)
    (tmp_path / "unfinished.tmp").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="No space left on device"):
        backup.on_epoch_end(3)
    assert restored(tmp_path) == (3, 3.0)
    # There is room again.
    backup.on_epoch_end(4)
    assert restored(tmp_path) == (5, 3.0)


def test_what_was_not_written_well_never_takes_a_place(tmp_path, monkeypatch):
    path = tmp_path / "backup.npz"
    write_backup(path, {"step": 1}, {"model": [np.ones(3)]})
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: "model/0.npy")
    with pytest.raises(OSError, match="model/0.npy"):
        write_backup(path, {"step": 2}, {"model": [np.ones(3)]})
    about, arrays = read_backup(path)
    assert about == {"step": 1}
    np.testing.assert_array_equal(arrays["model"][0], np.ones(3))
    assert os.listdir(tmp_path) == ["backup.npz"]


def test_backups_of_another_training_are_refused(tmp_path):
    backed_up(tmp_path)
    with pytest.raises(ValueError, match="'seed': 0.*'seed': 1"):
        Backup(tmp_path, {"seed": 1}, 1000).restore(make_model())
    model = make_model()
    model.compile(keras.optimizers.SGD(), "mse")
    with pytest.raises(ValueError, match="another optimizer"):
        Backup(tmp_path, SETTINGS, 1000).restore(model)


def test_half_precision_is_kept_exactly(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2, dtype="bfloat16")])
    model.build((None, 3))
    model.compile(keras.optimizers.SGD(), "mse")
    backup = Backup(tmp_path, SETTINGS, 1000)
    backup.set_model(model)
    before = weight(model).astype("float32")
    backup.on_epoch_end(0)
    model.layers[0].kernel.assign(np.zeros((3, 2)))
    Backup(tmp_path, SETTINGS, 1000).restore(model)
    assert before.any()
    np.testing.assert_array_equal(weight(model).astype("float32"), before)


@pytest.mark.large
def test_a_backup_stays_until_the_result_is_kept(
    recordings, tmp_path, monkeypatch
):
    """Training that ends, and a result that cannot be written."""

    def full(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_weights", full)
        with pytest.raises(OSError, match="No space"):
            fit_lm(recordings, tmp_path / "checkpoints")
    history, weights = fit_lm(recordings, tmp_path / "checkpoints")
    whole, expected = fit_lm(recordings, tmp_path / "whole")
    assert history == whole
    for a, b in zip(expected, weights, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7)
