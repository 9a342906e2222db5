import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.semantic import nearest_code
from keras_audiolm.semantic.nearest_code import NearestCodeQuantizer


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)))


def make(codebook_size=8, **kwargs):
    kwargs.setdefault("seed", 0)
    layer = NearestCodeQuantizer(codebook_size, codebook_dim=4, **kwargs)
    layer.build((None, None, 6))
    return layer


def frames(batch=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 25, 6)).astype("float32")


def usage(layer, x):
    codes = to_numpy(layer(x).codes).ravel()
    return np.bincount(codes, minlength=layer.codebook_size) / len(codes)


def test_gives_unit_vectors_of_the_nearest_code():
    layer = make()
    layer(frames(), training=True)
    vectors, codes = (to_numpy(t) for t in layer(frames(seed=1)))
    assert vectors.shape == (4, 25, 4) and codes.shape == (4, 25)
    assert codes.dtype == "int32"
    codebook = to_numpy(nearest_code.normalize(layer.code_sum.value))
    projected = frames(seed=1) @ to_numpy(layer.projection)
    projected = projected - to_numpy(layer.center)
    expected = (projected @ codebook.T).argmax(axis=-1)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(vectors, codebook[codes], atol=1e-5)


def test_first_batch_starts_the_codebook():
    layer = make()
    layer(frames(), training=True)
    assert (usage(layer, frames()) > 0).sum() >= 6


def test_inference_learns_nothing():
    layer = make()
    layer(frames(), training=True)
    before = [to_numpy(w) for w in layer.weights]
    layer(frames(seed=1))
    for old, new in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(new))
    assert not layer.losses


def test_a_dead_code_is_replaced_in_the_very_step():
    layer = make()
    layer(frames(), training=True)
    # All codes but one point away from everything: nobody chooses them.
    usage_before = np.full(8, 0.0, "float32")
    usage_before[0] = 1.0
    layer.usage.assign(usage_before)
    old = to_numpy(layer.code_sum)
    layer(frames(seed=1), training=True)
    moved = np.abs(to_numpy(layer.code_sum) - old).max(axis=1)
    assert (moved[1:] > 1e-3).all()
    np.testing.assert_allclose(to_numpy(layer.usage)[1:], 1 / 8)


def test_recovers_from_a_collapsed_codebook():
    layer = make(decay=0.9)
    layer(frames(), training=True)
    layer.code_sum.assign(np.ones((8, 4), "float32"))  # all the same
    assert (usage(layer, frames()) > 0).sum() == 1
    for step in range(60):
        layer(frames(seed=step), training=True)
    part = usage(layer, frames())
    assert (part > 0).all() and part.max() < 0.5


def test_codes_are_the_mean_direction_of_their_frames():
    # Four far directions, four codes.
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    x = np.concatenate([directions[:2], -directions[:2]])[None]
    x = np.repeat(x, 25, axis=1).astype("float32")
    layer = make(codebook_size=4, decay=0.5)
    for _ in range(60):
        vectors = layer(x, training=True).vectors
    projected = x @ to_numpy(layer.projection) - to_numpy(layer.center)
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    cosine = (projected * to_numpy(vectors)).sum(-1)
    assert cosine.min() > 0.99
    np.testing.assert_allclose(usage(layer, x), 0.25)


def test_losses():
    layer = make(diversity_weight=2.0, commitment_weight=3.0)
    x = frames()
    layer(x, training=True)
    diversity, commitment = (float(v) for v in layer.losses)
    assert 0 <= diversity <= 2.0 and 0 <= commitment <= 6.0
    same = np.ones_like(x)  # no diversity at all
    layer = make(diversity_weight=2.0, commitment_weight=3.0)
    layer(x, training=True)
    layer(same, training=True)
    assert float(layer.losses[0]) > diversity


def test_perplexity():
    uniform = np.full(16, 1 / 16, "float32")
    single = np.eye(16, dtype="float32")[3]
    both = ops.convert_to_tensor(np.stack([uniform, single]))
    result = to_numpy(nearest_code.perplexity(both))
    np.testing.assert_allclose(result, [16.0, 1.0], rtol=1e-4)


def test_normalize_keeps_zero_finite():
    x = ops.convert_to_tensor([[0.0, 0.0], [3.0, 4.0]])
    y = to_numpy(nearest_code.normalize(x))
    np.testing.assert_allclose(y, [[0.0, 0.0], [0.6, 0.8]], atol=1e-6)


@pytest.mark.parametrize("seed", [0, 5])
def test_round_trip(seed):
    layer = make(seed=seed, decay=0.7, projection_speed=0.5)
    layer(frames(), training=True)
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    again(frames())
    again.set_weights(layer.get_weights())
    for a, b in zip(layer(frames()), again(frames()), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
