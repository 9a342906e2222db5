import itertools
import math
import pathlib

import numpy as np
import pytest
import soxr

from keras_audiolm.data.audio import load_audio
from keras_audiolm.evaluation.abx import (
    abx,
    cell_error,
    frame_distances,
    group_distances,
    read_items,
    warped_distances,
)
from keras_audiolm.evaluation.codec import log_mel

HEADER = "#file onset offset #phone prev-phone next-phone speaker\n"
RECORDINGS = pathlib.Path(__file__).parents[2] / "examples" / "recordings"


def write_items(path, rows):
    lines = (" ".join(map(str, row)) for row in rows)
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def two_phones(path, rows=()):
    """Two items of AH and two of IH, 0.1 s each, in a file of 0.4 s."""
    rows = [
        ("f", 0.1 * i, 0.1 * (i + 1), phone, "K", "T", "s1")
        for i, phone in enumerate(["AH", "AH", "IH", "IH"])
    ] + list(rows)
    return write_items(path, rows)


# === Against an independent slow version ===


def random_corpus(path, seed=0, width=5, codes=0):
    """Three speakers, two contexts and three phones, in one file each."""
    rng = np.random.default_rng(seed)
    rows, features = [], {}
    for speaker in ("s1", "s2", "s3"):
        time, count = 0.0, 0
        for context, phone in itertools.product(("K T", "P S"), "abc"):
            for _ in range(rng.integers(0, 5)):
                duration = round(float(rng.uniform(0.05, 0.4)), 4)
                rows.append(
                    (speaker, time, time + duration, phone, context, speaker)
                )
                time += duration / 2  # triphones overlap
                count += 1
        frames = math.ceil((time + 0.4) * 25)
        features[speaker] = (
            rng.integers(0, codes, (frames, width)).squeeze()
            if codes
            else rng.normal(size=(frames, width)).astype("float32")
        )
    return write_items(path, rows), features


def one_hot(codes, size):
    codes = codes.reshape(len(codes), -1)
    return np.eye(size)[codes].reshape(len(codes), -1).astype("float32")


def angle(x, y):
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    return math.acos(min(max(cosine, -1.0), 1.0)) / math.pi


def differences(x, y):
    return sum(a != b for a, b in zip(x, y, strict=True))


def slow_dtw(x, y, distance):
    """Mean distance along the path that is walked back from the end."""
    cost = {}
    for i, j in itertools.product(range(len(x)), range(len(y))):
        before = [
            cost[place]
            for place in ((i - 1, j - 1), (i - 1, j), (i, j - 1))
            if place in cost
        ]
        cost[i, j] = distance(x[i], y[j]) + min(before, default=0.0)
    i, j = len(x) - 1, len(y) - 1
    steps = 1
    while (i, j) != (0, 0):
        ways = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min((w for w in ways if w in cost), key=cost.get)
        steps += 1
    return cost[len(x) - 1, len(y) - 1] / steps


def slow_abx(item_file, features, rate, across, distance):
    """Triple by triple, from the published description."""
    items = []
    for line in item_file.read_text().splitlines()[1:]:
        file, on, off, phone, before, after, speaker = line.split()
        first = math.ceil(rate * float(on) - 0.5)
        last = math.floor(rate * float(off) - 0.5)
        part = np.asarray(features[file], "float64")[first:last]
        if len(part):
            items.append(((before, after), phone, speaker, part))
    cells = {}
    for (i, a), (j, x), b in itertools.product(
        enumerate(items), enumerate(items), items
    ):
        fits = (
            a[0] == b[0] == x[0]
            and a[1] == x[1] != b[1]
            and a[2] == b[2]
            and (a[2] != x[2] if across else a[2] == x[2])
            and i != j
        )
        if fits:
            # Of two items of one group it is the earlier to the later.
            near = (a, x) if i < j and not across else (x, a)
            to_a = slow_dtw(near[0][3], near[1][3], distance)
            to_b = slow_dtw(x[3], b[3], distance)
            wrong = 0.5 if to_a == to_b else float(to_a > to_b)
            key = (a[1], b[1], a[2], (a[0], x[2]))
            cells.setdefault(key, []).append(wrong)
    for _ in range(3):  # triples, contexts and speakers of X, speakers
        above = {}
        for key, values in cells.items():
            above.setdefault(key[:-1], []).append(np.mean(values))
        cells = above
    return float(np.mean([np.mean(values) for values in cells.values()]))


