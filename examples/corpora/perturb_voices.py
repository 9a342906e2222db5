"""Make more voices of few: copies of recordings with other formants and pitch.

A language model that heard four voices in training knows a fifth only as one of
the four. A longer or shorter vocal tract (formants) and a lower or higher pitch
are another speaker, who says the same at the same moments: the copies may take
the semantic tokens of their originals, which then do not tell the voice.

    IN/train/fr/hello.flac  ->  OUT/train/fr/hello.flac            as it is
                                OUT/train/fr@f0.9p0.8/hello.flac   a larger one
    with --speeds:              OUT/train/fr@s1.06/hello.flac      played faster

A folder is taken to be one voice in training (a crop goes on with other files
of its folder), and so are its copies. Train on OUT/train; leave the recordings
that you measure on alone. A copy that exists is not made again.

Run it with `pip install praat-parselmouth soundfile soxr tqdm`:

    python examples/corpora/perturb_voices.py corpora/debian_voices/train \\
        corpora/many_voices/train --copies 3
"""

import argparse
import glob
import itertools
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import tqdm

from keras_audiolm.data.audio import (
    AudioFileError,
    find_audio_files,
    open_audio,
)

SPEEDS = (1.0,)
FORMANTS = (0.85, 0.92, 1.0, 1.08, 1.17)
PITCHES = (0.8, 1.0, 1.25)
# Where Praat looks for a pitch, hertz.
PITCH_RANGE = 60, 600


class Change(NamedTuple):
    """What a copy is multiplied by."""

    speed: float = 1.0
    formants: float = 1.0
    pitch: float = 1.0

    def __str__(self):
        factors = zip("sfp", self, strict=True)
        return "".join(f"{name}{x:g}" for name, x in factors if x != 1.0)


def copy_path(path, folder, out, change):
    """Where a copy of a recording stands."""
    relative = path.relative_to(folder).with_suffix(".flac")
    voice = relative.parent
    if str(change):
        voice = voice.parent / f"{voice.name}@{change}"
    return out / voice / relative.name


def original_path(path, folder, out):
    """Where the recording stands that a copy was made of, of any format."""
    relative = path.relative_to(out)
    voice = relative.parent.name.split("@")[0]
    original = folder / relative.parent.parent / voice / relative.name
    found = original.parent.glob(f"{glob.escape(original.stem)}.*")
    return min(found, default=original)


def apply(change, samples, rate):
    """Samples `(samples, channels)` as another speaker would say them."""
    if change.formants != 1.0 or change.pitch != 1.0:
        channels = [
            change_speaker(channel, rate, change.formants, change.pitch)
            for channel in samples.T
        ]
        samples = np.stack(channels, axis=1)
    if change.speed != 1.0:
        samples = soxr.resample(samples, change.speed, 1.0)
    # Between samples a wave may be louder than at them.
    return samples.clip(-1.0, 1.0)


def change_speaker(samples, rate, formants, pitch):
    """One channel with other formants and pitch, as long as it was."""
    import parselmouth

    sound = parselmouth.Sound(samples.astype("float64"), rate)
    lowest, highest = PITCH_RANGE
    heard = sound.to_pitch(pitch_floor=lowest, pitch_ceiling=highest)
    median = parselmouth.praat.call(
        heard, "Get quantile", 0, 0, 0.5, "Hertz"
    )  # not a number where nothing is voiced
    changed = parselmouth.praat.call(
        sound,
        "Change gender",
        lowest,
        highest,
        formants,
        0.0 if np.isnan(median) else median * pitch,
        1.0,  # the range of the pitch
        1.0,  # the duration
    )
    made = np.zeros(len(samples), "float32")
    values = changed.values[0][: len(made)]
    made[: len(values)] = values
    return made


def write_copies(path, folder, out, changes):
    """Writes those copies of a recording that are missing.

    Each goes to a temporary name first, so that no half file remains.
    """
    missing = [
        (change, target)
        for change in changes
        if not (target := copy_path(path, folder, out, change)).is_file()
    ]
    if not missing:
        return
    with open_audio(path) as file:
        samples, rate = (
            file.read(dtype="float32", always_2d=True),
            file.samplerate,
        )
    for change, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        copy = apply(change, samples, rate)
        soundfile.write(temporary, copy, rate, "PCM_16", format="FLAC")
        os.replace(temporary, target)


def perturb(
    folder,
    out,
    speeds=SPEEDS,
    formants=FORMANTS,
    pitches=PITCHES,
    copies=None,
):
    """Copies all recordings of a folder as others would say them.

    Args:
        folder: folder of recordings, with a sub-folder for each voice.
        out: folder to write to, outside `folder`.
        speeds, formants, pitches: sequences of factors; `1.0` is as it was.
            There is a voice for each choice of one of each.
        copies: int, optional. So many of the voices for each recording, in
            turn, rather than all.

    Returns:
        Dictionary by path of why a recording could not be read.

    Raises:
        ValueError: if there are no recordings, `out` is inside `folder`, or a
            factor is out of range.
    """
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{out} is inside {folder}: copies would be taken for recordings. "
            "Give a folder beside it."
        )
    for name, factors in (
        ("Speeds", speeds),
        ("Formants", formants),
        ("Pitches", pitches),
    ):
        if not factors or not all(0.25 <= x <= 4.0 for x in factors):
            raise ValueError(
                f"{name} must be from 0.25 to 4. Received: {list(factors)}"
            )
    voices = list(
        itertools.starmap(Change, itertools.product(speeds, formants, pitches))
    )
    copies = len(voices) if copies is None else copies
    if not 1 <= copies <= len(voices):
        raise ValueError(
            f"Of {len(voices)} voices there cannot be {copies} copies."
        )
    turn = itertools.cycle(voices)
    skipped = {}
    for path in tqdm.tqdm(find_audio_files(folder), unit="file"):
        chosen = list(itertools.islice(turn, copies))
        try:
            write_copies(path, folder, out, chosen)
        except AudioFileError as error:
            skipped[path] = error.reason
    return skipped


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "folder", help="recordings, a sub-folder for each voice"
    )
    parser.add_argument("out", help="folder to write to")
    for name, default in (
        ("--speeds", SPEEDS),
        ("--formants", FORMANTS),
        ("--pitches", PITCHES),
    ):
        parser.add_argument(
            name,
            nargs="+",
            type=float,
            default=default,
            metavar="FACTOR",
            help=f"default: {' '.join(map(str, default))}",
        )
    parser.add_argument(
        "--copies",
        type=int,
        metavar="N",
        help="of each recording, as N of the voices in turn (default: as all)",
    )
    options = parser.parse_args(arguments)
    try:
        skipped = perturb(**vars(options))
    except ValueError as error:
        sys.exit(f"perturb_voices: {error}")
    for path, reason in skipped.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
