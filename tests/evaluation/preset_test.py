"""A whole evaluation of a tiny preset, and the report of it."""

import csv
import json
import math
import re

import numpy as np
import pytest
import soundfile

from keras_audiolm import cli
from keras_audiolm.evaluation import SECTIONS, labels, preset, sections
from keras_audiolm.evaluation.corpus import Corpus
from keras_audiolm.evaluation.detector import make_detector
from keras_audiolm.evaluation.stages import (
    stage_crops,
    stage_loss,
    unigram_losses,
)
from keras_audiolm.training import tokenize_split
from tests.tiny import (
    CODEBOOK_SIZE,
    NUM_CLUSTERS,
    SAMPLE_RATE,
    tiny_pipeline,
)

pytestmark = pytest.mark.large


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
                rows.append([path, speaker, language, split, language])
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "speaker", "language", "split", "piece"])
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_pipeline()
    detector = make_detector(SAMPLE_RATE, channels=(2, 4))
    pipeline.add_part("detector", detector)
    pipeline.mark_trained("detector")
    return pipeline


@pytest.fixture(scope="module")
def tiny(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    pipeline.save_to_preset(folder)
    return folder


@pytest.fixture(scope="module")
def report(tiny, corpus, tmp_path_factory):
    """The folder of a report that the command line wrote."""
    # A speaker says one phone twice, and another once.
    items = tmp_path_factory.mktemp("items") / "tiny.item"
    items.write_text(
        "#file onset offset #phone prev-phone next-phone speaker\n"
        "0 0.1 0.3 a x y ann\n0 0.4 0.6 a x y ann\n0 0.7 0.9 b x y ann\n"
    )
    out = tmp_path_factory.mktemp("reports") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "STEPS", {"speaker": 3, "language": 3})
        patch.setattr(labels, "CHANNELS", (2, 4))
        patch.setattr(sections, "REFERENCE_CROPS", 8)
        code = cli.main(
            ["evaluate", str(tiny), str(corpus), "--report", str(out)]
            + ["--prompt-duration", "1", "--duration", "1", "--seeds", "2"]
            + ["--abx", str(items)]
        )
    assert code == 0
    return out


@pytest.fixture(scope="module")
def results(report):
    return json.loads((report / "report.json").read_text())


def test_every_section_is_measured(results):
    assert set(results) == {"about", *SECTIONS}
    assert not [s for s in SECTIONS if "left_out" in results[s]]
    use = results["codec"]["codebooks"]["train"]
    assert use["frames"] == 6 * 65 and use["size"] == CODEBOOK_SIZE
    assert list(results["codec"]["reconstruction"]) == ["2", "3"]
    assert results["codec"]["bits_per_second"] == {"2": 400.0, "3": 600.0}
    for name, levels in (("semantic_lm", 1), ("coarse_lm", 2), ("fine_lm", 1)):
        lm = results["language"]["stages"][name]
        assert len(lm["level_loss"]) == levels
        size = NUM_CLUSTERS if name == "semantic_lm" else CODEBOOK_SIZE
        assert lm["uniform_loss"] == pytest.approx(math.log(size))
        # Random weights know nothing; unigrams at least no less.
        assert lm["loss"] > lm["uniform_loss"] - 0.2
        assert lm["unigram_loss"] < lm["uniform_loss"] + 0.2
        assert lm["perplexity"] == pytest.approx(math.exp(lm["loss"]))
    order = results["language"]["order"]
    assert order["perplexity"]["tokens"] == 3 * 33
    assert [o["pairs"] for o in order["against"].values()] == [3, 3, 1]
    for kind in ("semantic tokens", "activations", "acoustic tokens"):
        assert 0 <= results["tokenizer"]["abx"][kind]["within_error"] <= 1


