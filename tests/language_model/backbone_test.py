import functools
import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.language_model import backbone as backbone_module
from keras_audiolm.language_model.backbone import (
    DecoderBlock,
    RelativeBias,
    StageBackbone,
    relative_buckets,
)
from keras_audiolm.layers.compiled import CompiledFunction

SIZES = {
    "vocabulary_size": 11,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "dropout": 0.0,
    "num_buckets": 6,
    "max_distance": 9,
    "pad_id": 10,
}
LENGTH = 14
BOTH = pytest.mark.parametrize("position", ["relative", "rotary"])


def randomize(model, seed=0):
    """Weights at which every part of the model shows in its output."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed_generator" in variable.path:
            continue
        value = rng.normal(size=variable.shape)
        if variable.path.endswith("kernel"):
            value *= 1.5 / math.sqrt(variable.shape[0])
        elif variable.path.endswith("scale"):
            value = 1 + 0.3 * value
        variable.assign(value)


@functools.cache
def backbone(position):
    """A model that tests share and leave as it is."""
    model = StageBackbone(**SIZES, position=position)
    model.build()
    randomize(model)
    return model


def ids_of(batch=2, seed=0, padding=()):
    ids = np.random.default_rng(seed).integers(10, size=(batch, LENGTH))
    ids[:, list(padding)] = SIZES["pad_id"]
    return ids.astype("int32")


def times_of(seed=3):
    times = np.random.default_rng(seed).uniform(0, 4, LENGTH)
    return np.cumsum(times).astype("float32")


@functools.cache
def compiled(model):
    def call(ids, times):
        return ops.cast(model(ids, times=times), "float32")

    def step(token, caches, index, mask, times):
        distances = model.distance_bias(mask.shape[1])
        time = ops.take(times, index)[None, None]
        return model.step(token, caches, index, mask, distances, time)

    return CompiledFunction(model, call), CompiledFunction(model, step)


def run(model, ids, times=None):
    times = times_of() if times is None else times
    return ops.convert_to_numpy(compiled(model)[0](ids, times))


def gradient(function, variable):
    """NumPy gradient of a scalar with respect to one variable."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def stateless(value):
            with keras.StatelessScope(state_mapping=[(variable, value)]):
                return function()

        return np.asarray(jax.jit(jax.grad(stateless))(variable.value))
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = function()
        return ops.convert_to_numpy(tape.gradient(loss, variable.value))
    function().backward()
    return ops.convert_to_numpy(variable.value.grad)


# === Relative positions ===


def t5_bucket(distance, num_buckets, max_distance):
    """T5's `_relative_position_bucket(bidirectional=False)` of one number."""
    max_exact = num_buckets // 2
    if distance < max_exact:
        return distance
    ratio = math.log(distance / max_exact) / math.log(max_distance / max_exact)
    return min(
        max_exact + int(ratio * (num_buckets - max_exact)), num_buckets - 1
    )


@pytest.mark.parametrize(
    ("num_buckets", "max_distance"),
    [(32, 128), (32, 2048), (8, 20), (7, 50), (2, 3)],
)
@pytest.mark.parametrize("length", [1, 3, 3000])
def test_buckets_are_those_of_t5(num_buckets, max_distance, length):
    buckets = relative_buckets(length, num_buckets, max_distance)
    expected = [t5_bucket(d, num_buckets, max_distance) for d in range(length)]
    assert buckets.tolist() == expected
    if length > max_distance:
        assert set(expected) == set(range(num_buckets))
        assert expected[max_distance - 1] == num_buckets - 1


