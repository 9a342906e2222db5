import itertools
import math
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm import AudioLMPipeline, StageLM, TokenLayout
from keras_audiolm.data.audio import load_audio
from keras_audiolm.evaluation.language import (
    log_likelihoods,
    preference,
    real_against,
    unit_perplexity,
)

RECORDINGS = pathlib.Path(__file__).parents[2] / "examples" / "recordings"
SIZE = 12
# One second at 25 Hz.
WINDOW = 25
# A token follows the one before it so often; otherwise it is any.
FOLLOWS = 0.8


def make_lm(layout=None, hidden_dim=8, position="relative"):
    keras.utils.set_random_seed(0)
    layout = layout or TokenLayout.semantic(SIZE, 25.0)
    backbone = {
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": hidden_dim,
        "intermediate_dim": 2 * hidden_dim,
        "dropout": 0.0,
        "max_distance": 32,
        "position": position,
    }
    lm = StageLM(layout, backbone, crop_duration=1.0)
    lm.build()
    # Far from uniform, so that mistakes show.
    lm.head.assign(3.0 * lm.head)
    return lm


def random_tokens(rng, lengths):
    return [rng.integers(0, SIZE, length) for length in lengths]


def counting(rng, length, start=None):
    """A walk around the codes, mostly upwards by one."""
    codes = [rng.integers(SIZE) if start is None else start]
    while len(codes) < length:
        step = 1 if rng.random() < FOLLOWS else rng.integers(SIZE)
        codes.append((codes[-1] + step) % SIZE)
    return np.array(codes)


@pytest.fixture(scope="module")
def trained():
    """A model that has seen 2000 steps of `counting`."""
    rng = np.random.default_rng(0)
    lm = make_lm(hidden_dim=32)
    codes = np.stack([counting(rng, WINDOW) for _ in range(80)])
    lm.compile(keras.optimizers.Adam(1e-2))
    lm.fit({"semantic": codes[..., None]}, batch_size=16, epochs=12, verbose=0)
    return lm


def slow_scores(lm, rows, most=WINDOW):
    """Of each row the sum over tokens, each with its own stretch before it.

    The stretch begins with the row, or with the last half window that leaves
    half a window or more.
    """
    hop = most // 2
    stretches, places, codes = [], [], []
    for row in rows:
        for place, code in enumerate(row):
            start = 0 if place < most else (place - most) // hop * hop + hop
            places.append(place - start)
            assert start == 0 or hop <= places[-1] < most
            stretch = np.full(most, -1, "int32")
            stretch[: places[-1] + 1] = row[start : place + 1]
            stretches.append(stretch)
            codes.append(code)
    logits = lm({"semantic": np.stack(stretches)[..., None]}, training=False)
    logits = ops.convert_to_numpy(logits)[:, :, 0].astype("float64")
    logits = logits[np.arange(len(logits)), places]
    scores = logits[np.arange(len(logits)), codes]
    scores = scores - np.log(np.exp(logits).sum(axis=-1))
    ends = np.cumsum([len(row) for row in rows])
    return [part.sum() for part in np.split(scores, ends[:-1])]


# === Likelihoods ===


@pytest.mark.parametrize("position", ["relative", "rotary"])
def test_equals_each_token_alone(position):
    """Padding, batches and windows change nothing."""
    lm = make_lm(position=position)
    rng = np.random.default_rng(0)
    lengths = [1, 2, 24, 25, 26, 37, 38, *rng.integers(1, 70, 27)]
    tokens = random_tokens(rng, lengths)  # three batches
    totals, counts = log_likelihoods(lm, tokens)
    assert counts.tolist() == lengths and totals.dtype == "float64"
    np.testing.assert_allclose(totals, slow_scores(lm, tokens), atol=1e-4)


def test_equals_the_models_own_loss():
    lm = make_lm()
    codes = np.random.default_rng(0).integers(0, SIZE, 7).astype("int32")
    inputs = {"semantic": codes[None, :, None]}
    loss = lm.compute_loss(inputs, y_pred=lm(inputs), training=False)
    totals, _ = log_likelihoods(lm, [codes])
    loss = float(ops.convert_to_numpy(loss))
    assert totals[0] == pytest.approx(-7 * loss, abs=1e-4)


