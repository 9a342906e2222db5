"""Noisy crops, for a codec that learns to leave noise out."""

import keras
import numpy as np


class NoisyCrops(keras.utils.PyDataset):
    """Batches to train a codec's switch on: noisy audio, and what to make.

    Half of the examples are noisy, and the switch is on in half of them,
    independently. The target is the audio itself, except where it is noisy
    and the switch is on: there it is the audio before the noise. So clean
    audio is seen with the switch in both positions, and must stay as it is.

    Batch `i` of an epoch depends on the two kinds of crops and `seed` alone.

    Args:
        clean: `AudioCrops` of what to keep.
        noise: `AudioCrops` of what to leave out, with crops and batches of
            the same size.
        snr_db: pair of floats. Decibels by which the clean audio's energy is
            above the noise's, drawn uniformly.
        seed: int.

    Batches: a pair of the dictionary of `audio` `(batch, samples)` and
    `denoise` `(batch,)`, and the target `(batch, samples)`, as
    `SoundStreamTrainer` takes them. No sample is beyond full scale.

    Example:

    ```python
    codec = keras_audiolm.SoundStream(denoising="encoder")
    trainer = keras_audiolm.SoundStreamTrainer(codec)
    trainer.compile(trainer.make_optimizer())
    trainer.fit(keras_audiolm.NoisyCrops(speech, noise))
    codes = codec.encode(audio, denoise=True)
    ```

    Reference:
     - [SoundStream, section III-F](https://arxiv.org/abs/2107.03312)
    """

    def __init__(self, clean, noise, snr_db=(0.0, 15.0), seed=0, **kwargs):
        super().__init__(**kwargs)
        for name in ("sample_rate", "samples", "batch_size"):
            ours, theirs = getattr(clean, name), getattr(noise, name)
            if ours != theirs:
                raise ValueError(
                    "Clean and noise crops must have the same size and rate. "
                    f"Received: {name} {ours} and {theirs}"
                )
        if len(noise) < len(clean):
            raise ValueError(
                f"An epoch of clean crops has {len(clean)} batches, and one "
                f"of noise {len(noise)}."
            )
        if len(snr_db) != 2 or not snr_db[0] <= snr_db[1]:
            raise ValueError(
                "`snr_db` must be a pair (low, high). Received: "
                f"snr_db={snr_db}"
            )
        self.clean = clean
        self.noise = noise
        self.snr_db = snr_db
        self.seed = seed

    @property
    def epoch(self):
        return self.clean.epoch

    @epoch.setter
    def epoch(self, epoch):
        self.clean.epoch = self.noise.epoch = epoch

    def __len__(self):
        return len(self.clean)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)} was asked for.")
        return self.batch(self.epoch, index)

    def batch(self, epoch, index):
        """The batch of an epoch at a place, whatever came before."""
        clean = self.clean.batch(epoch, index)
        noise = self.noise.batch(epoch, index)
        epoch = 0 if self.clean.same_every_epoch else epoch
        rng = np.random.default_rng((self.seed, epoch, index))
        batch = len(clean)
        snr = rng.uniform(*self.snr_db, size=(batch, 1))
        noisy = rng.random((batch, 1)) < 0.5
        denoise = rng.random((batch, 1)) < 0.5
        gain = 10 ** (-snr / 20) * rms(clean) / rms(noise)
        audio = clean + np.where(noisy, gain, 0) * noise
        # Turned down together, where the sum would clip.
        loudest = np.abs(audio).max(axis=1, keepdims=True)
        scale = 1 / np.maximum(loudest, 1)
        target = np.where(noisy & denoise, clean, audio)
        inputs = {
            "audio": (audio * scale).astype("float32"),
            "denoise": denoise[:, 0].astype("float32"),
        }
        return inputs, (target * scale).astype("float32")

    def on_epoch_end(self):
        self.clean.on_epoch_end()
        self.noise.on_epoch_end()


def rms(audio):
    """The root mean square of each example, never zero."""
    return np.sqrt(np.mean(np.square(audio), axis=1, keepdims=True)) + 1e-8
