import functools
import json
import math

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from keras import ops

from keras_audiolm.language_model import decoding
from keras_audiolm.language_model.backbone import StageBackbone
from keras_audiolm.language_model.layout import TokenLayout
from keras_audiolm.language_model.sampling import (
    cut_tail,
    gumbel_noise,
    row_generators,
)
from keras_audiolm.language_model.stage_lm import StageLM
from keras_audiolm.layers.compiled import CompiledFunction

LAYOUTS = {
    "semantic": TokenLayout.semantic(7, 10.0),
    "coarse": TokenLayout.coarse(7, 2, 5, 5.0, 10.0),
    "fine": TokenLayout.fine(2, 3, 5, 10.0),
}
SIZES = {
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "dropout": 0.0,
    "num_buckets": 6,
    "max_distance": 9,
}
BATCH, FRAMES = 3, 6  # predicted frames of a window
MODELS = pytest.mark.parametrize(
    ("stage", "position"),
    [
        ("semantic", "relative"),
        ("coarse", "rotary"),
        pytest.param("fine", "relative", marks=pytest.mark.large),
    ],
)
RUNS_COMPILED = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch runs eagerly"
)


def make(stage="coarse", position="relative", seed=0, **kwargs):
    """A model whose random weights make its mind up."""
    settings = {"crop_duration": FRAMES / 10, **kwargs}
    lm = StageLM(LAYOUTS[stage], {**SIZES, "position": position}, **settings)
    lm.build()
    rng = np.random.default_rng(seed)
    for variable in lm.weights:
        if not variable.path.endswith("scale"):
            variable.assign(rng.normal(size=variable.shape))
    return lm


@functools.cache
def shared(stage, position):
    """A model that tests share and leave as it is."""
    return make(stage, position)


def codes_of(stage, batch=BATCH, prompt=0, seed=0, frames=FRAMES):
    """Random conditioning, and `prompt` frames of the predicted segment."""
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[stage]
    codes = {}
    for segment in layout.segments:
        count = round(frames * segment.frame_rate / 10)
        shape = (batch, count, segment.levels)
        block = rng.integers(segment.codebook_size, size=shape).astype("int32")
        codes[segment.name] = block
    name = layout.predicted.name
    codes[name] = codes[name][:, :prompt]
    return codes


@functools.cache
def compiled(lm):
    return CompiledFunction(lm, lm.call)


def logits_of(lm, codes):
    return ops.convert_to_numpy(compiled(lm)(codes))