def test_runs_are_one_token_where_the_layout_says_so():
    layout = TokenLayout.semantic(SIZE, 25.0, deduplicated=True)
    lm = make_lm(layout)
    lm.frames_per_token.assign(2.5)  # windows of ten tokens
    rng = np.random.default_rng(0)
    rows = [np.repeat(row, 3) for row in random_tokens(rng, (3, 10, 25))]
    totals, counts = log_likelihoods(lm, rows)
    runs = [np.array([k for k, _ in itertools.groupby(row)]) for row in rows]
    assert counts.tolist() == [len(run) for run in runs]
    expected = slow_scores(lm, runs, most=10)
    np.testing.assert_allclose(totals, expected, atol=1e-4)


def test_uniform_model_is_as_perplexed_as_it_has_codes():
    for ends in (False, True):
        lm = make_lm(TokenLayout.semantic(SIZE, 25.0, ends=ends))
        lm.head.assign(0.0 * lm.head)
        tokens = random_tokens(np.random.default_rng(0), (3, 40))
        result = unit_perplexity(lm, tokens)
        assert result["perplexity"] == pytest.approx(SIZE + ends, rel=1e-5)
        assert result["tokens"] == 43 and result["files"] == 2


def test_perplexity_is_over_tokens_and_nears_that_of_the_source(trained):
    rng = np.random.default_rng(1)
    tokens = [counting(rng, length) for length in (30, 300, 90)]
    result = unit_perplexity(trained, tokens)
    totals, counts = log_likelihoods(trained, tokens)
    cross_entropy = -totals.sum() / counts.sum()
    assert result["cross_entropy"] == pytest.approx(cross_entropy)
    assert result["perplexity"] == pytest.approx(math.exp(cross_entropy))
    # What the source's own probabilities give.
    rest = (1 - FOLLOWS) / SIZE
    scores = [-math.log(SIZE)] * len(tokens)
    for row in tokens:
        follows = (row[1:] - row[:-1]) % SIZE == 1
        scores += list(np.where(follows, np.log(FOLLOWS + rest), np.log(rest)))
    best = -np.mean(scores)
    assert best - 0.05 < result["cross_entropy"] < best + 0.25
    shuffled = [rng.permutation(row) for row in tokens]
    worse = unit_perplexity(trained, shuffled)["perplexity"]
    assert worse > 2 * result["perplexity"]


# === Order ===


def test_real_order_is_preferred_the_more_the_less_is_left_of_it(trained):
    rng = np.random.default_rng(2)
    tokens = [counting(rng, 24) for _ in range(40)]
    results = [
        real_against(trained, tokens, "shuffled", block) for block in (1, 4, 12)
    ]
    ratios = [result["nats_per_token"] for result in results]
    assert ratios[0] > 2 * ratios[1] > 4 * ratios[2] > 0
    shares = [result["preferred"] for result in results]
    assert shares[0] >= shares[1] >= shares[2] > 0.5 and shares[0] == 1
    assert all(result["pairs"] == 40 for result in results)
    backwards = real_against(trained, tokens, "reversed")
    assert backwards["preferred"] == 1 and backwards["skipped"] == 0
    # Who hears only the wrong way round prefers what is not.
    flipped = real_against(trained, [row[::-1] for row in tokens], "reversed")
    assert flipped["preferred"] == 0
    assert flipped["nats_per_token"] == pytest.approx(
        -backwards["nats_per_token"], rel=1e-4
    )


def test_nats_per_token_is_the_difference_of_the_likelihoods(trained):
    tokens = random_tokens(np.random.default_rng(3), (5, 9))
    real, counts = log_likelihoods(trained, tokens)
    other, _ = log_likelihoods(trained, [row[::-1] for row in tokens])
    result = real_against(trained, tokens, "reversed")
    expected = np.mean((real - other) / counts)
    assert result["nats_per_token"] == pytest.approx(expected, abs=1e-5)
    assert result["preferred"] == np.mean(real > other)


def test_recordings_in_order_are_preferred_to_others(trained):
    """Five codes each, which go on where the last one ended."""
    tokens = [np.arange(5 * i, 5 * i + 5) % SIZE for i in range(41)]
    result = real_against(trained, tokens, "reordered")
    assert result["preferred"] > 0.9 and result["nats_per_token"] > 0.1
    # Ten of four, and one that is left alone.
    assert result["pairs"] == 10 and result["skipped"] == 1