@pytest.mark.parametrize(
    "width, codes", [(5, 0), (1, 2), (3, 2)], ids=["floats", "codes", "levels"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_slow_version(tmp_path, width, codes, seed):
    path, features = random_corpus(tmp_path / "x.item", seed, width, codes)
    found = abx(path, features.get, 25.0)
    distance = differences if width == 3 else angle
    if codes and distance == angle:
        features = {k: one_hot(v, codes) for k, v in features.items()}
    for mode in ("within", "across"):
        expected = slow_abx(path, features, 25.0, mode == "across", distance)
        assert found[f"{mode}_error"] == pytest.approx(expected, abs=1e-9)
        assert 0 < expected < 1


@pytest.mark.parametrize("codes", [0, 2], ids=["floats", "codes"])
def test_agrees_with_the_zerospeech_package(tmp_path, codes):
    """Runs where zerospeech-libriabx2 is installed; docs/evaluation_tokens.md
    has its figures."""
    reference = pytest.importorskip("zrc_abx2")
    width = 1 if codes else 5
    path, features = random_corpus(tmp_path / "x-y.item", 0, width, codes)
    found = abx(path, features.get, 25.0)
    for name, frames in features.items():
        frames = one_hot(frames, codes) if codes else frames
        np.save(tmp_path / f"{name}.npy", frames)
    arguments = reference.EvalArgs(
        str(tmp_path),
        str(path),
        feature_size=1 / 25,
        context_mode="within",
    )
    for result in reference.EvalABX().eval_abx(arguments):
        mine = found[f"{result['abx-s-condition']}_error"]
        print(result["abx-s-condition"], mine, result["score"])
        assert mine == pytest.approx(result["score"], abs=1e-5)


# === Closed forms ===


@pytest.mark.parametrize(
    "frames", [np.ones((10, 3)), np.zeros((10, 3)), np.ones(10, int)]
)
def test_phones_that_never_differ_are_chance(tmp_path, frames):
    path = two_phones(tmp_path / "x.item")
    features = {"f": frames}
    assert abx(path, features.get, 25.0)["within_error"] == 0.5


@pytest.mark.parametrize(
    "angles, error",
    [
        ((0, 10, 80, 90), 0.0),
        ((0, 80, 80, 0), 0.75),  # two ties and two wrong a side
        ((0, 90, 45, 45), 0.5),  # AH all wrong, IH all right
        ((0, 60, 20, 80), 0.75),
    ],
)
def test_one_frame_items_by_hand(tmp_path, angles, error):
    """Items at angles: AH at the first two, IH at the others."""
    path = two_phones(tmp_path / "x.item")
    radians = np.deg2rad(angles)
    frames = np.stack([np.cos(radians), np.sin(radians)], axis=1)
    # Two frames in an item's time, of which the last is not taken.
    frames = np.repeat(frames, 2, axis=0)
    result = abx(path, lambda _: frames, 20.0)
    assert result["within_error"] == pytest.approx(error)
    assert result["within_pairs"] == 2 and result["within_cells"] == 2
    assert result["across_error"] is None and result["across_cells"] == 0
    assert result["items"] == 4 and result["skipped_items"] == 0


def test_frame_distances_are_shares_of_half_a_turn():
    x = np.array([[1.0, 0.0], [0.0, 0.0]])
    y = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        frame_distances(x, y), [[0, 0.5, 1, 0.25, 1], [1, 1, 1, 1, 0]]
    )
    codes = np.array([[1, 2], [1, 3], [0, 0]])
    np.testing.assert_array_equal(
        frame_distances(codes[:1], codes), [[0, 1, 2]]
    )


def test_warping_ignores_how_long_a_frame_is_held():
    rng = np.random.default_rng(0)
    item = rng.normal(size=(4, 3))
    held = item[[0, 0, 1, 2, 2, 2, 3]]
    other = rng.normal(size=(2, 3))
    distances = np.concatenate(
        group_distances([item, other], [[held], [other, item]]), axis=1
    )
    assert distances.shape == (2, 3)
    np.testing.assert_allclose(distances[0, [0, 2]], 0, atol=1e-7)
    assert distances[1, 1] < 1e-7 < 0.05 < distances[0, 1]


def test_path_is_the_cheapest_and_its_mean_is_over_its_steps():
    between = np.array([[0.1, 0.9, 0.9], [0.9, 0.9, 0.2]])[:, :, None, None]
    # 0.1 and 0.9, then 0.2: three steps and 1.2, by either middle.
    found = warped_distances(between, np.array([2]), np.array([3]))
    assert found.item() == pytest.approx(1.2 / 3)


def test_two_of_a_group_are_compared_once():
    """The path from the earlier counts, which may be another one back."""
    to_a, to_b = np.array([[0.0, 0.3], [0.1, 0.0]]), np.array([[0.2], [0.2]])
    assert cell_error(to_a, to_b, same=True) == 1.0
    # Of two groups all four count: the diagonal is right, and one more.
    assert cell_error(to_a, to_b, same=False) == 0.25


# === Real speech ===


def test_error_grows_with_noise_on_real_speech(tmp_path):
    """Pieces of a recording, told from each other in three takes of it with
    noise of their own, and three more 10 % faster as another speaker."""
    rate = 16000
    audio = load_audio(RECORDINGS / "en.flac", rate)[: 3 * rate]
    fast = soxr.resample(audio, rate, rate / 1.1).astype("float32")
    rows = []
    for speaker, speed in (("slow", 1.0), ("fast", 1.1)):
        for take, piece in itertools.product(range(3), range(12)):
            on, off = ((0.2 + 0.2 * (piece + i)) / speed for i in (0, 1))
            name = f"{speaker}{take}"
            rows.append((name, on, off, f"p{piece}", "K", "T", speaker))
    path = write_items(tmp_path / "x.item", rows)

    def errors(noise):
        rng = np.random.default_rng(0)

        def features(name):
            clip = fast if name.startswith("fast") else audio
            clip = clip + noise * rng.normal(size=len(clip))
            frames = log_mel(clip, rate)[::2]  # 31.25 frames a second
            return frames - frames.mean(axis=0)

        result = abx(path, features, 31.25)
        return result["within_error"], result["across_error"]

    levels = np.std(audio) * np.array([1.0, 4.0, 8.0])
    for values in np.transpose([errors(level) for level in levels]):
        assert (np.diff(values) > 0.05).all()
        assert values[0] < 0.05 and values[-1] > 0.25


# === What is drawn, skipped and refused ===


def test_draws_what_it_is_told_and_the_same_for_a_seed(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        (f"f{i}", 0, 0.2, phone, "K", "T", f"s{i // 2 % 4}")
        for i, phone in enumerate("ab" * 20)
    ]
    path = write_items(tmp_path / "x.item", rows)
    features = {f"f{i}": rng.normal(size=(5, 3)) for i in range(40)}

    def run(**settings):
        return abx(path, features.__getitem__, 25.0, **settings)

    first = run(max_group_size=2, max_x_speakers=1)
    assert first == run(max_group_size=2, max_x_speakers=1)
    assert first != run(max_group_size=2, max_x_speakers=1, seed=1)
    whole = run(max_group_size=99, max_x_speakers=99)
    assert whole == run(max_group_size=99, max_x_speakers=99, seed=1)
    assert first["items"] == whole["items"] == 40


def test_items_shorter_than_a_frame_are_counted(tmp_path):
    rows = [("f", 0.2, 0.21, "AH", "K", "T", "s1")]
    path = two_phones(tmp_path / "x.item", rows)
    result = abx(path, lambda _: np.arange(20), 50.0)
    assert result["items"] == 4 and result["skipped_items"] == 1


@pytest.mark.parametrize(
    "features, rate, message",
    [
        (np.zeros((10, 2)), 50.0, r"ends at 0.4 s.* at 0.20 s.*frame_rate=50"),
        (np.full((10, 2), np.nan), 25.0, "not all finite"),
        (np.zeros(10), 25.0, r"float64 of shape \(10,\)"),
        (np.zeros((1, 10, 2)), 25.0, r"\(1, 10, 2\)"),
        (np.zeros((10, 2)), 0.0, "frame_rate=0"),
        (np.zeros((2, 2)), 4.0, "0 items have a frame or more, of 4"),
    ],
)
def test_refuses_features(tmp_path, features, rate, message):
    path = two_phones(tmp_path / "x.item")
    with pytest.raises(ValueError, match=message):
        abx(path, lambda _: features, rate)


def test_refuses_features_of_two_kinds(tmp_path):
    path = two_phones(
        tmp_path / "x.item", [("g", 0, 0.2, "AH", "K", "T", "s1")]
    )
    features = {"f": np.zeros((10, 2)), "g": np.zeros(10, int)}
    with pytest.raises(ValueError, match=r"floats \(frames, 2\).*codes"):
        abx(path, features.get, 25.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lists no items"),
        (HEADER, "lists no items"),
        (HEADER + "f 0.0 0.1 AH K T\n", "Line 2"),
        (HEADER + "f 0.0 0.1 AH K T s\nf 0 end AH K T s\n", "Line 3.*'f 0 end"),
    ],
)
def test_refuses_item_files(tmp_path, text, message):
    path = tmp_path / "x.item"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_items(path)


def test_says_what_an_item_file_is(tmp_path):
    with pytest.raises(ValueError, match="prev-phone.*forced alignment"):
        abx(tmp_path / "none.item", None, 25.0)


@pytest.mark.parametrize("phones", [["AH"] * 4, ["AH", "IH"]])
def test_refuses_what_holds_no_triple(tmp_path, phones):
    rows = [("f", 0, 0.2, phone, "K", "T", "s1") for phone in phones]
    path = write_items(tmp_path / "x.item", rows)
    with pytest.raises(ValueError, match="holds no triple"):
        abx(path, lambda _: np.zeros((10, 2)), 25.0)
