"""keras-audiolm encode and decode."""

import time

from keras_audiolm._bundled import bundled_preset_names
from keras_audiolm.commands.options import add_command, add_output, output_file
from keras_audiolm.commands.running import (
    load,
    read_recording,
    report,
    write_all,
)


def add_encode(commands, parents):
    parser = add_command(
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


def add_decode(commands, parents):
    parser = add_command(
        commands,
        "decode",
        run_decode,
        parents,
        "Decompress what `encode` wrote. The codec must be the same.",
    )
    parser.add_argument("input", metavar="FILE", help="a .ska file")
    add_output(parser)


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
