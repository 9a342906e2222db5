"""Audio crops decoded and resampled inside a `tf.data` graph.

By tensorflow-io, whose last release loads with TensorFlow 2.16 only: it has an
environment of its own (`make test-tfio`).
"""

import copy
from fractions import Fraction

import numpy as np

from keras_audiolm.data import audio as audio_lib
from keras_audiolm.data.crops import DiskClips

try:
    import tensorflow as tf
    import tensorflow_io as tfio
except (ImportError, NotImplementedError) as error:
    raise ValueError(
        "Decoding in a tf.data graph needs tensorflow-io 0.37.1 with "
        "TensorFlow 2.16, in an environment of their own: pip install "
        "'tensorflow>=2.16.2,<2.17' tensorflow-io==0.37.1. AudioCrops needs "
        f"neither. ({error})"
    ) from error

# The sample types that tensorflow-io has for what libsndfile calls these.
DTYPES = (tf.int16, tf.int32, tf.float32)
SCALES = (2.0**-15, 2.0**-31, 1.0)
KINDS = {
    ("FLAC", "PCM_16"): 0,
    ("FLAC", "PCM_24"): 1,
    ("WAV", "PCM_16"): 0,
    ("WAV", "PCM_24"): 1,
    ("WAV", "FLOAT"): 2,
    ("OGG", "VORBIS"): 2,
}
# Other files are read by libsndfile, called from the graph.
OTHER = len(DTYPES)
# Taps of tensorflow-io's resampling filter at the lower rate.
FILTER_TAPS = 64


