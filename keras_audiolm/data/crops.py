"""Random crops of a folder of recordings, for training."""

import collections
import pathlib
import warnings

import keras
import numpy as np
import soundfile
import soxr

from keras_audiolm.data import audio as audio_lib

# Samples thrown away on both sides of a resampled piece: beyond them the
# resampling filter does not see the cut.
RESAMPLE_MARGIN = 128
# Draws (unreadable or silent places) after which a crop is given up.
MAX_DRAWS = 100


def scan_audio_files(files, min_duration=0.04):
    """Read the headers of audio files.

    Args:
        files: list of paths.
        min_duration: float. Files of fewer seconds are skipped.

    Returns:
        A tuple `(durations, skipped)`: a dictionary from path to seconds, and
        one from the path of each file that cannot be used to the reason.
    """
    durations, skipped = {}, {}
    for path in map(pathlib.Path, files):
        try:
            with audio_lib.open_audio(path) as file:
                seconds = file.frames / file.samplerate
        except audio_lib.AudioFileError as error:
            skipped[path] = error.reason
            continue
        if seconds < min_duration:
            skipped[path] = f"is too short ({seconds:.3f} seconds)"
        else:
            durations[path] = seconds
    return durations, skipped


class MemoryClips:
    """Clips held in memory as 16-bit integers.

    Args:
        paths: list of paths.
        sample_rate: int.
        skipped: dictionary that receives path -> reason of bad files.
    """

    def __init__(self, paths, sample_rate, skipped):
        self.paths = []
        self.clips = []
        for path in _progress(paths):
            try:
                audio = audio_lib.load_audible(path, sample_rate)
            except audio_lib.AudioFileError as error:
                skipped[path] = error.reason
                continue
            pcm = np.clip(np.round(audio * 32768.0), -32768, 32767)
            self.paths.append(path)
            self.clips.append(pcm.astype("int16"))
        self.sizes = np.array([len(clip) for clip in self.clips], "int64")

    def read(self, clip, start, count):
        pcm = self.clips[clip][start : start + count]
        return pcm.astype("float32") * np.float32(1 / 32768)


class DiskClips:
    """Clips read from their files, piece by piece.

    Args:
        durations: dictionary from path to seconds.
        sample_rate: int.
    """

    def __init__(self, durations, sample_rate):
        self.sample_rate = sample_rate
        self.paths = list(durations)
        self.sizes = np.array(
            [int(seconds * sample_rate) for seconds in durations.values()],
            "int64",
        )

    def read(self, clip, start, count):
        path = self.paths[clip]
        with audio_lib.open_audio(path) as file:
            rate = file.samplerate
            first, needed, lead = self.locate(rate, start, count)
            piece = self._read(file, first, needed)
        if rate != self.sample_rate:
            piece = soxr.resample(piece, rate, self.sample_rate)
        piece = piece[lead : lead + count]
        if not len(piece):
            raise audio_lib.AudioFileError(
                path, "holds less audio than its header says"
            )
        return np.clip(piece, -1.0, 1.0)

    def locate(self, rate, start, count):
        """Where a piece is in a file of some rate.

        Returns:
            The first frame to read and how many and, once they are resampled,
            the first sample of the piece.
        """
        if rate == self.sample_rate:
            return start, count, 0
        # `lead` target samples in front of the piece, where there are any.
        lead = min(start, RESAMPLE_MARGIN)
        ratio = rate / self.sample_rate
        needed = int(np.ceil((lead + count + RESAMPLE_MARGIN) * ratio))
        return int((start - lead) * ratio), needed, lead

    def _read(self, file, start, count):
        try:
            file.seek(min(start, file.frames))
        except soundfile.SoundFileError as error:
            reason = audio_lib.unreadable(error)
            raise audio_lib.AudioFileError(file.name, reason) from error
        return audio_lib.read_mono(file, count)


