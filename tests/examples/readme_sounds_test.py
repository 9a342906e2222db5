"""The sounds of the README are the recordings, continued."""

import importlib.util
import pathlib
import sys

import numpy as np
import soundfile

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


def test_readme_sounds(tiny_preset, tmp_path, monkeypatch):
    path = EXAMPLES / "readme_sounds.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SOUNDS", tmp_path)
    options = ["--prompt-duration", "0.5", "--duration", "0.4"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["readme_sounds.py", str(tiny_preset), "en", "fr", *options],
    )
    module.main()
    name = pathlib.Path(tiny_preset).name
    made = {file.name for file in tmp_path.iterdir()}
    assert made == {
        f"{name}-{language}.{kind}"
        for language in ("en", "fr")
        for kind in ("flac", "png")
    }
    for language in ("en", "fr"):
        sound, rate = soundfile.read(tmp_path / f"{name}-{language}.flac")
        recording, _ = soundfile.read(EXAMPLES / f"recordings/{language}.flac")
        assert len(sound) == round(0.9 * rate)
        prompt = slice(0, round(0.5 * rate))
        np.testing.assert_allclose(sound[prompt], recording[prompt], atol=1e-4)