def test_who_knows_no_order_is_at_chance():
    lm = make_lm()
    lm.head.assign(0.0 * lm.head)
    tokens = random_tokens(np.random.default_rng(0), (9, 30, 60))
    for how in ("reversed", "shuffled"):
        result = real_against(lm, tokens, how)
        assert result["preferred"] == 0.5 and result["ties"] == 3
        assert result["nats_per_token"] == pytest.approx(0, abs=1e-6)


def test_shuffles_depend_on_the_seed_alone():
    lm = make_lm()
    tokens = random_tokens(np.random.default_rng(0), (20, 20))
    first = real_against(lm, tokens, "shuffled", seed=0)
    assert first == real_against(lm, tokens, "shuffled", seed=0)
    assert first != real_against(lm, tokens, "shuffled", seed=1)


def test_what_has_no_other_order_is_counted():
    lm = make_lm()
    tokens = [np.array([3]), np.zeros(8, int), np.arange(8), np.arange(4)]
    result = real_against(lm, tokens, "shuffled", block=4)
    assert result["pairs"] == 1 and result["skipped"] == 3
    result = real_against(lm, tokens, "reversed")
    assert result["pairs"] == 2 and result["skipped"] == 2
    with pytest.raises(ValueError, match="None of 2 differs from itself rev"):
        real_against(lm, tokens[:2], "reversed")
    with pytest.raises(ValueError, match="block=9"):
        real_against(lm, tokens, "shuffled", block=9)


def test_preference():
    assert preference(-3.0, -4.0) == 1 and preference(-4.0, -3.0) == 0
    assert preference(-300.0, -300.0001) == 0.5


@pytest.mark.large
def test_real_speech_is_likelier_than_its_pieces():
    """The shipped preset on recordings that it has not heard."""
    pipeline = AudioLMPipeline.from_preset("voices_small")
    lm, tokenizer = pipeline.semantic_lm, pipeline.semantic_tokenizer
    tokens = []
    for path in sorted(RECORDINGS.glob("??.flac")):  # by language
        audio = load_audio(path, tokenizer.sample_rate)
        tokens += np.split(tokenizer.encode(audio[None])[0][:100], 2)
    results = [
        real_against(lm, tokens, "shuffled", block) for block in (1, 5, 25)
    ]
    ratios = [result["nats_per_token"] for result in results]
    assert ratios[0] > 2 * ratios[1] > 4 * ratios[2] > 0
    assert results[0]["preferred"] == results[1]["preferred"] == 1
    backwards = real_against(lm, tokens, "reversed")
    assert backwards["preferred"] == 1 and backwards["pairs"] == 10
    rng = np.random.default_rng(0)
    perplexities = []
    for share in (0.0, 0.3, 1.0):
        torn = [
            np.where(rng.random(len(row)) < share, rng.permutation(row), row)
            for row in tokens
        ]
        perplexities.append(unit_perplexity(lm, torn)["perplexity"])
    assert (np.diff(np.log(perplexities)) > 1).all()


# === What is refused ===


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([], "list is empty"),
        ([np.zeros(3, int), np.zeros(0, int)], r"\(0,\) at 1"),
        ([np.zeros((1, 3), int)], r"\(1, 3\) at 0"),
        ([np.zeros(3)], "float64"),
        ([np.array([1, -1])], "from 0 to 11. Received: -1 to 1 at 0"),
        ([np.array([SIZE])], "Received: 12 to 12"),
    ],
)
def test_refuses_tokens(tokens, message):
    for measure in (
        log_likelihoods,
        unit_perplexity,
        lambda lm, tokens: real_against(lm, tokens, "reversed"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(make_lm(), tokens)


def test_refuses_other_stages_and_settings():
    coarse = make_lm(TokenLayout.coarse(SIZE, 2, 4, 25.0, 50.0))
    with pytest.raises(ValueError, match="'coarse', 2"):
        log_likelihoods(coarse, [np.zeros(3, int)])
    for settings in ({"how": "upside"}, {"how": "shuffled", "block": 0}):
        with pytest.raises(ValueError, match="Received: how="):
            real_against(make_lm(), [np.arange(3)], **settings)
