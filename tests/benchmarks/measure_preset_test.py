import csv
import importlib.util
import json
import math
import pathlib

import numpy as np
import pytest
import soundfile

from tests.tiny import (
    CODEBOOK_SIZE,
    NUM_CLUSTERS,
    SAMPLE_RATE,
    tiny_pipeline,
)

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks/measure_preset.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_preset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two speakers, one of whom has two languages; noise of three colours."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 2), ("held_out", 1)):
        for colour, (speaker, language) in enumerate(
            [("ann", "en"), ("ann", "es"), ("bob", "fr")]
        ):
            for number in range(count):
                path = f"{split}/{language}/{number}.wav"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                noise = rng.normal(0, 0.1, round(1.3 * SAMPLE_RATE))
                soundfile.write(
                    folder / path, np.diff(noise, colour) / 4, SAMPLE_RATE
                )
                rows.append([path, speaker, language, split])
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "speaker", "language", "split"])
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    tiny_pipeline().save_to_preset(folder)
    return folder


# === Figures, against known answers ===


def test_unigram_losses_are_cross_entropies(script):
    known = np.array([[0], [0], [1]])
    # With one added to each of three codes: 3/6, 2/6, 1/6.
    expected = -np.mean(np.log([3 / 6, 1 / 6]))
    found = script.unigram_losses(known, np.array([[0], [2]]), 3)
    np.testing.assert_allclose(found, [expected])


def test_judge_counts_confusions(script):
    class Loudest:
        labels = ("quiet", "loud")

        def classify(self, clip):
            return np.array([0.5, np.abs(clip).max()])

    clips = [np.full(4, level) for level in (0.1, 0.9, 0.9)]
    result = script.judge(Loudest(), clips, ["quiet", "loud", "quiet"])
    assert result["confusion"] == [[1, 1], [0, 1]]
    assert (result["right"], result["total"]) == (2, 3)


def test_all_prompts_are_continued_whatever_the_batch(script):
    class Echo:
        def generate(self, prompt, duration, seed):
            assert len(prompt) == 2
            new = np.full((len(prompt), 1), seed, "float32")
            return np.concatenate([prompt, new], axis=1)

    args = script.parse(["corpus", "--out", "x.json", "--batch_size", "2"])
    args.seeds = 2
    prompts = np.arange(3, dtype="float32")[:, None]
    made = script.continue_prompts(Echo(), prompts, args)
    assert made[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert made[:, 1].tolist() == [0, 0, 2, 1000, 1000, 1002]


def test_corpus_without_manifest(script, tmp_path):
    with pytest.raises(ValueError, match="manifest.csv is missing"):
        script.Corpus(tmp_path, 16000)
    (tmp_path / "manifest.csv").write_text("path,split\na.wav,train\n")
    with pytest.raises(ValueError, match="'language', 'speaker'"):
        script.Corpus(tmp_path, 16000)


# === The whole script ===


@pytest.mark.large
def test_measures_a_preset(script, corpus, preset, tmp_path, capsys):
    out = tmp_path / "results" / "tiny.json"
    command = [str(corpus), "--preset", str(preset), "--out", str(out)]
    command += ["--quick", "--prompt_duration", "1", "--batch_size", "2"]
    script.CLASSIFIER_CHANNELS = (4, 8)
    results = script.main(command)
    assert json.loads(out.read_text()) == results
    assert set(script.SECTIONS) <= set(results)

    use = results["codec"]["codebooks"]["training"]
    assert use["frames"] == 6 * 65 and use["size"] == CODEBOOK_SIZE
    assert list(results["codec"]["reconstruction"]) == ["2", "3"]
    for name, levels in (("semantic_lm", 1), ("coarse_lm", 2), ("fine_lm", 1)):
        lm = results["lms"][name]
        assert len(lm["level_loss"]) == levels
        size = NUM_CLUSTERS if name == "semantic_lm" else CODEBOOK_SIZE
        assert lm["uniform_loss"] == pytest.approx(math.log(size))
        # Random weights know nothing; unigrams at least no less.
        assert lm["loss"] > lm["uniform_loss"] - 0.2
        assert lm["unigram_loss"] < lm["uniform_loss"] + 0.2

    made = results["continuations"]
    assert made["prompts"] == 3
    speaker = made["speaker"]
    assert speaker["labels"] == ["ann", "bob"] and speaker["chance"] == 0.5
    confusion = speaker["continuations, without the prompt"]["confusion"]
    assert np.sum(confusion, axis=1).tolist() == [2, 1]
    assert made["language"]["labels"] == ["en", "es", "fr"]
    assert results["speed"]["real_time_factor"] > 0

    printed = capsys.readouterr().out
    for text in ("PESQ-WB" if "pesq_wb" in printed else "SI-SDR", "coarse_lm"):
        assert text in printed
    assert "continuations, without the prompt" in printed
    check_what_is_kept(script, corpus, out, results, capsys)


def check_what_is_kept(script, corpus, out, results, capsys):
    """Figures of the same weights, and classifiers of the same files."""
    assert script.earlier_results(out, results["weights"]) == results
    other = script.earlier_results(out, "other")
    assert other == {"weights": "other"}

    folder = out.parent / "classifiers_quick"
    held_out = script.Corpus(corpus, SAMPLE_RATE)
    classifier = script.get_classifier("speaker", held_out, folder, 5)
    assert "Training the" not in capsys.readouterr().out
    truth = [row["speaker"] for row in held_out.split("held_out")]
    judged = script.judge(classifier, held_out.held_out, truth)
    expected = results["continuations"]["speaker"]["real, all held-out files"]
    assert judged == expected
    # Trained for longer, it is another one.
    script.get_classifier("speaker", held_out, folder, 2)
    assert "Training the speaker" in capsys.readouterr().out


def test_language_model_losses_equal_those_of_evaluate(script, corpus):
    pipeline = tiny_pipeline()
    held_out = script.Corpus(corpus, SAMPLE_RATE)
    tokens = pipeline.tokenize_many(held_out.held_out)

    class Tokens:
        semantic = [s for s, _ in tokens]
        acoustic = [a for _, a in tokens]
        voices = ["en", "es", "fr"]

    corpora = {"held_out": Tokens, "training": Tokens}
    found = script.measure_lm(pipeline, "coarse_lm", corpora)
    lm = pipeline.coarse_lm
    lm.compile("sgd")
    expected = lm.evaluate(
        script.lm_crops(pipeline, "coarse_lm", Tokens), verbose=0
    )[0]
    assert found["loss"] == pytest.approx(expected, abs=1e-4)
    assert np.mean(found["level_loss"]) == pytest.approx(found["loss"])