def slow_cut(logits, temperature, top_k, top_p):
    """The logits of one row, those that may not be drawn at -inf."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    kept, mass = [], 0.0
    for rank, i in enumerate(order):
        if top_k is not None and rank >= top_k:
            break
        if top_p is not None and mass >= top_p:
            break
        kept.append(i)
        mass += weights[i] / sum(weights)
    return np.array([x if i in kept else -np.inf for i, x in enumerate(logits)])


def sample_slowly(lm, codes, num_frames, temperature, seed, **cut):
    """`generate` without a cache: one pass over all for each code."""
    segment = lm.layout.predicted
    prompt = codes[segment.name]
    batch, known, levels = prompt.shape
    codes = dict(codes)
    codes[segment.name] = np.full((batch, FRAMES, levels), -1, "int32")
    codes[segment.name][:, :known] = prompt
    steps = (num_frames - known) * levels
    noise = gumbel_noise(
        row_generators(batch, seed), steps, segment.codebook_size
    )
    noise = noise.reshape(batch, num_frames - known, levels, -1)
    for frame in range(known, num_frames):
        for level in range(levels):
            logits = logits_of(lm, codes)[:, frame, level]
            for row in range(batch):
                scores = logits[row]
                if cut:
                    scores = slow_cut(scores, temperature, **cut)
                scores = scores + temperature * noise[row, frame - known, level]
                codes[segment.name][row, frame, level] = np.argmax(scores)
    return codes[segment.name][:, :num_frames]


# === Generation with a cache ===


@MODELS
@pytest.mark.parametrize("prompt", [0, 1, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_is_the_slow_loop_without_a_cache(
    stage, position, prompt, temperature
):
    lm, codes = shared(stage, position), codes_of(stage, prompt=prompt)
    result = lm.generate(codes, FRAMES, temperature=temperature, seed=5)
    expected = sample_slowly(lm, codes, FRAMES, temperature, seed=5)
    np.testing.assert_array_equal(result, expected)
    levels = lm.layout.predicted.levels
    assert result.shape == (BATCH, FRAMES, levels)
    assert result.dtype == np.int32
    name = lm.layout.predicted.name
    np.testing.assert_array_equal(result[:, :prompt], codes[name])


@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 2, "top_p": None},
        {"top_k": None, "top_p": 0.5},
        {"top_k": 3, "top_p": 0.8},
    ],
    ids=str,
)
def test_truncated_sampling_is_the_slow_loop(cut):
    lm, codes = shared("coarse", "rotary"), codes_of("coarse", prompt=1)
    result = lm.generate(codes, FRAMES, temperature=2.0, seed=5, **cut)
    expected = sample_slowly(lm, codes, FRAMES, 2.0, seed=5, **cut)
    np.testing.assert_array_equal(result, expected)


def test_the_likeliest_code_has_three_names():
    lm, codes = shared("coarse", "rotary"), codes_of("coarse")
    greedy = lm.generate(codes, FRAMES, temperature=0.0)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}):
        for seed in (0, 1):
            result = lm.generate(codes, FRAMES, seed=seed, **settings)
            np.testing.assert_array_equal(result, greedy)
    # Otherwise this shows nothing.
    assert np.any(lm.generate(codes, FRAMES, seed=0) != greedy)


@MODELS
def test_all_legal_codes_are_reached_and_no_others(stage, position):
    lm, codes = shared(stage, position), codes_of(stage)
    drawn = [
        lm.generate(codes, FRAMES, temperature=1000.0, seed=seed)
        for seed in range(6)
    ]
    segment = lm.layout.predicted
    for level in range(segment.levels):
        found = np.unique(np.stack(drawn)[..., level]).tolist()
        assert found == list(range(segment.codebook_size))


@pytest.mark.large
def test_draws_follow_the_softmax():
    lm = shared("semantic", "relative")
    codes = codes_of("semantic", batch=1, prompt=3)
    logits = logits_of(lm, codes_of("semantic", batch=1, prompt=4))[0, 3]
    expected = np.exp(np.float64(logits[0]) / 2.5)
    many = {"semantic": codes["semantic"].repeat(2000, axis=0)}
    draws = lm.generate(many, 4, temperature=2.5, seed=3)[:, 3, 0]
    counts = np.bincount(draws, minlength=7)
    expected = 2000 * expected / expected.sum()
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert len(counts) > 2
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_conditioning_is_heard():
    codes = codes_of("coarse", prompt=FRAMES)
    lm = shared("coarse", "rotary")
    before = logits_of(lm, codes)
    semantic = codes["semantic"].copy()
    semantic[:, 0] = (semantic[:, 0] + 1) % 7
    after = logits_of(lm, {**codes, "semantic": semantic})
    assert np.all(np.abs(after - before).max(axis=-1) > 1e-5)
    semantic[:, 0] = -1
    absent = logits_of(lm, {**codes, "semantic": semantic})
    assert np.all(np.abs(absent - before).max(axis=-1) > 1e-5)


# === Seeds and batches ===


@MODELS
def test_a_row_depends_on_the_seed_and_its_number_only(stage, position):
    lm, codes = shared(stage, position), codes_of(stage, prompt=1)
    result = lm.generate(codes, FRAMES, seed=7)
    again = lm.generate(codes, FRAMES, seed=7)
    np.testing.assert_array_equal(result, again)
    for other in (8, (7, 1), (1, 7)):
        assert np.any(lm.generate(codes, FRAMES, seed=other) != result)
    # Row 1 stays, whoever its neighbours are.
    others = codes_of(stage, prompt=1, seed=9)
    others = {name: block.copy() for name, block in others.items()}
    for name, block in codes.items():
        others[name][1] = block[1]
    mixed = lm.generate(others, FRAMES, seed=7)
    np.testing.assert_array_equal(mixed[1], result[1])
    # Rows of the same codes are drawn apart.
    same = {name: block[[0, 0, 0]] for name, block in codes.items()}
    rows = lm.generate(same, FRAMES, temperature=5.0, seed=7)
    assert np.any(rows[0] != rows[1]) and np.any(rows[1] != rows[2])


def test_one_row_is_row_0_of_a_batch():
    lm, codes = shared("coarse", "rotary"), codes_of("coarse", prompt=1)
    single = {name: block[:1] for name, block in codes.items()}
    np.testing.assert_array_equal(
        lm.generate(single, FRAMES, seed=7),
        lm.generate(codes, FRAMES, seed=7)[:1],
    )


def test_without_a_seed_each_call_is_another():
    lm, codes = shared("semantic", "relative"), codes_of("semantic")
    one, other = (
        lm.generate(codes, FRAMES, temperature=50.0) for _ in range(2)
    )
    assert np.any(one != other)


def test_generation_without_any_codes_is_one_row():
    lm = shared("semantic", "relative")
    result = lm.generate({}, 4, seed=0)
    assert result.shape == (1, 4, 1)
    expected = lm.generate(codes_of("semantic", batch=1), 4, seed=0)
    np.testing.assert_array_equal(result, expected)


# === Windows ===


def test_the_window_does_not_show_in_what_stands_at_its_start():
    lm = shared("semantic", "relative")
    codes = codes_of("semantic", prompt=2)
    long = lm.generate(codes, FRAMES + 3, seed=0)
    assert long.shape == (BATCH, FRAMES + 3, 1)
    for num_frames in (FRAMES, 4, 3):
        result = lm.generate(codes, num_frames, seed=0)
        np.testing.assert_array_equal(result, long[:, :num_frames])


@pytest.mark.large
def test_conditioning_that_is_not_there_yet_changes_nothing():
    # With rotary positions, where the time of what is there stays.
    lm = shared("coarse", "rotary")
    longer = make("coarse", "rotary", crop_duration=1.0)
    codes = codes_of("coarse", prompt=1)
    result = lm.generate(codes, FRAMES, seed=0)
    np.testing.assert_array_equal(
        longer.generate(codes, FRAMES, seed=0), result
    )


def test_a_prompt_that_says_all_comes_back():
    lm = shared("coarse", "rotary")
    codes = codes_of("coarse", prompt=5)
    for num_frames in (5, 3):
        result = lm.generate(codes, num_frames)
        expected = codes["coarse"][:, :num_frames]
        np.testing.assert_array_equal(result, expected)


@RUNS_COMPILED
def test_one_program_a_bucket_serves_all_calls(monkeypatch):
    monkeypatch.setattr(decoding, "SMALLEST_CACHE", 16)
    lm = make("coarse", crop_duration=2.0)
    codes = codes_of("coarse", frames=20)  # 14 tokens before the first code

    def traces(codes, num_frames, **settings):
        lm.generate(codes, num_frames, **settings)
        return lm._decode._start.num_traces, lm._decode._go_on.num_traces

    # Caches of 16 tokens and of 32; of 64, too; of all these again.
    assert traces(codes, 3, temperature=0.0) == (1, 2)
    assert traces(codes, 20, temperature=0.3) == (1, 3)
    assert traces(codes, 18, seed=1) == (1, 3)
    # Less conditioning has the same shape, and so have prompts of 1 to 8.
    assert traces({"semantic": codes["semantic"][:, :1]}, 20) == (1, 3)
    for prompt in (1, 5, 8):
        prompted = codes_of("coarse", prompt=prompt, frames=20)
        assert traces(prompted, 18, seed=prompt) == (2, 3)
    # All settings of top_k and top_p share one as well.
    for settings in ({"top_k": 2}, {"top_k": 3}, {"top_p": 0.3}):
        assert traces(codes, 3, **settings) == (2, 5)
    # New weights count.
    first = lm.generate(codes, 20, temperature=0.0)
    for variable in lm.trainable_variables:
        variable.assign(-variable)
    assert np.any(lm.generate(codes, 20, temperature=0.0) != first)
    assert lm._decode.num_traces == 2 + 5


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch loops on the host"
)
@MODELS
def test_no_code_waits_for_the_one_before_it(stage, position):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        """Counts where the host asks for the value of a tensor."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    def waits(num_frames):
        with Waits() as mode:
            shared(stage, position).generate(
                codes_of(stage), num_frames, seed=0, top_k=3
            )
        return mode.count

    assert waits(FRAMES) == waits(2) < 10


