"""Continue a bundled recording and say how long each step took.

`make demo` runs this after installing; by hand: `python examples/demo.py`.
"""

import argparse
import pathlib
import time

RECORDING = pathlib.Path(__file__).parent / "recordings" / "en.flac"


def main(argv=None):
    args = parse(argv)
    seconds = {}
    if args.install_seconds is not None:
        seconds["install"] = args.install_seconds

    with Timer(seconds, "import"):
        from keras_audiolm import AudioLMPipeline, load_audio, save_audio

    with Timer(seconds, "load"):
        pipeline = AudioLMPipeline.from_preset(args.preset)
        for part in pipeline.trained_parts:
            if part != "detector":  # makes no sound
                getattr(pipeline, part)  # parts are built when first touched
        rate = pipeline.sample_rate
        prompt = load_audio(args.prompt, rate)
        prompt = prompt[: round(args.prompt_duration * rate)]

    def generate():
        return pipeline.generate(
            prompt, duration=args.duration, seed=args.seed, verbose=True
        )

    with Timer(seconds, "compile"):
        audio = generate()
    save_audio(args.output, audio, rate)
    to_first_sound = sum(seconds.values())
    print(
        f"\nWrote {args.output.resolve()}: {len(prompt) / rate:.1f} s of "
        f"{args.prompt.name}, then {args.duration:.1f} s that nobody said.\n"
        "Once more, now that everything is compiled ...",
        flush=True,
    )
    with Timer(seconds, "generate"):
        generate()
    seconds["compile"] -= seconds["generate"]
    for name, value in seconds.items():
        print(f"{name:>20} {value:7.1f} s")
    print(f"{'to the first sound':>20} {to_first_sound:7.1f} s")
    factor = seconds["generate"] / args.duration
    print(f"{'real-time factor':>20} {factor:8.2f} (below 1: faster than real)")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=pathlib.Path, default=RECORDING)
    parser.add_argument("--prompt-duration", type=float, default=3.0)
    parser.add_argument("--duration", type=float, default=7.0)
    parser.add_argument("--preset", default="voices_small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install-seconds", type=float)
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, default="continuation.wav"
    )
    return parser.parse_args(argv)


class Timer:
    """Notes in `seconds[name]` how long its `with` block took."""

    def __init__(self, seconds, name):
        self.seconds = seconds
        self.name = name

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *error):
        self.seconds[self.name] = time.perf_counter() - self.start


if __name__ == "__main__":
    main()
