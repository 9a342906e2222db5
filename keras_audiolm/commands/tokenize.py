"""keras-audiolm tokenize."""

import os
import time

from keras_audiolm.commands.options import add_command, output_file
from keras_audiolm.commands.running import read_recording, report


def add_tokenize(commands, parents):
    parser = add_command(
        commands,
        "tokenize",
        run_tokenize,
        parents,
        "Write the tokens of a recording. OUT holds the arrays semantic "
        "(frames,) and acoustic (frames, levels).",
    )
    parser.add_argument("input", metavar="FILE", help="recording to read")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=output_file(".npz"),
        required=True,
    )


def run_tokenize(args):
    import numpy as np

    pipeline, audio = read_recording(args, args.input)
    start = time.perf_counter()
    semantic, acoustic = pipeline.tokenize(audio)
    elapsed = time.perf_counter() - start
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(f".{args.output.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, semantic=semantic, acoustic=acoustic)
        os.replace(temporary, args.output)
    finally:
        temporary.unlink(missing_ok=True)
    seconds = len(audio) / pipeline.sample_rate
    what = f"semantic {semantic.shape} and acoustic {acoustic.shape} tokens"
    report(args.output, what, seconds, elapsed)
