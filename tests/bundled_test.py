"""The presets are found from a checkout and from the wheel."""

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from keras_audiolm import _bundled

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIND = """
import json
from keras_audiolm import _bundled
from keras_audiolm.presets import find_preset
names = _bundled.bundled_preset_names()
assert find_preset("piano") == _bundled.bundled_presets_dir() / "piano"
print(json.dumps([str(_bundled.bundled_presets_dir()), names]))
"""


def find_from(folder):
    """What a new interpreter finds with the package of `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    presets_dir, names = json.loads(done.stdout)
    return pathlib.Path(presets_dir), names


def copy_checkout(to):
    """A checkout without weights, so that its wheel is quickly built."""
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, to)
    ignore = shutil.ignore_patterns("__pycache__", "*.h5")
    for name in ("keras_audiolm", "presets"):
        shutil.copytree(ROOT / name, to / name, ignore=ignore)
    deep = to / "presets" / "voices_small" / "codec"
    deep.mkdir(parents=True, exist_ok=True)
    (deep / "model.weights.h5").write_bytes(b"weights")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """Folder with the unpacked wheel, as it would lie in site-packages."""
    built = tmp_path_factory.mktemp("built")
    command = "pip wheel --no-deps --no-build-isolation --no-index -q -w"
    subprocess.run(
        [sys.executable, "-m", *command.split(), str(built), str(checkout)],
        check=True,
    )
    (path,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(path) as file:
        file.extractall(folder)
    return folder


def test_found_from_a_checkout(checkout):
    presets_dir, names = find_from(checkout)
    assert presets_dir == checkout / "presets"
    assert {"librilight", "piano", "voices_small"} <= set(names)


def test_found_from_the_wheel(wheel):
    presets_dir, names = find_from(wheel)
    assert presets_dir == wheel / "keras_audiolm" / "presets"
    assert {"librilight", "piano", "voices_small"} <= set(names)


def test_wheel_holds_all_files(checkout, wheel):
    def files(folder, pattern):
        return {
            path.relative_to(folder)
            for path in folder.rglob(pattern)
            if path.is_file() and "build" not in path.parts
        }

    for pattern in ("*.py", "*.html"):
        package = files(checkout / "keras_audiolm", pattern)
        assert package and package <= files(wheel / "keras_audiolm", pattern)
    presets = files(checkout / "presets", "*")
    assert presets == files(wheel / "keras_audiolm" / "presets", "*")
    assert not (wheel / "tests").exists()


def test_missing_presets_say_where_they_were_looked_for(tmp_path, monkeypatch):
    module = tmp_path / "keras_audiolm" / "_bundled.py"
    monkeypatch.setattr(_bundled, "__file__", str(module))
    with pytest.raises(FileNotFoundError, match="presets' nor .*presets'"):
        _bundled.bundled_presets_dir()


def test_folders_without_metadata_are_no_presets(tmp_path, monkeypatch):
    for name in ("b", "a", "notes"):
        (tmp_path / "presets" / name).mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / "presets" / name / "metadata.json").write_text("{}")
    module = tmp_path / "keras_audiolm" / "_bundled.py"
    monkeypatch.setattr(_bundled, "__file__", str(module))
    assert _bundled.bundled_preset_names() == ["a", "b"]


def test_suggest():
    known = ["voices_small", "piano"]
    near = _bundled.suggest("voice_smal", known)
    assert near == " Did you mean 'voices_small'?"
    far = _bundled.suggest("x", known)
    assert far == " Known: 'piano', 'voices_small'."
