import numpy as np
import pytest

from keras_audiolm.evaluation.memorisation import (
    longest_shared_runs,
    nearest_distances,
)


def slow_runs(sequences, training):
    """By comparing text, every piece of every sequence."""
    known = ["".join(map(chr, t)) for t in training]
    result = []
    for sequence in sequences:
        text = "".join(map(chr, sequence))
        lengths = [
            stop - start
            for start in range(len(text))
            for stop in range(start, len(text) + 1)
            if any(text[start:stop] in k for k in known)
        ]
        result.append(max(lengths, default=0))
    return result


@pytest.mark.parametrize("codes", [2, 4, 50])
def test_runs_equal_those_found_by_hand(codes):
    rng = np.random.default_rng(codes)
    training = [rng.integers(0, codes, n) for n in (40, 1, 0, 25)]
    sequences = [rng.integers(0, codes, n) for n in (30, 12, 1, 0)]
    sequences.append(training[0][10:35])
    found = longest_shared_runs(sequences, training)
    assert found.tolist() == slow_runs(sequences, training)
    assert found[-1] == 25


def test_a_run_does_not_go_over_the_end_of_a_file():
    training = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    assert longest_shared_runs([np.arange(1, 7)], training).tolist() == [3]
    together = [np.arange(1, 7)]
    assert longest_shared_runs([np.arange(1, 7)], together).tolist() == [6]


def test_more_copying_is_a_longer_run():
    rng = np.random.default_rng(0)
    training = [rng.integers(0, 100, 500)]
    new = rng.integers(0, 100, 100)
    runs = []
    for copied in (0, 10, 50, 100):
        sequence = new.copy()
        sequence[:copied] = training[0][200 : 200 + copied]
        runs.append(int(longest_shared_runs([sequence], training)[0]))
    assert runs[0] < 5 and runs[1:] == [
        pytest.approx(x, abs=3) for x in (10, 50, 100)
    ]


def test_nearest_distances_equal_those_by_hand():
    rng = np.random.default_rng(0)
    training = [rng.integers(0, 5, n) for n in (30, 3, 11)]
    sequences = [rng.integers(0, 5, n) for n in (11, 4, 3)]
    window = 4
    expected = []
    for sequence in sequences:
        for start in range(0, len(sequence) - window + 1, window):
            piece = sequence[start : start + window]
            expected.append(
                min(
                    np.mean(t[i : i + window] != piece)
                    for t in training
                    for i in range(len(t) - window + 1)
                )
            )
    found = nearest_distances(sequences, training, window)
    np.testing.assert_allclose(found, expected)
    assert len(found) == 3
    copy = nearest_distances([training[0][5:13]], training, window)
    assert copy.tolist() == [0.0, 0.0]


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no tokens"):
        longest_shared_runs([np.arange(3)], [np.zeros(0, int)])
    with pytest.raises(ValueError, match="holds 4 tokens"):
        nearest_distances([np.arange(9)], [np.arange(3)], 4)
