"""
Title: Look inside the tokens
Author: keras_audiolm contributors
Date created: 2026/11/27
Last modified: 2026/11/27
Description: What semantic and acoustic tokens each keep of a recording.
Accelerator: None
"""

"""
## Introduction

AudioLM writes sound down twice. **Acoustic tokens** are a codec's: from them
the recording comes back, voice and room included. **Semantic tokens** are the
clusters of an encoder that learned to guess hidden sound from what stands
around it: what is said, and little of who says it. Why both? [The
paper](https://arxiv.org/abs/2209.03143) answers with measurements; this
example answers by ear, with a few numbers. It takes tokens away, changes the
sound and sees which tokens notice, and listens to one token at a time.

Every number is computed as you read, with the preset that you chose. A small
preset's tokens separate words from voices less cleanly than large ones do.

## Setup

It needs Matplotlib. As a script, it is run from the top folder of the
repository, and writes sound and pictures into `runs/`; a notebook shows them
as well. The settings can be changed here or through environment variables.
"""

import os
import pathlib

# Any backend will do; set it before the first import of Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import soxr
from matplotlib.figure import Figure

from keras_audiolm import (
    AudioLMPipeline,
    load_audio,
    show_audio,
    show_figure,
    show_tokens,
)
from keras_audiolm.evaluation.codec import log_mel_distance

PRESET = os.environ.get("EXAMPLE_PRESET", "voices_small")
RECORDING = os.environ.get("EXAMPLE_RECORDING", "examples/recordings/en.flac")
OTHER = os.environ.get("EXAMPLE_OTHER", "examples/recordings/it.flac")
DURATION = float(os.environ.get("EXAMPLE_DURATION", 4.0))
OUT = pathlib.Path(os.environ.get("EXAMPLE_OUT", "runs/inside_the_tokens"))

pipeline = AudioLMPipeline.from_preset(PRESET)
sample_rate = pipeline.sample_rate
whole = load_audio(RECORDING, sample_rate)
recording = whole[: round(DURATION * sample_rate)]  # (samples,)
samples = len(recording)
duration = samples / sample_rate
tokens = pipeline.tokenize(recording)

show_audio(OUT / "recording.wav", recording, sample_rate)
show_tokens(OUT / "tokens.png", tokens, duration)

"""
Above: one row of semantic tokens. Below: a row for each level of the codec,
the coarsest on top. A colour is a token of its own row. Pauses show as stripes
of one colour; in speech, the semantic row changes slowly, the acoustic rows
all the time.

## How long a token lasts

A token that stays is a sound that is held. The more a row repeats itself, the
less there is to predict, and the longer the time that a language model sees in
the same number of tokens.
"""


def run_lengths(codes):
    """How many frames each run of equal codes lasts."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.diff(starts, append=len(codes))


rows = {
    "semantic": tokens.semantic,
    "first acoustic level": tokens.acoustic[:, 0],
    "last acoustic level": tokens.acoustic[:, -1],
}
figure = Figure(figsize=(6, 3), layout="constrained")
axes = figure.subplots()
for name, codes in rows.items():
    seconds = run_lengths(codes) * duration / len(codes)
    values, counts = np.unique(seconds, return_counts=True)
    axes.plot(1000 * values, counts / counts.sum(), marker="o", label=name)
    print(f"{name:>20}: {1000 * seconds.mean():.0f} ms a token")
axes.set(xlabel="duration of a token, ms", ylabel="share of tokens")
axes.legend()
show_figure(OUT / "durations.png", figure)

"""
## What each level of the codec adds

The codec quantizes what the levels before it left over. Decoding the first `k`
levels alone lets you hear each one's part: the first draws a sketch, and each
of the others fills in less than the one before it. The distance is between
log-mel spectra, of the recording and of what is decoded.
"""

distances = []
for k in range(1, tokens.acoustic.shape[1] + 1):
    decoded = pipeline.codec.decode(tokens.acoustic[None, :, :k], samples)[0]
    show_audio(OUT / f"levels-{k}.wav", decoded, sample_rate)
    distances.append(log_mel_distance(recording, decoded, sample_rate))
    print(f"{k} level(s): log-mel distance {distances[-1]:.2f}")

figure = Figure(figsize=(4, 3), layout="constrained")
axes = figure.subplots()
axes.plot(range(1, len(distances) + 1), distances, marker="o")
axes.set(xlabel="levels", ylabel="log-mel distance", ylim=(0, None))
show_figure(OUT / "levels.png", figure)

"""
## The semantic tokens alone

Semantic tokens cannot be decoded: the sound is no longer in them. But the
language models can dream up a sound that fits. Each seed gives another one:
what is said should stay, and the voice is drawn anew.
"""

voices = []
for seed in (0, 1):
    voice = pipeline.resynthesize(recording, seed=seed)
    show_audio(OUT / f"voice-{seed}.wav", voice, sample_rate)
    voices.append(voice)

"""
## Which tokens notice a change?

Now the other way round: change the sound, tokenize it again, and count how
many tokens stayed the same. A token that carries the words should not care
about loudness or about a start 5 ms later; one that carries the sound must.

