"""What is imported when: the command line must answer at once."""

import json
import os
import subprocess
import sys

import pytest

from keras_audiolm import _backend

HEAVY = (
    "jax",
    "keras",
    "keras_hub",
    "numpy",
    "scipy",
    "soundfile",
    "tensorflow",
    "torch",
)


def modules_after(code):
    """The top-level modules that a new interpreter holds after `code`."""
    report = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = json.loads(done.stdout.splitlines()[-1])
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "code",
    [
        "import keras_audiolm",
        "import keras_audiolm.cli",
        "from keras_audiolm import cli\n"
        "try: cli.main(['continue', '--help'])\n"
        "except SystemExit: pass",
        "from keras_audiolm import cli\n"
        "assert cli.main(['sample', '-o', 'x.wav', '--preset', 'none']) == 1",
    ],
    ids=["package", "cli", "help", "unknown preset"],
)
def test_nothing_heavy_is_imported(code):
    assert modules_after(code).isdisjoint(HEAVY)


def test_no_backend_is_imported_but_the_chosen_one(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    names = "AudioLMPipeline, SoundStreamTrainer, SemanticTokenizer, StageLM"
    modules = modules_after(f"from keras_audiolm import {names}")
    assert {"jax", "keras"} <= modules
    assert modules.isdisjoint({"keras_hub", "tensorflow", "torch"})


def test_every_public_name_is_there():
    import keras_audiolm

    for name in keras_audiolm.__all__:
        assert getattr(keras_audiolm, name) is not None
    assert dir(keras_audiolm) == sorted(keras_audiolm.__all__)
    with pytest.raises(AttributeError, match="Pipelin"):
        keras_audiolm.Pipelin  # noqa: B018


@pytest.mark.parametrize(
    "chosen, keras_json, expected",
    [
        ("torch", None, "torch"),
        ("torch", '{"backend": "tensorflow"}', "torch"),
        (None, None, "jax"),
        # Left to Keras, which reads the file.
        (None, '{"backend": "torch"}', "None"),
        # What Keras writes by itself, whatever is in use.
        (None, '{"backend": "tensorflow"}', "jax"),
        (None, "not JSON", "jax"),
        (None, "[]", "jax"),
    ],
)
def test_jax_is_the_backend_unless_another_is_chosen(
    chosen, keras_json, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if chosen:
        monkeypatch.setenv("KERAS_BACKEND", chosen)
    if keras_json:
        (tmp_path / "keras.json").write_text(keras_json)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import keras_audiolm, os; print(os.environ.get('KERAS_BACKEND'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_an_installed_backend_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "")
    installed = {"torch"}
    monkeypatch.setattr(
        _backend.importlib.util, "find_spec", installed.__contains__
    )
    _backend.choose_backend()
    assert os.environ["KERAS_BACKEND"] == "torch"
    installed.clear()
    monkeypatch.setenv("KERAS_BACKEND", "")
    _backend.choose_backend()
    assert os.environ["KERAS_BACKEND"] == "jax"  # named in the error
