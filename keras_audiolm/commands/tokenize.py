"""keras-audiolm tokenize."""

import functools
import os
import pathlib
import shlex
import time

from keras_audiolm.commands.options import (
    add_command,
    output_file,
    positive_count,
)
from keras_audiolm.commands.running import (
    choose_backend,
    load,
    read_recording,
    report,
)
from keras_audiolm.presets import find_preset


def tokens_path(text):
    """The path of an `.npz` of one recording, or of a store's folder."""
    path = pathlib.Path(text)
    return output_file(".npz")(text) if path.suffix else path


def add_tokenize(commands, parents):
    parser = add_command(
        commands,
        "tokenize",
        run_tokenize,
        parents,
        "Write the tokens of a recording, or of many. Of one, OUT.npz holds "
        "the arrays semantic (frames,) and acoustic (frames, levels). Of "
        "many, the folder OUT is a store to train on; after a stop the same "
        "command goes on.",
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="a recording, or many: a folder, a pattern in quotes, or a "
        "manifest (.txt of paths, .csv or .tsv with a column path)",
    )
    parser.add_argument(
        "-o",
        "--output",
        "--out",
        metavar="OUT",
        type=tokens_path,
        required=True,
        help="a file .npz for one recording, a folder for many",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=positive_count,
        help="processes on this machine, of Apache Beam (default: this one)",
    )
    where.add_argument(
        "--runner",
        help="the Apache Beam runner of many machines: DataflowRunner, "
        "FlinkRunner, SparkRunner, ...",
    )
    parser.add_argument(
        "--beam-options",
        metavar="OPTIONS",
        type=shlex.split,
        default=[],
        help="more options of Apache Beam and its runner, in quotes after =",
    )
    parser.add_argument(
        "--trim-silence",
        action="store_true",
        help="cut off what is silent at both ends of each recording",
    )
    parser.add_argument(
        "--licence", help="of the recordings, to be noted in the store"
    )


def run_tokenize(args):
    from keras_audiolm.data.audio import check_local

    check_local(args.output)
    if args.beam_options and not (args.runner or args.workers):
        raise ValueError(
            "--beam-options are of Apache Beam, which --workers or --runner "
            "start. Give one of them."
        )
    if args.output.suffix:
        tokenize_one(args)
    else:
        tokenize_many(args)


def tokenize_one(args):
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


def tokenize_many(args):
    from keras_audiolm.data.manifest import find_recordings

    files = find_recordings(args.input)
    start = time.perf_counter()
    settings = {"trim_silence": args.trim_silence, "licence": args.licence}
    if args.runner or args.workers:
        corpus = tokenize_on_beam(args, files, settings)
    else:
        from keras_audiolm import training

        pipeline = load("AudioLMPipeline", args)
        corpus = training.tokenize_corpus(
            files,
            args.output,
            pipeline.tokenize_many,
            training.token_metadata(pipeline, **settings),
        )
    counts = corpus.metadata["counts"]
    print(
        f"{args.output}: {counts['recordings']} recordings, "
        f"{counts['hours']:.2f} h, and {counts['skipped']} skipped (see "
        f"skipped.csv), in {time.perf_counter() - start:.1f} s. Train on it: "
        f"keras-audiolm train {args.output} --parts "
        "semantic_lm,coarse_lm,fine_lm --out my_preset"
    )


def tokenize_on_beam(args, files, settings):
    """Tokenizes on Apache Beam, each worker with a preset of its own."""
    if "://" not in args.preset:
        find_preset(args.preset)  # before what takes long
    choose_backend(args)
    from keras_audiolm.data import beam

    if args.runner:
        options = [f"--runner={args.runner}"]
    else:
        options = beam.direct_options(args.workers)
    return beam.tokenize_files(
        files,
        args.output,
        functools.partial(beam.load_preset, args.preset, **settings),
        options + args.beam_options,
    )
