"""Which layer, and how many clusters: ABX of words, where no phones are known.

    python benchmarks/word_abx.py words corpora/debian_voices words.item \\
        --asr base
    python benchmarks/word_abx.py layers corpora/debian_voices words.item \\
        --preset runs/voices_small
    python benchmarks/word_abx.py clusters corpora/debian_voices words.item \\
        --preset runs/voices_small --layer 3 --clusters 64 128 256

`words` finds words that a speaker says more than once, by the times of a
Whisper model (`pip install faster-whisper`), and writes an item file with each
of them at several speeds, each a speaker of its own. Two of a word must then be
nearer to each other than to another word: by one speaker ("within"), and where
one of them is played slower or faster ("across": what has lost the voice). The
other two measure the error of an encoder's layers, and of tokens.
"""

import argparse
import collections
import functools
import pathlib
import re

import keras_audiolm  # chooses the backend  # isort: skip
import numpy as np
import soundfile
import soxr
from keras import ops
from tqdm import tqdm

from keras_audiolm.data.audio import find_audio_files, load_audio
from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.evaluation.abx import COLUMNS, abx, read_items
from keras_audiolm.layers.compiled import CompiledFunction, padded_frames
from keras_audiolm.semantic.kmeans import KMeans

SPEEDS = (0.8, 1.0, 1.25)
# Words that the recogniser is surer of, and that last long enough.
MIN_PROBABILITY = 0.5
MIN_SECONDS = 0.2
# k-means hears so many batches of so many crops.
BATCHES = 64
CROPS = 16


def find_words(recogniser, corpus, every):
    """`(file, onset, offset, word, language)` of the held-out recordings, and
    of one of `every` to train on."""
    files = find_audio_files(corpus / "held_out")
    files += find_audio_files(corpus / "train")[::every]
    for path in tqdm(files, "Words"):
        if soundfile.info(path).duration < 1.0:
            continue
        language = path.parent.name
        segments, _ = recogniser.transcribe(
            str(path), language=language, beam_size=1, word_timestamps=True
        )
        for word in (word for segment in segments for word in segment.words):
            text = re.sub(r"\W", "", word.word.lower())
            long_enough = word.end - word.start >= MIN_SECONDS
            if text and long_enough and word.probability > MIN_PROBABILITY:
                name = path.relative_to(corpus).as_posix()
                yield name, word.start, word.end, text, language


def write_items(path, words):
    """An item file of the words that a language has more than once."""
    words = list(words)
    counts = collections.Counter(word[3:] for word in words)
    lines = [COLUMNS]
    for name, start, end, text, language in words:
        if counts[text, language] > 1:
            lines += [
                f"{name}@{speed:g} {start / speed:.3f} {end / speed:.3f} "
                f"{text} - - {language}@{speed:g}"
                for speed in SPEEDS
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return len(lines) - 1


def load(corpus, rate, name):
    """`(1, samples)` of a file at a speed, `held_out/en/hello.flac@0.8`."""
    path, speed = name.rsplit("@", 1)
    audio = load_audio(corpus / path, rate)
    return soxr.resample(audio, float(speed), 1.0)[None]


def activations_of(tokenizer, layer):
    """A function from audio `(batch, samples)` to `(batch, frames, dim)`.

    Audio is padded to one of few lengths, each of which compiles once.
    """
    encoder = tokenizer.encoder
    encode = CompiledFunction(
        encoder, lambda audio, lengths: encoder.encode(audio, layer, lengths)
    )

    def activations(audio):
        batch, samples = audio.shape
        frames = -(-samples // encoder.hop_length)
        padded = padded_frames(frames) * encoder.hop_length
        audio = np.pad(audio, [(0, 0), (0, padded - samples)])
        x = encode(audio, np.full(batch, samples, "int32"))
        return np.asarray(ops.convert_to_numpy(x), "float32")[:, :frames]

    return activations


def layer_errors(corpus, items, tokenizer):
    """Yields each layer with its ABX errors, of standardised activations."""
    rate = tokenizer.sample_rate
    names = {item.file for item in read_items(items)}
    audio = {name: load(corpus, rate, name) for name in sorted(names)}
    for layer in range(1, tokenizer.encoder.num_masked_layers + 1):
        activations = activations_of(tokenizer, layer)
        found = {name: activations(a)[0] for name, a in audio.items()}
        joined = np.concatenate(list(found.values()))
        mean, std = joined.mean(0), joined.std(0)
        standardised = {n: (x - mean) / std for n, x in found.items()}
        yield layer, measure(items, standardised.__getitem__, tokenizer)


def cluster_errors(corpus, items, tokenizer, layer, counts, seed=0):
    """Yields each number of clusters with the ABX errors of its tokens."""
    rate = tokenizer.sample_rate
    names = {item.file for item in read_items(items)}
    crops = AudioCrops(corpus / "train", rate, 6.0, CROPS, BATCHES, seed=seed)
    activations = activations_of(tokenizer, layer)
    heard = [activations(crops[i]) for i in range(BATCHES)]
    heard = [x.reshape(-1, x.shape[-1]) for x in heard]  # (frames, dim)
    found = {
        name: activations(load(corpus, rate, name))[0] for name in sorted(names)
    }
    for count in counts:
        kmeans = KMeans(count, seed=seed)
        kmeans.fit(heard)

        def tokens(name, kmeans=kmeans):
            return ops.convert_to_numpy(kmeans(found[name]))

        yield count, measure(items, tokens, tokenizer)


def measure(items, features, tokenizer):
    rate = tokenizer.sample_rate / tokenizer.hop_length
    return abx(items, functools.cache(features), rate)


def print_errors(errors, what):
    print(f"| {what} | within | across |\n|---|---:|---:|")
    for number, found in errors:
        print(
            f"| {number} | {100 * found['within_error']:.1f} % "
            f"| {100 * found['across_error']:.1f} % |",
            flush=True,
        )
    print(f"\n{found['items']} items")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("words", "layers", "clusters"))
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("items", type=pathlib.Path, help="the item file")
    parser.add_argument("--asr", default="base", help="a Whisper model")
    parser.add_argument(
        "--every", type=int, default=6, help="one of so many files of training"
    )
    parser.add_argument("--preset", help="whose semantic tokenizer")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--clusters", type=int, nargs="+", default=[128])
    options = parser.parse_args()
    if options.what == "words":
        import faster_whisper

        recogniser = faster_whisper.WhisperModel(
            options.asr, device="cpu", compute_type="int8"
        )
        words = find_words(recogniser, options.corpus, options.every)
        print(write_items(options.items, words), "items in", options.items)
        return
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.preset)
    tokenizer = pipeline.semantic_tokenizer
    given = options.corpus, options.items, tokenizer
    if options.what == "layers":
        print_errors(layer_errors(*given), "layer")
    else:
        layer = options.layer or tokenizer.layer
        errors = cluster_errors(*given, layer, options.clusters)
        print_errors(errors, f"clusters of layer {layer}")


if __name__ == "__main__":
    main()
