"""The tutorials run from beginning to end, on tiny models.

What runs are the cells of the notebooks, in this process: starting a kernel
for each takes longer than they do. The code is that of the scripts, since a
notebook must be what `make_notebooks.py` makes of one.
"""

import ast
import importlib.util
import pathlib

import nbformat
import numpy as np
import pytest

from keras_audiolm import (
    AudioLMPipeline,
    SoundStream,
    load_audio,
    save_audio,
)
from tests.tiny import SAMPLE_RATE, tiny_pipeline

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
NAMES = (
    "continue_piano",
    "continue_speech",
    "look_inside_the_tokens",
    "train_on_your_own_audio",
)


@pytest.fixture(scope="module")
def maker():
    path = EXAMPLES / "make_notebooks.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a notebook's cells with settings as environment variables."""

    def run(name, **settings):
        for key, value in {"out": tmp_path, **settings}.items():
            monkeypatch.setenv(f"EXAMPLE_{key.upper()}", str(value))
        # Where Jupyter starts the kernel; the first cell goes up from there.
        monkeypatch.chdir(EXAMPLES)
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        names = {"__name__": "__main__"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                code = compile(cell.source, f"{name}.ipynb:{cell.id}", "exec")
                exec(code, names)
        return names

    return run


def durations(folder):
    """Seconds of each recording, by name; each has its spectrogram."""
    recordings = sorted(folder.glob("*.wav"))
    assert all(path.with_suffix(".png").stat().st_size for path in recordings)
    return {
        path.stem: len(load_audio(path, SAMPLE_RATE)) / SAMPLE_RATE
        for path in recordings
    }


def test_continue_speech(run, tiny_preset, tmp_path, capsys):
    run(
        "continue_speech",
        preset=tiny_preset,
        prompt_duration=0.5,
        duration=0.4,
    )
    new = [
        f"{name}-{i}" for name in ("continuation", "bold") for i in (1, 2, 3)
    ]
    assert durations(tmp_path) == {
        "prompt": 0.5,
        **dict.fromkeys(new, 0.9),
        "other-voice-0": 0.5,
        "other-voice-1": 0.5,
        "sample": 0.4,
    }
    printed = capsys.readouterr().out
    assert "Semantic tokens: (13,)" in printed
    assert "Acoustic tokens: (25, 3)" in printed
    assert (tmp_path / "tokens.png").exists()


def test_continue_piano(run, tmp_path, capsys):
    # A chord of A, C# and E that is struck twice and dies away.
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    notes = np.array([[440.0], [554.4], [659.3]])
    chord = np.sin(2 * np.pi * notes * time).sum(0) * np.exp(-8 * (time % 0.25))
    save_audio(tmp_path / "a.wav", 0.3 * chord, SAMPLE_RATE)
    tiny_pipeline(fine_levels=0).save_to_preset(tmp_path / "tiny")
    out = tmp_path / "out"
    names = run(
        "continue_piano",
        preset=tmp_path / "tiny",
        recording=tmp_path / "a.wav",
        prompt_duration=0.5,
        duration=0.4,
        out=out,
    )
    new = [
        f"{name}-{i}" for name in ("continuation", "free") for i in (1, 2, 3)
    ]
    assert durations(out) == {
        "prompt": 0.5,
        **dict.fromkeys(new, 0.9),
        "another-touch-0": 0.5,
        "another-touch-1": 0.5,
    }
    assert {names["NAMES"][i] for i in names["loudest"]} == {"A", "C#", "E"}
    assert "Continuation 3: correlation" in capsys.readouterr().out


def test_look_inside_the_tokens(run, tiny_preset, tmp_path):
    names = run("look_inside_the_tokens", preset=tiny_preset, duration=0.5)
    heard = durations(tmp_path)
    for name in ("recording", "levels-1", "levels-3", "voice-0", "voice-1"):
        assert heard[name] == 0.5
    assert {"token", "nearest", "farthest"} <= set(heard)
    pictures = {"tokens", "durations", "levels", "kept"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}

    assert len(names["kept"]) == 7
    codes = np.array([4, 4, 2, 2, 2, 7])
    assert names["run_lengths"](codes).tolist() == [2, 3, 1]
    share = names["share_kept"]
    heard = np.array([True, False, True, True, True, False])
    assert share(codes, codes, heard) == 1
    assert share(codes, codes[::2], heard, speed=2.0) == 1
    assert share(codes, codes[::-1], heard) == 2 / 4
    loud = names["loud_frames"](np.array([0.0, 0.1, 0.5, -0.9]), frames=2)
    assert loud.tolist() == [False, True]


@pytest.fixture
def untrained_preset(tmp_path):
    """The sizes to train: as in `voices_small`, without discriminators."""
    pipeline = tiny_pipeline(trained=False)
    parts = {name: pipeline.part(name) for name in pipeline.part_names}
    parts["codec"] = SoundStream(
        channels=2,
        strides=(1,),
        embedding_dim=8,
        num_quantizers=3,
        codebook_size=16,
        transform="mdct",
    )
    AudioLMPipeline(parts).save_to_preset(tmp_path / "sizes")
    return tmp_path / "sizes"


@pytest.mark.large
def test_train_on_your_own_audio(run, untrained_preset, tmp_path):
    names = run(
        "train_on_your_own_audio",
        preset=untrained_preset,
        steps=1,
        batch_size=2,
        duration=0.4,
    )
    trained = AudioLMPipeline.from_preset(tmp_path / "preset")
    assert trained.trained_parts == trained.part_names
    assert len(names["files"]) >= 5
    heard = durations(tmp_path)
    prompt = len(names["prompt"]) / SAMPLE_RATE
    assert heard["continuation"] == pytest.approx(prompt + 0.4)
    assert heard["codec"] == heard["original"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_script_makes(name, maker):
    made = maker.make_notebook((EXAMPLES / f"{name}.py").read_text())
    committed = (EXAMPLES / f"{name}.ipynb").read_text()
    assert committed == made, "run: python examples/make_notebooks.py"
    # The same code, in the same order, as `python examples/{name}.py` runs.
    script = ast.parse((EXAMPLES / f"{name}.py").read_text())
    code = [node for node in script.body if not maker.is_text(node)]
    cells = nbformat.reads(made, as_version=4).cells
    cells = [cell.source for cell in cells if cell.cell_type == "code"]
    assert cells[0] == maker.SETUP
    assert [ast.dump(node) for node in code] == [
        ast.dump(node) for node in ast.parse("\n".join(cells[1:])).body
    ]


def test_every_tutorial_has_a_notebook_and_a_test(maker):
    assert tuple(path.stem for path in maker.tutorials()) == NAMES
    assert tuple(p.stem for p in sorted(EXAMPLES.glob("*.ipynb"))) == NAMES


def test_cells_alternate_as_they_are_written(maker):
    header = "\n".join(f"{name}: x" for name in maker.HEADER)
    source = f'"""\n{header}\n"""\n\nx = 1\n\n\ndef f():\n    """Doc."""\n'
    source += '\n\n"""\n## Then\n"""\n\ny = f"""z"""\n'
    cells = nbformat.reads(maker.make_notebook(source), as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in cells[2:]] == [
        ("code", 'x = 1\n\n\ndef f():\n    """Doc."""'),
        ("markdown", "## Then"),
        ("code", 'y = f"""z"""'),
    ]
    with pytest.raises(ValueError, match="begins with Title, Author"):
        maker.make_notebook('"""\nTitle: x\n"""\n')


@pytest.mark.parametrize("place", ["examples", ".", "elsewhere"])
def test_the_first_cell_finds_the_repository(
    place, maker, tmp_path, monkeypatch
):
    clone = tmp_path / "audiolm"
    (clone / "examples" / "recordings").mkdir(parents=True)
    start = tmp_path if place == "elsewhere" else clone / place
    monkeypatch.chdir(start)
    exec(maker.SETUP, {})
    assert pathlib.Path.cwd() == clone


def test_the_first_cell_asks_for_the_address(maker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="Fill in REPOSITORY"):
        exec(maker.SETUP, {})
