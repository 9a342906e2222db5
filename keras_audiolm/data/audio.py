"""Audio files and arrays: reading, writing, finding, checking."""

import os
import pathlib
import re

import numpy as np
import soundfile
import soxr

from keras_audiolm.data.spooled import SpooledAudio, blocks_of

AUDIO_SUFFIXES = (
    ".aif",
    ".aiff",
    ".flac",
    ".mp3",
    ".oga",
    ".ogg",
    ".opus",
    ".wav",
)
# Below this peak (-80 dBFS) audio counts as silent.
SILENCE = 1e-4
# Audio this far below a recording's loudest place counts as a pause; so much of
# one is kept at both ends.
PAUSE_DB = -40.0
PAUSE_SECONDS = 0.2
# Floats beyond this are integers that nobody scaled to [-1, 1], not a mix that
# is a little too loud.
LARGEST_SAMPLE = 16.0
# Values read at a time (8 MB of float32): bounds the memory that many channels
# or a high sample rate take before they are mixed and resampled.
BLOCK_VALUES = 1 << 21


class AudioFileError(ValueError):
    """An audio file that cannot be used.

    Args:
        path: the file.
        reason: what is wrong with it and what to do, continuing a sentence
            that starts with the file (`"is empty (0 bytes)"`).
    """

    def __init__(self, path, reason):
        super().__init__(f"Audio file {path} {reason}.")
        self.path = pathlib.Path(path)
        self.reason = reason


def check_local(path):
    """Raises `ValueError` for an address where the path of a file is wanted.

    Args:
        path: str or path; of `gs://bucket`, a path has one slash less.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)} is an address, and files are read and written "
            "by their paths. Mount the bucket (gcsfuse, Mountpoint for S3) and "
            "give the path where it is mounted, or copy the files."
        )


def open_audio(path):
    """Open `path` as a `soundfile.SoundFile`, or raise `AudioFileError`."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise AudioFileError(path, "is a folder: give one audio file")
    if not path.exists():
        raise AudioFileError(path, "does not exist")
    if path.stat().st_size == 0:
        raise AudioFileError(path, "is empty (0 bytes)")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError, OSError) as error:
        # soundfile raises TypeError for headerless formats (.raw).
        raise AudioFileError(path, unreadable(error)) from error


def unreadable(error):
    """The reason for `AudioFileError` when libsndfile fails."""
    message = getattr(error, "error_string", None) or str(error)
    if "does not exist" in message:  # what libsndfile says of a false .mp3
        message = "Format not recognised"
    return (
        f"cannot be read ({message.rstrip('. ')}). wav, flac, ogg and mp3 "
        "are read; convert other formats first, for example with ffmpeg"
    )


def read_mono(file, frames):
    """Read up to `frames` frames of an open file and average its channels.

    Args:
        file: `soundfile.SoundFile`.
        frames: int.

    Returns:
        float32 array `(samples,)`, empty at the end of the file.
    """
    path = file.name
    try:
        block = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioFileError(path, unreadable(error)) from error
    # (frames, channels) -> (frames,)
    block = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    # NaN and infinity survive the sum, which is faster than np.isfinite.
    if not np.isfinite(block.sum(dtype="float64")):
        raise AudioFileError(path, "contains NaN or infinite samples")
    return block


def load_audio(path, sample_rate):
    """Read an audio file as mono at `sample_rate`.

    Reads what libsndfile reads (wav, flac, ogg, mp3, ...) at any rate and
    channel count. Channels are averaged. Resampling is libsoxr's "HQ". Long
    files are read block by block, so that memory grows with the result only.

    Args:
        path: path of the file.
        sample_rate: int. Sample rate of the result in Hz.

    Returns:
        float32 array `(samples,)` with values in [-1, 1].

    Raises:
        ValueError: the file is missing, unreadable, empty, or has samples
            that are NaN, infinite or far beyond [-1, 1]. The message names
            the file.

    Example:

    ```python
    audio = keras_audiolm.load_audio("speech.mp3", sample_rate=16000)
    ```
    """
    return load_or_spool(path, sample_rate, float("inf"))


