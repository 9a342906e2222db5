"""Which layer, and how many clusters: what tokens know of a piano's notes.

    python benchmarks/piano_tokens.py corpora/piano --preset runs/piano_small \\
        --layers 1 2 3 4 --clusters 128 256 512

The corpus is that of `examples/corpora/score_piano.py`, which knows what was
played. For each token the mean of the training frames that have it guesses
which of the twelve pitch classes sound, and whether a note begins. Printed is
how much of the variance of both is explained that way in the held-out pieces:
of 0 % a token knows nothing, and of 100 % everything. In layer 0 the frames of
log-mel are clustered in place of activations.
"""

import argparse
import csv
import pathlib

import keras_audiolm  # chooses the backend  # isort: skip
import numpy as np
from keras.ops import convert_to_numpy as to_numpy
from tqdm import tqdm

from keras_audiolm.data.audio import load_audio
from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.semantic.kmeans import KMeans

SECONDS = 20.0  # of each excerpt that are heard; hardly one is shorter
PEDAL = 64


def read_notes(path):
    """The notes of a MIDI file of one tempo: `(start, end, pitch)` rows.

    A note sounds as long as its key or the pedal is down, or until it is
    struck again.
    """
    import mido

    now, pedal = 0.0, False
    notes, sounding, released = [], {}, set()

    def end(pitch):
        notes.append((sounding.pop(pitch), now, pitch))
        released.discard(pitch)

    for message in mido.MidiFile(path):
        now += message.time
        if message.type == "note_on" and message.velocity:
            if message.note in sounding:
                end(message.note)
            sounding[message.note] = now
        elif message.type in ("note_on", "note_off"):
            if message.note in sounding:
                released.add(message.note)
        elif message.type == "control_change" and message.control == PEDAL:
            pedal = message.value >= 64
        if not pedal:
            for pitch in sorted(released):
                end(pitch)
    for pitch in sorted(sounding):
        end(pitch)
    return np.array(sorted(notes)).reshape(-1, 3)


def frame_truth(notes, start, frames, rate):
    """What sounds and what begins in the frames of an excerpt.

    Args:
        notes: of `read_notes`.
        start: float. Seconds of the piece at which the excerpt begins.
        frames: int.
        rate: float. Frames a second.

    Returns:
        `(frames, 13)` of 0 and 1: pitch classes from C, and onset.
    """
    truth = np.zeros((frames, 13), "float32")
    for first, last, pitch in notes:
        begin = int(np.floor((first - start) * rate))
        end = int(np.floor((last - start) * rate))
        if end >= 0 and begin < frames:
            truth[max(begin, 0) : end + 1, int(pitch) % 12] = 1
        if 0 <= begin < frames:
            truth[begin, 12] = 1
    return truth


def read_excerpts(corpus, split, every=1):
    """Yields the path of each excerpt, its notes and its start."""
    with open(corpus / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    notes = {}
    for row in rows[::every]:
        path = corpus / row["path"]
        if path.parent not in notes:
            notes[path.parent] = read_notes(path.parent / "performance.mid")
        yield path, notes[path.parent], float(row["start"])


def features_of(encoder, layer):
    """A function from audio `(batch, samples)` to `(batch, frames, dim)`."""
    if layer:
        return CompiledFunction(encoder, lambda x: encoder.encode(x, layer))
    return CompiledFunction(
        encoder, lambda x: encoder._target_features(encoder.log_mel(x))
    )


def hear(corpus, split, encoder, layers, every=1):
    """Features by layer `(frames, dim)`, and truth `(frames, 13)`."""
    samples = round(SECONDS * encoder.sample_rate)
    rate = encoder.sample_rate / encoder.hop_length
    functions = {layer: features_of(encoder, layer) for layer in layers}
    heard, truths = {layer: [] for layer in layers}, []
    for path, notes, start in tqdm(read_excerpts(corpus, split, every), split):
        audio = load_audio(path, encoder.sample_rate)[:samples]
        if len(audio) < samples:
            continue
        for layer, function in functions.items():
            heard[layer].append(to_numpy(function(audio[None])[0]))
        truths.append(frame_truth(notes, start, round(SECONDS * rate), rate))
    features = {layer: np.concatenate(x) for layer, x in heard.items()}
    return features, np.concatenate(truths)


def explained(tokens, truth, held_out_tokens, held_out_truth, count):
    """Share of held-out variance that the means of tokens explain: `(13,)`."""
    sums = np.zeros((count, truth.shape[1]))
    np.add.at(sums, tokens, truth)
    seen = np.bincount(tokens, minlength=count)[:, None]
    mean = truth.mean(axis=0)
    # One frame of the mean, for tokens that training hardly has.
    guess = ((sums + mean) / (seen + 1))[held_out_tokens]
    errors = np.square(held_out_truth - guess).sum(axis=0)
    return 1 - errors / np.square(held_out_truth - mean).sum(axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument(
        "--preset", required=True, help="whose semantic tokenizer"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[3])
    parser.add_argument("--clusters", type=int, nargs="+", default=[256])
    parser.add_argument(
        "--every", type=int, default=3, help="one of so many training files"
    )
    options = parser.parse_args()
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.preset)
    given = pipeline.semantic_tokenizer.encoder, options.layers
    train, truth = hear(options.corpus, "train", *given, options.every)
    held_out, held_out_truth = hear(options.corpus, "held_out", *given)
    print("| layer | clusters | pitch classes | onsets |\n|---|---:|---:|---:|")
    for layer in options.layers:
        for count in options.clusters:
            kmeans = KMeans(count, seed=0)
            kmeans.fit([train[layer]])
            share = explained(
                to_numpy(kmeans(train[layer])),
                truth,
                to_numpy(kmeans(held_out[layer])),
                held_out_truth,
                count,
            )
            print(
                f"| {layer} | {count} | {100 * share[:12].mean():.1f} % "
                f"| {100 * share[12]:.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
