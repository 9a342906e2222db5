import json

import numpy as np
import pytest
import soundfile

from keras_audiolm.evaluation import labels
from keras_audiolm.evaluation.corpus import Corpus


class Loudest:
    labels = ("quiet", "loud")

    def classify(self, clip):
        return np.array([0.5, np.abs(clip).max()])


def test_judge_counts_confusions():
    clips = [np.full(4, level) for level in (0.1, 0.9, 0.9, 0.9)]
    truth = ["quiet", "loud", "quiet", "never heard of"]
    result = labels.judge(Loudest(), clips, truth)
    assert result["confusion"] == [[1, 1], [0, 1]]
    assert (result["right"], result["total"], result["unknown"]) == (2, 3, 1)
    assert result["accuracy"] == pytest.approx(2 / 3)


def test_judge_of_nothing_has_no_accuracy():
    assert labels.judge(Loudest(), [], [])["accuracy"] is None


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "STEPS", {"speaker": 2, "language": 2})
    monkeypatch.setattr(labels, "CHANNELS", (2, 4))
    rng = np.random.default_rng(0)
    for name in ("train/a/1", "train/b/1", "held_out/a/2"):
        path = tmp_path / "corpus" / f"{name}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, rng.normal(0, 0.1, 9600), 8000)
    return Corpus(tmp_path / "corpus", 8000)


def test_a_classifier_is_trained_once(corpus, tmp_path, capfd, monkeypatch):
    first = labels.get_classifier("speaker", corpus, tmp_path)
    assert "Training a classifier" in capfd.readouterr().err
    again = labels.get_classifier("speaker", corpus, tmp_path)
    assert "Training" not in capfd.readouterr().err
    clip = corpus.clips[0]
    np.testing.assert_allclose(first.classify(clip), again.classify(clip))
    # Trained for longer, it is another one.
    monkeypatch.setitem(labels.STEPS, "speaker", 1)
    labels.get_classifier("speaker", corpus, tmp_path)
    assert "Training a classifier" in capfd.readouterr().err
    assert json.loads((tmp_path / "speaker.json").read_text())["steps"] == 1


def test_one_label_is_none(corpus, tmp_path):
    with pytest.raises(ValueError, match="two or more.*has none"):
        labels.get_classifier("language", corpus, tmp_path)
