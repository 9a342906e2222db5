"""Recordings of any length, of which a window is in memory at a time."""

import math
import tempfile

import numpy as np
import soxr

BYTES = 4  # of a float32
# Samples that are resampled at once.
BLOCK = 1 << 19


class SpooledAudio:
    """Mono audio in a temporary file, used like an array of one axis.

    A slice is a view that reads nothing yet; `np.asarray` reads it. The file
    has no name and is gone when the last view is, or the process. It is in
    the folder that the environment variable `TMPDIR` names.

    Args:
        blocks: iterable of float32 arrays `(samples,)`.

    Raises:
        OSError: if the disk is full.

    Example:

    ```python
    audio = SpooledAudio(np.zeros(1000, "float32") for _ in range(10**6))
    len(audio)  # 10**9
    np.asarray(audio[5000:6000])  # (1000,)
    ```
    """

    def __init__(self, blocks):
        self._file = tempfile.TemporaryFile(prefix="keras-audiolm-")
        self._start = self._stop = 0
        for block in blocks:
            self._file.write(np.ascontiguousarray(block, "float32").data)
            self._stop += len(block)
        self._file.flush()

    def __len__(self):
        return self._stop - self._start

    def __getitem__(self, piece):
        start, stop, _ = piece.indices(len(self))
        view = object.__new__(type(self))
        view._file = self._file
        view._start = self._start + start
        view._stop = self._start + max(start, stop)
        return view

    def __array__(self, dtype=None, copy=None):
        self._file.seek(BYTES * self._start)
        content = self._file.read(BYTES * len(self))
        return np.frombuffer(content, "float32").astype(dtype or "float32")


def blocks_of(audio, size):
    """Yields arrays of up to `size` samples of an array or `SpooledAudio`."""
    for start in range(0, len(audio), size):
        yield np.asarray(audio[start : start + size])


def windows_of(rows, size, speed=1):
    """Yields windows of rows of audio.

    Args:
        rows: float32 array `(batch, samples)`, or list of arrays or
            `SpooledAudio` of one length.
        size: int. Samples of a window; the last one may have fewer.
        speed: `Fraction`. Samples of a window for each of the rows', which
            are resampled; the windows have `ceil(samples * speed)` in all.

    Yields:
        Float32 arrays `(batch, size)`.
    """
    total = math.ceil(len(rows[0]) * speed)
    coming = _resampled(rows, speed) if speed != 1 else _stacked(rows, size)
    waiting = np.zeros((len(rows), 0), "float32")
    for start in range(0, total, size):
        wanted = min(size, total - start)
        while waiting.shape[1] < wanted:
            # The resampler may round the other way: then a zero is the last.
            last = np.zeros((len(rows), wanted - waiting.shape[1]), "float32")
            block = next(coming, last)
            waiting = np.concatenate([waiting, block], axis=1)
        yield waiting[:, :wanted]
        waiting = waiting[:, wanted:]


def _stacked(rows, size):
    """Yields `(batch, size)` arrays of rows."""
    for start in range(0, len(rows[0]), size):
        yield np.stack([row[start : start + size] for row in rows])


def _resampled(rows, speed):
    """Yields `(batch, samples)` arrays of rows at another rate."""
    stream = soxr.ResampleStream(
        speed.denominator, speed.numerator, len(rows), dtype="float32"
    )
    left = len(rows[0])
    for block in _stacked(rows, max(BLOCK // len(rows), 1)):
        left -= block.shape[1]
        # One channel a row: (batch, samples) -> (samples, batch) and back
        yield stream.resample_chunk(block.T, last=not left).T
