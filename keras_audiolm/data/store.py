"""The token store: shards of tokens on disk, read a piece at a time.

A store is a folder:

    metadata.json              by which models, of which files, and how much
    shard-00000.array_record   pieces of some seconds, then the shard's index
    index.npz                  the shards' indices together
    skipped.csv                the files that gave no tokens, and why

A shard is written under a temporary name and renamed when it is whole: what
stands there is finished. `index.npz`, `skipped.csv` and the counts in
`metadata.json` are made of the shards, last.
"""

import collections
import csv
import io
import json
import os
import pathlib
import threading
import zlib

import numpy as np

FORMAT = "keras_audiolm tokens"
VERSION = 1
# Audio of one record, which is what a crop reads at least.
PIECE_SECONDS = 10.0
# The most that a shard is made of, which is what a stop can lose.
FILES_PER_SHARD = 256
BYTES_PER_SHARD = 256 * 2**20
# Shards that are kept open for reading: a fraction of a megabyte each.
OPEN_SHARDS = 256
# Keys of the metadata that two stores of the same tokens may differ in.
NOT_COMPARED = ("counts", "licence")


def array_record():
    """The module that reads and writes ArrayRecord files."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ValueError(
            "Tokens are kept in ArrayRecord files, and the package "
            "array-record is not installed: pip install array-record. It has "
            "no build for Windows: use WSL there."
        ) from error
    return array_record_module


def make_metadata(codec, semantic_tokenizer, sample_rate, unit, **others):
    """What `metadata.json` says of the models.

    Args:
        codec, semantic_tokenizer: dictionaries of `preset` (str or `None`),
            `weights` (str that changes with them), `frame_rate`, `codes` and,
            of the codec, `levels`.
        sample_rate: int. Hertz, of the audio that is tokenized.
        unit: pair of int, the semantic and the acoustic frames of the
            shortest stretch in which both are whole.
        **others: what else the tokens depend on, and `licence`, the audio's.

    Returns:
        Dictionary that JSON gives back as it is.
    """
    unit_seconds = unit[0] / semantic_tokenizer["frame_rate"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "codec": codec,
        "semantic_tokenizer": semantic_tokenizer,
        "sample_rate": sample_rate,
        "unit": list(unit),
        "piece": max(round(PIECE_SECONDS / unit_seconds), 1),
        **others,
    }


# === Which files go into which shard ===


def plan_shards(files):
    """Cuts a list of files into shards, by their number and size.

    Args:
        files: list of paths. Those that do not exist count as empty.

    Returns:
        A tuple `(starts, checksum)`: where in `files` each shard begins, and
        a string that says which files there are and how large.
    """
    starts, count, size, checksum = [], 0, 0, 0
    for number, path in enumerate(files):
        length = os.path.getsize(path) if os.path.exists(path) else None
        if (
            not starts
            or count == FILES_PER_SHARD
            or size + (length or 0) > BYTES_PER_SHARD
        ):
            starts.append(number)
            count = size = 0
        count, size = count + 1, size + (length or 0)
        checksum = zlib.crc32(f"{path}:{length}\n".encode(), checksum)
    return starts, f"{len(files)} files, {checksum:08x}"


class StorePlan:
    """A store that is being made: which shards it has, and which are there.

    Args:
        files: sorted list of paths.
        folder: where the store is, or is to be.
        metadata: dictionary of `make_metadata`.

    Raises:
        ValueError: if `folder` holds tokens of other models or other files.
    """

    def __init__(self, files, folder, metadata):
        array_record()
        self.files = [os.fspath(path) for path in files]
        self.folder = pathlib.Path(folder)
        self.starts, checksum = plan_shards(self.files)
        self.metadata = {
            **metadata,
            "files": checksum,
            "shards": len(self.starts),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metadata.json"
        if path.is_file():
            check_metadata(self.folder, read_metadata(folder), self.metadata)
        else:
            write_text(path, json.dumps(self.metadata, indent=2))

    def shard_files(self, number):
        """The files of a shard, in order."""
        end = (*self.starts, len(self.files))[number + 1]
        return self.files[self.starts[number] : end]

    def unfinished(self):
        """Numbers of the shards that are still to be written."""
        return [
            number
            for number in range(len(self.starts))
            if not shard_path(self.folder, number).is_file()
        ]

    def finish(self):
        """Writes what is known when all shards are there."""
        if "counts" not in read_metadata(self.folder):
            for left in self.folder.glob(".shard-*"):  # by killed workers
                left.unlink(missing_ok=True)
            finish_store(self.folder)


def shard_path(folder, number):
    return pathlib.Path(folder) / f"shard-{number:05d}.array_record"


def is_store(folder):
    """Whether a folder is a token store, finished or not."""
    try:
        read_metadata(folder)
    except ValueError:
        return False
    return True


def read_metadata(folder):
    """The dictionary in a store's `metadata.json`.

    Raises:
        ValueError: if there is none, or it is of another kind or version.
    """
    path = pathlib.Path(folder) / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
        what, version = metadata["format"], metadata["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is no store of tokens.") from error
    if what != FORMAT or version != VERSION:
        raise ValueError(
            f"{folder} holds {what!r} of version {version}, and this package "
            f"reads {FORMAT!r} of version {VERSION}. Tokenize anew."
        )
    return metadata


def check_metadata(folder, found, expected, names=None):
    """Refuses a store of other models or, unless `names` says what counts,
    of anything else.

    Raises:
        ValueError: naming what differs.
    """
    names = names or sorted({*found, *expected}.difference(NOT_COMPARED))
    differences = [
        f"{name}: found {_describe(found.get(name))}, expected "
        f"{_describe(expected.get(name))}"
        for name in names
        if _compared(found.get(name)) != _compared(expected.get(name))
    ]
    if differences:
        raise ValueError(
            f"{folder} holds the tokens of other files or of other "
            f"tokenizers: {'; '.join(differences)}. Give another folder, as "
            "token_dir or with --out, or delete this one."
        )


def _compared(value):
    """A model is what its weights are, whatever preset they came from."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k != "preset"}
    return value