def load_or_spool(path, sample_rate, seconds):
    """`load_audio`, of more than so many seconds a `SpooledAudio`."""
    if not sample_rate > 0:
        raise ValueError(
            "`sample_rate` must be a positive number of Hz. "
            f"Received: sample_rate={sample_rate}"
        )
    with open_audio(path) as file:
        rate = file.samplerate
        blocks = _read_blocks(file, sample_rate)
        if file.frames > seconds * rate:
            audio = SpooledAudio(blocks)
        else:
            audio = np.concatenate([np.zeros(0, "float32"), *blocks])
    if not len(audio):
        raise AudioFileError(
            path, f"holds no audio ({file.frames} samples at {rate} Hz)"
        )
    return audio


def load_audible(path, sample_rate, min_duration=0.0, spool=float("inf")):
    """`load_audio` for training: refuses what is too short or silent.

    Args:
        path, sample_rate: as of `load_audio`.
        min_duration: float. Seconds that there must be.
        spool: float. More seconds than these come as a `SpooledAudio`.

    Raises:
        AudioFileError: as `load_audio`, and for such files.
    """
    audio = load_or_spool(path, sample_rate, spool)
    seconds = len(audio) / sample_rate
    if seconds < min_duration:
        raise AudioFileError(path, f"is too short ({seconds:.3f} seconds)")
    if max(map(_peak, blocks_of(audio, BLOCK_VALUES))) < SILENCE:
        raise AudioFileError(path, "is silent")
    return audio


def _peak(audio):
    return max(audio.max(), -audio.min())  # np.abs would copy it


def trim_silence(audio, sample_rate, min_duration=0.0):
    """Cuts off the pauses before and after what can be heard.

    Heard is what stands less than 40 dB below the loudest 20 ms; 0.2 seconds
    around it are kept.

    Args:
        audio: `(samples,)` float array, or `SpooledAudio`, with sound in it.
        sample_rate: int, in Hz.
        min_duration: float. Seconds that are kept at least, if there are so
            many.

    Returns:
        A view of `audio`.
    """
    hop = max(sample_rate // 50, 1)
    many = hop * max(BLOCK_VALUES // hop, 1)
    power = np.concatenate(
        [_mean_power(block, hop) for block in blocks_of(audio, many)]
    )
    heard = np.flatnonzero(power >= power.max() * 10 ** (PAUSE_DB / 10))
    margin = int(PAUSE_SECONDS * sample_rate)
    start = max(heard[0] * hop - margin, 0)
    end = min((heard[-1] + 1) * hop + margin, len(audio))
    end = max(end, min(start + round(min_duration * sample_rate), len(audio)))
    start = min(start, max(end - round(min_duration * sample_rate), 0))
    return audio[start:end]


def _mean_power(audio, hop):
    """Mean squares of each `hop` samples, and of the rest."""
    starts = np.arange(0, len(audio), hop)
    power = np.add.reduceat(np.square(audio, dtype="float32"), starts)
    return power / np.diff(starts, append=len(audio))


def _read_blocks(file, sample_rate):
    """Yield checked mono blocks of an open file at `sample_rate`."""
    for block in _resampled_blocks(file, sample_rate):
        if not len(block):
            continue
        if (peak := _peak(block)) > LARGEST_SAMPLE:
            raise AudioFileError(
                file.name, f"has samples up to {peak:g}: scale it to [-1, 1]"
            )
        yield np.clip(block, -1.0, 1.0, out=block)


def _resampled_blocks(file, sample_rate):
    frames = max(1, BLOCK_VALUES // file.channels)
    resampler = None
    if file.samplerate != sample_rate:
        resampler = soxr.ResampleStream(
            file.samplerate, sample_rate, 1, dtype="float32", quality="HQ"
        )
    while len(block := read_mono(file, frames)):
        yield resampler.resample_chunk(block) if resampler else block
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, "float32"), last=True)


def save_audio(path, audio, sample_rate):
    """Write mono audio as 16-bit PCM.

    The file is written under a temporary name and renamed, so that a failure
    leaves no half file and does not touch an older one. Missing folders are
    made.

    Args:
        path: path that ends with `.wav` or `.flac`.
        audio: array or tensor `(samples,)` or `(1, samples)`. Values beyond
            [-1, 1] are clipped.
        sample_rate: int, in Hz.

    Raises:
        ValueError: another suffix, more than one row, no samples, or NaN or
            infinite samples.
    """
    path = pathlib.Path(path)
    formats = {".wav": "WAV", ".flac": "FLAC"}
    if path.suffix.lower() not in formats:
        raise ValueError(
            f"Audio is written as .wav or .flac. Received: path={str(path)!r}"
        )
    audio = _as_float_batch(audio, "audio")
    if len(audio) != 1:
        raise ValueError(
            "`save_audio` writes one recording, `(samples,)` or "
            f"`(1, samples)`. Received: audio.shape={audio.shape}. Call it "
            "once for each row."
        )
    pcm = np.clip(np.round(audio[0] * 32768.0), -32768, 32767).astype("int16")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Opened here, for an error that says why it cannot be written.
        with open(temporary, "wb") as file:
            soundfile.write(
                file,
                pcm,
                int(sample_rate),
                subtype="PCM_16",
                format=formats[path.suffix.lower()],
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_audio_files(folder):
    """Find the audio files in `folder` and below, by their suffix.

    Hidden files and folders (their name starts with a dot) are left out.

    Args:
        folder: path of a folder.

    Returns:
        Sorted list of `pathlib.Path`.

    Raises:
        ValueError: there is no such folder, or no audio file in it.
    """
    check_local(folder)
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}: give a folder of audio files.")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        raise ValueError(
            f"No audio files in {folder} or below. Looked for "
            f"{', '.join(AUDIO_SUFFIXES)}."
        )
    return files


