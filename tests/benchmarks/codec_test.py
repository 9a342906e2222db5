import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks/codec.py"


@pytest.mark.large
def test_times_a_codec_and_reports(monkeypatch):
    spec = importlib.util.spec_from_file_location("codec_benchmark", PATH)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tiny = dict(channels=2, strides=(8, 40), embedding_dim=4, codebook_size=8)
    monkeypatch.setattr(script, "CODECS", {"tiny": tiny})
    offline = script.measure_offline(seconds=1, repeats=1)
    steps = script.measure_streaming(repeats=2)
    rates, step = offline["tiny"], steps["tiny"]
    both = 1 / (1 / rates["encode"] + 1 / rates["decode"])
    assert rates["both"] == pytest.approx(both)
    assert 0 < step["encode"] < 1000 and 0 < step["decode"] < 1000
    text = script.report(offline, {"other": 3.2}, steps, 0.25, cores=1)
    assert "| tiny | 0.0 M |" in text and "| other | | | | 3 |" in text
    assert "0.25 audio seconds per second" in text
