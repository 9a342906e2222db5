"""keras-audiolm: continue, sample, resynthesize, train, evaluate, detect...

Only the standard library is imported up here, so that `--help` and mistyped
commands answer at once. What was typed is checked before Keras is imported
and a preset is loaded.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import pathlib
import shlex
import sys
import time

from keras_audiolm._backend import BACKENDS
from keras_audiolm._bundled import bundled_preset_names, suggest
from keras_audiolm.evaluation import SECTIONS
from keras_audiolm.presets import PARTS, check_target, find_preset
from keras_audiolm.version import __version__

DEFAULT_PRESET = "voices_small"
STAGES = ("semantic", "coarse", "fine")


class Stopped(Exception):
    """Stopped by Ctrl-C; the message says how to go on."""


# === What was typed ===


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


def tokens_path(text):
    """The path of an `.npz` of one recording, or of a store's folder."""
    path = pathlib.Path(text)
    return output_file(".npz")(text) if path.suffix else path


def check_name(name, known, what):
    if name not in known:
        raise argparse.ArgumentTypeError(
            f"no {what} is called {name!r}.{suggest(name, known)}"
        )
    return name


def part_names(text):
    """`"codec,semantic_lm"` -> `["codec", "semantic_lm"]`."""
    names = [name.strip() for name in text.split(",")]
    return [check_name(name, PARTS, "part") for name in names]


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


def build_parser():
    parser = Parser(
        prog="keras-audiolm",
        description="AudioLM in Keras 3: continue, sample and train on audio.",
        epilog="KERAS_AUDIOLM_DEBUG=1 or --debug shows tracebacks.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    commands = parser.add_subparsers(
        title="commands",
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=Parser,
    )
    common = _common_options()
    sampling = _sampling_options()
    _add_continue(commands, [sampling, common])
    _add_sample(commands, [sampling, common])
    _add_resynthesize(commands, [sampling, common])
    _add_train(commands, [common])
    _add_tokenize(commands, [common])
    _add_encode(commands, [common])
    _add_decode(commands, [_common_options(None, "the one that FILE names")])
    _add_convert(commands)
    _add_evaluate(commands)
    _add_detect(commands, [common])
    _add_listening(commands, [sampling, _running_options()])
    return parser


def _add_command(commands, name, run, parents, description):
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


def _common_options(preset=DEFAULT_PRESET, default=DEFAULT_PRESET):
    options = argparse.ArgumentParser(
        add_help=False, parents=[_running_options()]
    )
    options.add_argument(
        "--preset",
        default=preset,
        help="name of a bundled preset, a preset folder, kaggle://... or "
        f"hf://... (default: {default})",
    )
    return options


def _running_options():
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


def _sampling_options():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--seed", type=int, help="the same seed gives the same sound"
    )
    options.add_argument(
        "--temperature",
        type=one_or_each(float, STAGES, "stage"),
        help="one number for all stages, or semantic=0.6,coarse=0.8,fine=0.6 "
        "(the paper's, and the default)",
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
        "semantic=3,coarse=3,fine=0)",
    )
    options.add_argument(
        "--acoustic-decoder",
        choices=("cascade", "parallel"),
        default="cascade",
        help="what makes the acoustic tokens: the coarse and the fine stage, "
        "or the parallel decoder (default: %(default)s)",
    )
    return options


def _add_duration_and_num(parser):
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


def _add_output(parser):
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=output_file(".wav", ".flac"),
        required=True,
        help="file to write, .wav or .flac",
    )


def _add_continue(commands, parents):
    parser = _add_command(
        commands,
        "continue",
        run_continue,
        parents,
        "Continue a recording. OUT holds the prompt and the new sound.",
    )
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        help="recording: wav, flac, ogg or mp3 at any rate",
    )
    _add_output(parser)
    _add_duration_and_num(parser)
    parser.add_argument(
        "--prompt-duration",
        type=positive_seconds,
        help="use only the first seconds of PROMPT",
    )


def _add_sample(commands, parents):
    parser = _add_command(
        commands,
        "sample",
        run_sample,
        parents,
        "Make sound from nothing. Unconditional generation.",
    )
    _add_output(parser)
    _add_duration_and_num(parser)


