"""Whether what is made is new: token runs shared with the training set."""

import numpy as np


def longest_shared_runs(sequences, training):
    """The longest run of each sequence that stands somewhere in the training
    set.

    Runs are compared by 64-bit polynomial hashes of random code values, one
    length after the other, in all sequences that still share one: an hour of
    tokens takes seconds.

    Args:
        sequences: list of `(frames,)` int.
        training: list of `(frames,)` int. A run does not go over the end of
            one.

    Returns:
        `(len(sequences),)` int64, tokens.

    Raises:
        ValueError: if the training set holds no token.
    """
    if not sum(map(len, training)):
        raise ValueError("The training set holds no tokens to compare with.")
    known = _Hashes(training)
    runs = np.zeros(len(sequences), "int64")
    left = list(range(len(sequences)))
    length = 0
    while left:
        length += 1
        table = np.unique(known.of(length))
        asked = _Hashes([sequences[i] for i in left])
        found = np.isin(asked.of(length), table)
        owners = asked.owners(length)
        shared = np.unique(owners[found])
        left = [left[i] for i in shared]
        runs[left] = length
    return runs


class _Hashes:
    """Hashes of all windows of sequences, of any length.

    The hash of a window is the sum of its codes' values, each times a power
    of an odd number: differences of running sums, brought to one origin by
    the inverse power. All is arithmetic modulo 2^64.
    """

    BASE = 0x9E3779B97F4A7C15

    def __init__(self, sequences):
        self.lengths = [len(s) for s in sequences]
        codes = np.concatenate([np.asarray(s) for s in sequences])
        self.values = _mix(codes.astype("uint64"))
        powers = np.full(len(codes) + 1, self.BASE, "uint64")
        powers[0] = 1
        self.powers = np.multiply.accumulate(powers)
        inverse = np.full(len(codes) + 1, pow(self.BASE, -1, 2**64), "uint64")
        inverse[0] = 1
        self.inverses = np.multiply.accumulate(inverse)
        terms = self.values * self.powers[:-1]
        self.sums = np.concatenate(
            [np.zeros(1, "uint64"), np.add.accumulate(terms)]
        )

    def starts(self, length):
        first = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        return np.concatenate(
            [
                np.arange(start, start + max(size - length + 1, 0))
                for start, size in zip(first, self.lengths, strict=True)
            ]
        ).astype("int64")

    def of(self, length):
        """`(windows,)` uint64."""
        starts = self.starts(length)
        sums = self.sums[starts + length] - self.sums[starts]
        return sums * self.inverses[starts]

    def owners(self, length):
        """The sequence of each window."""
        counts = [max(size - length + 1, 0) for size in self.lengths]
        return np.repeat(np.arange(len(counts)), counts)


def _mix(codes):
    """A random value for each code: the last steps of SplitMix64."""
    x = (codes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def nearest_distances(sequences, training, window):
    """How much of each window differs from the nearest of the training set.

    Args:
        sequences: list of `(frames,)` int, cut into windows side by side;
            what is left after the last is not looked at.
        training: list of `(frames,)` int, all windows of which are compared.
        window: int. Tokens.

    Returns:
        `(windows,)` float, from 0, the same, to 1, no token the same.

    Raises:
        ValueError: if no training sequence is as long as a window.
    """
    view = np.lib.stride_tricks.sliding_window_view
    known = [view(np.asarray(t), window) for t in training if len(t) >= window]
    if not known:
        raise ValueError(
            f"No training sequence holds {window} tokens to compare with."
        )
    # Token by token, contiguous: (window, windows)
    known = np.concatenate(known).T.astype("int32", order="C")
    distances = []
    for sequence in sequences:
        for start in range(0, len(sequence) - window + 1, window):
            same = np.zeros(known.shape[1], "int32")
            piece = sequence[start : start + window]
            for column, token in zip(known, piece, strict=True):
                same += column == token
            distances.append(1.0 - same.max() / window)
    return np.array(distances)
