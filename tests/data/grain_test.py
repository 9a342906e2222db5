"""Grain gives the batches that the crops give, and knows where it is."""

import itertools
import pickle

import keras
import numpy as np
import pytest
import soundfile

from keras_audiolm import AudioCrops, NoisyCrops
from keras_audiolm.data.grain import Batches, grain_batches
from keras_audiolm.data.tokens import TokenCorpus
from tests.data.tokens_test import (
    Tokenizer,
    crops_of,
    metadata_of,
    tokenize_corpus,
)

grain = pytest.importorskip("grain")
RATE = 8000


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{k}.wav" for k in range(3)]
    for k, path in enumerate(paths):
        soundfile.write(path, rng.normal(0, 0.1, (k + 1) * RATE // 8), RATE)
    return paths


def audio_crops(files, **kwargs):
    kwargs = {"duration": 0.1, "batch_size": 2, "steps_per_epoch": 5, **kwargs}
    return AudioCrops(files, RATE, seed=3, **kwargs)


def token_crops(files, folder):
    for k, path in enumerate(files):
        soundfile.write(path, np.full((k + 1) * 80, (k + 1) / 64), RATE)
    corpus = tokenize_corpus(files, folder, Tokenizer(), metadata_of())
    assert isinstance(corpus, TokenCorpus)
    return crops_of(8, corpus=corpus, steps_per_epoch=5)


def make(kind, files, tmp_path):
    if kind == "tokens":
        return token_crops(files, tmp_path / "tokens")
    crops = audio_crops(files, speed_range=(0.9, 1.1), cache_bytes=0)
    return crops if kind == "audio" else NoisyCrops(crops, audio_crops(files))


def assert_same(one, other):
    keras.tree.assert_same_structure(one, other)
    for a, b in zip(
        keras.tree.flatten(one), keras.tree.flatten(other), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def in_order(crops, epochs):
    batches = []
    for _ in range(epochs):
        batches += [crops[i] for i in range(len(crops))]
        crops.on_epoch_end()
    return batches


@pytest.mark.parametrize("kind", ["audio", "noisy", "tokens"])
def test_the_batches_are_those_of_the_crops(kind, files, tmp_path):
    crops = make(kind, files, tmp_path)
    dataset = grain_batches(crops, epochs=2)
    expected = in_order(make(kind, files, tmp_path), 2)
    assert len(dataset) == len(expected) == 10
    options = grain.ReadOptions(num_threads=3, prefetch_buffer_size=4)
    for found in (dataset, dataset.to_iter_dataset(options)):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_processes_share_the_batches(files):
    crops = audio_crops(files)
    parts = [grain_batches(crops, 2, i, 3) for i in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    together = itertools.chain(*zip(*parts, strict=True))
    for one, other in zip(together, in_order(crops, 2), strict=False):
        assert_same(one, other)


def test_an_iterator_goes_on_where_its_state_says(files):
    dataset = grain_batches(audio_crops(files), epochs=2).to_iter_dataset()
    batches = iter(dataset)
    for _ in range(4):
        next(batches)
    state = batches.get_state()
    expected = list(batches)
    assert len(expected) == 6
    other = iter(grain_batches(audio_crops(files), epochs=2).to_iter_dataset())
    other.set_state(state)
    for one, two in zip(other, expected, strict=True):
        assert_same(one, two)
    rest = grain_batches(audio_crops(files), epochs=2)[4:]
    for one, two in zip(rest, expected, strict=True):
        assert_same(one, two)


def test_a_copy_in_another_process_gives_the_same(files, tmp_path):
    crops = token_crops(files, tmp_path / "tokens")
    crops.split = first  # what a process can be sent
    copy = pickle.loads(pickle.dumps(Batches(crops, epochs=1)))
    for index in (3, 0):
        np.testing.assert_array_equal(copy[index], crops[index])


def first(semantic, acoustic, last):
    return semantic


def test_keras_trains_on_it(files):
    class Model(keras.Model):
        def call(self, audio):
            return keras.ops.mean(audio, axis=1, keepdims=True)

        def compute_loss(self, x, *args, **kwargs):
            return keras.ops.mean(self(x))

    model = Model()
    model.compile(loss=None)
    crops = audio_crops(files)
    result = model.evaluate(grain_batches(crops), verbose=0)
    expected = np.mean([crops[i].mean() for i in range(5)])
    assert result == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("index, count", [(1, 1), (-1, 2), (0, 6)])
def test_a_process_that_is_not_there_is_refused(files, index, count):
    with pytest.raises(ValueError, match=f"process_index={index}"):
        grain_batches(audio_crops(files), 1, index, count)
