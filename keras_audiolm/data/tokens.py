"""Tokens of a corpus on disk, and random crops of them for training."""

import json
import os
import pathlib
import warnings
import zlib
from collections import defaultdict

import keras
import numpy as np

from keras_audiolm.data.audio import AudioFileError, load_audible

# Files of one shard: what a stop can lose, at most.
FILES_PER_SHARD = 256
# Audio that is held in memory while a shard is made, and one more file.
SECONDS_AT_ONCE = 1200.0


def tokenize_corpus(
    files, folder, tokenize, sample_rate, identity, min_duration=0.0
):
    """Tokenizes audio files into shards; goes on where a stop left off.

    A shard is an `.npz` of the tokens of up to 256 files, written under a
    temporary name and renamed when it is whole. `index.json` says which
    tokenizers and which files the shards are of.

    Args:
        files: sorted list of paths.
        folder: where the shards go.
        tokenize: callable from a list of float32 arrays to a list of
            `(semantic, acoustic)`, `(frames,)` and `(frames, levels)` int32.
        sample_rate: int. Hertz, of what `tokenize` is given.
        identity: str. Changes when the tokenizers change.
        min_duration: float. Files of fewer seconds, like unreadable and
            silent ones, are skipped and counted.

    Returns:
        `TokenCorpus`.

    Raises:
        ValueError: if `folder` holds the tokens of other tokenizers or files.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [pathlib.Path(f) for f in files]
    _check_index(folder, {"identity": identity, "files": _describe(files)})
    shards = []
    starts = range(0, len(files), FILES_PER_SHARD)
    for number, start in enumerate(_progress(starts)):
        path = folder / f"shard-{number:05d}.npz"
        if not path.is_file():
            part = files[start : start + FILES_PER_SHARD]
            _write_shard(path, part, tokenize, sample_rate, min_duration)
        shards.append(path)
    return TokenCorpus(shards)


def _progress(items):
    from tqdm import tqdm

    return tqdm(items, desc="Tokenizing", unit="shard", delay=2, leave=False)


def _describe(files):
    """A checksum of which files there are, and how large."""
    sizes = [path.stat().st_size if path.exists() else None for path in files]
    text = "\n".join(f"{p}:{s}" for p, s in zip(files, sizes, strict=True))
    return f"{len(files)} files, {zlib.crc32(text.encode()):08x}"


def _check_index(folder, index):
    path = folder / "index.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != index:
            raise ValueError(
                f"{folder} holds the tokens of other files or of other "
                f"tokenizers: found {found}, expected {index}. Give another "
                "token_dir, or delete this one."
            )
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(index))
    os.replace(temporary, path)


def _write_shard(path, files, tokenize, sample_rate, min_duration):
    kept, audio, tokens, skipped = [], [], [], {}
    for file in files:
        try:
            audio.append(load_audible(file, sample_rate, min_duration))
            kept.append(file)
        except AudioFileError as error:
            skipped[str(file)] = error.reason
        if sum(map(len, audio)) > SECONDS_AT_ONCE * sample_rate:
            tokens += tokenize(audio)
            audio = []
    if audio:
        tokens += tokenize(audio)
    levels = tokens[0][1].shape[1] if tokens else 1
    semantic = [s for s, _ in tokens]
    acoustic = [a for _, a in tokens]
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as out:
        np.savez(
            out,
            semantic=_join(semantic, (0,)),
            acoustic=_join(acoustic, (0, levels)),
            semantic_ends=np.cumsum([len(s) for s in semantic], dtype="int64"),
            acoustic_ends=np.cumsum([len(a) for a in acoustic], dtype="int64"),
            voices=np.array([str(f.parent) for f in kept], dtype="U"),
            # Kept with the tokens, so that a resumed run knows them as well.
            skipped=np.array(list(skipped.items()), "U").reshape(-1, 2),
        )
    os.replace(temporary, path)


def _join(parts, empty):
    return np.concatenate(parts or [np.zeros(empty)]).astype("int32")


class TokenCorpus:
    """The tokens of a corpus, file by file.

    Args:
        shards: list of paths of `.npz` shards.

    Attributes:
        skipped: dictionary of path -> reason, of files that gave no tokens.
        semantic, acoustic: lists of arrays, one a file.
        voices: list of str. Files of one folder are taken to be one voice.
    """

    def __init__(self, shards):
        self.semantic, self.acoustic, self.voices = [], [], []
        self.skipped = {}
        for path in shards:
            with np.load(path, allow_pickle=False) as shard:
                for file, reason in shard["skipped"].tolist():
                    self.skipped[pathlib.Path(file)] = reason
                if not len(shard["voices"]):
                    continue
                self.semantic += np.split(
                    shard["semantic"], shard["semantic_ends"][:-1]
                )
                self.acoustic += np.split(
                    shard["acoustic"], shard["acoustic_ends"][:-1]
                )
                self.voices += shard["voices"].tolist()
        first = "".join(f"{p} {self.skipped[p]}" for p in [*self.skipped][:1])
        if not self.voices:
            raise ValueError(
                f"No file of the corpus could be tokenized. The first: {first}."
            )
        if self.skipped:
            warnings.warn(
                f"{len(self.skipped)} file(s) gave no tokens. The first: "
                f"{first}.",
                stacklevel=3,
            )


class TokenCrops(keras.utils.PyDataset):
    """Batches of random token crops, aligned in time.

    As with `AudioCrops`, a crop that reaches the end of its file goes on with
    other random files of the same voice and is never padded, and batch `i` of
    epoch `e` depends on `(seed, e, i)` alone.

    Args:
        corpus: `TokenCorpus`.
        unit: pair of int, the semantic and the acoustic frames of the
            shortest stretch in which both are whole.
        units: int. Length of a crop in such stretches.
        split: callable from `(semantic, acoustic, last)` of a batch, of shape
            `(batch, frames)`, `(batch, frames, levels)` and `(batch, units)`
            (true where a file ends), to the inputs of a stage.
        batch_size, steps_per_epoch, seed: int.
        same_every_epoch: bool. Whether each epoch has the batches of epoch 0.
    """

    def __init__(
        self,
        corpus,
        unit,
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
        self.unit = unit
        self.units = units
        self.split = split
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.same_every_epoch = same_every_epoch
        self.epoch = 0
        # How many whole units each file has.
        self.sizes = np.array(
            [
                min(len(s) // unit[0], len(a) // unit[1])
                for s, a in zip(corpus.semantic, corpus.acoustic, strict=True)
            ]
        )
        self.ends = np.cumsum(self.sizes)
        if not self.ends[-1]:
            raise ValueError(
                "The corpus holds no file as long as one semantic frame."
            )
        self.voices = defaultdict(list)
        for file, voice in enumerate(corpus.voices):
            if self.sizes[file]:
                self.voices[voice].append(file)

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, index):
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(
                f"Batch {index} of {self.steps_per_epoch} was asked for."
            )
        epoch = 0 if self.same_every_epoch else self.epoch
        rng = np.random.default_rng((self.seed, epoch, index))
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        return self.split(*(np.stack(c) for c in zip(*crops, strict=True)))

    def on_epoch_end(self):
        self.epoch += 1

    def _crop(self, rng):
        place = rng.integers(self.ends[-1])
        file = int(np.searchsorted(self.ends, place, side="right"))
        start = int(place - (self.ends[file] - self.sizes[file]))
        voice = self.voices[self.corpus.voices[file]]
        pieces, have = [], 0
        while have < self.units:
            count = min(self.sizes[file] - start, self.units - have)
            pieces.append(self._piece(file, start, count))
            have += count
            file, start = voice[rng.integers(len(voice))], 0
        return tuple(np.concatenate(p) for p in zip(*pieces, strict=True))

    def _piece(self, file, start, count):
        s, a = self.unit
        return (
            self.corpus.semantic[file][start * s : (start + count) * s],
            self.corpus.acoustic[file][start * a : (start + count) * a],
            np.arange(start + 1, start + count + 1) == self.sizes[file],
        )
