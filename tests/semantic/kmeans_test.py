import keras
import numpy as np
import pytest
from keras import ops
from sklearn import cluster

from keras_audiolm.semantic import kmeans as kmeans_lib
from keras_audiolm.semantic.kmeans import KMeans


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def blobs(num_clusters=8, per_cluster=60, dim=5, seed=0):
    """Well separated clusters: vectors, and which cluster each is from."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_clusters, dim)) * 10
    label = rng.permutation(np.repeat(np.arange(num_clusters), per_cluster))
    x = centers[label] + rng.normal(size=(len(label), dim))
    return x.astype("float32"), label


def split(x, size):
    return lambda: (x[i : i + size] for i in range(0, len(x), size))


def standardise(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


def test_finds_separated_clusters():
    x, label = blobs()
    layer = KMeans(8)
    layer.fit(split(x, 37), passes=2)
    tokens = to_numpy(layer.predict(x))
    pairs = set(zip(tokens.tolist(), label.tolist(), strict=True))
    assert len(pairs) == 8  # a token for each cluster


def test_inertia_is_as_low_as_scikit_learns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 6)).astype("float32") * np.arange(1, 7)
    ours = KMeans(32).fit(split(x, 500), passes=3)["inertia"][-1]
    theirs = cluster.KMeans(32, n_init=1, random_state=0).fit(standardise(x))
    assert ours < 1.05 * theirs.inertia_ / len(x)


def test_a_small_sample_is_improved_by_reading_all_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 4)).astype("float32")
    history = KMeans(32).fit(split(x, 500), passes=4, reservoir_size=64)
    assert history["num_vectors"] == 6000
    assert history["inertia"][-1] < 0.95 * history["inertia"][1]


def test_statistics_do_not_depend_on_the_batches():
    x = np.random.default_rng(0).normal(1e3, 2.0, (500, 3)).astype("float32")
    for size in (1, 7, 500):
        layer = KMeans(2)
        layer.fit(split(x, size), passes=1)
        np.testing.assert_allclose(to_numpy(layer.mean), x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(
            to_numpy(layer.std), x.astype("float64").std(0), rtol=1e-4
        )


def test_every_dimension_counts_the_same():
    x = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")
    scaled = x * np.array([1.0, 1024.0, 1 / 1024], "float32") + 5.0
    tokens = []
    for data in (x, scaled):
        layer = KMeans(6)
        layer.fit(split(data, 100))
        tokens.append(to_numpy(layer.predict(data)))
    assert (tokens[0] == tokens[1]).mean() > 0.99


def test_a_constant_dimension_stays_finite():
    x, _ = blobs(2, 20)
    x[:, 1] = 3.0
    layer = KMeans(2)
    layer.fit([x])
    assert all(np.isfinite(to_numpy(w)).all() for w in layer.weights)


def test_predict_is_the_nearest_standardised_centroid():
    x, _ = blobs()
    layer = KMeans(8)
    layer.fit([x])
    z = (x - to_numpy(layer.mean)) / to_numpy(layer.std)
    distance = np.square(z[:, None] - to_numpy(layer.centroids)).sum(-1)
    tokens = layer.predict(x.reshape(2, -1, x.shape[1]))
    assert keras.backend.standardize_dtype(tokens.dtype) == "int32"
    assert tuple(tokens.shape) == (2, len(x) // 2)
    np.testing.assert_array_equal(
        to_numpy(tokens).ravel(), distance.argmin(axis=1)
    )


def test_seed_decides_the_clusters():
    x = np.random.default_rng(0).normal(size=(600, 4)).astype("float32")

    def centroids(seed):
        layer = KMeans(16, seed=seed)
        layer.fit(split(x, 100), reservoir_size=200)
        return to_numpy(layer.centroids)

    np.testing.assert_array_equal(centroids(0), centroids(0))
    assert np.abs(centroids(0) - centroids(1)).max() > 0.1


def test_clusters_survive_copies_of_one_vector():
    x = np.ones((50, 3), "float32")
    layer = KMeans(4)
    layer.fit([x])
    assert all(np.isfinite(to_numpy(w)).all() for w in layer.weights)
    assert len(set(to_numpy(layer.predict(x)).tolist())) == 1


def test_reservoir_is_a_uniform_sample():
    hits = np.zeros(100)
    for seed in range(300):
        reservoir = kmeans_lib.Reservoir(10, np.random.default_rng(seed))
        for part in np.split(np.arange(100.0)[:, None], [3, 30, 31]):
            reservoir.update(part)
        assert reservoir.sample.shape == (10, 1)
        np.add.at(hits, reservoir.sample[:, 0].astype(int), 1)
    assert hits.sum() == 3000
    # 30 expected each, with a standard deviation of 5.2; and no trend.
    assert hits.min() > 9 and hits.max() < 55
    assert abs(hits[:50].sum() - 1500) < 150


def test_round_trip(tmp_path):
    x, _ = blobs()
    layer = KMeans(8, seed=3)
    assert not layer.initialized
    layer.fit([x])
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    if not again.built:
        again.build((None, 5))
    assert not again.initialized
    again.set_weights(layer.get_weights())
    assert again.initialized and again.get_config() == layer.get_config()
    np.testing.assert_array_equal(
        to_numpy(layer.predict(x)), to_numpy(again.predict(x))
    )


def test_bad_data():
    x, _ = blobs(2, 10)
    layer = KMeans(4)
    with pytest.raises(ValueError, match="passes=2"):
        layer.fit(iter([x]))
    with pytest.raises(ValueError, match="the stream was empty"):
        layer.fit([])
    with pytest.raises(ValueError, match="4 clusters .* 3 vectors"):
        layer.fit([x[:3]])
    with pytest.raises(ValueError, match=r"shape \(20,\)"):
        layer.fit([x[:, 0]])
    with pytest.raises(ValueError, match="1 values not finite"):
        layer.fit([np.where(np.arange(5) + x * 0 == 2, np.nan, x)[:1]])
    with pytest.raises(ValueError, match="num_clusters=0"):
        KMeans(0)
    assert not layer.initialized
    layer.fit(iter([x]), passes=1)
    with pytest.raises(ValueError, match="5 dimensions.*4 dimensions"):
        layer.fit([x[:, :4]])
