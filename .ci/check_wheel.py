"""Loads each bundled preset from the installed wheel and generates.

Run in an empty folder by the Python of the environment under test.
"""

import pathlib
import sys

import numpy as np

import keras_audiolm
from keras_audiolm._bundled import bundled_preset_names, bundled_presets_dir
from keras_audiolm.presets import read_metadata

installed = pathlib.Path(keras_audiolm.__file__).resolve()
assert installed.is_relative_to(pathlib.Path(sys.prefix).resolve()), installed
assert bundled_presets_dir().is_relative_to(installed.parent)
for name in bundled_preset_names():
    if read_metadata(bundled_presets_dir() / name)["parts"] == ["codec"]:
        keras_audiolm.SoundStream.from_preset(name)
    else:
        keras_audiolm.AudioLMPipeline.from_preset(name)

pipeline = keras_audiolm.AudioLMPipeline.from_preset("voices_small")
rate = pipeline.sample_rate
time = np.arange(rate) / rate
prompt = (0.1 * np.sin(2 * np.pi * 220 * time)).astype("float32")
audio = pipeline.generate(prompt, duration=1.0, seed=0)
assert audio.shape == (2 * rate,), audio.shape
assert np.isfinite(audio).all()
print(f"keras_audiolm {keras_audiolm.__version__} works from {installed}")
