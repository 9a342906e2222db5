"""keras-audiolm continue, sample and resynthesize."""

from keras_audiolm.commands.options import (
    add_command,
    add_duration_and_num,
    add_output,
    positive_seconds,
)
from keras_audiolm.commands.running import (
    load,
    read_recording,
    report,
    sample,
    say,
    write_all,
)


def add_continue(commands, parents):
    parser = add_command(
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
    add_output(parser)
    add_duration_and_num(parser)
    parser.add_argument(
        "--prompt-duration",
        type=positive_seconds,
        help="use only the first seconds of PROMPT",
    )


def add_sample(commands, parents):
    parser = add_command(
        commands,
        "sample",
        run_sample,
        parents,
        "Make sound from nothing. Unconditional generation.",
    )
    add_output(parser)
    add_duration_and_num(parser)


def add_resynthesize(commands, parents):
    parser = add_command(
        commands,
        "resynthesize",
        run_resynthesize,
        parents,
        "Keep what a recording says and sample the voice anew. "
        "The paper's acoustic generation.",
    )
    parser.add_argument("input", metavar="IN", help="recording to read")
    add_output(parser)


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
