"""DAC beside `transformers`, with random weights."""

import numpy as np
import pytest

import keras_audiolm
from keras_audiolm.convert.sources import codec_from
from keras_audiolm.layers.compiled import CompiledFunction
from tests.codec.soundstream_test import to_numpy
from tests.convert.encodec_test import audio_of, randomized, untouched

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=[(2, 4), (2, 5)], ids=["even", "odd"])
def pair(request, tmp_path_factory):
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=list(request.param),
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=32,
        codebook_dim=4,
    )
    model = randomized(transformers.DacModel(config))
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.endswith("alpha"):
                x.abs_().add_(0.5)
    folder = tmp_path_factory.mktemp("dac")
    model.save_pretrained(folder)
    return model, codec_from(folder)


@pytest.mark.parametrize("frames", [7, 20])
def test_latents_codes_and_audio_are_theirs(pair, frames):
    model, codec = pair
    audio = audio_of(codec, frames)
    with torch.no_grad():
        there = model.encoder(torch.tensor(audio)[:, None])
        out = model.encode(torch.tensor(audio)[:, None])
        decoded = model.decode(audio_codes=out.audio_codes).audio_values
    embed = CompiledFunction(codec, lambda x: codec.embed(x))
    np.testing.assert_allclose(
        to_numpy(embed(audio)), there.numpy().transpose(0, 2, 1), atol=1e-4
    )
    codes = codec.encode(audio)
    np.testing.assert_array_equal(
        codes, out.audio_codes.numpy().transpose(0, 2, 1)
    )
    made, decoded = codec.decode(codes), decoded.numpy()
    assert made.shape == audio.shape
    np.testing.assert_allclose(made[:, : decoded.shape[1]], decoded, atol=1e-4)
    np.testing.assert_array_equal(made[:, decoded.shape[1] :], 0)


def test_fewer_levels_are_theirs(pair):
    model, codec = pair
    codes = codec.encode(audio_of(codec, 8))[..., :2]
    with torch.no_grad():
        there = torch.tensor(codes.transpose(0, 2, 1).astype("int64"))
        decoded = model.decode(audio_codes=there).audio_values.numpy()
    made = codec.decode(codes)
    np.testing.assert_allclose(made[:, : decoded.shape[1]], decoded, atol=1e-4)


def test_it_is_a_preset_and_cannot_stream(pair, tmp_path):
    _, codec = pair
    codec.save_to_preset(tmp_path / "dac")
    loaded = keras_audiolm.AudioCodec.from_preset(tmp_path / "dac")
    audio = audio_of(codec, 8)
    codes = codec.encode(audio)
    np.testing.assert_array_equal(loaded.encode(audio), codes)
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))
    with pytest.raises(ValueError, match="not causal"):
        codec.init_state(1)


def test_every_weight_is_set(pair):
    # Codebooks come as they are, not as sums over how often they were used.
    names = [path.split("/")[-1] for path in untouched(pair[1])]
    assert names == ["usage"]
