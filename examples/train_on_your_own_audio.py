"""
Title: Train AudioLM on your own audio
Author: keras_audiolm contributors
Date created: 2026/11/22
Last modified: 2026/11/29
Description: From a folder of recordings to a model that continues them.
Accelerator: GPU
"""

"""
## Introduction

AudioLM needs nothing but recordings: no transcripts and no labels. Its models
are trained one after the other, each on what the earlier ones make of the
audio:

| part | learns from | learns to |
|---|---|---|
| `codec` | audio | pack sound into acoustic tokens and unpack it |
| `semantic_tokenizer` | audio | hear what is said: w2v-BERT, then k-means |
| `semantic_lm` | semantic tokens | continue what is said |
| `coarse_lm` | both kinds | give it a voice: the first codec levels |
| `fine_lm` | acoustic tokens | add the details: the other levels |
| `parallel_decoder` | both kinds | do the work of these two in few passes |

This is [the paper's](https://arxiv.org/abs/2209.03143) recipe, with a decoder
that came later and that a preset may have or not. Here it runs on
a handful of recordings, to show the way in a few minutes; they are far too few
to learn to speak from. Give it your own folder for that: an hour of one voice
is a start, and more hours and more voices are better.

## Setup

As a script, it is run from the top folder of the repository. Everything can be
changed here or through environment variables: for example
`EXAMPLE_FOLDER=~/recordings EXAMPLE_EPOCHS=50 EXAMPLE_STEPS=500`.
"""

import os
import pathlib

# Any backend will do; set it before the first import of Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_audiolm import AudioLMPipeline, load_audio, show_audio
from keras_audiolm.data.audio import find_audio_files

FOLDER = pathlib.Path(os.environ.get("EXAMPLE_FOLDER", "examples/recordings"))
PRESET = os.environ.get("EXAMPLE_PRESET", "voices_small")
EPOCHS = int(os.environ.get("EXAMPLE_EPOCHS", 1))
STEPS = int(os.environ.get("EXAMPLE_STEPS", 10))
BATCH_SIZE = int(os.environ.get("EXAMPLE_BATCH_SIZE", 4))
DURATION = float(os.environ.get("EXAMPLE_DURATION", 2.0))
OUT = pathlib.Path(os.environ.get("EXAMPLE_OUT", "runs/my_voices"))

"""
## The recordings

A folder of wav, flac, ogg or mp3 files at any sample rate, in sub-folders or
not. Put each voice into a folder of its own: where a file is shorter than what
a model wants to hear at once, the crop goes on with another file of the same
folder, so that the voice stays the same. Files that cannot be read are left out
and counted. Keep a few recordings in another folder to validate on.
"""

files = find_audio_files(FOLDER)
print(f"{len(files)} recordings in {FOLDER}")

"""
## The models

A preset says how large everything is. We take the sizes of `voices_small`,
which train on a CPU, and leave its weights: `load_weights=False`. With its
weights, training would go on from them, which is the better start for speech.
`librilight` has the paper's sizes and wants several GPUs.
"""

pipeline = AudioLMPipeline.from_preset(PRESET, load_weights=False)
settings = {
    "epochs": EPOCHS,
    "steps_per_epoch": STEPS,
    "batch_size": BATCH_SIZE,
    # Tokens are computed once, and kept here.
    "token_dir": OUT / "tokens",
    # Run the script again after a stop: it goes on from here.
    "checkpoint_dir": OUT / "checkpoints",
}

"""
## The codec

SoundStream learns to reconstruct sound while two discriminators learn to tell
its sound from the real one. Watch the reconstruction loss go down, and listen:
nothing that comes later can sound better than the codec.
"""

pipeline.fit(FOLDER, parts=["codec"], **settings)

recording = load_audio(files[0], pipeline.sample_rate)
codes = pipeline.codec.encode(recording[None])  # (1, frames, Q)
decoded = pipeline.codec.decode(codes, len(recording))  # (1, samples)
show_audio(OUT / "original.wav", recording, pipeline.sample_rate)
show_audio(OUT / "codec.wav", decoded, pipeline.sample_rate)
print("Acoustic tokens:", tuple(codes.shape))

"""
## The semantic tokenizer

w2v-BERT hides spans of the sound from itself and guesses them; a k-means over
one of its layers then gives each 40 ms a token. Watch `mlm_accuracy`, and the
perplexity of the codes: when it stays near 1, everything gets the same code and
there is nothing to learn from.
"""

pipeline.fit(FOLDER, parts=["semantic_tokenizer"], **settings)

semantic = pipeline.semantic_tokenizer.encode(recording[None])
print("Semantic tokens:", tuple(semantic.shape))

"""
## The language models

The recordings are turned into tokens first, then the stages are trained on
them. A stage that has learnt nothing has a loss of log(codebook size). With
few recordings the validation loss turns up again soon: that is the moment to
stop. Without `parts`, `fit` trains what is still untrained.
"""

pipeline.fit(FOLDER, **settings)

"""
Called at the beginning, that one line would have trained them all. Settings may
differ by part: `epochs={"codec": 20, "semantic_lm": 50}`.

## Save it, load it, hear it

`save_to_preset` writes a folder of ordinary files, JSON and weights, which any
of the three backends loads.
"""

pipeline.save_to_preset(OUT / "preset")
pipeline = AudioLMPipeline.from_preset(str(OUT / "preset"))
print("Trained parts:", ", ".join(pipeline.trained_parts))

prompt = recording[: 3 * pipeline.sample_rate]
audio = pipeline.generate(prompt, duration=DURATION, seed=0)
prompt_duration = len(prompt) / pipeline.sample_rate
path = OUT / "continuation.wav"
show_audio(path, audio, pipeline.sample_rate, line=prompt_duration)
print(f"Listen to {path}")

"""
## Next

- The same from the shell: `keras-audiolm train FOLDER --from-scratch --out
  my_voices`, then `keras-audiolm continue prompt.wav -o out.wav --preset
  my_voices`.
- `corpora/debian_voices.py` makes the two hours of free studio speech that
  `voices_small` was trained on.
"""