Pauses are left out: they are alike everywhere. The faster copy is compared
frame by frame with the places that it plays. In the last row is a recording
that has nothing to do with the first: what agrees there does so by chance, and
the other rows must be held against it.
"""

FASTER = 1.1
delay = sample_rate // 200  # 5 ms
fast = soxr.resample(whole, FASTER * sample_rate, sample_rate)[:samples]
changed = {
    "half as loud": 0.5 * recording,
    "5 ms later": np.pad(recording, (delay, 0))[:samples],
    "10 % faster and higher": np.pad(fast, (0, samples - len(fast))),
    "through the codec": decoded,
    "another voice, seed 0": voices[0],
    "another voice, seed 1": voices[1],
    "another recording": load_audio(OTHER, sample_rate)[:samples],
}


def loud_frames(audio, frames):
    """Which frames are louder than the median, `(frames,)` bool."""
    pieces = np.array_split(audio, frames)
    power = np.array([np.mean(piece**2) for piece in pieces])
    return power > np.median(power)


def share_kept(before, after, heard, speed=1.0):
    """The share of equal codes where `after` is played at `speed`.

    Args:
        before, after: `(frames,)` or `(frames, levels)` int.
        heard: `(frames,)` bool. The frames of `before` that count.
        speed: float.

    Returns:
        float, or `(levels,)`.
    """
    places = np.round(np.arange(len(after)) * speed).astype("int")
    places = places[places < len(before)]
    same = after[: len(places)] == before[places]
    return np.mean(same[heard[places]], axis=0)


kept = {}
for name, audio in changed.items():
    speed = FASTER if name.startswith("10 %") else 1.0
    again = pipeline.tokenize(audio)
    semantic, acoustic = (
        share_kept(before, after, loud_frames(recording, len(before)), speed)
        for before, after in zip(tokens, again, strict=True)
    )
    kept[name] = [semantic, acoustic[0], acoustic[1:].mean()]

columns = "semantic", "first acoustic level", "other levels"
print(f"{'':24}", *(f"{column:>20}" for column in columns))
for name, shares in kept.items():
    print(f"{name:24}", *(f"{share:20.1%}" for share in shares))

figure = Figure(figsize=(8, 3.5), layout="constrained")
axes = figure.subplots()
places = np.arange(len(kept))
for i, column in enumerate(columns):
    heights = [shares[i] for shares in kept.values()]
    axes.barh(places + 0.25 * (i - 1), heights, height=0.25, label=column)
axes.set_yticks(places, kept)
axes.invert_yaxis()
axes.set(xlabel="share of tokens that stay the same", xlim=(0, 1))
axes.legend()
show_figure(OUT / "kept.png", figure)

"""
Look at the first two rows: a change of loudness and a shift that nobody hears
leave most semantic tokens as they are, and few acoustic ones. The codec does
the opposite: it is made to pass on the sound. The rows of another voice say
how well the preset does what it was told. Had it pronounced the semantic
tokens exactly, they would all return, and the acoustic ones would not; a small
preset gives back few of either kind.

## One token, many places

What does a token stand for? Take the semantic token that both recordings use
most, pauses left out, and play the sound around each of its places, first in
the one voice, then in the other. If it means something, they sound alike. Then
do the same with the token whose cluster is nearest to it, and with the
farthest one.
"""

MARGIN = 0.06  # seconds before and after a token, and of silence between them


def places_of(token, audio, codes):
    """The sound around each place of a token, joined."""
    hop = len(audio) / len(codes)
    margin = round(MARGIN * sample_rate)
    silence = np.zeros(margin, "float32")
    joined = [silence]
    for frame in np.flatnonzero(codes == token):
        start = max(round(frame * hop) - margin, 0)
        piece = audio[start : round((frame + 1) * hop) + margin]
        joined += [piece * np.hanning(len(piece)), silence]
    return np.concatenate(joined)


clips = [recording, changed["another recording"]]
codes = [pipeline.tokenize(clip).semantic for clip in clips]
size = pipeline.semantic_tokenizer.codebook_size
counts = np.array(
    [
        np.bincount(row[loud_frames(clip, len(row))], minlength=size)
        for clip, row in zip(clips, codes, strict=True)
    ]
)  # (2, size)
token = int(counts.min(axis=0).argmax())

# Clusters, from the nearest to the farthest of those that are heard here.
centroids = np.asarray(pipeline.semantic_tokenizer.kmeans.centroids)
distance = np.linalg.norm(centroids - centroids[token], axis=1)  # (size,)
order = [i for i in np.argsort(distance) if i != token and counts[:, i].any()]
for name, chosen in (
    ("token", token),
    ("nearest", order[0]),
    ("farthest", order[-1]),
):
    number = [int(np.sum(row == chosen)) for row in codes]
    print(f"{name}: {chosen}, {number[0]} and {number[1]} places")
    pairs = zip(clips, codes, strict=True)
    joined = [places_of(chosen, clip, row) for clip, row in pairs]
    show_audio(OUT / f"{name}.wav", np.concatenate(joined), sample_rate)

"""
## Next

- Other recordings: `EXAMPLE_RECORDING=mine.wav EXAMPLE_OTHER=yours.wav`. The
  same sentence by two speakers is the best test of the semantic tokens.
- Other tokenizers: `keras_audiolm.tokenizer_from` and
  `keras_audiolm.codec_from` load HuBERT, w2v-BERT 2.0, EnCodec, DAC and Mimi;
  see `docs/checkpoints.md`.
- `continue_speech.py` puts the tokens to use.
"""
