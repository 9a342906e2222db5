import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks/data.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("data_benchmark", PATH)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.large
def test_crops_are_timed_and_reported(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "FILE_SECONDS", 20.0)
    script.main(["--quick", "--only", "crops", "--hours", "0.02"])
    lines = capsys.readouterr().out.splitlines()
    cells = [c.strip() for c in lines[-2].split("|")[1:-1]]
    assert cells[0] == "44100 Hz" and all(float(c) > 0 for c in cells[1:4])
    shares = [float(c.removesuffix(" %")) for c in cells[4:]]
    assert all(share > 0 for share in shares) and sum(shares) <= 100


def rows_of(text):
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|--"))
    return [line.split("|")[1:-1] for line in lines[start + 1 :] if line]


@pytest.mark.large
def test_a_store_is_measured_in_a_process_of_its_own(
    script, monkeypatch, capsys
):
    monkeypatch.setattr(script, "GROWTH", (1,))
    script.main(["--quick", "--only", "store"])
    ((hours, *measured),) = rows_of(capsys.readouterr().out)
    assert float(hours) == 0.2
    assert all(float(cell) > 0 for cell in measured)


@pytest.mark.large
@pytest.mark.parametrize("section", ["tokenize", "long"])
def test_tokenizing_growing_corpora_is_reported(
    script, tiny_preset, monkeypatch, capsys, section
):
    monkeypatch.setattr(script, "GROWTH", (1, 2))
    monkeypatch.setattr(
        script,
        "measure_elsewhere",
        lambda what, *args: getattr(script, f"one_{what}")(*args),
    )
    command = ["--quick", "--only", section, "--preset", str(tiny_preset)]
    script.main(command)
    rows = rows_of(capsys.readouterr().out)
    assert [float(row[0]) / 0.001 for row in rows] == pytest.approx([1, 2])
    for _, seconds, rate, share, megabytes in rows:
        assert float(seconds) > 0 and float(rate) > 0
        assert 0 < float(share) <= 1 and float(megabytes) > 10
