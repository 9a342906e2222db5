import itertools
import json

import numpy as np
import pytest
from keras import ops

from keras_audiolm.language_model.layout import (
    Segment,
    TokenLayout,
    from_start,
    without_repeats,
)

LAYOUTS = {
    "semantic": TokenLayout.semantic(7, 25.0),
    "coarse": TokenLayout.coarse(7, 2, 5, 25.0, 50.0),
    "fine": TokenLayout.fine(2, 3, 5, 50.0),
    "end": TokenLayout.semantic(7, 25.0, ends=True, deduplicated=True),
    "three": TokenLayout(
        (
            Segment("words", 1, 4, 10.0),
            Segment("semantic", 2, 3, 25.0),
            Segment("sound", 3, 6, 50.0),
        )
    ),
}
EACH = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def random_codes(layout, batch=2, seed=0, missing=0.3):
    """Codes of every segment, some frames of which are not there."""
    rng = np.random.default_rng(seed)
    codes = {}
    for i, segment in enumerate(layout.segments):
        shape = (batch, 3 + 2 * i, segment.levels)
        block = rng.integers(segment.codebook_size, size=shape)
        block[rng.random(shape[:2]) < missing] = -1
        codes[segment.name] = block.astype("int32")
    return codes


# === Ids ===


@EACH
def test_each_code_of_each_level_has_an_id_of_its_own(layout):
    ids = [
        layout.offset(segment.name, level) + code
        for segment in layout.segments
        for level in range(segment.levels)
        for code in range(segment.num_codes)
    ]
    assert ids == list(range(layout.num_code_ids))


@EACH
def test_special_ids_follow_all_codes_and_never_collide(layout):
    special = [layout.start_id(s.name) for s in layout.segments]
    special.append(layout.pad_id)
    assert special == list(range(layout.num_code_ids, layout.vocabulary_size))


@EACH
def test_offsets_are_the_offset_of_each_level(layout):
    for segment in layout.segments:
        offsets = layout.offsets(segment.name)
        assert offsets.dtype == np.int32
        assert offsets.tolist() == [
            layout.offset(segment.name, level)
            for level in range(segment.levels)
        ]


def test_the_papers_vocabularies():
    semantic = TokenLayout.semantic(1024, 25.0)
    coarse = TokenLayout.coarse(1024, 4, 1024, 25.0, 50.0)
    fine = TokenLayout.fine(4, 8, 1024, 50.0)
    assert semantic.num_code_ids == 1024
    assert coarse.num_code_ids == 5 * 1024
    assert fine.num_code_ids == 12 * 1024
    # Lengths of their 30, 10 and 3 s crops, without the start ids.
    assert semantic.length([750]) - 1 == 750
    assert coarse.length([250, 500]) - 2 == 2250
    assert fine.length([150, 150]) - 2 == 1800
    for layout, name in zip(
        (semantic, coarse, fine), ("semantic", "coarse", "fine"), strict=True
    ):
        assert layout.predicted.name == name


# === Sequences ===


def flatten_slowly(layout, codes):
    rows = []
    for row in range(len(next(iter(codes.values())))):
        ids = []
        for segment in layout.segments:
            ids.append(layout.start_id(segment.name))
            for frame in codes[segment.name][row]:
                for level, code in enumerate(frame):
                    there = layout.offset(segment.name, level) + code
                    ids.append(there if code >= 0 else layout.pad_id)
        rows.append(ids)
    return rows


@EACH
@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
def test_flatten_is_the_slow_loop(layout, missing):
    codes = random_codes(layout, batch=3, missing=missing)
    ids = ops.convert_to_numpy(layout.flatten(codes))
    assert ids.dtype == np.int32
    assert ids.tolist() == flatten_slowly(layout, codes)
    frames = [block.shape[1] for block in codes.values()]
    assert ids.shape[1] == layout.length(frames)


def test_flatten_by_hand():
    layout = TokenLayout.coarse(10, 2, 100, 25.0, 50.0)
    codes = {
        "semantic": np.array([[[3], [9]]]),
        "coarse": np.array([[[0, 1], [99, 98], [5, 5], [-1, -1]]]),
    }
    ids = ops.convert_to_numpy(layout.flatten(codes))
    start, pad = 210, 212
    expected = [start, 3, 9, start + 1, 10, 111, 109, 208, 15, 115, pad, pad]
    assert ids.tolist() == [expected]


def test_flatten_of_segments_without_frames():
    layout = LAYOUTS["coarse"]
    codes = {
        "semantic": np.zeros((2, 0, 1), "int32"),
        "coarse": np.zeros((2, 0, 2), "int32"),
    }
    ids = ops.convert_to_numpy(layout.flatten(codes))
    starts = [layout.start_id("semantic"), layout.start_id("coarse")]
    assert ids.tolist() == [starts] * 2


