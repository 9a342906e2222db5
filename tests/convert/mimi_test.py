"""Mimi beside `transformers`, with random weights."""

import numpy as np
import pytest

import keras_audiolm
from keras_audiolm.convert.sources import codec_from
from keras_audiolm.layers.compiled import CompiledFunction
from tests.codec.soundstream_test import to_numpy
from tests.convert.encodec_test import audio_of, randomized, untouched

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WINDOW = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = transformers.MimiConfig(
        num_filters=4,
        hidden_size=16,
        upsample_groups=16,
        upsampling_ratios=[3, 2],
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        codebook_size=32,
        num_quantizers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        intermediate_size=24,
        sliding_window=WINDOW,
    )
    model = randomized(transformers.MimiModel(config))
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("cluster_usage"):
                x.abs_().add_(0.5)
            if "layernorm.weight" in name or name.endswith(".scale"):
                x.add_(1.0)
    folder = tmp_path_factory.mktemp("mimi")
    model.save_pretrained(folder)
    return transformers.MimiModel.from_pretrained(folder), codec_from(folder)


def test_latents_codes_and_audio_are_theirs(pair):
    model, codec = pair
    audio = audio_of(codec, 20)  # frames; Transformers see twice as many
    with torch.no_grad():
        x = torch.tensor(audio)[:, None]
        latents = model.encoder(x).latents
        codes = model.encode(x).audio_codes
        decoded = model.decode(codes).audio_values
    embed = CompiledFunction(codec, lambda x: codec.embed(x))
    np.testing.assert_allclose(
        to_numpy(embed(audio)), latents.numpy().transpose(0, 2, 1), atol=1e-4
    )
    made = codec.encode(audio)
    np.testing.assert_array_equal(made, codes.numpy().transpose(0, 2, 1))
    np.testing.assert_allclose(
        codec.decode(made), decoded.numpy()[:, 0], atol=1e-4
    )


@pytest.mark.parametrize("levels", [1, 2])
def test_fewer_levels_are_theirs(pair, levels):
    model, codec = pair
    audio = audio_of(codec, 8)
    codes = codec.encode(audio)
    level = 5 * codec.sample_rate / codec.hop_length  # bits per second
    fewer = codec.encode(audio, bandwidth=levels * level)
    np.testing.assert_array_equal(fewer, codes[..., :levels])
    with torch.no_grad():
        there = torch.tensor(fewer.transpose(0, 2, 1).astype("int64"))
        decoded = model.decode(there).audio_values.numpy()[:, 0]
    np.testing.assert_allclose(codec.decode(fewer), decoded, atol=1e-4)


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [9]])
def test_it_streams(pair, pieces):
    _, codec = pair
    audio = audio_of(codec, 9)
    state, start = codec.init_state(2), 0
    codes, decoded = [], []
    for frames in pieces:
        stop = start + frames * codec.hop_length
        chunk, state = codec.encode_step(audio[:, start:stop], state)
        codes.append(chunk)
        chunk, state = codec.decode_step(chunk, state)
        decoded.append(chunk)
        start = stop
    codes = np.concatenate(codes, axis=1)
    np.testing.assert_array_equal(codes, codec.encode(audio))
    np.testing.assert_allclose(
        np.concatenate(decoded, axis=1), codec.decode(codes), atol=1e-5
    )


def test_it_is_a_preset(pair, tmp_path):
    _, codec = pair
    codec.save_to_preset(tmp_path / "mimi")
    loaded = keras_audiolm.AudioCodec.from_preset(tmp_path / "mimi")
    codes = codec.encode(audio_of(codec, 8))
    np.testing.assert_array_equal(loaded.encode(audio_of(codec, 8)), codes)
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))


def test_every_weight_is_set(pair):
    # That of the convolution between, which has none there.
    names = [path.split("/")[-1] for path in untouched(pair[1])]
    assert names == ["bias"]
