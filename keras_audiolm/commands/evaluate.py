"""keras-audiolm evaluate and detect."""

import contextlib
import importlib.util
import pathlib
import shlex
import sys

from keras_audiolm.commands.options import (
    add_command,
    check_name,
    positive_count,
    positive_seconds,
    running_options,
)
from keras_audiolm.commands.running import load, say
from keras_audiolm.evaluation import SECTIONS


def section_names(text):
    """`"codec,detector"` -> `["codec", "detector"]`."""
    names = [name.strip() for name in text.split(",")]
    return [check_name(name, SECTIONS, "section") for name in names]


def add_evaluate(commands):
    parser = add_command(
        commands,
        "evaluate",
        run_evaluate,
        [running_options()],
        "Measure a preset as the paper does, on held-out recordings. Writes "
        "report.html, a page with tables, pictures and sound, and report.json.",
    )
    parser.add_argument(
        "preset",
        metavar="PRESET",
        help="name of a bundled preset, a preset folder, kaggle://... or "
        "hf://...",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        type=pathlib.Path,
        help="recordings: a folder with manifest.csv (path, speaker, "
        "language, split), or with the folders train and held_out, or of "
        "held-out ones alone",
    )
    parser.add_argument(
        "--report",
        metavar="OUT",
        type=pathlib.Path,
        required=True,
        help="folder to write to; what takes long is kept there for the next "
        "time",
    )
    parser.add_argument(
        "--only",
        type=section_names,
        default=SECTIONS,
        help=f"some of {','.join(SECTIONS)}, separated by commas; the others "
        "keep their figures of the last time (default: all)",
    )
    parser.add_argument(
        "--prompts",
        type=positive_count,
        metavar="N",
        help="recordings to continue (default: all that are long enough)",
    )
    parser.add_argument(
        "--seeds",
        type=positive_count,
        default=3,
        metavar="N",
        help="continuations of each (default: %(default)s)",
    )
    for name, default, what in (
        ("prompt-duration", 3.0, "seconds of a prompt"),
        ("duration", 7.0, "seconds that are new"),
    ):
        parser.add_argument(
            f"--{name}",
            type=positive_seconds,
            default=default,
            help=f"{what} (default: %(default)g)",
        )
    parser.add_argument(
        "--asr",
        metavar="MODEL",
        help="name or folder of a faster-whisper model, for word errors "
        "(default: none, and no word errors)",
    )
    parser.add_argument(
        "--asr-language",
        default="en",
        metavar="CODE",
        help="of the recordings that it hears (default: %(default)s)",
    )
    parser.add_argument(
        "--abx",
        metavar="ITEMS",
        help="item file of DATA, as of Libri-Light (default: none, and no ABX)",
    )
    parser.add_argument(
        "--zerospeech",
        metavar="FOLDER",
        help="the ZeroSpeech 2021 data set (default: none, and no sWUGGY and "
        "sBLIMP)",
    )


def add_detect(commands, parents):
    parser = add_command(
        commands,
        "detect",
        run_detect,
        parents,
        "Say how likely recordings were made by the preset. Prints, for "
        "windows of a second, the time and the probability, and their mean.",
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="recordings to judge"
    )


def run_evaluate(args):

    if args.report.exists() and not args.report.is_dir():
        raise ValueError(f"{args.report} is a file: give a folder to write.")
    if not args.data.is_dir():
        raise ValueError(f"{args.data} is no folder: give one of recordings.")
    for path in (args.abx, args.zerospeech):
        if path and not pathlib.Path(path).exists():
            raise ValueError(f"{path} does not exist.")
    needed = dict.fromkeys(("jinja2", "matplotlib", "sklearn"), "evaluate")
    if args.asr:
        needed.update(faster_whisper="quality", jiwer="quality")
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"This report needs the package {package}: pip install "
                f"'keras-audiolm[{extra}]'"
            )
    pipeline = load("AudioLMPipeline", args)
    from keras_audiolm.evaluation import preset
    from keras_audiolm.evaluation.corpus import Corpus
    from keras_audiolm.evaluation.report import markdown
    from keras_audiolm.evaluation.sections import Settings

    settings = Settings(
        **{
            name: getattr(args, name)
            for name in (
                "prompts",
                "seeds",
                "prompt_duration",
                "duration",
                "asr",
                "asr_language",
                "abx",
                "zerospeech",
            )
        }
    )
    with contextlib.redirect_stdout(sys.stderr):
        results = preset.evaluate_preset(
            pipeline,
            Corpus(args.data, pipeline.sample_rate),
            args.report,
            args.preset,
            shlex.join(["keras-audiolm", *args.argv]),
            args.only,
            settings,
        )
    print(markdown(results))
    say(f"Look at {args.report / 'report.html'}")


def run_detect(args):
    from keras_audiolm.data import audio

    for path in args.files:
        audio.open_audio(path).close()
    detector = load("AudioClassifier", args)
    from keras_audiolm.evaluation.detector import synthetic_probability

    for path in args.files:
        clip = audio.load_audio(path, detector.sample_rate)
        times, probabilities = synthetic_probability(detector, clip)
        for start, probability in zip(times, probabilities, strict=True):
            bar = "#" * round(20 * probability)
            print(f"{path}  {start:7.2f} s  {probability:.3f}  {bar}")
        print(
            f"{path}: synthetic with a probability of "
            f"{probabilities.mean():.3f}, the mean of {len(times)} windows"
        )
