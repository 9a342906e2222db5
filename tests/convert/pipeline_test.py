"""Codecs and encoders of others in a pipeline, at rates of their own."""

import numpy as np
import pytest

from keras_audiolm import (
    DAC,
    AudioLMPipeline,
    EnCodec,
    Hubert,
    SemanticTokenizer,
    StageLM,
    TokenLayout,
)

HOP, CODES, CLUSTERS = 96, 16, 5
BACKBONE = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16)


def make_codec(kind):
    """At 2400 Hz, 25 frames a second."""
    common = dict(sample_rate=2400, channels=2, num_quantizers=3)
    common.update(codebook_size=CODES, strides=(4, 4, 6))
    if kind == "dac":
        codec = DAC(decoder_channels=16, code_dim=2, **common)
    else:
        codec = EnCodec(
            num_lstm_layers=1, embedding_dim=4, padding=kind, **common
        )
    codec.build()
    rng = np.random.default_rng(0)
    shape = codec.quantizer.embedding_sum.shape
    codec.quantizer.embedding_sum.assign(rng.normal(size=shape))
    return codec


def make_pipeline(kind):
    """Semantic tokens come from audio at 1600 Hz, 10 a second."""
    encoder = Hubert(
        sample_rate=1600,
        filters=(4, 4),
        kernel_sizes=(16, 10),
        strides=(16, 10),
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        intermediate_dim=8,
        position_kernel_size=4,
        position_groups=2,
    )
    tokenizer = SemanticTokenizer(encoder, CLUSTERS, layer=1)
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 3200))
    tokenizer.fit_kmeans(lambda: iter([noise]))
    layouts = {
        "semantic_lm": TokenLayout.semantic(CLUSTERS, 10.0),
        "coarse_lm": TokenLayout.coarse(CLUSTERS, 2, CODES, 10.0, 25.0),
        "fine_lm": TokenLayout.fine(2, 1, CODES, 25.0),
    }
    parts = {"codec": make_codec(kind), "semantic_tokenizer": tokenizer}
    for name, layout in layouts.items():
        parts[name] = StageLM(layout, BACKBONE, crop_duration=2.0)
        parts[name].build()
    return AudioLMPipeline(parts, trained=parts)


@pytest.fixture(scope="module", params=["zeros", "reflect", "dac"])
def pipeline(request):
    return make_pipeline(request.param)


PROMPT = np.random.default_rng(1).normal(0, 0.1, 2400).astype("float32")


def test_rates_meet_in_a_unit(pipeline):
    assert pipeline.sample_rate == 2400
    # 0.2 seconds: 2 semantic frames and 5 acoustic ones
    assert pipeline.unit_samples == 480 and pipeline.unit == (2, 5)
    tokens = pipeline.tokenize(PROMPT)
    assert tokens.semantic.shape == (10,)
    assert tokens.acoustic.shape == (25, 3)


def test_semantic_tokens_are_of_audio_at_the_tokenizers_rate(pipeline):
    import soxr

    heard = soxr.resample(PROMPT, 2400, 1600)
    expected = pipeline.semantic_tokenizer.encode(heard[None])[0]
    tokens = pipeline.tokenize(PROMPT)
    np.testing.assert_array_equal(tokens.semantic, expected)


@pytest.mark.parametrize("duration", [0.5, 4.0], ids=["one", "windows"])
def test_it_generates_and_streams_the_same(pipeline, duration):
    audio = pipeline.generate(PROMPT, duration=duration, seed=0)
    assert audio.shape == (2400 + round(2400 * duration),)
    assert np.isfinite(audio).all()
    np.testing.assert_array_equal(audio[:2400], PROMPT)
    pieces = list(pipeline.stream(PROMPT, duration=duration, seed=0))
    np.testing.assert_allclose(np.concatenate(pieces), audio[2400:], atol=1e-5)


def test_rates_that_never_meet_are_refused():
    pipeline = make_pipeline("zeros")
    codec = make_codec("zeros")
    codec.sample_rate = 2401
    pipeline.add_part("codec", codec)
    with pytest.raises(ValueError, match="96 samples at 2401 Hz.*160 at 1600"):
        pipeline.unit_samples  # noqa: B018
