import functools
import json
import math

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from keras import ops

from keras_audiolm.language_model import parallel_decoder
from keras_audiolm.language_model.layout import TokenLayout
from keras_audiolm.language_model.parallel_decoder import ParallelDecoder
from keras_audiolm.layers.compiled import CompiledFunction

LEVELS, SIZE, TOLD_SIZE = 3, 5, 7
LAYOUT = TokenLayout.coarse(TOLD_SIZE, LEVELS, SIZE, 5.0, 10.0)
SIZES = {
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "kernel_size": 3,
    "dropout": 0.0,
}
BATCH, FRAMES = 4, 10


def make(seed=0, **kwargs):
    """A decoder whose random weights make its mind up."""
    model = ParallelDecoder(LAYOUT, **{**SIZES, "crop_duration": 1.0, **kwargs})
    model.build()
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if "norm" not in variable.path:
            variable.assign(rng.normal(size=variable.shape))
    return model


@functools.cache
def shared():
    return make()


def codes_of(batch=BATCH, frames=FRAMES, prompt=None, seed=0):
    rng = np.random.default_rng(seed)
    told = rng.integers(TOLD_SIZE, size=(batch, math.ceil(frames / 2), 1))
    codes = rng.integers(SIZE, size=(batch, frames, LEVELS))
    return {
        "semantic": told.astype("int32"),
        "coarse": codes[:, :prompt].astype("int32"),
    }


@functools.cache
def compiled(model):
    return CompiledFunction(model, model.call)


def called(codes):
    result = compiled(shared())(codes)
    return {name: ops.convert_to_numpy(x) for name, x in result.items()}


# === Masks ===


@functools.cache
def many_masks():
    level, where = shared().draw_masks(3000, FRAMES, seed=0)
    after, hidden = (
        ops.convert_to_numpy(where[name]) for name in ("after", "level")
    )
    return ops.convert_to_numpy(level), after, hidden


def test_levels_and_prompts_are_uniform():
    level, after, _ = many_masks()
    counts = np.bincount(level, minlength=LEVELS)
    assert len(counts) == LEVELS
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    start = FRAMES - after.sum(axis=1)
    np.testing.assert_array_equal(after, np.arange(FRAMES) >= start[:, None])
    counts = np.bincount(start, minlength=FRAMES)
    assert len(counts) == FRAMES
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_prompt_is_never_hidden_and_the_rest_by_the_cosine():
    _, after, hidden = many_masks()
    assert not (hidden & ~after).any()
    # The mean of cos(u) with u uniform up to a right angle.
    share = hidden.sum() / after.sum()
    assert share == pytest.approx(2 / math.pi, abs=0.02)
    # Its spread between rows is that of cos(u) as well, and not that of
    # independent frames of one probability.
    rows = after[:, 0]
    parts = hidden[rows].mean(axis=1)
    spread = 0.5 - (2 / math.pi) ** 2 + 0.5 * (4 / math.pi - 1) / FRAMES
    assert parts.var() == pytest.approx(spread, abs=0.02)


def masks_of_the_call():
    """The level, and what is hidden of each, of the masks of `called`."""
    level, where = shared().draw_masks(BATCH, FRAMES, shared().seed)
    level = ops.convert_to_numpy(level)
    after, here = (
        ops.convert_to_numpy(where[name]) for name in ("after", "level")
    )
    levels = np.arange(LEVELS)
    hidden = (levels > level[:, None])[:, None] & after[..., None]
    return level, hidden | (
        (levels == level[:, None])[:, None] & here[..., None]
    )


def test_what_is_hidden_is_not_seen_and_the_rest_is():
    codes = codes_of()
    before = called(codes)
    level, hidden = masks_of_the_call()
    assert hidden.any() and not hidden.all()
    np.testing.assert_array_equal(
        before["masked"],
        np.take_along_axis(hidden, level[:, None, None], axis=2)[..., 0],
    )
    chosen = np.take_along_axis(codes["coarse"], level[:, None, None], axis=2)
    np.testing.assert_array_equal(before["target"], chosen[..., 0])
    other = (codes["coarse"] + 1) % SIZE
    changed = np.where(hidden, other, codes["coarse"])
    after = called({**codes, "coarse": changed})
    np.testing.assert_array_equal(after["logits"], before["logits"])
    for row, frame, q in np.argwhere(~hidden)[::7]:
        changed = codes["coarse"].copy()
        changed[row, frame, q] = other[row, frame, q]
        after = called({**codes, "coarse": changed})
        moved = np.abs(after["logits"] - before["logits"]).max(axis=(1, 2))
        assert moved[row] > 1e-5
        assert (np.delete(moved, row) < 1e-6).all()


def test_what_is_told_is_heard():
    codes = codes_of()
    before = called(codes)["logits"]
    told = codes["semantic"].copy()
    told[:, 2] = (told[:, 2] + 1) % TOLD_SIZE
    moved = np.abs(called({**codes, "semantic": told})["logits"] - before)
    assert (moved.max(axis=(1, 2)) > 1e-4).all()


