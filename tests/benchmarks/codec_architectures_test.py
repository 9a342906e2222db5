import importlib.util
import json
import pathlib

import numpy as np
import pytest
import soundfile

import keras_audiolm

PATH = pathlib.Path(__file__).parents[2] / "benchmarks/codec_architectures.py"
RATE = 16000


@pytest.fixture
def script(monkeypatch):
    """The benchmark, with a codec that trains in seconds."""
    spec = importlib.util.spec_from_file_location("codec_architectures", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = dict(channels=2, strides=(8, 40), embedding_dim=4)
    small = dict(num_quantizers=2, codebook_size=16)
    monkeypatch.setattr(module, "ARCHITECTURES", {"wave": tiny})
    monkeypatch.setattr(module, "QUANTIZER", small)
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    monkeypatch.setattr(module, "STEPS_PER_EPOCH", 2)
    return module


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = ["path,split,language"]
    for split in ("train", "held_out"):
        (folder / split).mkdir()
        path = f"{split}/0.flac"
        noise = rng.normal(0, 0.1, 2 * RATE).clip(-1, 1)
        soundfile.write(folder / path, noise, RATE)
        rows.append(f"{path},{split},en")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.large
def test_trains_goes_on_and_makes_a_table(script, corpus, tmp_path, capsys):
    out = tmp_path / "wave"

    def train(minutes):
        arguments = ["--architecture", "wave", "--out", str(out)]
        arguments += ["--minutes", str(minutes), "--alone", "0.5"]
        script.main(["train", str(corpus), *arguments])

    # Each part of the budget is one epoch: a step takes longer than that.
    train(1e-4)
    log = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert [line["judged"] for line in log] == [False, True][: len(log)]
    first = (out / "result.json").read_bytes()
    train(1e-4)  # nothing is left of the budget
    assert len((out / "log.jsonl").read_text().splitlines()) == len(log)
    again = json.loads((out / "result.json").read_bytes())
    assert again["levels"] == json.loads(first)["levels"]
    assert len(again["levels"]) == 2 and again["best"] == again["levels"][1]
    capsys.readouterr()
    script.main(["table", str(out)])
    printed = capsys.readouterr().out
    card = tmp_path / "card.md"
    card.write_text("# A codec\n")
    exported = tmp_path / "preset"
    arguments = [str(out), "--card", str(card), "--out", str(exported)]
    script.main(["export", *arguments])
    codec = keras_audiolm.SoundStream.from_preset(exported)
    assert codec.num_quantizers == 2
    assert (exported / "README.md").read_text() == "# A codec\n"
    assert "| wave, 0.0 M, 0.0001 minutes | " in printed
    assert "| 2 levels | " in printed and "| en | " in printed

    on = tmp_path / "on"
    arguments = ["--architecture", "wave", "--out", str(on), "--alone", "1"]
    arguments += ["--minutes", "1e-4", "--learning-rate", "0"]
    script.main(["train", str(corpus), *arguments, "--start", str(exported)])
    trained = script.make_codec("wave")
    trained.build()
    trained.load_weights(on / "codec.weights.h5")
    for a, b in zip(
        codec.trainable_weights, trained.trainable_weights, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_plots_the_curves_of_runs(script, tmp_path):
    pytest.importorskip("matplotlib")
    line = dict(minutes=1.0, reconstruction_loss=2.0, judged=True)
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    result = dict(architecture="wave", best={})
    (tmp_path / "result.json").write_text(json.dumps(result))
    script.main(["plot", str(tmp_path), "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_opus_keeps_time(script):
    pytest.importorskip("av")
    time = np.arange(2 * RATE) / RATE
    clip = np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * 2 * time)
    clip = (0.5 * clip).astype("float32")[: 2 * RATE - 77]
    sizes = []
    for bit_rate in (6000, 48000):
        made, bits = script.through_opus(clip, bit_rate)
        assert made.shape == clip.shape
        # A delay that was not taken off would make it twice as large.
        assert np.abs(made - clip).mean() < 0.5 * np.abs(clip).mean()
        sizes.append(bits / len(clip) * RATE)
    assert 3000 < sizes[0] < 9000 and 20_000 < sizes[1] < 90_000
