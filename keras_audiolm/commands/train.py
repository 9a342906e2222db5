"""keras-audiolm train."""

import pathlib
import time

from keras_audiolm.commands.options import add_command, check_name, one_or_each
from keras_audiolm.commands.running import load, say
from keras_audiolm.presets import PARTS, check_target


class Stopped(Exception):
    """Stopped by Ctrl-C; the message says how to go on."""


def part_names(text):
    """`"codec,semantic_lm"` -> `["codec", "semantic_lm"]`."""
    names = [name.strip() for name in text.split(",")]
    return [check_name(name, PARTS, "part") for name in names]


def add_train(commands, parents):
    parser = add_command(
        commands,
        "train",
        run_train,
        parents,
        "Train a preset on a folder of recordings. After Ctrl-C the same "
        "command goes on from the last checkpoint.",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="recordings, in sub-folders or not; or, for language models "
        "alone, the store of tokens that tokenize makes",
    )
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, help="preset to write"
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="take the preset's sizes but not its weights",
    )
    parser.add_argument(
        "--parts",
        type=part_names,
        help=f"some of {','.join(PARTS)}, separated by commas (default: "
        "those that are untrained or, where all are trained, the three "
        "language models)",
    )
    for name, default in (
        ("epochs", 1),
        ("steps-per-epoch", None),
        ("batch-size", None),
    ):
        parser.add_argument(
            f"--{name}",
            type=one_or_each(int, PARTS, "part"),
            metavar="N",
            default=default,
            help="a number for all parts, or PART=NUMBER,PART=NUMBER",
        )
    parser.add_argument(
        "--validation", metavar="FOLDER", help="recordings to validate on"
    )
    parser.add_argument(
        "--token-dir", help="where tokens are kept (default: OUT-tokens)"
    )
    parser.add_argument(
        "--checkpoint-dir",
        help="where checkpoints are kept (default: OUT-checkpoints)",
    )
    parser.add_argument(
        "--speed-range",
        metavar=("SLOWEST", "FASTEST"),
        type=float,
        nargs=2,
        help="change speed and pitch at random, for example 0.8 1.25: widens "
        "few voices",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of crops and order (default: 0)"
    )


def run_train(args):
    from keras_audiolm.data.audio import find_audio_files
    from keras_audiolm.data.store import is_store

    for folder in filter(None, (args.folder, args.validation)):
        if not is_store(folder):
            find_audio_files(folder)
    check_target(args.out)
    checkpoint_dir = args.checkpoint_dir or f"{args.out}-checkpoints"
    pipeline = load("AudioLMPipeline", args, load_weights=not args.from_scratch)
    say(f"Training on {args.folder}; checkpoints in {checkpoint_dir} ...")
    start = time.perf_counter()
    try:
        pipeline.fit(
            args.folder,
            parts=args.parts,
            epochs=args.epochs,
            steps_per_epoch=args.steps_per_epoch,
            batch_size=args.batch_size,
            validation_data=args.validation,
            token_dir=args.token_dir or f"{args.out}-tokens",
            checkpoint_dir=checkpoint_dir,
            speed_range=args.speed_range,
            seed=args.seed,
        )
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped. The same command goes on from {checkpoint_dir}"
        ) from None
    pipeline.save_to_preset(args.out)
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{args.out}: trained in {minutes:.1f} min. Hear it with: "
        f"keras-audiolm sample --preset {args.out} -o sample.wav"
    )
