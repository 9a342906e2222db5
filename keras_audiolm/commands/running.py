"""What commands share once they run: loading, sampling, writing, saying."""

import contextlib
import os
import sys
import time

from keras_audiolm.presets import find_preset


def say(message):
    """Prints progress, apart from the results on standard output."""
    print(message, file=sys.stderr, flush=True)


def choose_backend(args):
    """Has Keras use `args.backend`, if that says one."""
    if args.backend:
        os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def load(class_name, args, **kwargs):
    """Checks the preset's name, then imports Keras and loads the preset.

    Args:
        class_name: str. Of the class whose `from_preset` is called.
        args: `preset`, `backend`.
        **kwargs: for `from_preset`.
    """
    preset = args.preset
    if "://" not in preset:
        find_preset(preset)  # a typing error should not cost the import
    choose_backend(args)
    say(f"Loading {preset} ...")
    start = time.perf_counter()
    import keras_audiolm

    cls = getattr(keras_audiolm, class_name)
    loaded = cls.from_preset(preset, **kwargs)
    say(f"Loaded in {time.perf_counter() - start:.1f} s.")
    return loaded


def read_recording(args, path, class_name="AudioLMPipeline"):
    """Loads the preset and reads `path` at its sample rate.

    The file is opened first: a typing error should not cost the loading.
    """
    from keras_audiolm.data import audio

    audio.open_audio(path).close()
    loaded = load(class_name, args)
    return loaded, audio.load_audio(path, loaded.sample_rate)


def check_output(path):
    """Refuses a file that cannot be written, before the work is done.

    Raises:
        ValueError: if `path` is a folder, or its folder is none or read-only.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file to write.")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{path} cannot be written: {folder} is not a folder that you may "
            "write to."
        )


def sample(args, method, *inputs, **options):
    """Calls a method that samples; returns the audio and the seconds taken.

    Standard output is kept for the results: progress goes elsewhere.
    """
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "overlap",
        "acoustic_decoder",
    ):
        options[name] = getattr(args, name)
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        audio = method(*inputs, verbose=True, **options)
    return audio, time.perf_counter() - start


def report(path, what, seconds, elapsed):
    """Prints where the sound is, how long it is and how long it took."""
    print(
        f"{path}: {what} in {elapsed:.1f} s, real-time factor "
        f"{elapsed / seconds:.2f} (below 1 is faster than real time)."
    )


def write_all(path, batch, sample_rate):
    """Writes each row of `(num, samples)`; returns what to call the files."""
    from keras_audiolm import save_audio

    if len(batch) == 1:
        save_audio(path, batch[0], sample_rate)
        return str(path)
    paths = [
        path.with_stem(f"{path.stem}-{i}") for i in range(1, len(batch) + 1)
    ]
    for name, audio in zip(paths, batch, strict=True):
        save_audio(name, audio, sample_rate)
    return f"{paths[0]} ... {paths[-1].name}"
