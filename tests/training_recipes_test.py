"""The recipes in `training/`: what they would make fits where it must."""

import importlib
import pathlib
import sys

import numpy as np
import pytest
from keras.ops import convert_to_numpy as to_numpy

from keras_audiolm import ParallelDecoder, TokenLayout
from tests import tiny

FOLDER = pathlib.Path(__file__).parents[1] / "training"
# Bytes of a preset; its weights are half precision.
LARGEST = 60e6


@pytest.fixture(params=["voices_small", "piano_small"])
def recipe(request, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module(request.param)
    for name in (request.param, "recipe"):
        sys.modules.pop(name, None)


def test_a_preset_is_small_and_its_stages_fit_each_other(recipe):
    pipeline = recipe.make_pipeline()
    sizes = []
    for name in pipeline.part_names:
        part = pipeline.part(name)
        part.build(getattr(part, "input_shape", None))
        sizes.append(2 * part.count_params())
    assert sum(sizes) < LARGEST
    assert pipeline.codec.codebook_size == recipe.CODES
    assert pipeline.codec.num_quantizers == recipe.LEVELS
    assert np.all(np.array(list(recipe.STEPS.values())) > 0)
    trained = set(pipeline.part_names) | {"detector"}
    assert set(recipe.STEPS) <= trained
    assert set(recipe.PEAKS) <= set(recipe.BATCH_SIZES) <= trained


def alike(vectors):
    """Cosines of the pairs of vectors, around their mean."""
    vectors = vectors - vectors.mean(axis=0)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]


def code_embeddings(model):
    """Of the predicted levels, `(levels, codes, dim)`."""
    if isinstance(model, ParallelDecoder):
        return to_numpy(model.code_embedding)[:, :-1]
    segment = model.layout.predicted
    table = to_numpy(model.backbone.token_embedding.embeddings)
    ids = model.layout.offsets(segment.name)[:, None]
    return table[ids + np.arange(segment.codebook_size)]


@pytest.mark.parametrize("part", ["coarse_lm", "fine_lm", "parallel_decoder"])
def test_codes_that_sound_alike_begin_alike(part, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    start_from_codec = importlib.import_module("recipe").start_from_codec
    pipeline = tiny.tiny_pipeline()
    codec = pipeline.codec
    if part == "parallel_decoder":
        layout = TokenLayout.coarse(
            tiny.NUM_CLUSTERS,
            codec.num_quantizers,
            codec.codebook_size,
            25.0,
            50.0,
        )
        model = ParallelDecoder(layout, 1, 2, 32, 32)
    else:
        model = pipeline.part(part)
    start_from_codec(model, codec)
    first = tiny.COARSE_LEVELS if part == "fine_lm" else 0
    levels = zip(code_embeddings(model), to_numpy(model.head), strict=True)
    for level, (table, head) in enumerate(levels, first):
        heard = alike(to_numpy(codec.quantizer.codebook(level)))
        np.testing.assert_allclose(alike(head), heard, atol=1e-3)
        assert np.corrcoef(alike(table), heard)[0, 1] > 0.7
