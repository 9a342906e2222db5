"""The measures of other packages; each is tested where it is installed."""

import sys
import types

import numpy as np
import pytest

from keras_audiolm.evaluation import perceptual


def speech_like(seconds=3.0, pitch=120.0):
    time = np.arange(int(16000 * seconds)) / 16000
    envelope = np.sin(2 * np.pi * 3 * time).clip(0)
    voice = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 30))
    return (0.2 * envelope * voice).astype("float32")


@pytest.mark.parametrize("name", perceptual.MEASURES)
def test_less_alike_is_worse(name):
    try:
        measure = perceptual.make_measure(name, 16000)
    except perceptual.MissingPackage as error:
        pytest.skip(str(error))
    real = speech_like()
    noise = np.random.default_rng(0).normal(0, 1, len(real)).astype("float32")
    same, little, much = (
        measure(real, real + level * noise) for level in (0, 0.003, 0.1)
    )
    assert same > little > much


@pytest.mark.parametrize("name", perceptual.MEASURES)
def test_a_missing_package_is_named(name, monkeypatch):
    for module in ("pesq", "pystoi", "visqol", "resemblyzer"):
        monkeypatch.setitem(sys.modules, module, None)
    package = perceptual.MEASURES[name][1]
    with pytest.raises(perceptual.MissingPackage) as error:
        perceptual.make_measure(name, 16000)
    assert package in str(error.value)
    with pytest.warns(UserWarning, match="pip install"):
        assert perceptual.installed_measures([name], 16000) == {}


def test_bad_names_and_rates():
    with pytest.raises(ValueError, match="stoi.*'mos'"):
        perceptual.make_measure("mos", 16000)
    with pytest.raises(ValueError, match="8000 Hz"):
        perceptual.make_measure("visqol", 8000)
    assert "pesq_wb" not in perceptual.installed_measures(["pesq_wb"], 8000)


class Recognizer:
    """Hears one word for every second; the sign says which."""

    def __init__(self, *args, **kwargs):
        pass

    def transcribe(self, clip, **kwargs):
        seconds = clip.reshape(-1, 16000).mean(1)
        words = ["Yes," if s > 0 else "no." for s in seconds]
        return [types.SimpleNamespace(text=f" {w}") for w in words], None


def test_word_errors(monkeypatch):
    pytest.importorskip("jiwer")
    fake = types.SimpleNamespace(WhisperModel=Recognizer)
    monkeypatch.setitem(sys.modules, "faster_whisper", fake)
    words = perceptual.WordErrors()
    yes, no = np.ones(16000), -np.ones(16000)
    reference = words.transcribe(np.concatenate([yes, no, yes]))
    assert reference == "yes no yes"
    made = [np.concatenate([yes, yes, yes]), yes]
    # One of three words is another; what had no words counts for nothing.
    errors = words.rate([reference, ""], made)
    assert errors["word_error_rate"] == pytest.approx(1 / 3)


def test_word_errors_name_their_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(perceptual.MissingPackage, match="faster-whisper jiwer"):
        perceptual.WordErrors()
