"""Tokens of a corpus on disk, and random crops of them for training."""

import collections.abc
import csv
import functools
import pathlib
import warnings
from concurrent import futures

import keras
import numpy as np

from keras_audiolm.data import store
from keras_audiolm.data.audio import (
    AudioFileError,
    load_audible,
    trim_silence,
)

# Audio that is tokenized at once, and one more file of no more than as much:
# longer ones are on disk. As much again is read meanwhile.
SECONDS_AT_ONCE = 600.0


def tokenize_corpus(files, folder, tokenize, metadata):
    """Tokenizes audio files into a store; goes on where a stop left off.

    Args:
        files: sorted list of paths.
        folder: where the store goes.
        tokenize: callable from a list of float32 arrays, or `SpooledAudio`
            of long recordings, to a list of `(semantic, acoustic)`,
            `(frames,)` and `(frames, levels)` int32.
        metadata: dictionary of `store.make_metadata`, with `min_duration`,
            the seconds below which files, like unreadable and silent ones,
            are skipped and counted, and `trim_silence`, whether silence at
            both ends is cut off.

    Returns:
        `TokenCorpus`.

    Raises:
        ValueError: if `folder` holds the tokens of other tokenizers or files.
    """
    plan = store.StorePlan(files, folder, metadata)
    for number in _progress(plan.unfinished()):
        write_shard(
            store.shard_path(folder, number),
            plan.shard_files(number),
            tokenize,
            plan.metadata,
        )
    plan.finish()
    return TokenCorpus(folder)


def _progress(items):
    from tqdm import tqdm

    return tqdm(items, desc="Tokenizing", unit="shard", delay=2, leave=False)


def write_shard(path, files, tokenize, metadata):
    """Tokenizes files into one shard, whole or not at all.

    Args: as of `tokenize_corpus`.

    Returns:
        List of pairs, the path and the reason of each file that was skipped.
    """
    with store.ShardWriter(path, metadata) as shard:
        for kept, audio in one_ahead(load_groups(files, shard, metadata)):
            tokens = tokenize(audio)
            for file, pair in zip(kept, tokens, strict=True):
                shard.add(file, *pair)
    return shard.skipped


def load_groups(files, shard, metadata):
    """Yields lists of files and their audio, so much of it as is held at
    once; what is wrong with others is noted in the shard."""
    rate, shortest = metadata["sample_rate"], metadata["min_duration"]
    kept, audio, samples = [], [], 0
    for file in files:
        try:
            clip = load_audible(file, rate, shortest, spool=SECONDS_AT_ONCE)
        except AudioFileError as error:
            shard.skip(file, error.reason)
            continue
        if metadata["trim_silence"]:
            clip = trim_silence(clip, rate, shortest)
        kept.append(file)
        audio.append(clip)
        samples += len(clip)
        if samples > SECONDS_AT_ONCE * rate:
            yield kept, audio
            kept, audio, samples = [], [], 0
    if audio:
        yield kept, audio


def one_ahead(items):
    """Yields items, and makes the next one in a thread meanwhile."""
    items = iter(items)
    with futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


