"""A folder of recordings, and who speaks in them in which language."""

import csv
import functools
import pathlib

from keras_audiolm.data.audio import AudioFileError, find_audio_files
from keras_audiolm.data.audio import load_audible as read

SPLITS = ("train", "held_out")


class Corpus:
    """The recordings that a preset is measured on.

    A `manifest.csv` with the columns `path`, `speaker`, `language` and
    `split` (`train` or `held_out`), all but the first optional, says what
    there is. Without one, all audio files are taken. Where a column lacks,
    the speaker is the folder that a file stands in, and the split the topmost
    folder, if that is called `train` or `held_out`; otherwise all files are
    held out. Music, whose manifest has a column `piece`, has no speaker.

    Args:
        folder: path.
        sample_rate: int. Hertz of the audio that is read.

    Raises:
        ValueError: if there is no such folder, nothing held out in it, or the
            manifest is of another kind.
    """

    def __init__(self, folder, sample_rate):
        self.folder = pathlib.Path(folder)
        self.sample_rate = sample_rate
        self.skipped = {}
        manifest = self.folder / "manifest.csv"
        if manifest.is_file():
            rows = self._read_manifest(manifest)
        else:
            paths = find_audio_files(self.folder)
            rows = [{"path": str(p.relative_to(self.folder))} for p in paths]
        self.rows = [_completed(row) for row in rows]
        if not self.split("held_out"):
            raise ValueError(
                f"No recording of {self.folder} is held out, and nothing else "
                "is measured. Put some into a folder held_out, or say "
                "split=held_out in manifest.csv."
            )

    def _read_manifest(self, path):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or "path" not in rows[0]:
            raise ValueError(
                f"{path} must have a column path and a row for each recording."
            )
        for row in rows:
            if row.get("split") not in (None, "", *SPLITS):
                raise ValueError(
                    f"{path} has the split {row['split']!r}. Splits are "
                    f"{' and '.join(SPLITS)}."
                )
        return rows

    def split(self, name):
        """The rows of `"train"` or `"held_out"`."""
        return [row for row in self.rows if row["split"] == name]

    def files(self, name):
        return [self.folder / row["path"] for row in self.split(name)]

    def files_by(self, column, name):
        """Files of a split by their label, labels in order.

        Rows without a label are left out.
        """
        files = {}
        for row in self.split(name):
            if row[column]:
                path = self.folder / row["path"]
                files.setdefault(row[column], []).append(path)
        return dict(sorted(files.items()))

    @functools.cached_property
    def held_out(self):
        """Pairs of row and audio `(samples,)` of the held-out files.

        Those that cannot be read, or are silent, are in `skipped`.
        """
        from tqdm import tqdm

        pairs = []
        for row in tqdm(self.split("held_out"), "Reading held-out files"):
            path = self.folder / row["path"]
            try:
                pairs.append((row, read(path, self.sample_rate)))
            except AudioFileError as error:
                self.skipped[str(path)] = error.reason
        if not pairs:
            path, reason = next(iter(self.skipped.items()))
            raise ValueError(
                f"No held-out recording can be used. The first: {path} "
                f"{reason}."
            )
        return pairs

    @property
    def clips(self):
        return [clip for _, clip in self.held_out]

    def long_enough(self, duration):
        """Pairs of row and audio of `duration` seconds or more."""
        samples = round(duration * self.sample_rate)
        return [
            (row, clip) for row, clip in self.held_out if len(clip) >= samples
        ]


def _completed(row):
    path = pathlib.Path(row["path"])
    top = path.parts[0] if len(path.parts) > 1 else None
    folder = None if row.get("piece") else str(path.parent)
    return {
        **row,
        "speaker": row.get("speaker") or folder,
        "language": row.get("language") or None,
        "split": row.get("split") or (top if top in SPLITS else "held_out"),
    }
