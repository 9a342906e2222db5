import collections

import numpy as np
import pytest
import soundfile

from benchmarks import word_abx
from keras_audiolm.evaluation.abx import read_items
from tests.tiny import SAMPLE_RATE, tiny_semantic_tokenizer

Word = collections.namedtuple("Word", "word start end probability")
Segment = collections.namedtuple("Segment", "words")


class Recogniser:
    """Hears the same in each file: two words, one that it is unsure of, and
    one that is too short."""

    def transcribe(self, path, **settings):
        assert settings["language"] == "en"
        words = [
            Word(" Hello,", 0.1, 0.5, 0.9),
            Word(" you.", 0.6, 0.9, 0.9),
            Word(" there", 0.9, 1.2, 0.1),
            Word(" a", 1.2, 1.3, 0.9),
        ]
        return [Segment(words)], None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, count in (("held_out", 1), ("train", 4)):
        (folder / split / "en").mkdir(parents=True)
        for number in range(count):
            noise = rng.normal(0, 0.1, round(1.5 * SAMPLE_RATE))
            path = folder / split / "en" / f"{number}.wav"
            soundfile.write(path, noise, SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def items(corpus):
    path = corpus / "words.item"
    words = word_abx.find_words(Recogniser(), corpus, every=4)
    word_abx.write_items(path, words)
    return path


def test_words_stand_in_the_copies_at_other_speeds(items):
    found = read_items(items)
    # Of two files, two words each at three speeds.
    assert len(found) == 2 * 2 * 3
    assert {item.phone for item in found} == {"hello", "you"}
    slow = [item for item in found if item.file == "held_out/en/0.wav@0.8"]
    assert [(item.onset, item.offset) for item in slow] == [
        (0.125, 0.625),
        (0.75, 1.125),
    ]
    assert {item.speaker for item in slow} == {"en@0.8"}


def test_errors_of_layers_and_clusters(corpus, items, monkeypatch):
    monkeypatch.setattr(word_abx, "BATCHES", 1)
    monkeypatch.setattr(word_abx, "CROPS", 2)
    tokenizer = tiny_semantic_tokenizer()
    given = corpus, items, tokenizer
    layers = dict(word_abx.layer_errors(*given))
    assert list(layers) == [*range(1, tokenizer.encoder.num_masked_layers + 1)]
    clusters = dict(word_abx.cluster_errors(*given, 1, [1, 3]))
    for errors in (*layers.values(), *clusters.values()):
        assert 0 <= errors["across_error"] <= 1
    # One cluster tells nothing from nothing.
    assert clusters[1]["within_error"] == clusters[1]["across_error"] == 0.5
