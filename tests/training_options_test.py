"""Accumulation, averages, recomputation and mixed precision."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm import AudioLMPipeline, ParallelDecoder, SoundStream
from keras_audiolm.language_model.layout import TokenLayout
from keras_audiolm.language_model.stage_lm import StageLM
from keras_audiolm.layers.remat import recomputed
from keras_audiolm.training import codec_trainer
from tests.tiny import tiny_pipeline, tiny_semantic_tokenizer

COARSE = TokenLayout.coarse(12, 2, 16, 25.0, 50.0)
SIZES = {
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}


def to_numpy(x):
    return np.array(ops.convert_to_numpy(x))


def codes(batch=4):
    rng = np.random.default_rng(0)
    return {
        "semantic": rng.integers(0, 12, (batch, 10, 1)).astype("int32"),
        "coarse": rng.integers(0, 16, (batch, 20, 2)).astype("int32"),
    }


def noise(batch=2):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (batch, 16000)).astype("float32")


def make_lm(dropout=0.0, **kwargs):
    keras.utils.set_random_seed(0)
    lm = StageLM(COARSE, {**SIZES, "dropout": dropout}, **kwargs)
    lm.build()
    return lm


def fit(model, data, optimizer, batch_size, **kwargs):
    keras.utils.set_random_seed(0)
    jit = keras.backend.backend() == "jax"
    model.compile(optimizer, jit_compile=jit)
    settings = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    return model.fit(data, **settings, **kwargs).history["loss"]


def assert_equal_weights(a, b, atol=1e-6):
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def test_accumulated_gradients_are_those_of_the_larger_batch():
    whole, parts = make_lm(), make_lm()
    before = whole.get_weights()
    fit(whole, codes(), keras.optimizers.SGD(0.1), 4)
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    fit(parts, codes(), accumulating, 2)
    assert_equal_weights(whole, parts)
    assert any(
        np.any(a != b) for a, b in zip(before, whole.get_weights(), strict=True)
    )


def test_fit_ends_with_the_average_of_the_weights():
    lm, seen = make_lm(), []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(to_numpy(self.model.head))

    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.75)
    fit(lm, codes(6), optimizer, 2, callbacks=[Watch()])
    average = seen[0]
    for weights in seen[1:]:
        average = 0.75 * average + 0.25 * weights
    assert np.abs(average - seen[-1]).max() > 1e-4
    np.testing.assert_allclose(to_numpy(lm.head), average, atol=1e-6)


# === Recomputation ===


def make_decoder():
    keras.utils.set_random_seed(0)
    decoder = ParallelDecoder(COARSE, **SIZES, dropout=0.3)
    decoder.build()
    return decoder, decoder, codes()


def make_stage():
    lm = make_lm(dropout=0.3)
    return lm, lm.backbone, codes()


def make_encoder():
    keras.utils.set_random_seed(0)
    encoder = tiny_semantic_tokenizer().encoder
    return encoder, encoder, noise()


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="Refused there"
)
@pytest.mark.parametrize("make", [make_stage, make_decoder, make_encoder])
def test_recomputed_activations_train_alike(make, monkeypatch):
    """With dropout: the second pass must drop the same places."""
    calls, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda f: calls.append(f) or remat(f))
    plain, _, data = make()
    expected = fit(plain, data, keras.optimizers.SGD(0.1), 2, epochs=2)
    assert not calls
    saving, blocks_of, data = make()
    blocks_of.remat = True
    losses = fit(saving, data, keras.optimizers.SGD(0.1), 2, epochs=2)
    assert len(calls) >= len(blocks_of.blocks)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_equal_weights(saving, plain, atol=1e-4)
    assert losses[0] != losses[1]


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Works there"
)
def test_recomputing_is_refused_on_tensorflow():
    with pytest.raises(ValueError, match="JAX and PyTorch"):
        recomputed(keras.layers.Dense(2), np.ones((1, 2), "float32"))


def test_the_pipeline_hands_it_on(tiny_preset):
    pipeline = AudioLMPipeline.from_preset(tiny_preset)
    assert not pipeline.remat
    pipeline.compile(remat=True)
    assert pipeline.remat


# === Mixed precision ===


@pytest.mark.parametrize("part", ["semantic_lm", "semantic_tokenizer"])
def test_a_preset_in_mixed_precision(tiny_preset, part):
    keras.utils.set_random_seed(0)
    full, half = (
        AudioLMPipeline.from_preset(
            tiny_preset, load_weights=part == "semantic_lm", dtype=dtype
        ).part(part)
        for dtype in (None, "mixed_bfloat16")
    )
    if part == "semantic_tokenizer":
        full, half = full.encoder, half.encoder
    assert (full.compute_dtype, half.compute_dtype) == ("float32", "bfloat16")
    assert {v.dtype for v in half.trainable_variables} == {"float32"}
    if part == "semantic_lm":
        data = {"semantic": codes()["semantic"]}
        a, b = full(data), half(data)
    else:
        a, b = full.encode(noise()), half.encode(noise())
    a, b = to_numpy(a), to_numpy(ops.cast(b, "float32"))
    assert (a != b).any()
    np.testing.assert_allclose(b, a, atol=0.05 * np.abs(a).max())


def test_tokens_stay_those_that_language_models_know(tiny_preset):
    full, half = (
        AudioLMPipeline.from_preset(tiny_preset, dtype=dtype)
        for dtype in (None, "mixed_bfloat16")
    )
    for pipeline in (full, half):
        assert pipeline.codec.compute_dtype == "float32"
    for a, b in zip(
        full.tokenize(noise()), half.tokenize(noise()), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_learns_as_full_precision():
    def losses_in(dtype):
        adam = keras.optimizers.Adam(0.01)
        return fit(make_lm(dtype=dtype), codes(), adam, 2, epochs=5)

    losses = [losses_in("float32"), losses_in("mixed_bfloat16")]
    assert losses[0][-1] < losses[0][0] - 0.1
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)


@pytest.mark.parametrize("transform, weight", [("mdct", 1), ("spectrogram", 0)])
def test_waveforms_count_where_a_codec_keeps_them(transform, weight):
    pipeline = tiny_pipeline(trained=False)
    codec = SoundStream(
        sample_rate=pipeline.codec.sample_rate,
        channels=2,
        strides=(1,),
        embedding_dim=4,
        transform=transform,
        transform_hop=pipeline.codec.hop_length,
        num_quantizers=pipeline.codec.num_quantizers,
        codebook_size=pipeline.codec.codebook_size,
    )
    parts = {name: pipeline.part(name) for name in pipeline.part_names}
    trainer = codec_trainer(AudioLMPipeline({**parts, "codec": codec}))
    assert trainer.codec is codec
    assert trainer.reconstruction_loss.transform_weight == weight
