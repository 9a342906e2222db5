"""Centroids in files that others wrote, honest ones and traps."""

import pickle

import numpy as np
import pytest

import keras_audiolm
from keras_audiolm import cli
from keras_audiolm.convert.centroids import read_centroids
from tests.convert.sources_test import Hostile

joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")

VECTORS = np.random.default_rng(0).normal(size=(60, 16)).astype("float32")


def fitted(kind, **kwargs):
    return kind(5, random_state=0, n_init=2, **kwargs).fit(VECTORS)


def dump_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


def dump_compressed(value, path):
    joblib.dump(value, path, compress=3)


@pytest.mark.parametrize("dump", [joblib.dump, dump_pickle, dump_compressed])
@pytest.mark.parametrize("kind", [cluster.KMeans, cluster.MiniBatchKMeans])
def test_estimators_of_scikit_learn(tmp_path, kind, dump):
    estimator = fitted(kind)
    dump(estimator, tmp_path / "km.bin")
    centroids = read_centroids(tmp_path / "km.bin")
    assert centroids.dtype == np.float32
    np.testing.assert_array_equal(centroids, estimator.cluster_centers_)


@pytest.mark.parametrize("save", [np.save, lambda p, x: joblib.dump(x, p)])
def test_arrays(tmp_path, save):
    save(tmp_path / "centroids.npy", VECTORS)
    np.testing.assert_array_equal(
        read_centroids(tmp_path / "centroids.npy"), VECTORS
    )


def test_traps_are_refused_and_do_nothing(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "km.bin"
    hostile = Hostile(trap)
    estimator = fitted(cluster.KMeans)
    estimator.more = hostile
    objects = np.array([hostile, None], dtype=object)
    for value in (hostile, estimator, objects, [VECTORS, hostile]):
        for dump in (joblib.dump, dump_pickle):
            dump(value, path)
            with pytest.raises(ValueError, match="km.bin does not hold"):
                read_centroids(path)
    np.save(path.with_suffix(".npy"), objects, allow_pickle=True)
    with pytest.raises(ValueError, match="km.npy does not hold"):
        read_centroids(path.with_suffix(".npy"))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (VECTORS[0], "shape"),
        (np.full((3, 4), np.nan), "finite"),
        ({"a": 1}, "does not hold"),
        (cluster.KMeans(3), "does not hold"),
    ],
    ids=["vector", "nan", "dictionary", "unfitted"],
)
def test_what_is_no_centroids_is_named(tmp_path, value, message):
    joblib.dump(value, tmp_path / "km.bin")
    with pytest.raises(ValueError, match=message):
        read_centroids(tmp_path / "km.bin")
    with pytest.raises(ValueError, match="no file of centroids"):
        read_centroids(tmp_path / "nothing.npy")
    whole = (tmp_path / "km.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.bin"):
        read_centroids(tmp_path / "cut.bin")


def test_an_encoder_with_centroids_is_a_tokenizer(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.convert.hubert_test import SMALL

    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path / "hubert")
    np.save(tmp_path / "centroids.npy", VECTORS[:7])
    tokenizer = keras_audiolm.tokenizer_from(
        tmp_path / "hubert", layer=2, centroids=tmp_path / "centroids.npy"
    )
    audio = np.random.default_rng(0).normal(0, 0.3, (1, 400))
    tokens = tokenizer.encode(audio)
    assert tokens.shape == (1, 20)

    whole = np.pad(audio, [(0, 0), (0, 15)]).astype("float32")
    with torch.no_grad():
        out = model(torch.tensor(whole), output_hidden_states=True)
    there = out.hidden_states[2].numpy()[0]
    distance = np.square(there[:, None] - VECTORS[:7]).sum(-1)
    np.testing.assert_array_equal(tokens[0], distance.argmin(-1))

    tokenizer.save_to_preset(tmp_path / "preset")
    again = keras_audiolm.SemanticTokenizer.from_preset(tmp_path / "preset")
    np.testing.assert_array_equal(again.encode(audio), tokens)
    with pytest.raises(ValueError, match="has no codec"):
        keras_audiolm.SoundStream.from_preset(tmp_path / "preset")
    arguments = ["convert", str(tmp_path / "hubert"), "--layer", "2"]
    arguments += ["--centroids", str(tmp_path / "centroids.npy")]
    assert cli.main([*arguments, "--out", str(tmp_path / "again")]) == 0
    again = keras_audiolm.SemanticTokenizer.from_preset(tmp_path / "again")
    np.testing.assert_array_equal(again.encode(audio), tokens)
    np.save(tmp_path / "centroids.npy", VECTORS[:, :3])
    with pytest.raises(ValueError, match="3 dimensions.*has 16"):
        keras_audiolm.tokenizer_from(
            tmp_path / "hubert", layer=2, centroids=tmp_path / "centroids.npy"
        )
    with pytest.raises(ValueError, match="num_clusters"):
        keras_audiolm.tokenizer_from(tmp_path / "hubert", layer=2)
