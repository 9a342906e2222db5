"""Sound and tokens to look at and to listen to: files on disk which, in a
notebook, are also shown."""

import importlib.util
import os
import pathlib
import sys

import numpy as np

from keras_audiolm.data.audio import save_audio


def show_audio(path, audio, sample_rate, line=None):
    """Writes audio as `save_audio` does, and shows it.

    Beside it goes its spectrogram, a `.png`, where Matplotlib is installed. A
    notebook shows the picture and a player.

    Args:
        path: path that ends with `.wav` or `.flac`.
        audio: array `(samples,)` with values in [-1, 1].
        sample_rate: int, in Hz.
        line: float, optional. Seconds after which a line is drawn, such as
            the end of a prompt.

    Raises:
        ValueError: as `save_audio`.

    Example:

    ```python
    audio = pipeline.generate(prompt, duration=7, seed=0)
    show_audio("continuation.wav", audio, pipeline.sample_rate, line=3)
    ```
    """
    path = pathlib.Path(path)
    audio = np.asarray(audio)
    save_audio(path, audio, sample_rate)
    if has_matplotlib():
        picture = spectrogram(audio.reshape(-1), sample_rate, line)
        show_figure(path.with_suffix(".png"), picture)
    show_file(path)


def show_tokens(path, tokens, duration):
    """Draws both kinds of tokens over time, where Matplotlib is installed.

    A colour stands for a token of its own row: the same colour above the same
    colour means nothing.

    Args:
        path: path that ends with `.png`.
        tokens: what `AudioLMPipeline.tokenize` gives, of one recording.
        duration: float. Seconds that they last.
    """
    if not has_matplotlib():
        return
    picture = figure(8.0, 2.4)
    levels = tokens.acoustic.shape[1]
    top, bottom = picture.subplots(2, 1, sharex=True, height_ratios=(1, levels))
    rows = (
        (top, "semantic", tokens.semantic[None]),  # (1, frames)
        (bottom, "acoustic level", tokens.acoustic.T),  # (levels, frames)
    )
    for axes, name, codes in rows:
        axes.imshow(
            codes,
            aspect="auto",
            cmap="nipy_spectral",
            interpolation="nearest",
            extent=(0, duration, len(codes) + 0.5, 0.5),
        )
        axes.set_yticks(range(1, len(codes) + 1))
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    top.set_yticks([])
    bottom.set_xlabel("seconds")
    show_figure(path, picture)


def show_figure(path, picture):
    """Writes a picture, and shows it in a notebook.

    Args:
        path: path that ends with `.png`. Missing folders are made.
        picture: `matplotlib.figure.Figure`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.savefig(temporary, format="png", dpi=100)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    show_file(path)


def show_file(path):
    """In a notebook, shows a `.png` and plays anything else."""
    if not in_notebook():
        return
    from IPython.display import Audio, Image, display

    kind = Image if path.suffix == ".png" else Audio
    display(kind(filename=str(path)))


def in_notebook():
    # What runs a notebook's cells has imported IPython long before this.
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def has_matplotlib():
    return importlib.util.find_spec("matplotlib") is not None


def figure(width, height):
    """A `matplotlib.figure.Figure` of so many inches, which needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def spectrogram(audio, sample_rate, line=None):
    """A mel spectrogram, maybe with a line at a second.

    Args:
        audio: array `(samples,)`.
        sample_rate: int, in Hz.
        line: float, optional. Seconds.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from keras_audiolm.evaluation.codec import log_mel

    picture = figure(4.8, 1.9)
    axes = picture.subplots()
    axes.imshow(
        log_mel(audio, sample_rate).T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-9.0,
        vmax=3.0,
        extent=(0, len(audio) / sample_rate, 0, 80),
    )
    if line is not None:
        axes.axvline(line, color="white", linestyle="--")
    axes.set(xlabel="seconds", ylabel="mel band")
    return picture
