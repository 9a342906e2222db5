"""Do continuations have the voice of their prompts?

    pip install praat-parselmouth resemblyzer "setuptools<81"
    python benchmarks/voices_kept.py corpora/debian_voices \\
        --preset runs/voices_small --acoustic-decoder parallel

Held-out beginnings are continued as they are, by speakers that were heard in
training, and with other formants and another pitch, as an unseen speaker would
say them. Voices are compared by Resemblyzer's embeddings, prompts as they come
out of the codec.

* "kept": the nearest mean of the training recordings of a speaker and language
  is that of the prompt's speaker.
* "own prompt": the mean cosine of a continuation and its prompt.
* "nearer": how many are nearer to their prompt than to its other version. The
  two rows of a model that does not listen add up to about 100 %.
"""

import argparse
import collections
import pathlib
import sys

import keras_audiolm  # chooses the backend  # isort: skip
import numpy as np
import resemblyzer

from keras_audiolm.data.audio import load_audio
from keras_audiolm.evaluation.corpus import Corpus

sys.path.insert(
    0, str(pathlib.Path(__file__).parents[1] / "examples" / "corpora")
)

import perturb_voices  # noqa: E402

# Factors that the copies for training do not have.
UNSEEN = (
    perturb_voices.Change(formants=1.12, pitch=0.9),
    perturb_voices.Change(formants=0.88, pitch=1.12),
)
# Recordings of a voice whose embeddings are averaged.
ENROLLED = 40
BATCH_SIZE = 8


def mean_voices(encoder, corpus):
    """By speaker and language, what its training recordings are near to."""
    rows = collections.defaultdict(list)
    for row in corpus.split("train"):
        rows[row["speaker"], row["language"]].append(row)
    rng = np.random.default_rng(0)
    means = {}
    for voice, own in rows.items():
        chosen = rng.permutation(len(own))[:ENROLLED]
        clips = [
            load_audio(corpus.folder / own[i]["path"], corpus.sample_rate)
            for i in chosen
        ]
        long = [clip for clip in clips if len(clip) > corpus.sample_rate]
        mean = embed(encoder, long).mean(axis=0)
        means[voice] = mean / np.linalg.norm(mean)
    return means


def continue_all(pipeline, prompts, options):
    """`(prompts, samples)` of new audio alone."""
    parts = []
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = np.arange(start, start + BATCH_SIZE) % len(prompts)
        made = pipeline.generate(
            prompts[rows],
            duration=options.duration,
            seed=start,
            acoustic_decoder=options.acoustic_decoder,
            verbose=True,
        )
        parts.append(np.asarray(made)[:, prompts.shape[1] :])
    return np.concatenate(parts)[: len(prompts)]


def embed(encoder, clips):
    return np.stack([encoder.embed_utterance(clip) for clip in clips])


def measure(pipeline, corpus, options):
    """Prints the table."""
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    means = mean_voices(encoder, corpus)
    samples = round(options.prompt_duration * pipeline.sample_rate)
    pairs = corpus.long_enough(options.prompt_duration)
    as_it_is = np.stack([clip[:samples] for _, clip in pairs])
    unseen = np.stack(
        [
            perturb_voices.apply(
                UNSEEN[i % len(UNSEEN)], clip[:, None], pipeline.sample_rate
            )[:, 0]
            for i, clip in enumerate(as_it_is)
        ]
    )
    heard, made = [], []
    for prompts in (as_it_is, unseen):
        codec = pipeline.codec
        heard.append(embed(encoder, codec.decode(codec.encode(prompts))))
        made.append(embed(encoder, continue_all(pipeline, prompts, options)))
    speakers = [row["speaker"] for row, _ in pairs]
    nearest = [
        max(means, key=lambda voice: means[voice] @ one)[0] for one in made[0]
    ]
    right = np.mean([a == b for a, b in zip(nearest, speakers, strict=True)])
    print(f"{len(pairs)} prompts of {options.prompt_duration:g} s\n")
    print("| speaker | kept | own prompt | nearer |\n|---|---:|---:|---:|")
    for name, own, other in (("known", 0, 1), ("unseen", 1, 0)):
        near = np.sum(made[own] * heard[own], axis=1)
        far = np.sum(made[own] * heard[other], axis=1)
        kept = f"{right:.1%}" if own == 0 else ""
        nearer = np.mean(near > far)
        print(f"| {name} | {kept} | {near.mean():.3f} | {nearer:.1%} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("corpus", help="with manifest.csv")
    parser.add_argument("--preset", required=True)
    parser.add_argument(
        "--acoustic-decoder", choices=["cascade", "coarse", "parallel"]
    )
    parser.add_argument("--prompt-duration", type=float, default=3.0)
    parser.add_argument("--duration", type=float, default=7.0)
    options = parser.parse_args()
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.preset)
    measure(pipeline, Corpus(options.corpus, pipeline.sample_rate), options)


if __name__ == "__main__":
    main()
