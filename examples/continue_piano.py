"""
Title: Continue piano with AudioLM
Author: keras_audiolm contributors
Date created: 2026/11/27
Last modified: 2026/11/27
Description: Give AudioLM four seconds of piano and let it play on.
Accelerator: None
"""

"""
## Introduction

AudioLM knows nothing of speech. Trained on piano, the same models learn what
goes on in music: which notes follow, how they are held and how the strings
ring. No score is involved, and no MIDI: from sound to sound.

One thing differs, as in [the paper](https://arxiv.org/abs/2209.03143), section
IV-I: the codec has three large levels, and the coarse stage predicts them all.
There is no fine stage.

This example uses `piano_small`, which runs on a laptop's CPU.

## Setup

As a script, it is run from the top folder of the repository, and writes what
it makes into `runs/`: sound as `.wav` and, where Matplotlib is installed, its
spectrogram as `.png`. A notebook shows them as well. The settings can be
changed here or through environment variables, for example
`EXAMPLE_RECORDING=mine.mp3 python examples/continue_piano.py`.
"""

import os
import pathlib

# Any backend will do; set it before the first import of Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

from keras_audiolm import AudioLMPipeline, load_audio, show_audio, show_tokens

PRESET = os.environ.get("EXAMPLE_PRESET", "piano_small")
RECORDING = os.environ.get(
    "EXAMPLE_RECORDING", "examples/recordings/piano.flac"
)
PROMPT_DURATION = float(os.environ.get("EXAMPLE_PROMPT_DURATION", 4.0))
DURATION = float(os.environ.get("EXAMPLE_DURATION", 8.0))
OUT = pathlib.Path(os.environ.get("EXAMPLE_OUT", "runs/continue_piano"))

"""
## The prompt

Four seconds are enough to tell the key, the tempo and the touch.
"""

pipeline = AudioLMPipeline.from_preset(PRESET)
sample_rate = pipeline.sample_rate

recording = load_audio(RECORDING, sample_rate)
prompt = recording[: round(PROMPT_DURATION * sample_rate)]  # (samples,)
prompt_duration = len(prompt) / sample_rate
show_audio(OUT / "prompt.wav", prompt, sample_rate)

tokens = pipeline.tokenize(prompt)
print("Semantic tokens:", tokens.semantic.shape, "(frames,)")
print("Acoustic tokens:", tokens.acoustic.shape, "(frames, levels)")
show_tokens(OUT / "tokens.png", tokens, prompt_duration)

"""
## Play on

Three continuations at once, each of which goes its own way. The dashed line is
where the prompt ends.
"""

continuations = pipeline.generate(
    prompt, duration=DURATION, batch_size=3, seed=0
)  # (3, samples)
for i, audio in enumerate(continuations, start=1):
    path = OUT / f"continuation-{i}.wav"
    show_audio(path, audio, sample_rate, line=prompt_duration)

"""
## Does it stay in key?

Fold the spectrum into the twelve pitch classes, C, C#, D and so on, over all
octaves, and shift the continuation's by 0 to 11 semitones. If it plays in the
prompt's key, it fits best unshifted. Only what is new is measured.
"""

NAMES = "C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"


def pitch_classes(audio):
    """The share of each pitch class in the sound of 80 Hz to 2 kHz, `(12,)`."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    frequencies = np.fft.rfftfreq(len(audio), 1 / sample_rate)  # Hz
    heard = (frequencies > 80) & (frequencies < 2000)
    # MIDI's numbers: 69 is the A of 440 Hz, and each octave has twelve.
    notes = np.round(69 + 12 * np.log2(frequencies[heard] / 440)).astype("int")
    shares = np.bincount(notes % 12, spectrum[heard] ** 2, minlength=12)
    return shares / shares.sum()


ours = pitch_classes(prompt)
loudest = np.argsort(ours)[:-4:-1]
print("Loudest in the prompt:", *(NAMES[i] for i in loudest))
for i, audio in enumerate(continuations, start=1):
    made = pitch_classes(audio[len(prompt) :])
    alike = [np.corrcoef(ours, np.roll(made, k))[0, 1] for k in range(12)]
    print(
        f"Continuation {i}: correlation {alike[0]:.2f}, and "
        f"{np.mean(alike[1:]):.2f} in the other keys; the best shift is "
        f"{int(np.argmax(alike))} semitones"
    )

"""
## The same piece, another touch

Semantic tokens hold what is played. Keep those of the recording and let the
coarse stage make up the sound: the melody and the rhythm remain, as far as the
semantic tokens heard them.
"""

for seed in (0, 1):
    again = pipeline.resynthesize(prompt, seed=seed)
    show_audio(OUT / f"another-touch-{seed}.wav", again, sample_rate)

"""
## How free it plays

The preset's temperatures (`pipeline.sampling`) are 1.0 of the semantic stage
and 0.85 of the parallel decoder. A higher one of the first makes it leave the
theme sooner.
"""

free = pipeline.generate(
    prompt,
    duration=DURATION,
    batch_size=3,
    temperature={"semantic": 1.2},
    seed=0,
)  # (3, samples)
for i, audio in enumerate(free, start=1):
    path = OUT / f"free-{i}.wav"
    show_audio(path, audio, sample_rate, line=prompt_duration)

"""
## Next

- A whole evening of it: `for chunk in pipeline.stream(prompt): ...` gives new
  audio as soon as it exists, in memory that does not grow.
- The same from the shell: `keras-audiolm continue prompt.wav -o out.wav
  --preset piano_small --duration 8`.
- `look_inside_the_tokens.py` shows what each kind of token holds.
"""
