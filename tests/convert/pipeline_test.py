"""Codecs and encoders of others in a pipeline, at rates of their own."""

import math

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
    WindowedEnCodec,
)
from keras_audiolm import pipeline as pipeline_module
from keras_audiolm.data.spooled import SpooledAudio

HOP, CODES, CLUSTERS = 96, 16, 5
BACKBONE = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16)


def make_codec(kind, sample_rate=2400):
    """At 2400 Hz, 25 frames a second."""
    common = dict(sample_rate=sample_rate, channels=2, num_quantizers=3)
    common.update(codebook_size=CODES, strides=(4, 4, 6))
    if kind == "windowed":
        codec = WindowedEnCodec(num_lstm_layers=1, embedding_dim=4, **common)
    elif kind == "dac":
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


def make_pipeline(kind, **codec):
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
    codec = make_codec(kind, **codec)
    rate = codec.sample_rate / HOP
    layouts = {
        "semantic_lm": TokenLayout.semantic(CLUSTERS, 10.0),
        "coarse_lm": TokenLayout.coarse(CLUSTERS, 2, CODES, 10.0, rate),
        "fine_lm": TokenLayout.fine(2, 1, CODES, rate),
    }
    parts = {"codec": codec, "semantic_tokenizer": tokenizer}
    for name, layout in layouts.items():
        parts[name] = StageLM(layout, BACKBONE, crop_duration=2.0)
        parts[name].build()
    return AudioLMPipeline(parts, trained=parts)


@pytest.fixture(scope="module", params=["zeros", "reflect", "dac", "windowed"])
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


@pytest.mark.parametrize("pipeline", ["windowed"], indirect=True)
def test_a_last_window_hears_nothing_of_a_batch(pipeline):
    clips = [PROMPT, PROMPT[:1500]]
    for clip, tokens in zip(clips, pipeline.tokenize_many(clips), strict=True):
        alone = pipeline.tokenize(clip)
        np.testing.assert_array_equal(tokens[0], alone.semantic)
        np.testing.assert_array_equal(tokens[1], alone.acoustic)


@pytest.mark.parametrize("pipeline", ["windowed"], indirect=True)
def test_windows_that_fade_are_those_of_the_whole(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline_module, "TOKENIZE_DURATION", 2.0)
    audio = np.tile(PROMPT, 5)[:-100]
    codes = pipeline.tokenize(audio).acoustic
    np.testing.assert_array_equal(codes, pipeline.codec.encode(audio[None])[0])


def test_its_codec_is_not_trained(pipeline):
    name = type(pipeline.codec).__name__
    with pytest.raises(ValueError, match=f"Only a SoundStream.*{name}.*parts="):
        pipeline.fit(["a.wav"], parts="codec", verbose=0)


# === Rates that hardly meet ===


def test_it_generates_where_rates_hardly_meet():
    # 3.4458 acoustic frames a semantic one: 240 of these are 827.
    pipeline = make_pipeline("dac", sample_rate=3308)
    assert pipeline.unit == (9, 31)
    assert pipeline.unit_samples == 31 * HOP
    prompt = np.tile(PROMPT, 2)
    tokens = pipeline.tokenize(prompt)
    hops = len(prompt) / HOP
    assert tokens.acoustic.shape == (math.ceil(hops), 3)
    assert tokens.semantic.shape == (math.ceil(hops * 9 / 31),)
    audio, tokens = pipeline.generate(
        prompt, duration=4.0, seed=0, return_tokens=True
    )
    assert audio.shape == (4800 + round(4.0 * 3308),)
    assert np.isfinite(audio).all()
    units = 1 + math.ceil(4.0 * 3308 / (31 * HOP))
    assert tokens.semantic.shape == (9 * units,)
    assert tokens.acoustic.shape == (31 * units, 3)


class Watched(SpooledAudio):
    """Notes how many samples are in memory at once."""

    most = 0

    def __array__(self, dtype=None, copy=None):
        Watched.most = max(Watched.most, len(self))
        return super().__array__(dtype)


class Loud:
    """A codec or a tokenizer whose codes say whether a frame is loud."""

    window_step = 1

    def __init__(self, sample_rate, hop_length):
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.heard = 0

    def num_frames(self, samples):
        return -(-samples // self.hop_length)

    def window_samples(self, samples):
        return 100 * self.hop_length

    def encode(self, audio, lengths=None):
        self.heard += audio.shape[1]
        rest = -audio.shape[1] % self.hop_length
        audio = np.pad(audio, [(0, 0), (0, rest)])
        frames = audio.reshape(len(audio), -1, self.hop_length)
        loud = (np.abs(frames).max(axis=-1) > 0.1).astype("int32")
        return loud[..., None] if lengths is None else loud


@pytest.mark.parametrize(
    ("codec", "tokenizer", "unit"),
    [
        ((44100, 512), (16000, 640), (9, 31)),  # DAC, w2v-BERT
        ((44100, 512), (16000, 320), (18, 31)),  # DAC, HuBERT
        ((16000, 700), (16000, 321), (24, 11)),  # at one rate
        ((24000, 1920), (16000, 320), (4, 1)),  # Mimi, exact
        ((48000, 320), (16000, 640), (1, 6)),  # EnCodec, exact
    ],
)
def test_both_kinds_of_tokens_stay_together(codec, tokenizer, unit):
    codec, tokenizer = Loud(*codec), Loud(*tokenizer)
    names = ("semantic_lm", "coarse_lm", "fine_lm")
    parts = {"codec": codec, "semantic_tokenizer": tokenizer}
    parts.update(dict.fromkeys(names))
    pipeline = AudioLMPipeline(parts, trained=parts)
    assert pipeline.unit == unit
    rate = codec.sample_rate
    audio = np.zeros(61 * rate, "float32")
    rng = np.random.default_rng(0)
    starts = np.arange(0.5, 60.5, 2.0) + rng.uniform(0, 1, 30)
    for start in (starts * rate).astype(int):
        audio[start : start + rate // 4] = rng.normal(size=rate // 4)
    tokens = pipeline.tokenize(audio)
    assert len(tokens.semantic) == math.ceil(61 * rate / pipeline.semantic_hop)
    assert len(tokens.acoustic) == math.ceil(61 * rate / codec.hop_length)
    check_disk(pipeline, audio, tokens)
    # The tokenizer hears hardly more or less than two minutes.
    speed = tokenizer.heard / tokenizer.sample_rate / 122
    assert abs(speed - 1) <= 0.001
    for codes, hop in (
        (tokens.semantic, float(pipeline.semantic_hop)),
        (tokens.acoustic[:, 0], codec.hop_length),
    ):
        begun = np.flatnonzero(np.diff(codes) > 0) + 1
        places = np.floor(starts * rate / hop)
        assert np.abs(begun - places).max() <= 1


def check_disk(pipeline, audio, tokens):
    """From disk come the same tokens, and only a window is in memory."""
    Watched.most = 0
    on_disk = Watched(np.array_split(audio, 5))
    ((semantic, acoustic),) = pipeline.tokenize_many([on_disk])
    np.testing.assert_array_equal(semantic, tokens.semantic)
    np.testing.assert_array_equal(acoustic, tokens.acoustic)
    assert 30 <= Watched.most / pipeline.sample_rate <= 33.1
