"""The recipes in `training/`: what they would make fits where it must."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

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
