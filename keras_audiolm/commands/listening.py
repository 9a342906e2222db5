"""keras-audiolm listening-test and listening-score."""

import pathlib

from keras_audiolm.commands.options import (
    add_command,
    positive_count,
    positive_seconds,
    running_options,
)
from keras_audiolm.commands.running import load, sample


def add_listening(commands, parents):
    make = add_command(
        commands,
        "listening-test",
        run_listening_test,
        parents,
        "Make a listening test of real and continued clips. FOLDER holds a "
        "page to hand out; the key, FOLDER-key.json, stays with you.",
    )
    make.add_argument(
        "preset", metavar="PRESET", help="name, folder or address of a preset"
    )
    make.add_argument(
        "data", metavar="DATA", help="recordings that it was not trained on"
    )
    make.add_argument(
        "--out", metavar="FOLDER", type=pathlib.Path, required=True
    )
    make.add_argument(
        "--num",
        type=positive_count,
        default=20,
        help="clips of each kind (default: %(default)s)",
    )
    for name, default, what in (
        ("duration", 10.0, "of a clip"),
        ("prompt-duration", 3.0, "of a recording that are continued"),
    ):
        make.add_argument(
            f"--{name}",
            type=positive_seconds,
            default=default,
            help=f"seconds {what} (default: %(default)s)",
        )
    score = add_command(
        commands,
        "listening-score",
        run_listening_score,
        [running_options()],
        "Open the key of a listening test and say what raters got right.",
    )
    score.add_argument(
        "folder", metavar="FOLDER", help="what listening-test wrote"
    )
    score.add_argument(
        "answers", metavar="ANSWERS", nargs="+", help="what its page exported"
    )


def run_listening_test(args):
    from keras_audiolm.data.audio import find_audio_files
    from keras_audiolm.evaluation import listening_test

    listening_test.require_packages()
    files = find_audio_files(args.data)
    folder = listening_test.check_new_test(args.out)
    pipeline = load("AudioLMPipeline", args)
    key, elapsed = sample(
        args,
        listening_test.make_listening_test,
        pipeline,
        files,
        folder,
        num=args.num,
        duration=args.duration,
        prompt_duration=args.prompt_duration,
    )
    print(
        f"{args.out}: {args.num} real and {args.num} continued clips of "
        f"{args.duration:g} s in {elapsed:.1f} s. Hand out this folder, and "
        f"keep {key} from those who rate. Then: keras-audiolm listening-score "
        f"{args.out} answers.json"
    )


def run_listening_score(args):
    from keras_audiolm.evaluation import listening_score

    result = listening_score.score_listening_test(args.folder, args.answers)
    names = [
        f"{one['rater'] or 'no name'} ({path})"
        for path, one in zip(args.answers, result["raters"], strict=True)
    ]
    for name, one in zip(
        [*names, "all together"],
        [*result["raters"], result["all"]],
        strict=True,
    ):
        low, high = (100 * bound for bound in one["interval"])
        left = f"; {one['unrated']} not rated" if one["unrated"] else ""
        print(
            f"{name}: {one['correct']} of {one['rated']} right, "
            f"{100 * one['accuracy']:.1f} % (95 % interval {low:.1f} to "
            f"{high:.1f} %), p = {one['p_value']:.2g} against guessing{left}"
        )
    print(f"real: {', '.join(result['real'])}")
