"""Where the presets that come with the package lie.

A checkout keeps them in the top-level `presets/` folder; the wheel carries the
same folder as `keras_audiolm/presets/`. Nothing heavy is imported here: the
command line checks a preset's name before it pays for Keras.
"""

import difflib
import pathlib


def bundled_presets_dir():
    """Returns the folder that holds the bundled presets, as a `Path`.

    Raises:
        FileNotFoundError: if neither place holds a preset, which means that
            the installation is damaged.
    """
    package = pathlib.Path(__file__).resolve().parent
    places = (package / "presets", package.parent / "presets")
    for folder in places:
        if any(folder.glob("*/metadata.json")):
            return folder
    looked = " nor ".join(repr(str(folder)) for folder in places)
    raise FileNotFoundError(
        f"The bundled presets are missing: neither {looked} holds a folder "
        "with a metadata.json. Install keras-audiolm again."
    )


def bundled_preset_names():
    """Returns the sorted names of the bundled presets."""
    files = bundled_presets_dir().glob("*/metadata.json")
    return sorted(file.parent.name for file in files)


def suggest(name, known):
    """Returns the end of an error message that helps with a misspelt name.

    Args:
        name: str. What was given.
        known: iterable of str. What would have been right.

    Returns:
        str. `" Did you mean 'x'?"`, or all the known names where none is
        close.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f" Did you mean {' or '.join(map(repr, close))}?"
    return f" Known: {', '.join(map(repr, known)) or 'none'}."
