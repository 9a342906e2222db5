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

Given `--unseen`, a folder with a sub-folder for each of some people who were
not heard in training, it also continues their recordings. A voice is kept where
the nearest of the means of all people, heard in training or not, is that of the
prompt's. Three such voices, of telephones, are in Debian:

    for voice in es-co fr-armelle it-menardi-wav; do
        apt-get download asterisk-prompt-$voice
        dpkg -x asterisk-prompt-$voice*.deb raw/$voice
        mkdir -p telephone/$voice
        for file in $(find raw/$voice -not -path "*/silence/*" \\
                \\( -name "*.gsm" -o -name "*.wav" \\)); do
            ffmpeg -nostdin -y -i $file \\
                telephone/$voice/$(basename ${file%.*}).flac
        done
    done
"""

import argparse
import collections
import pathlib
import sys

import keras_audiolm  # chooses the backend  # isort: skip
import numpy as np
import resemblyzer

from keras_audiolm.data.audio import find_audio_files, load_audio
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
# Prompts of each unseen voice.
PROMPTS = 12
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
        means[voice] = mean_voice(encoder, clips)
    return means


def mean_voice(encoder, clips):
    """Of what is longer than a second."""
    long = [clip for clip in clips if len(clip) > resemblyzer.sampling_rate]
    mean = embed(encoder, long).mean(axis=0)
    return mean / np.linalg.norm(mean)


def nearest_voice(means, embedding):
    return max(means, key=lambda voice: means[voice] @ embedding)


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


def measure(pipeline, corpus, encoder, means, options):
    """Prints the table of the held-out recordings."""
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
    nearest = [nearest_voice(means, one)[0] for one in made[0]]
    right = np.mean([a == b for a, b in zip(nearest, speakers, strict=True)])
    print(f"{len(pairs)} prompts of {options.prompt_duration:g} s\n")
    print("| speaker | kept | own prompt | nearer |\n|---|---:|---:|---:|")
    for name, own, other in (("known", 0, 1), ("unseen", 1, 0)):
        near = np.sum(made[own] * heard[own], axis=1)
        far = np.sum(made[own] * heard[other], axis=1)
        kept = f"{right:.1%}" if own == 0 else ""
        nearer = np.mean(near > far)
        print(f"| {name} | {kept} | {near.mean():.3f} | {nearer:.1%} |")


def read_unseen(folder, seconds, rate):
    """By voice, prompts `(prompts, samples)` and the other recordings."""
    voices = {}
    rng = np.random.default_rng(0)
    for voice in sorted(path for path in folder.iterdir() if path.is_dir()):
        clips = [load_audio(file, rate) for file in find_audio_files(voice)]
        # Half a second more: not what ends in silence.
        long = [
            i
            for i, clip in enumerate(clips)
            if len(clip) > (seconds + 0.5) * rate
        ]
        chosen = rng.permutation(long)[:PROMPTS]
        prompts = [clips[i][: round(seconds * rate)] for i in chosen]
        others = [clips[i] for i in range(len(clips)) if i not in chosen]
        voices[voice.name] = np.stack(prompts), others
    return voices


def measure_unseen(pipeline, encoder, means, options):
    """Prints the table of the voices that were not heard in training."""
    voices = read_unseen(
        options.unseen, options.prompt_duration, pipeline.sample_rate
    )
    own = {
        name: mean_voice(encoder, others)
        for name, (_, others) in voices.items()
    }
    means = means | own
    print("\n| unseen voice | prompts | kept | own mean | nearest other |")
    print("|---|---:|---:|---:|---:|")
    for name, (prompts, _) in voices.items():
        made = embed(encoder, continue_all(pipeline, prompts, options))
        kept = np.mean([nearest_voice(means, one) == name for one in made])
        others = np.stack([means[voice] for voice in means if voice != name])
        print(
            f"| {name} | {len(prompts)} | {kept:.1%} | "
            f"{np.mean(made @ own[name]):.3f} | "
            f"{np.mean((made @ others.T).max(axis=1)):.3f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("corpus", help="with manifest.csv")
    parser.add_argument("--preset", required=True)
    parser.add_argument(
        "--acoustic-decoder", choices=["cascade", "coarse", "parallel"]
    )
    parser.add_argument(
        "--unseen",
        type=pathlib.Path,
        help="folder of people who were not heard in training",
    )
    parser.add_argument("--prompt-duration", type=float, default=3.0)
    parser.add_argument("--duration", type=float, default=7.0)
    options = parser.parse_args()
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.preset)
    corpus = Corpus(options.corpus, pipeline.sample_rate)
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    means = mean_voices(encoder, corpus)
    measure(pipeline, corpus, encoder, means, options)
    if options.unseen:
        measure_unseen(pipeline, encoder, means, options)


if __name__ == "__main__":
    main()