# === Caches ===


@MODELS
def test_caches_that_grow_change_nothing(stage, position, monkeypatch):
    lm, codes = make(stage, position), codes_of(stage, prompt=1)
    whole = lm.generate(codes, FRAMES, seed=3)
    monkeypatch.setattr(decoding, "SMALLEST_CACHE", 2)
    monkeypatch.setattr(decoding, "MAX_STEPS", 3)
    parts = make(stage, position).generate(codes, FRAMES, seed=3)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 256), (256, 256), (257, 512), (1025, 2048)]
)
def test_caches_double(tokens, length):
    assert decoding.cache_length(tokens) == length


# === Prompts of different lengths ===


@MODELS
def test_each_row_of_a_ragged_batch_is_its_prompt_alone(stage, position):
    lm, new = shared(stage, position), 3
    lengths = (3, 0, 2)
    whole = codes_of(stage, prompt=3)
    name = lm.layout.predicted.name
    ragged = {**whole, name: whole[name].copy()}
    for row, length in enumerate(lengths):
        ragged[name][row, : 3 - length] = -1
    result = lm.generate(ragged, 3 + new, temperature=0.0)
    np.testing.assert_array_equal(result[:, :3], ragged[name])
    for row, length in enumerate(lengths):
        alone = {n: block[row : row + 1] for n, block in whole.items()}
        alone[name] = whole[name][row : row + 1, 3 - length :]
        expected = lm.generate(alone, length + new, temperature=0.0)
        np.testing.assert_array_equal(result[row, 3 - length :], expected[0])