@pytest.mark.parametrize("length", [1, 2, 13])
def test_the_bias_is_a_gather_and_so_is_its_gradient(length):
    layer = RelativeBias(3, num_buckets=6, max_distance=9)
    layer.build()
    table = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    layer.table.assign(table)
    query, key = np.tril_indices(length)
    buckets = np.array([t5_bucket(d, 6, 9) for d in query - key])

    bias = ops.convert_to_numpy(layer(length=length))
    assert bias.shape == (3, length, length)
    np.testing.assert_array_equal(bias[:, query, key], table[:, buckets])

    upstream = np.zeros(bias.shape, "float32")
    upstream[:, query, key] = np.random.default_rng(1).normal(
        size=(3, len(query))
    )
    expected = np.zeros((3, 6))
    for i, j, bucket in zip(query, key, buckets, strict=True):
        expected[:, bucket] += upstream[:, i, j]
    result = gradient(
        lambda: ops.sum(ops.multiply(layer(length=length), upstream)),
        layer.table,
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


# === The whole model against NumPy, one query at a time ===


def slow_norm(x, scale):
    return x / math.sqrt(np.mean(x**2) + 1e-6) * scale


def slow_rotation(x, time):
    """Pairs of features as complex numbers that turn."""
    half = len(x) // 2
    turn = np.exp(1j * time * 10000.0 ** (-np.arange(half) / half))
    turned = (x[:half] + 1j * x[half:]) * turn
    return np.concatenate([turned.real, turned.imag])


def slow_block(weights, x, padded, table, times, config):
    heads = config["num_heads"]
    size = config["hidden_dim"] // heads
    rotate = slow_rotation if table is None else lambda x, time: x
    queries, keys, values = [], [], []
    for t, row in enumerate(x):
        normed = slow_norm(row, weights["attention_norm/scale"])
        for name, rows in (("query", queries), ("key", keys)):
            projected = (normed @ weights[f"{name}/kernel"]).reshape(heads, -1)
            rows.append([rotate(h, times[t]) for h in projected])
        values.append((normed @ weights["value/kernel"]).reshape(heads, -1))
    result = []
    for t, row in enumerate(x):
        mixed = np.zeros((heads, size))
        for h in range(heads):
            seen = [k for k in range(t + 1) if not padded[k]]
            scores = [queries[t][h] @ keys[k][h] / size**0.5 for k in seen]
            if table is not None:
                buckets, distance = (
                    config["num_buckets"],
                    config["max_distance"],
                )
                for i, k in enumerate(seen):
                    scores[i] += table[h, t5_bucket(t - k, buckets, distance)]
            scores = np.exp(np.array(scores) - max(scores))
            for score, k in zip(scores / scores.sum(), seen, strict=True):
                mixed[h] += score * values[k][h]
        row = row + mixed.reshape(-1) @ weights["attention_output/kernel"]
        normed = slow_norm(row, weights["feed_forward_norm/scale"])
        gate = normed @ weights["gate/kernel"]
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        gate = 0.5 * gate * (1 + np.tanh(inner))
        up = normed @ weights["up/kernel"]
        result.append(row + (gate * up) @ weights["down/kernel"])
    return np.array(result)


def slow_backbone(model, ids, times):
    config = model.get_config()
    weights = {
        v.path.removeprefix(model.name + "/"): np.float64(
            ops.convert_to_numpy(v)
        )
        for v in model.weights
    }
    relative = config["position"] == "relative"
    table = weights["relative_bias/table"] if relative else None
    result = []
    for row in ids:
        x = weights["token_embedding/embeddings"][row]
        for i in range(config["num_layers"]):
            prefix = f"block_{i}/"
            block = {
                path.removeprefix(prefix): value
                for path, value in weights.items()
                if path.startswith(prefix)
            }
            padded = row == config["pad_id"]
            x = slow_block(block, x, padded, table, times, config)
        result.append([slow_norm(t, weights["final_norm/scale"]) for t in x])
    return np.array(result)


@BOTH
@pytest.mark.parametrize("padding", [(), (1, 5, 12, 13)])
def test_it_is_the_slow_model(position, padding):
    model, ids = backbone(position), ids_of(padding=padding)
    expected = slow_backbone(model, ids, times_of())
    np.testing.assert_allclose(run(model, ids), expected, atol=2e-5)


# === What a position knows ===


@BOTH
def test_nothing_depends_on_what_comes_later(position):
    # Row k differs from row 0 at k, in one token.
    ids = np.repeat(ids_of(1), LENGTH, axis=0)
    for k in range(1, LENGTH):
        ids[k, k] = (ids[k, k] + 1) % 10
    hidden = run(backbone(position), ids)
    for k in range(1, LENGTH):
        difference = np.abs(hidden[k] - hidden[0]).max(axis=-1)
        assert np.all(difference[:k] < 1e-5)
        assert difference[k] > 1e-4
        assert k == LENGTH - 1 or difference[k + 1 :].max() > 1e-6


@BOTH
def test_padding_is_never_attended_to(position):
    padding = [2, 3, 9]
    there = np.delete(np.arange(LENGTH), padding)
    model, ids = backbone(position), ids_of(padding=padding)
    hidden = run(model, ids)
    table = ops.convert_to_numpy(model.token_embedding.embeddings)
    other = table.copy()
    other[SIZES["pad_id"]] = 100 * other[SIZES["pad_id"]] + 7
    try:
        model.token_embedding.embeddings.assign(other)
        changed = run(model, ids)
    finally:
        model.token_embedding.embeddings.assign(table)
    np.testing.assert_allclose(changed[:, there], hidden[:, there], atol=1e-6)
    if position == "rotary":
        # Times stay, so it is as if the padding was not there at all.
        expected = run(model, ids[:, there], times_of()[there])
        np.testing.assert_allclose(hidden[:, there], expected, atol=1e-5)


@BOTH
def test_the_order_of_what_came_before_matters(position):
    # One layer: two could tell the order from causality alone.
    ids = np.repeat(ids_of(1), 2, axis=0)
    ids[:, 1:4] = [[1, 2, 3], [3, 2, 1]]
    model = StageBackbone(**{**SIZES, "num_layers": 1}, position=position)
    model.build()
    randomize(model)
    hidden = run(model, ids)
    assert np.abs(hidden[0, 4:] - hidden[1, 4:]).max() > 1e-3


def test_rotary_knows_times_and_only_their_differences():
    model, ids = backbone("rotary"), ids_of()
    hidden = run(model, ids)
    later = run(model, ids, times_of() + 100)
    np.testing.assert_allclose(later, hidden, atol=1e-4)
    assert np.abs(run(model, ids, 2 * times_of()) - hidden).max() > 1e-2


@BOTH
def test_rows_of_a_batch_are_alone(position):
    ids = ids_of(3)
    hidden = run(backbone(position), ids)
    for row in range(3):
        alone = run(backbone(position), ids[[row] * 2])
        np.testing.assert_allclose(hidden[row], alone[0], atol=1e-5)


# === The cache ===


@BOTH
@pytest.mark.parametrize("known", [1, 6])
def test_steps_with_a_cache_are_the_pass_over_all(position, known):
    model, times = backbone(position), times_of()
    ids = ids_of(padding=[2, 4, 9])
    expected = run(model, ids)
    mask = ids != SIZES["pad_id"]
    # What stands after the known part is not yet right.
    first = ids.copy()
    first[:, known:] = (first[:, known:] + 3) % 10
    caches = CompiledFunction(model, model.prefill)(first, times)
    step = compiled(model)[1]
    for index in range(known - 1, LENGTH):
        token = ids[:, index : index + 1]
        hidden, caches = step(token, caches, np.int32(index), mask, times)
        hidden = ops.convert_to_numpy(hidden)
        np.testing.assert_allclose(hidden, expected[:, index], atol=1e-5)


# === Dropout, precision, sizes, configuration ===


def test_dropout_while_training_only():
    model = StageBackbone(**{**SIZES, "dropout": 0.5})
    model.build()
    randomize(model)
    ids = ids_of()

    def twice(ids):
        return [
            model(ids, training=training) for training in (False, True, True)
        ]

    still, *moving = map(
        ops.convert_to_numpy, CompiledFunction(model, twice)(ids)
    )
    assert np.abs(moving[0] - moving[1]).max() > 0.1
    assert np.abs(moving[0] - still).max() > 0.1
    np.testing.assert_allclose(run(model, ids), still, atol=1e-5)


@BOTH
def test_half_precision_is_near(position):
    half = StageBackbone(**SIZES, position=position, dtype="mixed_bfloat16")
    half.build()
    half.set_weights(backbone(position).get_weights())
    ids = ids_of()
    # Late enough that bfloat16 could not tell its frames apart.
    late = times_of() + 1000
    error = run(half, ids, late) - run(backbone(position), ids, late)
    assert np.sqrt(np.mean(error**2)) < 0.1


def count_by_hand(config):
    d, f = config["hidden_dim"], config["intermediate_dim"]
    block = 4 * d * d + 3 * d * f + 2 * d
    total = config["num_layers"] * block + d
    total += config["vocabulary_size"] * d
    return total + config["num_heads"] * config["num_buckets"]


def test_parameters_at_the_papers_size():
    model = backbone("relative")
    assert model.count_params() == count_by_hand(model.get_config())
    # 12 layers of a gated layer are 201M; the paper says 0.3B a stage.
    config = StageBackbone(1026).get_config()
    embeddings = 1026 * 1024
    assert round((count_by_hand(config) - embeddings) / 1e6) == 201


@BOTH
def test_config_and_weights_round_trip(position, tmp_path):
    model = backbone(position)
    config = keras.saving.serialize_keras_object(model)
    config = json.loads(json.dumps(config))
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, StageBackbone)
    assert again.get_config() == model.get_config()
    for name, value in SIZES.items():
        assert getattr(again, name) == value
    path = tmp_path / "backbone.weights.h5"
    model.save_weights(path)
    again.build()
    again.load_weights(path)
    assert len(again.weights) == len(model.weights) > 10
    for one, other in zip(again.weights, model.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


@pytest.mark.parametrize(
    "layer",
    [RelativeBias(3, 8, 20), DecoderBlock(2, 8, 12, dropout=0.3, seed=4)],
    ids=lambda layer: layer.name,
)
def test_layers_round_trip(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_seeds_make_the_weights():
    def embeddings(seed):
        model = StageBackbone(**SIZES, seed=seed)
        model.build()
        return ops.convert_to_numpy(model.token_embedding.embeddings)

    np.testing.assert_array_equal(embeddings(1), embeddings(1))
    assert np.abs(embeddings(1) - embeddings(2)).max() > 0


def test_every_dropout_has_a_seed_of_its_own():
    model = StageBackbone(**{**SIZES, "dropout": 0.1}, seed=5)
    drops = [model.embedding_drop, *(block.drop for block in model.blocks)]
    assert len({drop.seed for drop in drops}) == len(drops)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'relative' or 'rotary'.*'absolute'"):
        StageBackbone(10, position="absolute")
    with pytest.raises(ValueError, match="hidden_dim=8, num_heads=3"):
        StageBackbone(10, num_heads=3, hidden_dim=8)
    for buckets, distance in [(1, 9), (0, 9), (8, 4), (32, 16)]:
        with pytest.raises(ValueError, match=f"max_distance={distance}"):
            RelativeBias(2, num_buckets=buckets, max_distance=distance)
    RelativeBias(2, num_buckets=8, max_distance=5)


@BOTH
@pytest.mark.parametrize("block", [1, 5, LENGTH - 1])
def test_blocks_of_queries_change_nothing(position, block, monkeypatch):
    model, ids = backbone(position), ids_of(padding=[3])
    whole = run(model, ids)  # LENGTH is less than a block
    monkeypatch.setattr(backbone_module, "QUERY_BLOCK", block)
    blocks = model(ids, times=times_of())
    blocks = ops.convert_to_numpy(ops.cast(blocks, "float32"))
    np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-5)
