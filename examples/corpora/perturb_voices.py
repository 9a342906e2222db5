"""Make more voices of few: copies of recordings at other speeds.

A language model that heard four voices in training knows a fifth only as one of
the four. Played faster or slower, pitch, formants and tempo of a voice change
together, and each speed is a voice of its own:

    IN/train/fr/hello.flac  ->  OUT/train/fr/hello.flac          as it is
                                OUT/train/fr@0.8/hello.flac      slower, lower
                                OUT/train/fr@1.25/hello.flac     faster, higher

A folder is taken to be one voice in training (a crop goes on with other files
of its folder), and so are its copies. Train on OUT/train; leave the recordings
that you measure on alone. A copy that exists is not made again.

Run it with `pip install soundfile soxr tqdm`:

    python examples/corpora/perturb_voices.py corpora/debian_voices/train \\
        corpora/many_voices/train
"""

import argparse
import itertools
import os
import pathlib
import sys

import soundfile
import soxr
import tqdm

from keras_audiolm.data.audio import (
    AudioFileError,
    find_audio_files,
    open_audio,
)

SPEEDS = (0.79, 0.86, 0.93, 1.0, 1.08, 1.17, 1.27)


def copy_path(path, folder, out, speed):
    """Where the copy of a recording at a speed stands."""
    relative = path.relative_to(folder).with_suffix(".flac")
    voice = relative.parent
    if speed != 1.0:
        voice = voice.parent / f"{voice.name}@{speed:g}"
    return out / voice / relative.name


def change_speed(samples, speed):
    """Samples `(samples, channels)` that sound `speed` times as fast."""
    return soxr.resample(samples, speed, 1.0)


def write_copies(path, folder, out, speeds):
    """Writes those copies of a recording that are missing.

    Each goes to a temporary name first, so that no half file remains.
    """
    missing = [
        (speed, target)
        for speed in speeds
        if not (target := copy_path(path, folder, out, speed)).is_file()
    ]
    if not missing:
        return
    with open_audio(path) as file:
        samples, rate = (
            file.read(dtype="float32", always_2d=True),
            file.samplerate,
        )
    for speed, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        copy = change_speed(samples, speed)
        # Between samples a wave may be louder than at them.
        copy = copy.clip(-1.0, 1.0)
        soundfile.write(temporary, copy, rate, "PCM_16", format="FLAC")
        os.replace(temporary, target)


def perturb(folder, out, speeds=SPEEDS, copies=None):
    """Copies all recordings of a folder at other speeds.

    Args:
        folder: folder of recordings, with a sub-folder for each voice.
        out: folder to write to, outside `folder`.
        speeds: sequence of floats above zero; `1.0` is a recording as it is.
        copies: int, optional. So many of the speeds for each recording, in
            turn, rather than all.

    Returns:
        Dictionary by path of why a recording could not be read.

    Raises:
        ValueError: if there are no recordings, `out` is inside `folder`, or a
            speed is out of range.
    """
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{out} is inside {folder}: copies would be taken for recordings. "
            "Give a folder beside it."
        )
    wrong = [speed for speed in speeds if not 0.25 <= speed <= 4.0]
    if wrong or not speeds:
        raise ValueError(
            f"Speeds must be from 0.25 to 4. Received: {list(speeds)}"
        )
    copies = len(speeds) if copies is None else copies
    if not 1 <= copies <= len(speeds):
        raise ValueError(
            f"Of {len(speeds)} speeds there cannot be {copies} copies."
        )
    turn = itertools.cycle(speeds)
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
    parser.add_argument(
        "--speeds",
        nargs="+",
        type=float,
        default=SPEEDS,
        help=f"default: {' '.join(map(str, SPEEDS))}",
    )
    parser.add_argument(
        "--copies",
        type=int,
        metavar="N",
        help="of each recording, at N of the speeds in turn (default: at all)",
    )
    options = parser.parse_args(arguments)
    try:
        skipped = perturb(
            options.folder, options.out, options.speeds, options.copies
        )
    except ValueError as error:
        sys.exit(f"perturb_voices: {error}")
    for path, reason in skipped.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
