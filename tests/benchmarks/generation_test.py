import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks/generation.py"


@pytest.mark.large
def test_times_the_language_models_and_reports(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("generation_benchmark", PATH)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tiny = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)
    monkeypatch.setattr(script, "SMALL", tiny)
    monkeypatch.setattr(script, "memory_rate", lambda: 25e9)
    monkeypatch.setattr(script, "product_rate", lambda: 139e9)
    script.main(["--repeats", "1", "--only", "semantic", "coarse", "training"])
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if "tokens/s" in line]
    assert [row.split(",")[0] for row in rows] == [
        "| semantic LM",
        "| coarse LM",
        "| training step",
        "| training step",
    ]
    assert "100 + 300 tokens" in rows[1]
    assert "1000 tokens" in rows[2] and "1400 tokens" in rows[3]
    assert "read at 25 GB/s" in text and "139 GFLOP/s" in text