def check_audio(audio, min_samples=1, name="audio", sample_rate=None):
    """Check audio that a caller gave and make it a float32 batch.

    Args:
        audio: array or tensor `(samples,)` or `(batch, samples)` of floats.
        min_samples: int. Shortest length accepted.
        name: string. What the messages call the audio.
        sample_rate: optional int. With it, messages give lengths in seconds.

    Returns:
        float32 array `(batch, samples)`.

    Raises:
        ValueError: wrong type or rank, no samples, too short, samples that
            are NaN, infinite or far beyond [-1, 1], or a silent row (all
            below 1e-4).
    """
    audio = _as_float_batch(audio, name)
    if audio.shape[1] < min_samples:
        raise ValueError(
            f"`{name}` is too short: "
            f"{_length(audio.shape[1], sample_rate)} given, at least "
            f"{_length(min_samples, sample_rate)} needed."
            + _channels_last(audio)
        )
    peaks = np.abs(audio).max(axis=1)
    if peaks.max() > LARGEST_SAMPLE:
        raise ValueError(
            f"`{name}` has samples up to {peaks.max():g}. Scale it to [-1, 1]: "
            "divide 16-bit integers by 32768."
        )
    silent = peaks < SILENCE
    if silent.any():
        row = f"Row {int(np.argmax(silent))} of `{name}`"
        what = row if len(audio) > 1 else f"`{name}`"
        raise ValueError(
            f"{what} is silent (all samples are below {SILENCE:g}). Give a "
            "recording with sound in it."
        )
    return audio


def _as_float_batch(audio, name):
    """Turn an array, list or tensor into finite float32 (batch, samples)."""
    if not isinstance(audio, np.ndarray | list | tuple):
        import keras

        audio = keras.ops.convert_to_numpy(audio)
    try:
        audio = np.asarray(audio)
    except ValueError as error:
        raise ValueError(
            f"The rows of `{name}` must have one length: pad or cut them."
        ) from error
    # NumPy does not count bfloat16 among the floats.
    is_float = audio.dtype.kind == "f" or audio.dtype.name == "bfloat16"
    if audio.size and not is_float:
        raise ValueError(
            f"`{name}` must hold floats in [-1, 1]. Received: "
            f"dtype={audio.dtype}. Divide 16-bit integers by 32768."
        )
    if audio.ndim not in (1, 2):
        raise ValueError(
            f"`{name}` must have shape (samples,) or (batch, samples): mono. "
            f"Received: shape={audio.shape}"
        )
    if audio.size == 0:
        raise ValueError(f"`{name}` is empty. Received: shape={audio.shape}")
    # (samples,) -> (1, samples)
    audio = np.atleast_2d(audio).astype("float32")
    if not np.isfinite(audio).all():
        raise ValueError(
            f"`{name}` has {int((~np.isfinite(audio)).sum())} NaN or infinite "
            "samples."
        )
    return audio


def _channels_last(audio):
    """Advice for `(samples, channels)`, which reads as a batch of nothing."""
    rows, samples = audio.shape
    if rows <= samples:
        return ""
    return (
        f" Its shape is ({rows}, {samples}): if these are channels, average "
        "them with audio.mean(axis=1)."
    )


def _length(samples, sample_rate):
    if sample_rate is None:
        return f"{samples} samples"
    return f"{samples / sample_rate:.3f} seconds ({samples} samples)"