# === Ends ===

ENDING = TokenLayout.semantic(4, 10.0, ends=True)


@functools.cache
def ending(position="relative"):
    lm = StageLM(ENDING, {**SIZES, "position": position}, crop_duration=0.6)
    lm.build()
    rng = np.random.default_rng(0)
    for variable in lm.weights:
        if not variable.path.endswith("scale"):
            variable.assign(rng.normal(0, 0.3, size=variable.shape))
    return lm


def test_a_row_ends_where_the_end_is_drawn_and_its_score_does():
    lm, batch, frames = ending(), 8, 12
    prompt = np.arange(batch, dtype="int32")[:, None, None] % 4
    made, scores = lm.generate(
        {"semantic": prompt}, frames, seed=1, may_end=True, return_scores=True
    )
    lengths = (made[..., 0] >= 0).sum(axis=1)
    assert lengths.min() < frames and len(set(lengths)) > 2
    assert made.max() == 3
    for row, length in enumerate(lengths):
        assert (made[row, :length] >= 0).all()
        # The end is the code after the last.
        said = np.where(made[row : row + 1] == -1, 4, made[row : row + 1])
        said[:, length + 1 :] = -1
        logits = logits_of(lm, {"semantic": said})[0, :, 0]
        likely = scipy.special.log_softmax(logits, axis=-1)
        stop = min(length + 1, frames)
        expected = sum(likely[t, said[0, t, 0]] for t in range(1, stop))
        np.testing.assert_allclose(scores[row], expected, atol=1e-4)


def test_without_leave_no_row_ends():
    made = ending().generate({}, 200, temperature=1000.0, seed=0)
    assert sorted(set(made.ravel().tolist())) == [0, 1, 2, 3]
    greedy = ending().generate({}, 12, temperature=0.0, top_k=1)
    assert greedy.min() >= 0 and greedy.max() <= 3


