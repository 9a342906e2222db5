"""What a codec does to music: to its pitches, its onsets and its loudness.

    python benchmarks/piano_codec.py corpora/piano/held_out \\
        --preset piano_small --beams 1 4 16

codes and decodes seven seconds of every fourth recording. Printed are the
distance of pitch classes to the original's (0 to 1; and that between two
recordings), the onsets that are heard a second less those of the original, and
the spectral terms of `PerceptualLoss`.
"""

import argparse
import itertools
import pathlib

import keras_audiolm  # chooses the backend  # isort: skip
import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from keras_audiolm.codec.losses import PerceptualLoss
from keras_audiolm.data.audio import find_audio_files, load_audio
from keras_audiolm.evaluation.music import histogram_distance, profile

START, STOP = 5.0, 12.0  # seconds; all recordings are longer
EVERY = 4


def with_beam(codec, beam_width):
    """The same codec that keeps so many choices of codes in play."""
    config = {**codec.get_config(), "beam_width": beam_width}
    other = type(codec).from_config(config)
    other.build()
    for own, given in zip(other.variables, codec.variables, strict=True):
        own.assign(given)
    return other


def measure(codec, audio):
    """Of `(recordings, samples)`: distance, onsets too many, loss."""
    rate = codec.sample_rate
    heard = to_numpy(codec.decode(codec.encode(audio)))[:, : audio.shape[1]]
    loss = PerceptualLoss(rate, transform_weight=0.0)
    found = []
    for real, made in zip(audio, heard, strict=True):
        a, b = profile(real, rate), profile(made, rate)
        found.append(
            (
                histogram_distance(a["pitch_classes"], b["pitch_classes"]),
                b["onset_density"] - a["onset_density"],
                float(to_numpy(loss(real[None], made[None]))),
            )
        )
    return np.mean(found, axis=0)


def distance_between(audio, rate):
    """Of the pitch classes of two recordings, on average."""
    classes = [profile(x, rate)["pitch_classes"] for x in audio]
    pairs = itertools.combinations(classes, 2)
    return np.mean([histogram_distance(a, b) for a, b in pairs])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recordings", type=pathlib.Path)
    parser.add_argument("--preset", required=True, help="whose codec")
    parser.add_argument("--beams", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    codec = keras_audiolm.SoundStream.from_preset(options.preset)
    rate = codec.sample_rate
    place = slice(round(START * rate), round(STOP * rate))
    files = find_audio_files(options.recordings)[::EVERY]
    audio = np.stack([load_audio(path, rate)[place] for path in files])
    between = distance_between(audio, rate)
    print(f"{len(files)} recordings, {between:.3f} apart\n")
    print("| beam | pitch classes | onsets | spectral loss |")
    print("|---:|---:|---:|---:|")
    for beam in options.beams:
        distance, onsets, loss = measure(with_beam(codec, beam), audio)
        print(f"| {beam} | {distance:.3f} | {onsets:.1f} | {loss:.2f} |")


if __name__ == "__main__":
    main()