def _describe(value):
    if not isinstance(value, dict):
        return repr(value)
    return f"{value.get('preset') or 'a model'} ({value})"


def write_text(path, text):
    """Writes a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


# === Writing a shard ===


class ShardWriter:
    """Writes the tokens of some recordings as one shard.

    Args:
        path: of the shard.
        metadata: dictionary of `make_metadata`.

    Example:

    ```python
    with ShardWriter(shard_path(folder, 0), metadata) as shard:
        shard.add("a/1.flac", semantic, acoustic)
        shard.skip("a/2.flac", "is silent")
    ```
    """

    def __init__(self, path, metadata):
        self.path = pathlib.Path(path)
        # Of this writer alone: others may try the same shard.
        self.temporary = self.path.with_name(
            f".{self.path.name}.{os.getpid()}-{id(self):x}"
        )
        self.unit, self.piece = metadata["unit"], metadata["piece"]
        self.dtypes = code_dtypes(metadata)
        self.names, self.lengths, self.skipped = [], [], []
        self.records = 0

    def __enter__(self):
        self._writer = array_record().ArrayRecordWriter(
            str(self.temporary), "group_size:1"
        )
        return self

    def add(self, name, semantic, acoustic):
        """Adds a recording: `(frames,)` and `(frames, levels)` ints."""
        s, a = (self.piece * n for n in self.unit)
        semantic = semantic.astype(self.dtypes[0])
        acoustic = acoustic.astype(self.dtypes[1])
        last = (
            num_pieces(len(semantic), len(acoustic), self.unit, self.piece) - 1
        )
        for piece in range(last + 1):
            # The last piece has the frames that are not whole units, too.
            end = piece + 1 if piece < last else None
            self._write(
                semantic[piece * s : end and end * s].tobytes()
                + acoustic[piece * a : end and end * a].tobytes()
            )
        runs = np.count_nonzero(semantic[1:] != semantic[:-1])
        runs += len(semantic) > 0
        self.names.append(os.fspath(name))
        self.lengths.append((len(semantic), len(acoustic), runs))

    def skip(self, name, reason):
        """Notes a file that gave no tokens."""
        self.skipped.append((os.fspath(name), reason))

    def _write(self, record):
        self._writer.write(record)
        self.records += 1

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self._write(self._index())
            self._writer.close()
            if kind is None:
                self._check()
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

    def _index(self):
        lengths = np.array(self.lengths, "int32").reshape(-1, 3)
        file = io.BytesIO()
        np.savez(
            file,
            names=np.array(self.names, "U"),
            voices=np.array([os.path.dirname(n) for n in self.names], "U"),
            lengths=lengths,
            skipped=np.array(self.skipped, "U").reshape(-1, 2),
        )
        return file.getvalue()

    def _check(self):
        # A writer whose disk is full does not always say so.
        found = array_record().ArrayRecordReader(str(self.temporary))
        if found.num_records() != self.records:
            raise OSError(
                f"{self.path} could not be written: {found.num_records()} of "
                f"{self.records} records are there. Is the disk full?"
            )


def num_pieces(semantic, acoustic, unit, piece):
    """Records that a recording of so many frames (ints or arrays) takes."""
    units = np.minimum(semantic // unit[0], acoustic // unit[1])
    return np.maximum(-(-units // piece), 1)


def code_dtypes(metadata):
    """The smallest types of the semantic and the acoustic codes."""
    return [
        np.min_scalar_type(metadata[kind]["codes"] - 1)
        for kind in ("semantic_tokenizer", "codec")
    ]


# === Finishing a store ===


def read_shard_index(path):
    """The arrays that a shard has of its recordings, as a dictionary."""
    reader = array_record().ArrayRecordReader(str(path))
    count = reader.num_records()
    if not count:
        raise ValueError(
            f"{path} is missing or damaged. Delete it and tokenize again: the "
            "other shards are kept."
        )
    with np.load(
        io.BytesIO(reader.read([count - 1])[0]), allow_pickle=False
    ) as index:
        return dict(index)


def finish_store(folder):
    """Joins the shards' indices and writes the counts."""
    folder = pathlib.Path(folder)
    metadata = read_metadata(folder)
    voices, skipped = {}, 0
    parts = collections.defaultdict(list)
    temporary = folder / f".skipped.csv.{os.getpid()}"
    with open(temporary, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "reason"))
        for number in range(metadata["shards"]):
            shard = read_shard_index(shard_path(folder, number))
            codes = [
                voices.setdefault(v, len(voices))
                for v in shard["voices"].tolist()
            ]
            parts["voices"].append(np.array(codes, "int32"))
            parts["lengths"].append(shard["lengths"])
            parts["shards"].append(np.full(len(codes), number, "int32"))
            rows.writerows(shard["skipped"].tolist())
            skipped += len(shard["skipped"])
    os.replace(temporary, folder / "skipped.csv")
    index = {name: np.concatenate(part) for name, part in parts.items()}
    temporary = folder / f".index.{os.getpid()}.npz"
    np.savez(temporary, voice_names=np.array([*voices], "U"), **index)
    os.replace(temporary, folder / "index.npz")
    semantic, acoustic, _ = index["lengths"].sum(axis=0, dtype="int64")
    metadata["counts"] = {
        "recordings": len(index["lengths"]),
        "voices": len(voices),
        "skipped": skipped,
        "hours": float(acoustic / metadata["codec"]["frame_rate"] / 3600),
        "semantic_tokens": int(semantic),
        "acoustic_tokens": int(acoustic) * metadata["codec"]["levels"],
    }
    write_text(folder / "metadata.json", json.dumps(metadata, indent=2))


# === Reading ===


class ShardReaders:
    """The shards of a store, opened when they are read from.

    Threads may share one; a copy in another process opens its own.

    Args:
        folder: path of the store.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self._start()

    def _start(self):
        self._open = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return self.folder

    def __setstate__(self, folder):
        self.folder = folder
        self._start()

    def read(self, shard, first, count):
        """So many records of a shard, as a list of bytes."""
        with self._lock:
            reader = self._open.pop(shard, None)
            if reader is None:
                reader = array_record().ArrayRecordReader(
                    str(shard_path(self.folder, shard)),
                    "readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=2**16,
                )
            self._open[shard] = reader
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        try:
            return reader.read(list(range(first, first + count)))
        except RuntimeError as error:
            raise ValueError(
                f"{shard_path(self.folder, shard)} is missing or damaged: "
                f"{error}"
            ) from error