def test_nothing_is_sampled_once_all_rows_have_ended(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_STEPS", 4)
    lm, calls = ending("rotary"), []
    go_on = lm._decode._go_on

    def spy(*args, **kwargs):
        calls.append(1)
        return go_on(*args, **kwargs)

    monkeypatch.setattr(lm._decode, "_go_on", spy)
    made = lm.generate(
        {"semantic": np.zeros((2, 1, 1), "int32")}, 401, seed=0, may_end=True
    )
    longest = (made[..., 0] >= 0).sum(axis=1).max() - 1
    assert made.shape == (2, 401, 1) and longest < 400
    assert len(calls) == longest // 4 + 1


def test_a_layout_without_an_end_has_none():
    with pytest.raises(ValueError, match="`may_end`.*none.*ends=True"):
        shared("semantic", "relative").generate({}, 4, may_end=True)


# === Repetition ===


def test_a_repetition_penalty_divides_the_odds_of_what_was_there():
    lm = shared("coarse", "rotary")
    codes = codes_of("coarse", prompt=2)
    plain = lm.generate(codes, FRAMES, temperature=0.0)
    same = lm.generate(
        codes, FRAMES, temperature=0.0, repetition_penalty=1.0 + 1e-7
    )
    np.testing.assert_array_equal(same, plain)
    # Four frames of one level have nothing twice, nor anything of the prompt,
    # as far as five codes go.
    strong = lm.generate(codes, FRAMES, temperature=0.0, repetition_penalty=1e9)
    for row in strong:
        for level in row.T:
            assert len(set(level[:5])) == 5 - (level[0] == level[1])
    # One frame, worked out by hand.
    logits = logits_of(lm, {**codes, "coarse": strong})[:, 2, 0]
    for row in range(BATCH):
        scores = logits[row].copy()
        scores[np.unique(codes["coarse"][row, :, 0])] -= math.log(3.0)
        result = lm.generate(codes, 3, temperature=0.0, repetition_penalty=3.0)
        assert result[row, 2, 0] == np.argmax(scores)


@MODELS
def test_the_score_is_the_likelihood_of_what_is_new(stage, position):
    lm, codes = shared(stage, position), codes_of(stage, prompt=2)
    name = lm.layout.predicted.name
    settings = {"temperature": 3.0, "top_k": 3, "repetition_penalty": 2.0}
    made, scores = lm.generate(
        codes, FRAMES, seed=1, return_scores=True, **settings
    )
    logits = logits_of(lm, {**codes, name: made})[:, 2:]
    logits = logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, made[:, 2:, :, None], axis=-1)
    np.testing.assert_allclose(scores, chosen.sum((1, 2, 3)), rtol=1e-4)
    none = lm.generate(codes, 2, return_scores=True)[1]
    np.testing.assert_array_equal(none, np.zeros(BATCH))


def test_broken_weights_are_named():
    lm = make("semantic")
    lm.head.assign(np.full(lm.head.shape, np.nan))
    with pytest.raises(ValueError, match=f"{lm.name}.*not finite"):
        lm.generate(codes_of("semantic"), FRAMES)


# === Random numbers ===


def test_gumbel_noise_is_gumbel_noise():
    noise = gumbel_noise(row_generators(4, 0), 500, 7)
    assert noise.dtype == np.float32
    assert np.all(np.isfinite(noise))
    flat = noise.reshape(4, -1)
    result = scipy.stats.kstest(flat.reshape(-1), "gumbel_r")
    assert result.pvalue > 1e-3
    correlation = np.corrcoef(flat) - np.eye(4)
    assert np.abs(correlation).max() < 0.06


def test_the_argmax_with_gumbel_noise_samples_the_softmax():
    logits = np.array([0.0, 1.0, -2.0, 0.5, 3.0])
    noise = gumbel_noise(row_generators(1, 1), 20_000, 5)[0]
    for temperature in (0.6, 1.0, 3.0):
        draws = np.argmax(logits + temperature * noise, axis=-1)
        expected = np.exp(logits / temperature)
        expected *= len(draws) / expected.sum()
        counts = np.bincount(draws, minlength=5)
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_noise_depends_on_seed_row_and_what_was_drawn_before():
    noise = gumbel_noise(row_generators(3, 2), 20, 5)
    one = gumbel_noise(row_generators(1, 2), 20, 5)
    np.testing.assert_array_equal(one, noise[:1])
    generators = row_generators(3, 2)
    parts = [gumbel_noise(generators, steps, 5) for steps in (8, 12)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), noise)
    assert np.any(noise != gumbel_noise(row_generators(3, (2, 2)), 20, 5))
    assert np.any(noise[0] != noise[1])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_what_top_k_and_top_p_keep(temperature):
    logits = np.random.default_rng(0).normal(size=(6, 9)).astype("float32")
    run = CompiledFunction(keras.Model(), cut_tail)
    for top_k in (1, 2, 5, 9):
        for top_p in (1e-6, 0.3, 0.7, 1.0):
            settings = np.float32(temperature), np.int32(top_k)
            result = run(logits, *settings, np.float32(top_p))
            expected = [
                slow_cut(row, temperature, top_k, top_p) for row in logits
            ]
            np.testing.assert_array_equal(
                ops.convert_to_numpy(result), expected
            )


