"""Lists of recordings: a folder, a pattern or a manifest."""

import csv
import glob
import pathlib

from keras_audiolm.data.audio import (
    AUDIO_SUFFIXES,
    check_local,
    find_audio_files,
)

SUFFIXES = (".csv", ".tsv", ".txt")


def find_recordings(source):
    """The recordings that a folder, a pattern or a manifest stands for.

    Args:
        source: path of a folder or of one recording; a pattern like
            `"books/**/*.flac"`; or a manifest: a `.txt` of a path a line, or
            a `.csv` or `.tsv` with a column `path`. Its paths are relative to
            its own folder.

    Returns:
        Sorted list of absolute `pathlib.Path`, each once. Those of a manifest
        need not exist.

    Raises:
        ValueError: if there are none, or they are addresses (`gs://`).
    """
    check_local(source)
    source = pathlib.Path(source).absolute()
    if source.suffix.lower() in SUFFIXES:
        paths = _read_manifest(source)
    elif glob.has_magic(str(source)) and not source.exists():
        found = map(pathlib.Path, glob.iglob(str(source), recursive=True))
        paths = [path for path in found if path.is_file()]
    elif source.suffix.lower() in AUDIO_SUFFIXES and source.is_file():
        paths = [source]
    else:
        return find_audio_files(source)
    if not paths:
        raise ValueError(f"{source} stands for no recordings.")
    return sorted(set(paths))


def _read_manifest(source):
    if not source.is_file():
        raise ValueError(f"The manifest {source} does not exist.")
    with open(source, newline="") as file:
        if source.suffix.lower() == ".txt":
            names = [line.strip() for line in file]
        else:
            tabs = source.suffix.lower() == ".tsv"
            rows = csv.DictReader(file, delimiter="\t" if tabs else ",")
            if "path" not in (rows.fieldnames or ()):
                raise ValueError(
                    f"The manifest {source} needs a column path. It has: "
                    f"{', '.join(rows.fieldnames or ['nothing'])}"
                )
            names = [row["path"] for row in rows]
    for name in names:
        check_local(name or "")
    return [source.parent / name for name in names if name]