def test_continuations_are_counted(results):
    made = results["continuation"]
    assert made["prompts"] == 3
    speaker = made["heard"]["speaker"]
    assert speaker["labels"] == ["ann", "bob"] and speaker["chance"] == 0.5
    confusion = speaker["continuations, without the prompt"]["confusion"]
    assert np.sum(confusion, axis=1).tolist() == [4, 2]
    assert made["heard"]["language"]["labels"] == ["en", "es", "fr"]
    assert made["diversity"]["pairs"] == 3
    assert made["collapse"]["clips"] == 6
    memory = made["memorisation"]["continuations"]
    assert memory["sequences"] == 6
    assert memory["nearest_second"]["windows"] == 6
    assert made["frechet_audio_distance"]["continuations"]["fake_windows"] == 6
    detected = results["detector"]["nothing"]
    assert detected["real"] == 3 and detected["synthetic"] == 6
    assert results["resynthesis"]["files"] == 3
    assert "recognizer" in results["resynthesis"]["words"]["left_out"]


def test_the_page_holds_everything(report, results):
    page = (report / "report.html").read_text()
    text = re.sub('base64,[^"]*', "", page)
    assert not re.search(r"\b(nan|inf|None)\b", text, re.IGNORECASE)
    # Nothing is loaded from elsewhere.
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:", "#")) for s in sources)
    examples = len(list((report / "audio").glob("*.flac")))
    assert examples == 3 * 5
    assert page.count("<audio") == examples
    assert page.count("data:image/png") == examples + 2
    for section in SECTIONS:
        assert f'id="{section}"' in page
    share = results["continuation"]["collapse"]["share"]
    assert f"{100 * share:.1f} %" in page


def test_other_sections_keep_their_figures(
    report, results, pipeline, corpus, tmp_path
):
    """If the weights and the files are the same; tokens are used again."""
    found = preset.evaluate_preset(
        pipeline,
        Corpus(corpus, SAMPLE_RATE),
        report,
        "tiny",
        "again",
        only=["codec"],
    )
    assert found["about"]["command"] == "again"
    for section in SECTIONS:
        assert found[section] == results[section]
    path = report / "report.json"
    assert not preset.earlier_results(path, {"weights": "other"})


def test_a_corpus_without_labels_or_training_files(pipeline, corpus, tmp_path):
    """What needs them is left out, and said so."""
    found = preset.evaluate_preset(
        pipeline,
        Corpus(corpus / "held_out" / "en", SAMPLE_RATE),
        tmp_path,
        "tiny",
        "test",
        only=["language", "continuation"],
        settings=sections.Settings(prompt_duration=1.0, duration=0.5, seeds=1),
    )
    made = found["continuation"]
    assert made["heard"] == {}
    assert any("speaker" in note for note in made["notes"])
    assert "training" in made["memorisation"]["left_out"]
    assert "windows" in made["frechet_audio_distance"]["left_out"]
    assert made["diversity"]["same_prompt"] is None
    assert "unigram_loss" not in found["language"]["stages"]["coarse_lm"]
    page = (tmp_path / "report.html").read_text()
    assert "Left out: Telling a speaker needs" in page


def test_no_recording_is_long_enough(tiny, corpus, tmp_path, capsys):
    command = ["evaluate", str(tiny), str(corpus), "--report"]
    command += [str(tmp_path / "out"), "--only", "continuation"]
    assert cli.main([*command, "--prompt-duration", "60"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No held-out recording lasts 60 seconds" in error


# === Figures, against known answers ===


def test_unigram_losses_are_cross_entropies():
    known = [np.array([[0], [0]]), np.array([[1]])]
    # With one added to each of three codes: 3/6, 2/6, 1/6.
    expected = -np.mean(np.log([3 / 6, 1 / 6]))
    found = unigram_losses(known, np.array([[0], [2]]), 3)
    np.testing.assert_allclose(found, [expected])


def test_stage_losses_equal_those_of_evaluate(corpus, tmp_path):
    pipeline = tiny_pipeline()
    files = Corpus(corpus, SAMPLE_RATE).files("held_out")
    tokens = tokenize_split(pipeline, files, tmp_path)
    found = stage_loss(pipeline, "coarse_lm", tokens, tokens)
    lm = pipeline.coarse_lm
    lm.compile("sgd")
    crops = stage_crops(pipeline, "coarse_lm", tokens)
    expected = lm.evaluate(crops, verbose=0)[0]
    assert found["loss"] == pytest.approx(expected, abs=1e-4)
    assert np.mean(found["level_loss"]) == pytest.approx(found["loss"])