class TokenCorpus:
    """The tokens of a corpus, read from a store as they are asked for.

    What is held in memory is 24 bytes a recording, and the names of the
    voices.

    Args:
        folder: path of a finished store.

    Attributes:
        metadata: dictionary, see `keras_audiolm.data.store`.
        unit: pair of int, the semantic and the acoustic frames of the
            shortest stretch in which both are whole.
        semantic_lengths, acoustic_lengths: `(recordings,)` frames.
        voices: `(recordings,)` int32, places in `voice_names`. Files of one
            folder are taken to be one voice.
        semantic, acoustic: sequences that read a recording's tokens when they
            are indexed.

    Raises:
        ValueError: if the store is not finished, or holds nothing.

    Example:

    ```python
    corpus = TokenCorpus("tokens/training")
    corpus.semantic[3].shape  # (frames,)
    semantic, acoustic = corpus.read(3, start=250, count=50)
    ```
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.metadata = store.read_metadata(folder)
        if "counts" not in self.metadata:
            raise ValueError(
                f"The store {folder} is not finished. Tokenize on: the shards "
                "that are there are kept."
            )
        with np.load(self.folder / "index.npz", allow_pickle=False) as index:
            lengths = index["lengths"]  # (recordings, 3)
            self.voices = index["voices"]
            self.voice_names = index["voice_names"]
            self._shards = index["shards"]
        self.semantic_lengths, self.acoustic_lengths = lengths[:, 0:2].T
        self._runs = int(lengths[:, 2].sum(dtype="int64"))
        self.unit = tuple(self.metadata["unit"])
        self._piece = self.metadata["piece"]
        self._dtypes = store.code_dtypes(self.metadata)
        self._readers = store.ShardReaders(folder)
        self._find_records()
        self._check_skipped()

    def _find_records(self):
        """The first record of each recording in its shard."""
        pieces = store.num_pieces(
            self.semantic_lengths, self.acoustic_lengths, self.unit, self._piece
        )
        ends = np.cumsum(pieces, dtype="int64")
        starts = np.searchsorted(self._shards, self._shards)
        before = ends - pieces
        self._records = (before - before[starts]).astype("int32")

    def _check_skipped(self):
        skipped = self.metadata["counts"]["skipped"]
        first = ""
        if skipped:
            with open(self.folder / "skipped.csv", newline="") as file:
                row = next(csv.DictReader(file))
            first = f" The first: {row['path']} {row['reason']}."
        if not len(self):
            raise ValueError(f"No file of the corpus gave tokens.{first}")
        if skipped:
            warnings.warn(
                f"{skipped} file(s) gave no tokens.{first} (All: "
                f"{self.folder / 'skipped.csv'})",
                stacklevel=4,
            )

    def __len__(self):
        return len(self.voices)

    @property
    def skipped(self):
        """Dictionary of path -> reason, of files that gave no tokens."""
        with open(self.folder / "skipped.csv", newline="") as file:
            return {
                pathlib.Path(row["path"]): row["reason"]
                for row in csv.DictReader(file)
            }

    @property
    def mean_run(self):
        """How many frames the same semantic token lasts, on average."""
        return int(self.semantic_lengths.sum(dtype="int64")) / self._runs

    @functools.cached_property
    def semantic(self):
        return Recordings(self, 0)

    @functools.cached_property
    def acoustic(self):
        return Recordings(self, 1)

    def read(self, file, start=0, count=None):
        """A stretch of a recording: only its pieces are read.

        Args:
            file: int. Which recording.
            start: int. First unit.
            count: int, optional. Units; by default all, and the frames
                behind the last whole one.

        Returns:
            A tuple of `(frames,)` semantic and `(frames, levels)` acoustic
            int32.
        """
        lengths = self.semantic_lengths[file], self.acoustic_lengths[file]
        total = int(store.num_pieces(*lengths, self.unit, self._piece))
        first, end = start // self._piece, total
        if count is not None:
            end = min(total, -(-(start + count) // self._piece))
        records = self._readers.read(
            int(self._shards[file]),
            int(self._records[file]) + first,
            end - first,
        )
        # Semantic frames of a piece: the last has what is left.
        frames = [self._piece * self.unit[0]] * len(records)
        if end == total:
            frames[-1] = int(lengths[0]) - (total - 1) * frames[-1]
        pieces = map(self._parse, records, frames)
        start -= first * self._piece
        stop = None if count is None else start + count
        return tuple(
            np.concatenate(kind)[start * n : stop and stop * n].astype("int32")
            for n, kind in zip(
                self.unit, zip(*pieces, strict=True), strict=True
            )
        )

    def _parse(self, record, frames):
        """The semantic and the acoustic codes of a record."""
        semantic, acoustic = self._dtypes
        size = frames * semantic.itemsize
        codes = np.frombuffer(record[size:], acoustic)
        return (
            np.frombuffer(record[:size], semantic),
            codes.reshape(-1, self.metadata["codec"]["levels"]),
        )


class Recordings(collections.abc.Sequence):
    """Each recording's tokens of one kind, read when it is asked for."""

    def __init__(self, corpus, kind):
        self._corpus, self._kind = corpus, kind

    def __len__(self):
        return len(self._corpus)

    def __getitem__(self, file):
        return self._corpus.read(range(len(self))[file])[self._kind]


class TokenCrops(keras.utils.PyDataset):
    """Batches of random token crops, aligned in time.

    As with `AudioCrops`, a crop that reaches the end of its file goes on with
    other random files of the same voice and is never padded, and batch `i` of
    epoch `e` depends on `(seed, e, i)` alone.

    Args:
        corpus: `TokenCorpus`.
        units: int. Length of a crop in stretches of `corpus.unit`.
        split: callable from `(semantic, acoustic, last)` of a batch, of shape
            `(batch, frames)`, `(batch, frames, levels)` and `(batch, units)`
            (true where a file ends), to the inputs of a stage.
        batch_size, steps_per_epoch, seed: int.
        same_every_epoch: bool. Whether each epoch has the batches of epoch 0.
    """

    def __init__(
        self,
        corpus,
        units,
        split,
        batch_size,
        steps_per_epoch,
        seed=0,
        same_every_epoch=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.corpus = corpus
        self.units = units
        self.split = split
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.same_every_epoch = same_every_epoch
        self.epoch = 0
        # How many whole units each file has.
        s, a = corpus.unit
        self.sizes = np.minimum(
            corpus.semantic_lengths // s, corpus.acoustic_lengths // a
        )
        self.ends = np.cumsum(self.sizes, dtype="int64")
        if not self.ends[-1]:
            raise ValueError(
                "The corpus holds no file as long as one semantic frame."
            )
        # The files of each voice side by side, without those of no unit.
        order = np.argsort(corpus.voices, kind="stable").astype("int32")
        self._by_voice = order[self.sizes[order] > 0]
        self._voice_ends = np.cumsum(np.bincount(corpus.voices[self._by_voice]))

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
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        return self.split(*(np.stack(c) for c in zip(*crops, strict=True)))

    def on_epoch_end(self):
        self.epoch += 1

    def _crop(self, rng):
        place = rng.integers(self.ends[-1])
        file = int(np.searchsorted(self.ends, place, side="right"))
        start = int(place - (self.ends[file] - self.sizes[file]))
        voice = self._files_of(self.corpus.voices[file])
        pieces, have = [], 0
        while have < self.units:
            count = min(int(self.sizes[file]) - start, self.units - have)
            pieces.append(self._piece(file, start, count))
            have += count
            file, start = int(voice[rng.integers(len(voice))]), 0
        return tuple(np.concatenate(p) for p in zip(*pieces, strict=True))

    def _files_of(self, voice):
        end = self._voice_ends[voice]
        start = self._voice_ends[voice - 1] if voice else 0
        return self._by_voice[start:end]

    def _piece(self, file, start, count):
        last = np.arange(start + 1, start + count + 1) == self.sizes[file]
        return *self.corpus.read(file, start, count), last
