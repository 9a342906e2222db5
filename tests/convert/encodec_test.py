"""EnCodec beside `transformers`, with random weights."""

import numpy as np
import pytest

from keras_audiolm.convert.checkpoint import Checkpoint
from keras_audiolm.convert.encodec import read_codec
from keras_audiolm.layers.compiled import CompiledFunction
from tests.codec.soundstream_test import to_numpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = dict(
    num_filters=4,
    hidden_size=16,
    codebook_size=64,
    upsampling_ratios=[4, 2],
    sampling_rate=800,
    target_bandwidths=[1.8],  # 100 Hz x 6 bits x 3 levels
)


def randomized(model, seed=0):
    """Norms, biases and codebooks too, so that no transposition hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if not x.is_floating_point() or name.endswith("inited"):
                continue
            scale = 0.5 if "codebook" in name else 0.15
            x.copy_(scale * torch.randn(x.shape, generator=generator))
            if name.endswith("original0"):
                x.abs_().add_(0.3)
    return model.eval()


def untouched(model):
    """Paths of weights that are as a new model of the same sizes has them:
    none, where every weight was set from a random checkpoint."""
    new = type(model).from_config(model.get_config())
    new.build()
    return [
        a.path
        for a, b in zip(model.weights, new.weights, strict=True)
        if np.array_equal(to_numpy(a), to_numpy(b))
        and not a.path.endswith("seed_generator_state")
    ]


def make(tmp_path_factory, **config):
    config = transformers.EncodecConfig(**{**SMALL, **config})
    model = randomized(transformers.EncodecModel(config))
    folder = tmp_path_factory.mktemp("encodec")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module", params=["reflect", "constant"])
def pair(request, tmp_path_factory):
    model, folder = make(tmp_path_factory, pad_mode=request.param)
    return model, read_codec(Checkpoint(folder))


def audio_of(codec, frames, batch=2):
    rng = np.random.default_rng(0)
    shape = (batch, frames * codec.hop_length)
    return rng.normal(0, 0.3, shape).astype("float32")


def test_latents_codes_and_audio_are_theirs(pair):
    model, codec = pair
    audio = audio_of(codec, 40)
    with torch.no_grad():
        there = model.encoder(torch.tensor(audio)[:, None])
        codes = model.quantizer.encode(there, 1.8)  # (levels, batch, frames)
        decoded = model.decoder(model.quantizer.decode(codes))
    embed = CompiledFunction(codec, lambda x: codec.embed(x))
    np.testing.assert_allclose(
        to_numpy(embed(audio)), there.numpy().transpose(0, 2, 1), atol=1e-4
    )
    made = codec.encode(audio)
    np.testing.assert_array_equal(made, codes.numpy().transpose(1, 2, 0))
    np.testing.assert_allclose(
        codec.decode(made), decoded.numpy()[:, 0], atol=1e-4
    )


def test_every_weight_is_set(pair):
    # Codebooks come as they are, not as sums over how often they were used.
    assert [p.split("/")[-1] for p in untouched(pair[1])] == ["usage"]


def test_streams_with_zeros_alone(pair):
    _, codec = pair
    if codec.padding == "reflect":
        with pytest.raises(ValueError, match='padding="zeros"'):
            codec.init_state(2)
        return
    audio = audio_of(codec, 6)
    state = codec.init_state(2)
    codes, decoded = [], []
    for chunk in np.split(audio, [8, 24], axis=1):
        chunk, state = codec.encode_step(chunk, state)
        codes.append(chunk)
        chunk, state = codec.decode_step(chunk, state)
        decoded.append(chunk)
    codes = np.concatenate(codes, axis=1)
    np.testing.assert_array_equal(codes, codec.encode(audio))
    np.testing.assert_allclose(
        np.concatenate(decoded, axis=1), codec.decode(codes), atol=1e-5
    )