class AudioCrops(keras.utils.PyDataset):
    """Batches of random crops of audio files.

    A crop starts anywhere in the files with equal probability, so that a file
    is drawn in proportion to its duration. The files of one folder are taken
    to be one voice: a crop that reaches the end of its file goes on with other
    random files of the same folder, and is never padded with zeros. Crops that
    are silent throughout are drawn again.

    Batch `i` of epoch `e` depends on `(seed, e, i)` and the files only. The
    attribute `epoch` counts up at the end of each epoch of `fit`. To make a
    stopped and resumed run see exactly the crops of an uninterrupted one, give
    `fit` `shuffle=False` (its default shuffles the order of the batches) and a
    callback that sets `epoch`, as in the example, and leave `workers` at 1 (the
    queue of Keras carries batches over into the next epoch) and the
    `steps_per_epoch` of `fit` alone.

    Unusable files (missing, unreadable, empty, too short, silent, with NaN)
    are skipped and counted in `skipped`, with one warning.

    Args:
        files: list of paths, or one folder to search.
        sample_rate: int. Files of another rate are resampled.
        duration: float. Length of a crop in seconds.
        batch_size: int.
        steps_per_epoch: int. Batches in an epoch.
        speed_range: optional pair of floats. Each crop is resampled by a
            factor drawn log-uniformly from this range, which changes speed
            and pitch together and so widens the voices; (0.8, 1.25) is usual.
        gain_db: optional pair of floats. Each crop is amplified by decibels
            drawn uniformly from this range, but never beyond full scale.
        seed: int.
        same_every_epoch: bool. Whether each epoch has the batches of epoch 0,
            as a validation set wants.
        cache_bytes: int. If the decoded files (2 bytes a sample) fit, they
            are kept in memory; otherwise each crop is read from its files.
        min_duration: float. Files of fewer seconds are skipped.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Example:

    ```python
    crops = keras_audiolm.AudioCrops(
        "corpus/train",
        sample_rate=16000,
        duration=2.0,
        batch_size=16,
        steps_per_epoch=500,
        speed_range=(0.8, 1.25),
    )
    crops[0].shape  # (16, 32000)

    follow = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(crops, "epoch", epoch)
    )
    model.fit(crops, epochs=10, shuffle=False, callbacks=[follow])
    ```
    """

    def __init__(
        self,
        files,
        sample_rate,
        duration,
        batch_size,
        steps_per_epoch,
        speed_range=None,
        gain_db=None,
        seed=0,
        same_every_epoch=False,
        cache_bytes=1_000_000_000,
        min_duration=0.04,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if isinstance(files, str | pathlib.Path):
            files = audio_lib.find_audio_files(files)
        _check_positive(
            sample_rate=sample_rate,
            duration=duration,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
        )
        _check_pair("speed_range", speed_range, above=0)
        _check_pair("gain_db", gain_db)

        # === Config ===
        self.files = [pathlib.Path(path) for path in files]
        self.sample_rate = sample_rate
        self.duration = duration
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.speed_range = speed_range
        self.gain_db = gain_db
        self.seed = seed
        self.same_every_epoch = same_every_epoch
        self.cache_bytes = cache_bytes
        self.min_duration = min_duration
        self.samples = round(duration * sample_rate)
        if self.samples < 1:
            raise ValueError(
                f"`duration` is shorter than a sample. Received: {duration}"
            )

        # === State ===
        self.epoch = 0
        self._open_clips()

    def _open_clips(self):
        durations, self.skipped = scan_audio_files(
            self.files, self.min_duration
        )
        total = sum(durations.values()) * self.sample_rate
        self.in_memory = 2 * total <= self.cache_bytes
        if self.in_memory:
            self._clips = MemoryClips(durations, self.sample_rate, self.skipped)
        else:
            self._clips = DiskClips(durations, self.sample_rate)
        if not self._clips.paths:
            raise ValueError(
                f"None of the {len(self.files)} audio files can be used. "
                + _describe(self.skipped)
            )
        self._warned = False
        self._warn_of_skipped()
        self._ends = np.cumsum(self._clips.sizes)
        voices = collections.defaultdict(list)
        for clip, path in enumerate(self._clips.paths):
            voices[path.parent].append(clip)
        self._voices = dict(voices)

    def _warn_of_skipped(self):
        if self.skipped and not self._warned:
            self._warned = True
            warnings.warn(
                f"Skipped {len(self.skipped)} of {len(self.files)} audio "
                f"files. {_describe(self.skipped)} (All: `.skipped`.)",
                stacklevel=4,
            )

    @property
    def total_duration(self):
        """Seconds of audio in the files that are used."""
        return float(self._ends[-1]) / self.sample_rate

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, index):
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(
                f"Batch {index} of {self.steps_per_epoch} was asked for."
            )
        return self.batch(self.epoch, index)

    def batch(self, epoch, index):
        """The batch of an epoch at a place, whatever came before."""
        epoch = 0 if self.same_every_epoch else epoch
        rng = np.random.default_rng((self.seed, epoch, index))
        # (batch, samples)
        return np.stack([self._crop(rng) for _ in range(self.batch_size)])

    def on_epoch_end(self):
        self.epoch += 1

    def _crop(self, rng):
        """Draw one audible, augmented crop: float32 `(samples,)`."""
        for _ in range(MAX_DRAWS):
            crop = self._change_speed(rng)
            peak = np.abs(crop).max()
            if peak >= audio_lib.SILENCE:
                break
        else:
            raise ValueError(
                f"{MAX_DRAWS} random crops of {self.duration} seconds were "
                "all silent. Is there sound in these files? "
                f"{self._clips.paths[0]}, ..."
            )
        if self.gain_db is None:
            return crop
        gain = 10.0 ** (rng.uniform(*self.gain_db) / 20.0)
        return crop * np.float32(min(gain, 1.0 / peak))

    def _change_speed(self, rng):
        """Draw a crop and play it faster or slower."""
        if self.speed_range is None:
            return self._gather(rng, self.samples)
        speed = np.exp(rng.uniform(*np.log(self.speed_range)))
        needed = self.samples + 2 * RESAMPLE_MARGIN
        source = self._gather(rng, int(np.ceil(needed * speed)) + 1)
        crop = soxr.resample(source, speed, 1.0)
        crop = crop[RESAMPLE_MARGIN : RESAMPLE_MARGIN + self.samples]
        return np.clip(crop, -1.0, 1.0)

    def _gather(self, rng, count):
        """Read `count` samples of one voice from a random place on.

        The first file is drawn in proportion to its duration and the next
        ones uniformly: what a random place in an endless shuffled playlist of
        the folder would give, and so every sample has the same chance.
        """
        clip, piece = self._first_piece(rng, count)
        pieces, have = [piece], len(piece)
        voice = self._voices[self._clips.paths[clip].parent]
        failures = 0
        while have < count:
            clip = _draw_other(rng, voice, clip)
            piece = self._read(clip, 0, count - have)
            if piece is None:
                failures += 1
                if failures == MAX_DRAWS:
                    self._give_up()
                continue
            pieces.append(piece)
            have += len(piece)
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def _first_piece(self, rng, count):
        for _ in range(MAX_DRAWS):
            place = rng.integers(self._ends[-1])
            clip = int(np.searchsorted(self._ends, place, side="right"))
            start = int(place - self._ends[clip] + self._clips.sizes[clip])
            piece = self._read(clip, start, count)
            if piece is not None:
                return clip, piece
        self._give_up()

    def _read(self, clip, start, count):
        # A file that turns out bad stays in the draw, and its crops are drawn
        # again: taking it out would make later batches depend on earlier ones.
        try:
            return self._clips.read(clip, start, count)
        except audio_lib.AudioFileError as error:
            self.skipped[self._clips.paths[clip]] = error.reason
            self._warn_of_skipped()
            return None

    def _give_up(self):
        raise ValueError(
            f"{MAX_DRAWS} random places in the audio files could not be read. "
            + _describe(self.skipped)
        )


def _draw_other(rng, voice, clip):
    """Draw a clip of `voice` that is not `clip`, if there is one."""
    if len(voice) == 1:
        return clip
    drawn = voice[rng.integers(len(voice) - 1)]
    return voice[-1] if drawn == clip else drawn


def _describe(skipped, shown=3):
    """The first skipped files with their reasons, as a sentence."""
    parts = [
        f"{path} {reason}" for path, reason in list(skipped.items())[:shown]
    ]
    if len(skipped) > shown:
        parts.append(f"and {len(skipped) - shown} more")
    return "; ".join(parts) + "." if parts else ""


def _progress(paths):
    """A progress bar, if reading takes longer than two seconds."""
    from tqdm import tqdm

    return tqdm(paths, desc="Reading audio", unit="file", delay=2, leave=False)


def _check_positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(
                f"`{name}` must be above zero. Received: {name}={value}"
            )


def _check_pair(name, pair, above=-np.inf):
    if pair is None:
        return
    if len(pair) != 2 or not above < pair[0] <= pair[1] < np.inf:
        raise ValueError(
            f"`{name}` must be a pair (low, high) with low <= high"
            + (f" and low > {above}" if above > -np.inf else "")
            + f". Received: {name}={pair}"
        )