def test_padding_changes_nothing():
    codes = codes_of(frames=FRAMES)
    short = {
        "semantic": codes["semantic"],
        "coarse": codes["coarse"].copy(),
    }
    short["coarse"][:, 7:] = -1
    one = called(short)
    short["semantic"] = codes["semantic"].copy()
    short["semantic"][:, 4:] = (short["semantic"][:, 4:] + 1) % TOLD_SIZE
    other = called(short)
    np.testing.assert_allclose(
        one["logits"][:, :7], other["logits"][:, :7], atol=1e-5
    )
    assert not one["masked"][:, 7:].any()


def test_the_loss_is_of_what_was_hidden():
    model, result = shared(), called(codes_of())
    logits = np.float64(result["logits"])
    logits -= scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    target = result["target"]
    losses = -np.take_along_axis(logits, target[..., None], axis=2)[..., 0]
    hidden = result["masked"] > 0
    model.accuracy.reset_state()
    loss = float(model.compute_loss(x=codes_of(), y_pred=result))
    assert loss == pytest.approx(losses[hidden].mean(), rel=1e-4)
    right = (logits.argmax(axis=-1) == target)[hidden].mean()
    assert float(model.accuracy.result()) == pytest.approx(right, abs=1e-6)


# === Generation ===


def generate(model, codes, num_frames=FRAMES, **kwargs):
    return model.generate(codes, num_frames, **kwargs)


@pytest.mark.parametrize("prompt", [0, 1, 6])
def test_prompts_stay_and_codes_are_legal(prompt):
    codes = codes_of(prompt=prompt)
    result = generate(shared(), codes, seed=0)
    assert result.shape == (BATCH, FRAMES, LEVELS)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result[:, :prompt], codes["coarse"])
    assert result.min() >= 0 and result.max() < SIZE
    drawn = [
        generate(shared(), codes, temperature=100.0, seed=seed)[:, prompt:]
        for seed in range(8)
    ]
    for level in range(LEVELS):
        assert set(np.unique(np.stack(drawn)[..., level])) == set(range(SIZE))


def test_the_passes_are_few_and_hide_less_and_less(monkeypatch):
    model, seen = make(), []
    run = model._pass

    def spy(told, codes, where, level, *args, **kwargs):
        there = np.asarray(ops.convert_to_numpy(where["open"]))
        seen.append((int(level), there.sum(axis=1).tolist()))
        return run(told, codes, where, level, *args, **kwargs)

    model._pass = spy
    frames = 32
    codes = codes_of(frames=frames, prompt=2)
    generate(model, codes, frames, seed=0)
    assert [level for level, _ in seen] == [0] * 16 + [1, 2]
    for row in range(BATCH):
        opened = [counts[row] for _, counts in seen]
        expected = [
            math.floor(30 * math.cos(math.pi / 2 * i / 16)) for i in range(16)
        ]
        assert opened == [*expected, 30, 30]


def test_greedy_passes_are_what_the_model_says(monkeypatch):
    monkeypatch.setattr(parallel_decoder, "FIRST_PASSES", 1)
    model, codes = shared(), codes_of(prompt=3)
    result, scores = generate(model, codes, temperature=0.0, return_scores=True)
    there = np.ones((BATCH, FRAMES), "bool")
    total = np.zeros(BATCH)
    for level in range(LEVELS):
        hidden = np.zeros(result.shape, "bool")
        hidden[:, 3:, level:] = True
        x = model._hidden(codes["semantic"], result, hidden, there)
        logits = model._logits(x, np.full(BATCH, level))
        logits = ops.convert_to_numpy(logits)[:, 3:]
        np.testing.assert_array_equal(
            result[:, 3:, level], logits.argmax(axis=-1)
        )
        total += scipy.special.log_softmax(logits, axis=-1).max(-1).sum(1)
    np.testing.assert_allclose(scores, total, rtol=1e-4)


def test_the_surest_is_decided_first(monkeypatch):
    monkeypatch.setattr(parallel_decoder, "FIRST_PASSES", 2)
    model, codes = shared(), codes_of(prompt=2)
    result = generate(model, codes, temperature=0.0)
    hidden = np.zeros(result.shape, "bool")
    hidden[:, 2:] = True
    there = np.ones((BATCH, FRAMES), "bool")

    def likelihood(hidden):
        x = model._hidden(codes["semantic"], result, hidden, there)
        logits = ops.convert_to_numpy(model._logits(x, np.zeros(BATCH, int)))
        return scipy.special.log_softmax(logits, axis=-1)

    first = likelihood(hidden)
    sure = first.max(axis=-1)[:, 2:].argsort(axis=1)
    left = math.floor(8 * math.cos(math.pi / 4))
    for row in range(BATCH):
        decided = 2 + sure[row, left:]
        np.testing.assert_array_equal(
            result[row, decided, 0], first[row, decided].argmax(axis=-1)
        )
        hidden[row, decided, 0] = False
    second = likelihood(hidden)
    for row in range(BATCH):
        rest = 2 + sure[row, :left]
        np.testing.assert_array_equal(
            result[row, rest, 0], second[row, rest].argmax(axis=-1)
        )


