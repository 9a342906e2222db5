import csv
import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm import StageLM, TokenLayout
from keras_audiolm.evaluation.zerospeech import sblimp, swuggy

SIZE = 12
VOICES = ("A", "B", "C")


@pytest.fixture(scope="module")
def lm():
    """A model that has seen counting: code after code, upwards by one."""
    keras.utils.set_random_seed(0)
    backbone = {
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "dropout": 0.0,
    }
    layout = TokenLayout.semantic(SIZE, 25.0)
    lm = StageLM(layout, backbone, crop_duration=1.0)
    codes = (np.arange(SIZE)[:, None] + np.arange(25)) % SIZE
    lm.compile(keras.optimizers.Adam(2e-2))
    codes = codes.astype("int32")[..., None]
    lm.fit({"semantic": codes}, batch_size=12, epochs=40, verbose=0)
    return lm


class DataSet:
    """A folder like ZeroSpeech's, of files that are named and empty."""

    def __init__(self, folder, kind):
        self.root = folder
        self.folder = folder / kind / "dev"
        self.folder.mkdir(parents=True)
        self.rows, self.tokens = [], {}

    def add(self, tokens, **row):
        name = f"file{len(self.rows)}"
        self.rows.append({"filename": name, **row})
        self.tokens[name] = np.asarray(tokens, "int32")
        (self.folder / f"{name}.wav").touch()

    def write(self):
        with open(self.folder / "gold.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        return self

    def tokenize(self, path):
        assert path.parent == self.folder and path.suffix == ".wav"
        return self.tokens[path.stem]


def counting(rng, length, mistakes=0):
    """Codes that go up by one, but where there are mistakes."""
    codes = (rng.integers(SIZE) + np.arange(length)) % SIZE
    places = rng.choice(np.arange(1, length), mistakes, replace=False)
    codes[places] = (codes[places] + rng.integers(2, SIZE, mistakes)) % SIZE
    return codes


def words(folder, mistakes=3, seed=0, count=24):
    """Words of which a mistake may be in the right one, too."""
    rng = np.random.default_rng(seed)
    data = DataSet(folder, "lexical")
    frequencies = itertools.cycle([0, 1, 4, 5, 20, 99, 100, 5000])
    for number, frequency in zip(range(count), frequencies, strict=False):
        length = int(rng.integers(3, 8))
        for voice, correct in itertools.product(VOICES, (1, 0)):
            wrong = rng.integers(0, 3) if correct else mistakes
            data.add(
                counting(rng, int(rng.integers(6, 20)), wrong),
                id=number,
                voice=voice,
                frequency=frequency if correct else "",
                word=f"word{number}",
                phones="W ER D",
                length=length,
                correct=correct,
            )
    rng.shuffle(data.rows)
    return data.write()


def sentences(folder, seed=0):
    rng = np.random.default_rng(seed)
    data = DataSet(folder, "syntactic")
    kinds = [("agreement", "a"), ("agreement", "b"), ("filler", "a")]
    for (kind, subtype), number in itertools.product(kinds, range(4)):
        for voice, correct in itertools.product(VOICES, (1, 0)):
            wrong = rng.integers(0, 3) if correct else 2
            data.add(
                counting(rng, int(rng.integers(6, 26)), wrong),
                id=number,
                voice=voice,
                type=kind,
                subtype=subtype,
                transcription="the dogs run",
                correct=correct,
            )
    return data.write()


def slow_scores(lm, data, normalise):
    """Each file alone, by the model's own loss."""
    scores = {}
    for name, codes in data.tokens.items():
        window = np.pad(codes, (0, 25 - len(codes)), constant_values=-1)
        inputs = {"semantic": window[None, :, None]}
        loss = lm.compute_loss(inputs, y_pred=lm(inputs), training=False)
        scores[name] = -float(ops.convert_to_numpy(loss))
        if not normalise:
            scores[name] *= len(codes)
    return scores


def slow_accuracy(data, scores, keys, chosen=lambda row: True):
    """The official order: pairs of a voice, then voices, then the rest."""
    by_item = {}
    for right, wrong in itertools.product(data.rows, data.rows):
        same = all(right[key] == wrong[key] for key in (*keys, "voice"))
        if right["correct"] and not wrong["correct"] and same and chosen(right):
            a, b = scores[right["filename"]], scores[wrong["filename"]]
            won = 0.5 if abs(a - b) < 1e-4 else float(a > b)
            name = tuple(right[key] for key in keys)
            by_item.setdefault(name, []).append(won)
    return {
        "accuracy": np.mean([np.mean(won) for won in by_item.values()]),
        "pairs": len(by_item),
    }


@pytest.mark.parametrize("normalise", [True, False])
def test_swuggy_agrees_with_a_slow_version(lm, tmp_path, normalise):
    data = words(tmp_path)
    result = swuggy(lm, tmp_path, data.tokenize)
    found = result["normalised" if normalise else "total"]
    scores = slow_scores(lm, data, normalise)

    def expected(chosen=lambda row: True):
        return slow_accuracy(data, scores, ("id",), chosen)

    assert found["accuracy"] == pytest.approx(expected()["accuracy"])
    assert 0.5 < found["accuracy"] < 1 and found["pairs"] == 24
    known = expected(lambda row: row["frequency"] > 0)
    assert found["in_vocabulary_accuracy"] == pytest.approx(known["accuracy"])
    assert found["in_vocabulary_pairs"] == known["pairs"] == 21
    bands = {"oov": (0,), "1-5": (1, 4), "6-20": (5,), "21-100": (20, 99)}
    bands[">100"] = (100, 5000)
    assert list(found["by_frequency"]) == list(bands)
    for name, band in bands.items():
        part = expected(lambda row, band=band: row["frequency"] in band)
        assert found["by_frequency"][name] == pytest.approx(part)
    for length in range(3, 8):
        part = expected(lambda row, length=length: row["length"] == length)
        assert found["by_length"][str(length)] == pytest.approx(part)
    counts = result["files"], result["skipped_files"], result["unpaired_files"]
    assert counts == (144, 0, 0)


def test_sblimp_agrees_with_a_slow_version(lm, tmp_path):
    data = sentences(tmp_path)
    result = sblimp(lm, tmp_path, data.tokenize)
    for name in ("normalised", "total"):
        scores = slow_scores(lm, data, name == "normalised")
        keys = ("type", "subtype", "id")
        expected = slow_accuracy(data, scores, keys)
        found = result[name]
        assert found["accuracy"] == pytest.approx(expected["accuracy"])
        assert found["pairs"] == expected["pairs"] == 12
        for kind in ("agreement", "filler"):
            part = slow_accuracy(
                data, scores, keys, lambda row, kind=kind: row["type"] == kind
            )
            assert found["by_type"][kind] == pytest.approx(part)
    assert result["total"] != result["normalised"]


def test_length_matters_to_the_total_alone(lm, tmp_path):
    """A right sentence that goes on longer loses what it has in total."""
    rng = np.random.default_rng(0)
    data = DataSet(tmp_path, "syntactic")
    for correct, length, mistakes in ((1, 25, 2), (0, 5, 1)):
        row = {"id": 0, "voice": "A", "type": "t", "subtype": "s"}
        data.add(counting(rng, length, mistakes), correct=correct, **row)
    data.write()
    result = sblimp(lm, tmp_path, data.tokenize)
    assert result["normalised"]["accuracy"] == 1
    assert result["total"]["accuracy"] == 0


def test_the_more_mistakes_the_easier(lm, tmp_path):
    accuracies = []
    for mistakes in (1, 2, 5):
        folder = tmp_path / str(mistakes)
        result = swuggy(lm, folder, words(folder, mistakes).tokenize)
        accuracies.append(result["normalised"]["accuracy"])
    assert (np.diff(accuracies) > 0.02).all() and accuracies[-1] > 0.9


# === What is skipped and refused ===


def test_same_tokens_are_a_tie_and_what_has_none_is_counted(lm, tmp_path):
    data = words(tmp_path, count=3)
    for row in data.rows:
        data.tokens[row["filename"]] = np.arange(5)
    odd = [r for r in data.rows if r["id"] == 0 and r["voice"] == "A"]
    data.tokens[odd[0]["filename"]] = np.zeros(0, int)
    result = swuggy(lm, tmp_path, data.tokenize)
    assert result["normalised"]["accuracy"] == 0.5
    assert result["total"]["pairs"] == 3
    counts = result["files"], result["skipped_files"], result["unpaired_files"]
    assert counts == (18, 1, 1)


def test_words_that_are_not_there_have_no_accuracy(lm, tmp_path):
    data = words(tmp_path, count=1)  # out of the vocabulary
    result = swuggy(lm, tmp_path, data.tokenize)["total"]
    assert result["in_vocabulary_accuracy"] is None
    assert result["in_vocabulary_pairs"] == 0
    assert list(result["by_frequency"]) == ["oov"]


def test_refuses_one_class_and_no_tokens(lm, tmp_path):
    data = words(tmp_path)
    with pytest.raises(ValueError, match="None of 144 files"):
        swuggy(lm, tmp_path, lambda path: [])
    data.rows = [{**row, "correct": 1} for row in data.rows]
    data.write()
    with pytest.raises(ValueError, match="No right file .* of 144"):
        swuggy(lm, tmp_path, data.tokenize)


def test_refuses_a_folder_that_is_not_whole(tmp_path):
    with pytest.raises(ValueError, match="lexical.*missing.*ZeroSpeech 2021"):
        swuggy(None, tmp_path, None)
    data = words(tmp_path)
    (data.folder / "file3.wav").unlink()
    with pytest.raises(ValueError, match="1 of the 144 .* file3.wav"):
        swuggy(None, tmp_path, None)
    data.rows = [{**row, "correct": "yes"} for row in data.rows]
    data.write()
    with pytest.raises(ValueError, match="must be 0 or 1.*'yes'"):
        swuggy(None, tmp_path, None)
    data.rows = [{"filename": "file0", "id": 0}]
    data.write()
    with pytest.raises(ValueError, match="'correct', 'frequency'"):
        swuggy(None, tmp_path, None)
