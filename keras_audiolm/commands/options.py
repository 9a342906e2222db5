"""Options of the command line, and what may stand in them."""

import argparse
import pathlib

from keras_audiolm._backend import BACKENDS
from keras_audiolm._bundled import suggest

DEFAULT_PRESET = "voices_small"

# Those of `keras_audiolm.generation`, which takes seconds to import.
STAGES = ("semantic", "coarse", "fine", "parallel")
ACOUSTIC_DECODERS = ("cascade", "coarse", "parallel")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors take one line."""

    def error(self, message):
        self.exit(
            2, f"keras-audiolm: error: {message} (see {self.prog} --help)\n"
        )


def positive_seconds(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds above 0. Received: {text}"
        )
    return value


positive_seconds.__name__ = "number of seconds"  # for argparse's messages


def positive_count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more. Received: {text}")
    return value


positive_count.__name__ = "count"


def output_file(*suffixes):
    """Makes the parser of a file's path with one of these suffixes."""

    def parse(text):
        path = pathlib.Path(text)
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(
                f"must end with {' or '.join(suffixes)}. Received: {text}"
            )
        return path

    return parse


def check_name(name, known, what):
    if name not in known:
        raise argparse.ArgumentTypeError(
            f"no {what} is called {name!r}.{suggest(name, known)}"
        )
    return name


def one_or_each(number, names, what):
    """Makes the parser of `"0.8"` (for all) or `"coarse=0.8,fine=0.6"`.

    Args:
        number: type of the values, `int` or `float`.
        names: tuple of str. What may stand left of `=`.
        what: str. What the names are, for the messages.

    Returns:
        Function from the text to a number or a dict.
    """

    def parse(text):
        if "=" not in text:
            return number(text)
        pairs = [pair.split("=", 1) for pair in text.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise argparse.ArgumentTypeError(
                f"give one number, or {what}=number for each, separated by "
                f"commas. Received: {text}"
            )
        return {
            check_name(name.strip(), names, what): number(value)
            for name, value in pairs
        }

    parse.__name__ = f"number or {what}=number"
    return parse


def add_command(commands, name, run, parents, description):
    """Adds one sub-command; the first sentence is its line in --help."""
    parser = commands.add_parser(
        name,
        parents=parents,
        help=description.split(". ")[0].rstrip("."),
        description=description,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def common_options(preset=DEFAULT_PRESET, default=DEFAULT_PRESET):
    options = argparse.ArgumentParser(
        add_help=False, parents=[running_options()]
    )
    options.add_argument(
        "--preset",
        default=preset,
        help="name of a bundled preset, a preset folder, kaggle://... or "
        f"hf://... (default: {default})",
    )
    return options


def running_options():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--backend",
        choices=BACKENDS,
        help="Keras backend (default: KERAS_BACKEND, or jax)",
    )
    options.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return options


def sampling_options():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--seed", type=int, help="the same seed gives the same sound"
    )
    options.add_argument(
        "--temperature",
        type=one_or_each(float, STAGES, "stage"),
        help="one number for all stages, or semantic=0.6,coarse=0.8,fine=0.6 "
        "(the paper's, and the default where a preset has none; "
        "parallel=0.8 of the parallel decoder)",
    )
    options.add_argument(
        "--top-k",
        type=one_or_each(int, STAGES, "stage"),
        help="sample among the k likeliest tokens; a number, or one a stage",
    )
    options.add_argument(
        "--top-p",
        type=one_or_each(float, STAGES, "stage"),
        help="sample among the likeliest tokens that make up this "
        "probability; a number, or one a stage",
    )
    options.add_argument(
        "--overlap",
        type=one_or_each(float, STAGES, "stage"),
        help="seconds that a window of a stage shares with what stands before "
        "it; a number, or one a stage (default: "
        "semantic=3,coarse=3,fine=0,parallel=3)",
    )
    options.add_argument(
        "--acoustic-decoder",
        choices=ACOUSTIC_DECODERS,
        help="what makes the acoustic tokens: the coarse and the fine stage, "
        "the coarse one alone, or the parallel decoder (default: the "
        "preset's, or cascade)",
    )
    return options


def add_duration_and_num(parser):
    parser.add_argument(
        "--duration",
        type=positive_seconds,
        default=7.0,
        help="seconds of new sound (default: %(default)s)",
    )
    parser.add_argument(
        "--stop",
        choices=("duration", "eos"),
        default="duration",
        help="where to stop: after the duration, or where the semantic stage "
        "says that a recording is over, if it was taught that and the "
        "duration is not over sooner (default: %(default)s)",
    )
    parser.add_argument(
        "--num",
        type=positive_count,
        default=1,
        help="how many to make; OUT gets -1, -2, ... before its suffix",
    )


def add_output(parser):
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=output_file(".wav", ".flac"),
        required=True,
        help="file to write, .wav or .flac",
    )
