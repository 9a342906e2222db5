"""
Title: Continue speech with AudioLM
Author: keras_audiolm contributors
Date created: 2026/11/22
Last modified: 2026/11/29
Description: Give AudioLM three seconds of a voice and let it go on speaking.
Accelerator: None
"""

"""
## Introduction

AudioLM ([Borsos et al., 2022](https://arxiv.org/abs/2209.03143)) generates
audio the way a language model generates text: sound becomes tokens, a
Transformer predicts the next ones, and the tokens become sound again. It never
sees a transcript. Two kinds of tokens share the work:

- **Semantic tokens** come from a w2v-BERT encoder and a k-means on top, 25 a
  second. They carry what is said and little of who says it.
- **Acoustic tokens** come from the SoundStream codec, several levels at 50 a
  second. They carry the voice and the room, and they can be decoded.

Three language models go from one to the other: the *semantic* one continues
what is said, the *coarse* one gives it the voice of the prompt, and the *fine*
one adds the details. A *parallel decoder*
([SoundStorm](https://arxiv.org/abs/2305.09636)) may stand in for the last two:
it fills in all acoustic tokens of a window in a few passes. The preset here has
both. It sounds best by its coarse stage alone, and takes the others where told
`acoustic_decoder="cascade"` or `"parallel"`.

This example uses `voices_small`, a preset that comes with the package and runs
on a laptop's CPU.

## Setup

As a script, it is run from the top folder of the repository, and writes what
it makes into `runs/`: sound as `.wav` and, where Matplotlib is installed, its
spectrogram as `.png`. A notebook shows them as well. The settings can be
changed here or through environment variables, for example `EXAMPLE_DURATION=20
python examples/continue_speech.py`.
"""

import os
import pathlib

# Any backend will do; set it before the first import of Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_audiolm import AudioLMPipeline, load_audio, show_audio, show_tokens

PRESET = os.environ.get("EXAMPLE_PRESET", "voices_small")
RECORDING = os.environ.get("EXAMPLE_RECORDING", "examples/recordings/en.flac")
PROMPT_DURATION = float(os.environ.get("EXAMPLE_PROMPT_DURATION", 3.0))
DURATION = float(os.environ.get("EXAMPLE_DURATION", 7.0))
OUT = pathlib.Path(os.environ.get("EXAMPLE_OUT", "runs/continue_speech"))

"""
## Load the pipeline and a prompt

`AudioLMPipeline` holds the models. `from_preset` returns at once: each
model is built when it is first used. `load_audio` reads wav, flac, ogg and mp3
and resamples to what the pipeline wants.
"""

pipeline = AudioLMPipeline.from_preset(PRESET)
sample_rate = pipeline.sample_rate
print("Trained parts:", ", ".join(pipeline.trained_parts))

recording = load_audio(RECORDING, sample_rate)
prompt = recording[: round(PROMPT_DURATION * sample_rate)]  # (samples,)
prompt_duration = len(prompt) / sample_rate
show_audio(OUT / "prompt.wav", prompt, sample_rate)

"""
## What the model sees

`tokenize` shows the two token streams. There are far fewer tokens than
samples, which is what makes long-range structure learnable.
"""

tokens = pipeline.tokenize(prompt)
print("Samples:        ", prompt.shape)
print("Semantic tokens:", tokens.semantic.shape, "(frames,)")
print("Acoustic tokens:", tokens.acoustic.shape, "(frames, levels)")
print("The first semantic tokens:", tokens.semantic[:10])
show_tokens(OUT / "tokens.png", tokens, prompt_duration)

"""
## Continue it

`generate` returns the prompt and exactly `duration` new seconds. The first
call compiles; later ones with the same lengths do not. A batch of three goes
through the models together, and each row goes its own way.
"""

continuations = pipeline.generate(
    prompt, duration=DURATION, batch_size=3, seed=0
)  # (3, samples)
for i, audio in enumerate(continuations, start=1):
    path = OUT / f"continuation-{i}.wav"
    show_audio(path, audio, sample_rate, line=prompt_duration)
print("Continuations:", continuations.shape)

"""
The dashed line is where the prompt ends. The same seed gives the same sound,
every time.

## How adventurous it is

Each stage samples with a temperature. The defaults are what the preset keeps,
`pipeline.sampling`, and otherwise the paper's: 0.6 for the semantic stage, 0.8
for the coarse and 0.6 for the fine one. A higher semantic temperature makes it
wander in what it says; a higher coarse one makes it less steady in how it
sounds. `top_k` and `top_p` cut off the unlikely tokens.
"""

print("Of this preset:", pipeline.sampling)

bold = pipeline.generate(
    prompt,
    duration=DURATION,
    batch_size=3,
    temperature={"semantic": 1.1, "coarse": 1.0},
    top_p=0.95,
    seed=0,
)  # (3, samples)
for i, audio in enumerate(bold, start=1):
    path = OUT / f"bold-{i}.wav"
    show_audio(path, audio, sample_rate, line=prompt_duration)

"""
## Keep the words, sample the voice

To hear what the semantic tokens carry, keep those of a recording and sample
everything else: this is the paper's *acoustic generation*. The result says
much the same in a voice that the model makes up.
"""

for seed in (0, 1):
    other_voice = pipeline.resynthesize(prompt, seed=seed)
    show_audio(OUT / f"other-voice-{seed}.wav", other_voice, sample_rate)

"""
## Sound from nothing

Without a prompt, the semantic stage starts from its start token alone.
"""

sample = pipeline.generate(duration=DURATION, seed=0)  # (samples,)
show_audio(OUT / "sample.wav", sample, sample_rate)
print("Written:", *sorted(path.name for path in OUT.glob("*.wav")))

"""
## Next

- The same from the shell: `keras-audiolm continue prompt.wav -o out.wav
  --duration 7 --seed 0`.
- `look_inside_the_tokens.py` takes the tokens apart: which of them hold the
  words, and which the voice.
- `train_on_your_own_audio.py` trains all models on a folder of yours.
- `presets/voices_small/README.md` says what this preset was trained on, and
  what it does well and badly.
"""
