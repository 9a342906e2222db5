"""A training of a GAN that `backup_test.py` kills and starts again.

    python -m tests.killed_training RECORDINGS FOLDER

prints a line a step, and leaves `weights.npz` in the folder.
"""

import pathlib
import sys

import keras
import numpy as np

from keras_audiolm import SoundStreamTrainer
from keras_audiolm.codec.losses import MelSpectralLoss
from tests.tiny import tiny_pipeline

EPOCHS, STEPS = 3, 8


@keras.saving.register_keras_serializable(package="tests")
class Judge(keras.layers.Layer):
    """A jury of one; compiles faster than the real one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Conv1D(4, 9, 4, name="inner")
        self.to_logits = keras.layers.Conv1D(1, 3, name="to_logits")

    def build(self, input_shape):
        self.inner.build((None, None, 1))
        self.to_logits.build((None, None, 4))

    def call(self, audio):
        x = keras.ops.leaky_relu(self.inner(audio[..., None]))
        return [[x, self.to_logits(x)]]


def make_trainer(codec, adam):
    """Two optimizers, of which one averages; random levels and stretches."""
    trainer = SoundStreamTrainer(
        codec,
        Judge(name="discriminators"),
        MelSpectralLoss(16000, windows=(256,), num_mels=16),
        judged_samples=4000,
    )
    average = adam(use_ema=True, ema_momentum=0.9)
    judges = {r".*discriminators/.*": adam()}
    trainer.compile(
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(average, judges)
        )
    )
    return trainer


def train(recordings, folder, callbacks=()):
    """Returns the history and all weights."""
    pipeline = tiny_pipeline(trained=False)
    trainer = make_trainer(pipeline.codec, keras.optimizers.Adam)
    pipeline.compile(codec=trainer)
    history = pipeline.fit(
        recordings,
        parts="codec",
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        batch_size=2,
        checkpoint_dir=pathlib.Path(folder) / "checkpoints",
        backup_every=3,
        callbacks=callbacks,
        verbose=0,
    )
    return history["codec"], [np.array(w) for w in trainer.get_weights()]


class Tell(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)


if __name__ == "__main__":
    history, weights = train(*sys.argv[1:], callbacks=[Tell()])
    np.savez(pathlib.Path(sys.argv[2]) / "weights.npz", *weights, **history)
