"""Files that are written, and what a notebook gets to show of them."""

import pathlib
import sys
import types

import numpy as np
import pytest

from keras_audiolm import load_audio, show_audio, show_tokens
from keras_audiolm.evaluation import display
from keras_audiolm.generation import Tokens

TONE = (0.5 * np.sin(np.arange(8000) / 5)).astype("float32")
TOKENS = Tokens(np.arange(13), np.arange(75).reshape(25, 3))


@pytest.fixture
def shown(monkeypatch):
    """What a notebook is given: pairs of a kind and a file's name."""
    shown = []
    screen = types.SimpleNamespace(display=shown.append)
    for kind in ("Audio", "Image"):
        setattr(
            screen,
            kind,
            lambda filename, kind=kind: (kind, pathlib.Path(filename).name),
        )
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython", fake_ipython(shell=None))
    monkeypatch.setitem(sys.modules, "IPython.display", screen)
    return shown


def fake_ipython(shell):
    # Matplotlib asks for the version.
    return types.SimpleNamespace(
        get_ipython=lambda: shell, version_info=(9, 0, 0)
    )


@pytest.mark.parametrize(
    "module, expected",
    [
        (None, False),
        (fake_ipython(shell=None), False),  # imported by a plain script
        (fake_ipython(shell="a kernel's"), True),
    ],
)
def test_a_notebook_is_known(module, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert display.in_notebook() is expected


def test_a_notebook_shows_what_is_written(shown, tmp_path):
    show_audio(tmp_path / "new" / "tone.wav", TONE, 16000, line=0.2)
    show_tokens(tmp_path / "tokens.png", TOKENS, 0.5)
    assert shown == [
        ("Image", "tone.png"),
        ("Audio", "tone.wav"),
        ("Image", "tokens.png"),
    ]
    heard = load_audio(tmp_path / "new" / "tone.wav", 16000)
    np.testing.assert_allclose(heard, TONE, atol=1e-4)
    for picture in ("new/tone.png", "tokens.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_sound_alone(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(display, "has_matplotlib", lambda: False)
    show_audio(tmp_path / "tone.flac", TONE, 16000)
    show_tokens(tmp_path / "tokens.png", TOKENS, 0.5)
    assert shown == [("Audio", "tone.flac")]
    assert [path.name for path in tmp_path.iterdir()] == ["tone.flac"]


def test_a_script_only_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "in_notebook", lambda: False)
    show_audio(tmp_path / "tone.wav", TONE, 16000)
    assert {p.name for p in tmp_path.iterdir()} == {"tone.wav", "tone.png"}


def test_a_picture_that_fails_leaves_nothing(tmp_path):
    picture = display.figure(1, 1)
    picture.text(0.5, 0.5, "$\\no such symbol$")
    with pytest.raises(ValueError):
        display.show_figure(tmp_path / "x.png", picture)
    assert not list(tmp_path.iterdir())


def test_a_spectrogram_has_its_line_and_its_seconds():
    axes = display.spectrogram(TONE, 16000, line=0.2).axes[0]
    assert axes.lines[0].get_xdata() == [0.2, 0.2]
    assert axes.images[0].get_extent()[:2] == [0, 0.5]
    # The tone of 509 Hz stands in the lower half of the mel bands.
    assert axes.images[0].get_array()[:, 10].argmax() < 40
