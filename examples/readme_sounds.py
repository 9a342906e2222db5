"""Make the sounds and pictures of the README: recordings, continued.

    python examples/readme_sounds.py voices_small en es fr ru

continues the first seconds of `recordings/en.flac` and so on, and writes
`docs/sounds/voices_small-en.flac` with its spectrogram, `.png`; a dashed line
is drawn where the recording ends. Nothing is picked: each is what the seed
gives.
"""

import argparse
import pathlib

import keras_audiolm

RECORDINGS = pathlib.Path(__file__).parent / "recordings"
SOUNDS = pathlib.Path(__file__).parents[1] / "docs" / "sounds"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("preset")
    parser.add_argument("recordings", nargs="+", help="names of recordings")
    parser.add_argument("--prompt-duration", type=float, default=3.0)
    parser.add_argument("--duration", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.preset)
    rate = pipeline.sample_rate
    for name in options.recordings:
        recording = keras_audiolm.load_audio(RECORDINGS / f"{name}.flac", rate)
        prompt = recording[: round(options.prompt_duration * rate)]
        keras_audiolm.show_audio(
            SOUNDS / f"{pathlib.Path(options.preset).name}-{name}.flac",
            pipeline.generate(
                prompt, duration=options.duration, seed=options.seed
            ),
            rate,
            line=len(prompt) / rate,
        )


if __name__ == "__main__":
    main()