def test_each_row_of_a_ragged_batch_is_its_prompt_alone():
    model, whole = shared(), codes_of(batch=3, prompt=4)
    lengths, new = (4, 0, 2), 5
    ragged = {name: block.copy() for name, block in whole.items()}
    for row, length in enumerate(lengths):
        ragged["coarse"][row, : 4 - length] = -1
    result = generate(model, ragged, 4 + new, temperature=0.0)
    np.testing.assert_array_equal(result[:, :4], ragged["coarse"])
    for row, length in enumerate(lengths):
        alone = {name: block[row : row + 1] for name, block in whole.items()}
        alone["coarse"] = alone["coarse"][:, 4 - length :]
        expected = generate(model, alone, length + new, temperature=0.0)
        np.testing.assert_array_equal(result[row, 4 - length :], expected[0])


def test_seeds_decide():
    codes = codes_of(prompt=1)
    one, again, other = (
        generate(shared(), codes, temperature=5.0, seed=seed)
        for seed in (1, 1, (1, 2))
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch runs eagerly"
)
def test_one_program_serves_all_passes():
    model = make()
    for prompt, frames in ((0, 10), (3, 10), (5, 16)):
        codes = codes_of(frames=16, prompt=prompt)
        generate(model, codes, frames, seed=prompt)
        assert model._pass.num_traces == 1
    generate(model, codes, frames, top_k=2)
    assert model._pass.num_traces == 2


# === Training ===


def test_gradient_reaches_every_level():
    model = make()
    model.compile(keras.optimizers.SGD(1.0))
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    codes = codes_of(batch=64)
    model.fit(codes, batch_size=64, epochs=1, verbose=0)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        moved = np.abs(ops.convert_to_numpy(variable) - old)
        assert moved.max() > 0, variable.path
        if variable.path.endswith(("head", "code_embedding")):
            assert (moved.max(axis=(1, 2)) > 0).all()
            if variable.path.endswith("code_embedding"):
                # All masks but the first level's prompt are learned, too.
                assert (moved[:, -1].max(axis=-1) > 0).all()


def test_what_it_is_told_is_learned():
    keras.utils.set_random_seed(0)
    model = ParallelDecoder(
        LAYOUT, **{**SIZES, "hidden_dim": 16}, crop_duration=1.0
    )
    rng = np.random.default_rng(0)
    told = rng.integers(SIZE, size=(64, FRAMES // 2, 1)).astype("int32")
    first = np.repeat(told, 2, axis=1)
    codes = np.concatenate([first, (first + 1) % SIZE, first[:, ::-1]], axis=2)
    model.compile(keras.optimizers.Adam(0.01))
    data = {"semantic": told, "coarse": codes}
    model.fit(data, batch_size=16, epochs=60, verbose=0)
    made = model.generate({"semantic": told}, FRAMES, temperature=0.0)
    assert (made[..., :2] == codes[..., :2]).mean() > 0.95
    # A batch is evaluated with the same masks each time.
    one, other = (
        model.evaluate(data, batch_size=64, verbose=0) for _ in range(2)
    )
    assert one == other


# === Configuration and errors ===


def test_config_and_weights_round_trip(tmp_path):
    model = shared()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == model.get_config()
    model.save_weights(tmp_path / "model.weights.h5")
    again.build()
    again.load_weights(tmp_path / "model.weights.h5")
    codes = codes_of(prompt=2)
    np.testing.assert_array_equal(
        generate(again, codes, seed=3), generate(model, codes, seed=3)
    )


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"semantic": None}, {}, "'semantic'.*missing"),
        ({"coarse": np.full((4, 2, 3), 5)}, {}, "0 to 4"),
        ({"coarse": np.zeros((3, 2, 3), int)}, {}, "same batch.*4.*3"),
        ({"coarse": np.array([[[1] * 3, [-1] * 3]] * 4)}, {}, "prompt.*-1"),
        ({}, {"repetition_penalty": 2.0}, "repetition_penalty.*semantic"),
        ({}, {"temperature": -1}, "`temperature`.*-1"),
        ({}, {"num_frames": 0}, "`num_frames`.*0"),
    ],
)
def test_what_means_nothing_is_refused(change, settings, message):
    codes = {**codes_of(prompt=2), **change}
    codes = {name: block for name, block in codes.items() if block is not None}
    with pytest.raises(ValueError, match=message):
        shared().generate(codes, **{"num_frames": FRAMES, **settings})


def test_a_layout_of_one_segment_is_refused():
    with pytest.raises(ValueError, match="two segments.*semantic"):
        ParallelDecoder(TokenLayout.semantic(5, 10.0))


def test_broken_weights_are_named():
    model = make()
    model.head.assign(np.full(model.head.shape, np.nan))
    with pytest.raises(ValueError, match=f"{model.name}.*not finite"):
        generate(model, codes_of(prompt=1))