@EACH
def test_times_are_when_tokens_sound(layout):
    frames = [3 + i for i in range(len(layout.segments))]
    expected = []
    for segment, count in zip(layout.segments, frames, strict=True):
        expected.append(-1 / segment.frame_rate)
        for frame in range(count):
            for level in range(segment.levels):
                part = level / segment.levels
                expected.append((frame + part) / segment.frame_rate)
    times = layout.times(frames)
    assert times.dtype == np.float32
    assert len(times) == layout.length(frames)
    seconds = times / layout.predicted.frame_rate
    np.testing.assert_allclose(seconds, expected, atol=1e-6)


def test_semantic_frame_k_sounds_with_coarse_frame_2k():
    layout = TokenLayout.coarse(7, 4, 5, 25.0, 50.0)
    times = layout.times([6, 12])
    semantic, coarse = times[1:7], times[8:].reshape(12, 4)
    np.testing.assert_array_equal(semantic, coarse[::2, 0])
    assert np.all(np.diff(coarse.reshape(-1)) > 0)


# === What is refused ===


@EACH
def test_check_accepts_codes_that_fit(layout):
    codes = random_codes(layout)
    layout.check(codes)
    layout.check({})
    layout.check({n: block[:, :0] for n, block in codes.items()})
    layout.check({n: block.astype("uint8") % 3 for n, block in codes.items()})


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("fine", np.zeros((1, 3, 2), int), "no segment 'fine'.*coarse"),
        ("coarse", np.zeros((3, 2), int), r"frames, 2\).*\(3, 2\)"),
        ("coarse", np.zeros((1, 3, 1), int), r"frames, 2\).*\(1, 3, 1\)"),
        ("coarse", np.zeros((1, 3, 2)), "integers.*float64"),
        ("coarse", np.zeros((1, 3, 2), bool), "integers.*bool"),
        ("coarse", np.full((1, 3, 2), 5), "0 to 4.*5 to 5"),
        ("coarse", np.full((1, 3, 2), -2), "0 to 4.*-2 to -2"),
        ("semantic", np.full((1, 3, 1), 7), "semantic.*0 to 6.*7 to 7"),
    ],
)
def test_check_says_what_does_not_fit(name, block, message):
    with pytest.raises(ValueError, match=message):
        LAYOUTS["coarse"].check({name: block})


@pytest.mark.parametrize(
    "segments",
    [(), (Segment("a", 1, 2, 3.0), Segment("a", 2, 2, 3.0))],
    ids=["none", "twice the same name"],
)
def test_segments_need_names_of_their_own(segments):
    with pytest.raises(ValueError, match="names of their own"):
        TokenLayout(segments)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((Segment("a", 2, 5, 3.0, ends=True),), "one level"),
        ((Segment("a", 2, 5, 3.0, deduplicated=True),), "one level"),
        (
            (Segment("a", 1, 5, 3.0, ends=True), Segment("b", 1, 5, 3.0)),
            "last segment",
        ),
    ],
)
def test_ends_and_runs_are_refused_where_they_mean_nothing(segments, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(segments)


def test_the_end_is_one_code_more():
    plain = TokenLayout.semantic(7, 25.0).predicted
    assert (plain.end_code, plain.num_codes) == (None, 7)
    ends = LAYOUTS["end"].predicted
    assert (ends.end_code, ends.num_codes) == (7, 8)
    LAYOUTS["end"].check({"semantic": np.full((1, 2, 1), 7)})
    with pytest.raises(ValueError, match="from 0 to 6.*7"):
        LAYOUTS["semantic"].check({"semantic": np.full((1, 2, 1), 7)})


@EACH
def test_config_survives_json(layout):
    config = json.loads(json.dumps(layout.get_config()))
    again = TokenLayout(**config)
    assert again == layout
    assert hash(again) == hash(layout)


# === Rows ===


def test_shorter_rows_begin_at_once():
    codes = np.arange(24, dtype="int32").reshape(3, 4, 2)
    ragged = codes.copy()
    ragged[1, :1] = ragged[2, :2] = ragged[2, 3:] = -1
    result = from_start(ragged)
    np.testing.assert_array_equal(result[0], codes[0])
    np.testing.assert_array_equal(result[1, :3], codes[1, 1:])
    np.testing.assert_array_equal(result[2, :1], codes[2, 2:3])
    assert (result[1, 3:] == -1).all() and (result[2, 1:] == -1).all()
    assert from_start(codes[:, :0]).shape == (3, 0, 2)


def test_runs_become_one_token():
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=(20, 30, 1)).astype("int32")
    codes[3, :7] = codes[4, 20:] = codes[5] = -1
    result = without_repeats(codes)
    assert result.dtype == np.int32
    lengths = []
    for row, tokens in zip(codes[..., 0], result[..., 0], strict=True):
        expected = [key for key, _ in itertools.groupby(row) if key != -1]
        lengths.append(len(expected))
        assert tokens[len(tokens) - len(expected) :].tolist() == expected
        assert (tokens[: len(tokens) - len(expected)] == -1).all()
    assert result.shape == (20, max(lengths), 1)
    assert without_repeats(codes[:, :0]).shape == (20, 0, 1)