def tfio_batches(crops, epochs=1):
    """The batches of crops as a `tf.data.Dataset`, made in its graph.

    Which crops there are, is what `crops` says: batch `i` of epoch `e` has the
    same places of the same files. Where no file is resampled it is the same
    batch; tensorflow-io's resampling agrees with libsoxr's within 1e-4 of full
    scale below four fifths of the lower rate's half, and lets less through
    above. A batch in which a crop is silent is made by `crops` itself, which
    draws again.

    Args:
        crops: `AudioCrops` with `cache_bytes=0` and no `speed_range`.
        epochs: int.

    Returns:
        `tf.data.Dataset` of `(batch, samples)` float32.

    Raises:
        ValueError: on other crops. A file that turns out to be damaged, which
            `AudioCrops` skips, raises TensorFlow's error.

    Example:

    ```python
    crops = keras_audiolm.AudioCrops(
        "corpus", 16000, 2.0, 16, steps_per_epoch=500, cache_bytes=0
    )
    dataset = tfio_batches(crops, epochs=10).prefetch(tf.data.AUTOTUNE)
    model.fit(dataset, steps_per_epoch=500, epochs=10)
    ```
    """
    if not isinstance(crops._clips, DiskClips) or crops.speed_range:
        raise ValueError(
            "A graph reads crops from their files, at their own speed. Give "
            "AudioCrops with cache_bytes=0 and without speed_range."
        )
    plans = PlannedCrops(crops)
    dataset = tf.data.Dataset.range(len(crops) * epochs)
    return dataset.map(
        lambda place: make_batch(crops, plans, place),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


class PlannedClips:
    """In place of the clips of `AudioCrops`: notes what would be read.

    Args:
        clips: `DiskClips`.
    """

    def __init__(self, clips):
        self.paths, self.sizes = clips.paths, clips.sizes
        self.sample_rate = clips.sample_rate
        self._locate = clips.locate
        self.rows = []

    def read(self, clip, start, count):
        with audio_lib.open_audio(self.paths[clip]) as file:
            first, needed, lead = self._locate(file.samplerate, start, count)
            frames = min(needed, file.frames - first)
            kind = KINDS.get((file.format, file.subtype), OTHER)
            rate = file.samplerate
        there = int(frames * self.sample_rate / rate + 0.5) - lead
        there = max(min(there, count), 0)
        self.rows.append((clip, kind, rate, first, frames, lead, there))
        return np.zeros(there, "float32")


class PlannedCrops:
    """Which pieces of which files the batches of crops are made of."""

    def __init__(self, crops):
        self.crops = crops

    def __call__(self, place):
        """What `crops.batch` draws, without reading any sound.

        Returns:
            Tuple of the files `(pieces,)`, six numbers each `(pieces, 6)`,
            and, by crop, decibels of gain `(batch, 1)`.
        """
        epoch, index = divmod(int(place), len(self.crops))
        planner = copy.copy(self.crops)
        planner._clips = PlannedClips(self.crops._clips)
        epoch = 0 if planner.same_every_epoch else epoch
        rng = np.random.default_rng((planner.seed, epoch, index))
        gains = np.zeros((planner.batch_size, 1), "float32")
        for row in range(planner.batch_size):
            planner._gather(rng, planner.samples)
            if planner.gain_db is not None:
                gains[row] = rng.uniform(*planner.gain_db)
        rows = np.array(planner._clips.rows, "int64")
        paths = [str(planner._clips.paths[clip]) for clip in rows[:, 0]]
        return np.array(paths, object), rows[:, 1:], gains


def make_batch(crops, plans, place):
    """The graph of one batch, `(batch, samples)`."""
    paths, pieces, gains = tf.numpy_function(
        plans, [place], (tf.string, tf.int64, tf.float32), stateful=False
    )
    pieces = tf.ensure_shape(pieces, (None, 6))
    count = tf.shape(paths)[0]
    parts = tf.TensorArray(
        tf.float32, count, infer_shape=False, element_shape=(None,)
    )
    _, parts = tf.while_loop(
        lambda i, parts: i < count,
        lambda i, parts: (
            i + 1,
            parts.write(i, read_piece(paths[i], pieces[i], crops.sample_rate)),
        ),
        (0, parts),
    )
    # (samples of all pieces,) -> (batch, samples)
    batch = tf.reshape(parts.concat(), (crops.batch_size, crops.samples))
    peaks = tf.reduce_max(tf.abs(batch), axis=1, keepdims=True)
    if crops.gain_db is not None:
        batch *= tf.minimum(10.0 ** (gains / 20.0), 1.0 / peaks)
    return tf.cond(
        tf.reduce_min(peaks) < audio_lib.SILENCE,
        lambda: tf.ensure_shape(
            tf.numpy_function(
                lambda place: crops.batch(*divmod(int(place), len(crops))),
                [place],
                tf.float32,
            ),
            batch.shape,
        ),
        lambda: batch,
    )


def read_piece(path, piece, sample_rate):
    """One piece of a file, mono at `sample_rate`: `(samples,)`."""
    kind, rate, first, frames, lead, count = tf.unstack(piece)

    def decoded(dtype, scale):
        sound = tfio.audio.AudioIOTensor(path, dtype=dtype)
        sound = sound[first : first + frames]  # (frames, channels)
        return tf.reduce_mean(tf.cast(sound, tf.float32) * scale, axis=1)

    def read(path, first, frames):
        with audio_lib.open_audio(path.decode()) as file:
            file.seek(first)
            return audio_lib.read_mono(file, frames)

    branches = [
        lambda dtype=dtype, scale=scale: decoded(dtype, scale)
        for dtype, scale in zip(DTYPES, SCALES, strict=True)
    ]
    branches.append(
        lambda: tf.numpy_function(read, [path, first, frames], tf.float32)
    )
    sound = tf.switch_case(tf.cast(kind, tf.int32), branches)
    sound = tf.ensure_shape(sound, (None,))
    sound = tf.cond(
        tf.equal(rate, sample_rate),
        lambda: sound,
        lambda: resample(sound, rate, sample_rate),
    )
    return tf.clip_by_value(sound[lead : lead + count], -1.0, 1.0)


def resample(sound, rate, sample_rate):
    """tensorflow-io's resampling, without its delay.

    The filter comes half its taps late, which are no whole number of samples
    at the new rate: zeros before the sound make one of it.
    """
    zeros, delay, after = tf.numpy_function(
        lambda rate: alignment(int(rate), sample_rate),
        [rate],
        (tf.int64, tf.int64, tf.int64),
        stateful=False,
    )
    sound = tf.pad(sound, [[zeros, after]])[:, None]
    sound = tfio.audio.resample(sound, rate, sample_rate)[:, 0]
    return sound[delay:]


def alignment(rate, sample_rate):
    """Zeros to put before a sound, samples by which it then comes late, and
    zeros to put after it so that its end is not lost."""
    ratio = Fraction(rate, sample_rate)
    taps = FILTER_TAPS
    if ratio > 1:  # a multiple of 8, at the rate that comes in
        taps = (int(taps * ratio) - 1) // 8 * 8 + 8
    late = taps // 2
    step = ratio.denominator
    delay = -(-late * step // ratio.numerator) // step * step
    while delay * ratio < late:
        delay += step
    zeros = int(delay * ratio) - late
    return np.int64(zeros), np.int64(delay), np.int64(2 * late)
