import json
import math

import numpy as np
import pytest

from keras_audiolm.evaluation.listening_score import (
    rate,
    score_listening_test,
)
from keras_audiolm.evaluation.listening_test import write_listening_test

NAMES = ("01.wav", "02.wav", "03.wav", "04.wav", "05.wav", "06.wav")
REAL = (True, False, False, True, False, True)


@pytest.fixture
def folder(tmp_path):
    """A test of six clips of noise."""
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (len(REAL), 4000)).astype("float32")
    folder = tmp_path / "test"
    write_listening_test(folder, clips, np.array(REAL), 8000, 0.2, seed=0)
    return folder


def answers(folder, real, rater="", names=NAMES, seal=None):
    """The path of what the page would export."""
    seal = seal or (folder / "seal.txt").read_text().strip()
    rated = {
        name: {"real": one, "time": "2026-01-01T00:00:00.000Z"}
        for name, one in zip(names, real, strict=False)
    }
    path = folder.parent / f"answers-{rater}.json"
    path.write_text(
        json.dumps({"seal": seal, "rater": rater, "answers": rated})
    )
    return path


def test_counts_what_is_right_by_rater_and_together(folder):
    files = [
        answers(folder, REAL, "all right"),
        answers(folder, [not real for real in REAL[:4]], "all wrong"),
        answers(folder, [True] * 6, "says real"),
    ]
    result = score_listening_test(folder, files)
    assert result["real"] == ["01.wav", "04.wav", "06.wav"]
    found = [
        (one["rater"], one["correct"], one["rated"], one["unrated"])
        for one in result["raters"]
    ]
    assert found == [
        ("all right", 6, 6, 0),
        ("all wrong", 0, 4, 2),
        ("says real", 3, 6, 0),
    ]
    everyone = result["all"]
    assert (everyone["correct"], everyone["rated"]) == (9, 16)
    assert everyone["unrated"] == 2
    assert everyone["accuracy"] == 9 / 16
    # Two tails of 6 and of 4 throws of a coin; the middle.
    p_values = [one["p_value"] for one in result["raters"]]
    assert p_values == pytest.approx([2 / 2**6, 2 / 2**4, 1.0])


def test_p_value_and_interval_are_those_of_the_binomial_distribution():
    """Against sums of the distribution itself."""

    def probability(counts, n, p):
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    scored = rate(27, 40, 50)
    assert (scored["accuracy"], scored["unrated"]) == (27 / 40, 10)
    tails = [*range(0, 14), *range(27, 41)]
    assert scored["p_value"] == pytest.approx(probability(tails, 40, 0.5))
    low, high = scored["interval"]
    assert probability(range(27, 41), 40, low) == pytest.approx(0.025)
    assert probability(range(0, 28), 40, high) == pytest.approx(0.025)


def test_the_papers_p_value_is_one_sided():
    """512 of 1000 is said to have 0.23."""
    tail = sum(math.comb(1000, k) for k in range(512, 1001)) / 2**1000
    assert round(tail, 2) == 0.23
    assert rate(512, 1000, 1000)["p_value"] == pytest.approx(2 * tail)


def test_a_rater_name_is_printed_without_control_characters(folder):
    path = answers(folder, REAL, "A")
    path.write_text(path.read_text().replace('"A"', r'"\u001b[2JAda\n"'))
    (one,) = score_listening_test(folder, [path])["raters"]
    assert one["rater"] == "[2JAda"


def test_refuses_answers_of_another_test(folder):
    path = answers(folder, REAL, seal="0" * 64)
    with pytest.raises(ValueError, match="another test.*seal is 00000000..."):
        score_listening_test(folder, [path])


def test_refuses_a_test_whose_seal_was_renewed_after_the_answers(folder):
    """Key and seal changed together: what raters hold gives it away."""
    import hashlib

    path = answers(folder, REAL)
    key = folder.with_name("test-key.json")
    text = key.read_text().replace("true", "TRUE").replace("false", "true")
    key.write_text(text.replace("TRUE", "false"))
    seal = hashlib.sha256(key.read_bytes()).hexdigest()
    (folder / "seal.txt").write_text(seal)
    with pytest.raises(ValueError, match="this one was changed since"):
        score_listening_test(folder, [path])


def test_refuses_the_same_answers_twice(folder):
    path = answers(folder, REAL)
    copy = path.with_name("copy.json")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="copy.json and .*the same answers"):
        score_listening_test(folder, [path, copy])


@pytest.mark.parametrize(
    "names, real, message",
    [
        (("07.wav",), [True], "'07.wav'. There are 6 clips, 01.wav, 02.wav"),
        (("../01.wav",), [True], "'../01.wav'"),
        (NAMES, ["yes"], "'yes' for the clip '01.wav'"),
        (NAMES, [1], "1 for the clip '01.wav'"),
        (NAMES, [], "No clip is rated in .*answers-.json"),
    ],
)
def test_refuses_answers_that_do_not_fit(names, real, message, folder):
    path = answers(folder, real, names=names)
    with pytest.raises(ValueError, match=message):
        score_listening_test(folder, [path])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"seal": 1, "rater": ""}',
        b'{"seal": 1, "rater": "", "answers": [true]}',
        b'{"seal": 1, "rater": "", "answers": {"01.wav": true}}',
        b"\xff\xfe",
    ],
)
def test_refuses_what_no_page_exports(content, folder, tmp_path):
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="answers.json is n"):
        score_listening_test(folder, [path])


def test_refuses_what_is_not_there(folder, tmp_path):
    with pytest.raises(ValueError, match="no answers at .*none.json"):
        score_listening_test(folder, [tmp_path / "none.json"])
    with pytest.raises(ValueError, match="no test at .*nowhere/seal.txt"):
        score_listening_test(tmp_path / "nowhere", [tmp_path / "none.json"])
    with pytest.raises(ValueError, match="give one file or more"):
        score_listening_test(folder, [])
