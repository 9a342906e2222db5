"""The recipes in `training/`: what they would make fits where it must."""

import importlib
import pathlib
import sys

import numpy as np
import pytest
from keras.ops import convert_to_numpy as to_numpy

from keras_audiolm import (
    AudioLMPipeline,
    ParallelDecoder,
    TokenLayout,
    load_audio,
    save_audio,
)
from keras_audiolm.data.tokens import TokenCorpus
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
    assert set(recipe.BATCH_SIZES) <= trained


def test_the_commands_of_a_recipe_are_understood(recipe):
    """Those of its docstring, in which `$train` says two of the options."""
    shared = importlib.import_module("recipe")
    lines = recipe.__doc__.replace("\\\n", " ").splitlines()
    commands = [
        line.split("$train ")[1].split() for line in lines if "$train " in line
    ]
    learned = set()
    for command in commands:
        options = shared.make_parser().parse_args(
            [*command, "--out", "runs/made", "--validation", "held_out"]
        )
        learned |= set(options.parts)
    assert learned == set(recipe.STEPS)


def test_optimizers_are_by_part(recipe):
    shared = importlib.import_module("recipe")
    semantic = shared.make_optimizer("semantic_lm", 100)
    assert type(semantic).__name__ == "AdamW"
    for part in shared.ACOUSTIC:
        muon = shared.make_optimizer(part, 100, 0.5)
        assert type(muon).__name__ == "Muon"
        # At the end of the warm-up.
        np.testing.assert_allclose(muon._learning_rate(10), 2e-3, rtol=1e-5)


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


@pytest.fixture
def pair_tokens(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("pair_tokens")


def write_noise(folder, seconds):
    """Recordings `{path: seconds}`; what is read of them, by path."""
    rng = np.random.default_rng(0)
    audio = {}
    for path, duration in seconds.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        noise = rng.normal(0, 0.1, round(duration * tiny.SAMPLE_RATE))
        save_audio(folder / path, noise, tiny.SAMPLE_RATE)
        audio[path] = load_audio(folder / path, tiny.SAMPLE_RATE)
    return audio


def test_copies_take_the_semantic_tokens_of_their_originals(
    pair_tokens, tmp_path
):
    pipeline = tiny.tiny_pipeline()
    seconds = {
        "in/fr/a.wav": 0.9,
        "in/fr/b.wav": 0.5,
        "out/fr@f0.9/a.flac": 0.9,
        "out/fr@f0.9/b.flac": 0.5,
        "out/fr@s0.8/b.flac": 0.7,
        "out/fr/a.flac": 0.9,
    }
    audio = write_noise(tmp_path, seconds)
    pair_tokens.pair(
        pipeline, tmp_path / "in", tmp_path / "out", tmp_path / "tokens"
    )
    corpus = TokenCorpus(tmp_path / "tokens")
    pairs = [
        ("in/fr/a.wav", "out/fr/a.flac"),
        ("in/fr/a.wav", "out/fr@f0.9/a.flac"),
        ("in/fr/b.wav", "out/fr@f0.9/b.flac"),
        ("out/fr@s0.8/b.flac", "out/fr@s0.8/b.flac"),
    ]
    assert len(corpus) == len(pairs)
    for file, (original, copy) in enumerate(pairs):
        semantic, acoustic = corpus.read(file)
        told, _ = pipeline.tokenize(audio[original])
        _, heard = pipeline.tokenize(audio[copy])
        np.testing.assert_array_equal(semantic, told)
        np.testing.assert_array_equal(acoustic, heard)
        voice = pathlib.Path(corpus.voice_names[corpus.voices[file]])
        assert voice.name == pathlib.Path(copy).parent.name


def test_a_copy_of_another_length_is_refused(pair_tokens, tmp_path):
    write_noise(tmp_path, {"in/fr/a.wav": 0.9, "out/fr@f0.8/a.flac": 0.7})
    with pytest.raises(ValueError, match=r"fr@f0.8.*not as long.*Delete it"):
        pair_tokens.pair(
            tiny.tiny_pipeline(),
            tmp_path / "in",
            tmp_path / "out",
            tmp_path / "tokens",
        )
    assert not list((tmp_path / "tokens").glob("*.array_record"))


def test_polishing_goes_on_from_the_preset(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    shared = importlib.import_module("recipe")
    monkeypatch.setattr(shared, "STEPS_PER_EPOCH", 1)
    write_noise(tmp_path, {"in/a/1.wav": 4.0, "held_out/a/2.wav": 4.0})
    tiny.tiny_pipeline().save_to_preset(tmp_path / "made", dtype="float16")

    def run(*options):
        """The weights that the recipe writes."""
        monkeypatch.setattr(
            sys,
            "argv",
            [
                *("recipe", str(tmp_path / "in"), "--parts", "semantic_lm"),
                *("--validation", str(tmp_path / "held_out")),
                *("--out", str(tmp_path / "made"), *options),
            ],
        )
        steps, rows = {"semantic_lm": 1}, {"semantic_lm": 2}
        shared.run(tiny.tiny_pipeline, steps, rows, speed_range=None)
        made = AudioLMPipeline.from_preset(tmp_path / "made")
        return [to_numpy(w) for w in made.semantic_lm.trainable_variables]

    first = run()
    again = run()  # is done, and stays as it is
    for old, new in zip(first, again, strict=True):
        np.testing.assert_array_equal(new, old)
    polished = run("--polish", "2")
    assert any(
        (old != new).any() for old, new in zip(first, polished, strict=True)
    )
    assert not (tmp_path / "made-checkpoints-polish").exists()

    def policies(of):
        made = AudioLMPipeline.from_preset(of)
        return {made.part(n).dtype_policy.name for n in made.part_names}

    half = run("--polish", "2", "--dtype", "mixed_bfloat16")
    assert any(
        (old != new).any() for old, new in zip(polished, half, strict=True)
    )
    assert policies(tmp_path / "made") == {"float32"}


def as_made(config):
    """Without names, which are counted up, and whether it is built."""
    if isinstance(config, dict):
        return {
            k: as_made(v)
            for k, v in config.items()
            if k not in ("name", "build_config")
        }
    return config


def test_the_preset_is_the_recipes(recipe):
    preset = AudioLMPipeline.from_preset(recipe.__name__)
    made = recipe.make_pipeline()
    assert preset.trained_parts == [*made.part_names, "detector"]
    assert preset.sampling == made.sampling
    for name in made.part_names:
        ours, theirs = (p.part(name).get_config() for p in (made, preset))
        assert as_made(theirs) == as_made(ours)