def _add_resynthesize(commands, parents):
    parser = _add_command(
        commands,
        "resynthesize",
        run_resynthesize,
        parents,
        "Keep what a recording says and sample the voice anew. "
        "The paper's acoustic generation.",
    )
    parser.add_argument("input", metavar="IN", help="recording to read")
    _add_output(parser)


def _add_train(commands, parents):
    parser = _add_command(
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


def _add_tokenize(commands, parents):
    parser = _add_command(
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
        help="a recording; or many: a folder, a pattern in quotes, or a "
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
    parser.add_argument(
        "--workers",
        type=positive_count,
        help="processes on this machine, of Apache Beam (default: this one)",
    )
    parser.add_argument(
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


def check_output(path):
    """Refuses a file that cannot be written, before the work is done.

    Raises:
        ValueError: if `path` is a folder, or its folder is none or read-only.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file to write.")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{path} cannot be written: {folder} is not a folder that you may "
            "write to."
        )


def _add_encode(commands, parents):
    parser = _add_command(
        commands,
        "encode",
        run_encode,
        parents,
        "Compress a recording with the codec of a preset. `decode` brings it "
        "back.",
    )
    parser.add_argument("input", metavar="IN", help="recording to read")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=output_file(".ska"),
        required=True,
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="BITS",
        help="bits per second to stay below (default: all levels)",
    )


def _add_decode(commands, parents):
    parser = _add_command(
        commands,
        "decode",
        run_decode,
        parents,
        "Decompress what `encode` wrote. The codec must be the same.",
    )
    parser.add_argument("input", metavar="FILE", help="a .ska file")
    _add_output(parser)


def _add_convert(commands):
    parser = _add_command(
        commands,
        "convert",
        run_convert,
        [_running_options()],
        "Make a preset of somebody's public checkpoint: a codec (EnCodec of "
        "24 kHz, DAC, Mimi, Lyra v2), or with --layer an encoder (HuBERT, "
        "w2v-BERT 2.0) as a semantic tokenizer.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, or an address like hf://facebook/encodec_24khz",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=pathlib.Path,
        required=True,
        help="preset to write",
    )
    parser.add_argument(
        "--padding",
        choices=("reflect", "zeros"),
        help="EnCodec: what stands before the first sample; only with zeros "
        "can it stream (default: the checkpoint's)",
    )
    parser.add_argument(
        "--levels", type=positive_count, help="Lyra: how many of its 46 levels"
    )
    parser.add_argument(
        "--group", type=positive_count, help="Lyra: levels that become one"
    )
    parser.add_argument(
        "--layer",
        type=positive_count,
        help="of an encoder: the block whose activations become tokens",
    )
    parser.add_argument(
        "--centroids",
        metavar="FILE",
        help="of these activations: .npy, or scikit-learn's k-means",
    )


def _add_evaluate(commands):
    parser = _add_command(
        commands,
        "evaluate",
        run_evaluate,
        [_running_options()],
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


def section_names(text):
    """`"codec,detector"` -> `["codec", "detector"]`."""
    names = [name.strip() for name in text.split(",")]
    return [check_name(name, SECTIONS, "section") for name in names]


def _add_detect(commands, parents):
    parser = _add_command(
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


# === What it does ===


def say(message):
    """Prints progress, apart from the results on standard output."""
    print(message, file=sys.stderr, flush=True)


def choose_backend(args):
    """Has Keras use `args.backend`, if that says one."""
    if args.backend:
        os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def load(class_name, args, **kwargs):
    """Checks the preset's name, then imports Keras and loads the preset.

    Args:
        class_name: str. Of the class whose `from_preset` is called.
        args: `preset`, `backend`.
        **kwargs: for `from_preset`.
    """
    preset = args.preset
    if "://" not in preset:
        find_preset(preset)  # a typing error should not cost the import
    choose_backend(args)
    say(f"Loading {preset} ...")
    start = time.perf_counter()
    import keras_audiolm

    cls = getattr(keras_audiolm, class_name)
    loaded = cls.from_preset(preset, **kwargs)
    say(f"Loaded in {time.perf_counter() - start:.1f} s.")
    return loaded


def read_recording(args, path, class_name="AudioLMPipeline"):
    """Loads the preset and reads `path` at its sample rate.

    The file is opened first: a typing error should not cost the loading.
    """
    from keras_audiolm.data import audio

    audio.open_audio(path).close()
    loaded = load(class_name, args)
    return loaded, audio.load_audio(path, loaded.sample_rate)


def sample(args, method, *inputs, **options):
    """Calls a method that samples; returns the audio and the seconds taken.

    Standard output is kept for the results: progress goes elsewhere.
    """
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "overlap",
        "acoustic_decoder",
    ):
        options[name] = getattr(args, name)
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        audio = method(*inputs, verbose=True, **options)
    return audio, time.perf_counter() - start


def report(path, what, seconds, elapsed):
    """Prints where the sound is, how long it is and how long it took."""
    print(
        f"{path}: {what} in {elapsed:.1f} s, real-time factor "
        f"{elapsed / seconds:.2f} (below 1 is faster than real time)."
    )


def write_all(path, batch, sample_rate):
    """Writes each row of `(num, samples)`; returns what to call the files."""
    from keras_audiolm import save_audio

    if len(batch) == 1:
        save_audio(path, batch[0], sample_rate)
        return str(path)
    paths = [
        path.with_stem(f"{path.stem}-{i}") for i in range(1, len(batch) + 1)
    ]
    for name, audio in zip(paths, batch, strict=True):
        save_audio(name, audio, sample_rate)
    return f"{paths[0]} ... {paths[-1].name}"


def generate(args, pipeline, prompt=None):
    """Makes `args.num` sounds, writes them and says how it went."""
    say(f"Making {args.num} x {args.duration:g} s ...")
    audio, elapsed = sample(
        args,
        pipeline.generate,
        prompt,
        duration=args.duration,
        batch_size=args.num,
        stop=args.stop,
    )
    known = 0 if prompt is None else len(prompt)
    seconds = sum(len(row) - known for row in audio) / pipeline.sample_rate
    if not seconds:
        raise ValueError(
            "The semantic stage says that all is over at once, and there is no "
            "new sound. Try another --seed, or --stop duration."
        )
    where = write_all(args.output, audio, pipeline.sample_rate)
    what = f"{seconds:.1f} s of new sound"
    if prompt is not None:
        what += f" after a {len(prompt) / pipeline.sample_rate:.1f} s prompt"
    report(where, what, seconds, elapsed)


def run_continue(args):
    pipeline, prompt = read_recording(args, args.prompt)
    if args.prompt_duration:
        prompt = prompt[: round(args.prompt_duration * pipeline.sample_rate)]
    generate(args, pipeline, prompt)


def run_sample(args):
    generate(args, load("AudioLMPipeline", args))


def run_resynthesize(args):
    pipeline, audio = read_recording(args, args.input)
    say("Resynthesizing ...")
    made, elapsed = sample(args, pipeline.resynthesize, audio)
    where = write_all(args.output, made[None], pipeline.sample_rate)
    seconds = len(audio) / pipeline.sample_rate
    report(where, f"{seconds:.1f} s of sound", seconds, elapsed)


def run_tokenize(args):
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


def run_encode(args):
    codec, audio = read_recording(args, args.input, "AudioCodec")
    from keras_audiolm.codec.bitstream import CompressedAudio

    start = time.perf_counter()
    compressed = CompressedAudio.encode(
        codec, audio, args.bandwidth, args.preset
    )
    elapsed = time.perf_counter() - start
    compressed.save(args.output)
    what = (
        f"{args.output.stat().st_size} bytes, "
        f"{compressed.bits_per_second / 1000:g} kbps,"
    )
    report(args.output, what, len(audio) / codec.sample_rate, elapsed)


def run_decode(args):
    from keras_audiolm.codec.bitstream import CompressedAudio

    compressed = CompressedAudio.load(args.input)
    if args.preset is None:
        # A file must not choose what is fetched from where.
        if compressed.preset not in bundled_preset_names():
            raise ValueError(
                f"{args.input} was made with the preset "
                f"{compressed.preset!r}, which is not bundled. If you trust "
                f"it: --preset {compressed.preset}"
            )
        args.preset = compressed.preset
    codec = load("AudioCodec", args)
    start = time.perf_counter()
    audio = compressed.decode(codec)
    elapsed = time.perf_counter() - start
    where = write_all(args.output, audio[None], codec.sample_rate)
    seconds = len(audio) / codec.sample_rate
    report(where, f"{seconds:.1f} s of sound", seconds, elapsed)


def run_convert(args):
    names = ("padding", "levels", "group")
    if args.layer is not None:
        names = ("layer", "centroids")
    options = {name: getattr(args, name) for name in names}
    options = {k: v for k, v in options.items() if v is not None}
    choose_backend(args)
    import keras_audiolm

    if args.layer is None:
        model = keras_audiolm.codec_from(args.source, **options)
        kind = type(model).__name__
        size = f"{model.num_quantizers} levels of {model.codebook_size} codes"
        hint = "keras-audiolm encode speech.wav -o speech.ska --preset"
    else:
        model = keras_audiolm.tokenizer_from(args.source, **options)
        kind = f"SemanticTokenizer on {type(model.encoder).__name__}"
        size = f"layer {model.layer}, {model.num_clusters} clusters"
        hint = "keras_audiolm.SemanticTokenizer.from_preset:"
    rate = model.sample_rate / model.hop_length
    card = (
        f"# {args.out.name}\n\n{args.source}, converted by keras_audiolm "
        f"{__version__}: {kind}, {model.sample_rate} Hz, {rate:g} frames a "
        f"second, {size}. Its licence is that of its source.\n"
    )
    model.save_to_preset(args.out, card=card)
    print(
        f"{args.out}: {kind} of {model.count_params():,} parameters. Use it "
        f"with: {hint} {args.out}"
    )


def run_evaluate(args):
    if args.report.exists() and not args.report.is_dir():
        raise ValueError(f"{args.report} is a file: give a folder to write.")
    if not args.data.is_dir():
        raise ValueError(f"{args.data} is no folder: give one of recordings.")
    for package in ("jinja2", "matplotlib", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"a report needs {package}: pip install "
                "'keras-audiolm[evaluate]'"
            )
    pipeline = load("AudioLMPipeline", args)
    from keras_audiolm.evaluation import preset
    from keras_audiolm.evaluation.corpus import Corpus
    from keras_audiolm.evaluation.report import markdown

    settings = preset.Settings(
        **{
            name: getattr(args, name)
            for name in (
                "prompts",
                "seeds",
                "prompt_duration",
                "duration",
                "asr",
                "asr_language",
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


# === Listening tests ===


def _add_listening(commands, parents):
    make = _add_command(
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
    score = _add_command(
        commands,
        "listening-score",
        run_listening_score,
        [_running_options()],
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


# === Errors ===


def describe(error):
    """The one line that stands for an exception."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and error.name in BACKENDS:
        return (
            f"the Keras backend {error.name} is not installed. Run pip "
            f"install 'keras-audiolm[{error.name}]', or choose another with "
            "--backend."
        )
    if isinstance(error, ValueError | OSError):
        return text
    return (
        f"unexpected {type(error).__name__}: {text} (--debug shows the "
        "traceback)"
    )


def main(argv=None):
    """Runs the command line.

    Args:
        argv: optional list of str. Defaults to `sys.argv[1:]`.

    Returns:
        int. 0; 1 after an error, 130 after Ctrl-C. Wrong usage exits with 2.
    """
    args = build_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    debug = args.debug or os.environ.get("KERAS_AUDIOLM_DEBUG")
    try:
        if "output" in args and args.output.suffix:
            check_output(args.output)
        args.run(args)
    except (KeyboardInterrupt, Stopped) as error:
        say(f"keras-audiolm: {str(error) or 'stopped'}")
        return 130
    except Exception as error:
        if debug:
            raise
        say(f"keras-audiolm: error: {describe(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