# === Training ===


def slow_loss(logits, target):
    losses, right = [], []
    for index in np.ndindex(target.shape):
        if target[index] >= 0:
            scores = np.float64(logits[index])
            total = math.log(np.exp(scores - scores.max()).sum())
            losses.append(total + scores.max() - scores[target[index]])
            right.append(np.argmax(scores) == target[index])
    return np.mean(losses), np.mean(right)


@MODELS
def test_the_loss_is_of_the_predicted_frames_that_are_there(stage, position):
    lm = shared(stage, position)
    codes = codes_of(stage, prompt=FRAMES)
    name = lm.layout.predicted.name
    codes[name][0, 4:] = -1
    codes[name][2] = -1
    logits = logits_of(lm, codes)
    segment = lm.layout.predicted
    shape = (BATCH, FRAMES, segment.levels, segment.codebook_size)
    assert logits.shape == shape
    expected, accuracy = slow_loss(logits, codes[name])
    lm.accuracy.reset_state()
    loss = lm.compute_loss(x=codes, y_pred=logits)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    result = float(lm.accuracy.result())
    assert result == pytest.approx(accuracy, abs=1e-6)
    # Nothing that is told is a target.
    lm.accuracy.reset_state()
    changed = {n: np.full_like(c, -1) for n, c in codes.items() if n != name}
    same = lm.compute_loss(x={**codes, **changed}, y_pred=logits)
    assert float(same) == pytest.approx(expected, rel=1e-4)
    if stage == "coarse":
        lm.compile(optimizer="sgd")
        result = lm.evaluate(
            codes, batch_size=BATCH, verbose=0, return_dict=True
        )
        assert result == pytest.approx(
            {"loss": expected, "accuracy": accuracy}, rel=1e-4
        )


def test_the_loss_of_nothing_is_zero():
    lm = shared("coarse", "rotary")
    codes = codes_of("coarse", prompt=FRAMES)
    codes["coarse"][:] = -1
    loss = lm.compute_loss(x=codes, y_pred=logits_of(lm, codes))
    assert float(loss) == 0.0


def test_metrics_are_counted_once():
    lm = make()
    lm.compile(optimizer="sgd")
    names = [metric.name for metric in lm.metrics]
    assert sorted(names) == sorted(set(names))
    assert "accuracy" in names


@pytest.mark.parametrize(
    "position",
    ["relative", pytest.param("rotary", marks=pytest.mark.large)],
)
def test_a_pattern_is_learned_and_then_continued(position):
    keras.utils.set_random_seed(0)
    # Row c is told c, and says c and the time.
    frames = np.arange(FRAMES)
    codes = {"semantic": np.zeros((5, FRAMES // 2, 1), "int32")}
    codes["semantic"] += np.arange(5, dtype="int32")[:, None, None]
    told = np.broadcast_to(np.arange(5)[:, None], (5, FRAMES))
    said = np.stack([(told + frames) % 5, told], axis=-1).astype("int32")
    lm = StageLM(
        LAYOUTS["coarse"],
        {**SIZES, "hidden_dim": 16, "position": position},
        crop_duration=FRAMES / 10,
    )
    # Without `build`: fit does it.
    lm.compile(keras.optimizers.Adam(0.02))
    dataset = Repeated({**codes, "coarse": said})
    losses = lm.fit(dataset, epochs=4, verbose=0).history["loss"]
    assert losses[0] > 0.5
    assert losses[-1] < 0.05
    result = lm.generate(codes, FRAMES, temperature=0.0)
    np.testing.assert_array_equal(result, said)
    prompted = {**codes, "coarse": said[:, :3]}
    result = lm.generate(prompted, FRAMES, temperature=0.0)
    np.testing.assert_array_equal(result, said)


class Repeated(keras.utils.PyDataset):
    """The same batch, 25 times an epoch."""

    def __init__(self, codes):
        super().__init__()
        self.codes = codes

    def __len__(self):
        return 25

    def __getitem__(self, index):
        return self.codes


# === Configuration and files ===


@MODELS
def test_config_and_weights_round_trip(stage, position, tmp_path):
    lm = shared(stage, position)
    config = keras.saving.serialize_keras_object(lm)
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config))
    )
    assert isinstance(again, StageLM)
    assert again.get_config() == lm.get_config()
    assert again.layout == lm.layout
    assert again.crop_duration == lm.crop_duration
    path = tmp_path / "lm.weights.h5"
    lm.save_weights(path)
    again.build()
    again.load_weights(path)
    assert len(again.weights) == len(lm.weights) > 15
    for one, other in zip(again.weights, lm.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


def test_half_precision_generates():
    lm = make("coarse", "rotary", dtype="mixed_bfloat16")
    codes = codes_of("coarse", prompt=2)
    result = lm.generate(codes, FRAMES, seed=0)
    np.testing.assert_array_equal(result[:, :2], codes["coarse"])
    assert result.min() >= 0 and result.max() < 5
    assert logits_of(lm, codes).dtype == np.float32


def test_the_backbone_fits_the_layout():
    layout = LAYOUTS["coarse"]
    lm = StageLM(layout, SIZES)
    assert lm.backbone.vocabulary_size == layout.vocabulary_size
    assert lm.backbone.pad_id == layout.pad_id
    given = StageBackbone(layout.vocabulary_size, pad_id=layout.pad_id, **SIZES)
    assert StageLM(layout, given).backbone is given
    with pytest.raises(ValueError, match="20 ids and the backbone 21"):
        StageLM(layout, StageBackbone(21, pad_id=layout.pad_id, **SIZES))
    with pytest.raises(ValueError, match="pad_id"):
        StageLM(layout, StageBackbone(layout.vocabulary_size, **SIZES))


# === What is refused ===


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "`temperature`.*-0.1"),
        ({"temperature": float("nan")}, "`temperature`.*nan"),
        ({"temperature": float("inf")}, "`temperature`.*inf"),
        ({"top_k": 0}, "`top_k`.*0"),
        ({"top_k": -1}, "`top_k`.*-1"),
        ({"top_p": 0.0}, "`top_p`.*0.0"),
        ({"top_p": 1.1}, "`top_p`.*1.1"),
        ({"top_p": float("nan")}, "`top_p`.*nan"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty`.*0.0"),
        ({"seed": -1}, "`seed`.*-1"),
        ({"num_frames": 0}, "`num_frames`.*0"),
        ({"num_frames": -3}, "`num_frames`.*-3"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    settings = {"num_frames": FRAMES, **settings}
    with pytest.raises(ValueError, match=message):
        shared("coarse", "rotary").generate(codes_of("coarse"), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic": None}, "'semantic'.*missing.*coarse"),
        ({"fine": np.zeros((3, 2, 3), int)}, "no segment 'fine'"),
        ({"coarse": np.full((3, 2, 2), 5)}, "0 to 4.*5 to 5"),
        ({"coarse": np.full((3, 2, 3), 1)}, r"\(3, 2, 3\)"),
        ({"coarse": np.zeros((3, 2, 2))}, "integers.*float64"),
        ({"coarse": np.array([[[1, 1], [-1, -1]]] * 3)}, "prompt.*-1"),
        ({"coarse": np.array([[[1, -1], [1, 1]]] * 3)}, "prompt.*-1"),
        ({"semantic": np.zeros((0, 3, 1), int)}, "same batch.*one or more"),
        ({"coarse": np.zeros((2, 2, 2), int)}, "same batch.*2.*3|3.*2"),
    ],
    ids=[
        "missing",
        "foreign",
        "range",
        "levels",
        "float",
        "gap",
        "part",
        "empty",
        "batch",
    ],
)
def test_codes_that_do_not_fit_are_refused(change, message):
    codes = {**codes_of("coarse", prompt=2), **change}
    codes = {name: block for name, block in codes.items() if block is not None}
    with pytest.raises(ValueError, match=message):
        shared("coarse", "rotary").generate(codes, FRAMES)
