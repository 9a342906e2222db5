"""HuBERT beside `transformers`, with random weights."""

import numpy as np
import pytest

from keras_audiolm.convert.checkpoint import Checkpoint
from keras_audiolm.convert.hubert import read_encoder
from keras_audiolm.layers.compiled import CompiledFunction
from tests.codec.soundstream_test import to_numpy
from tests.convert.encodec_test import randomized, untouched

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = dict(
    hidden_size=16,
    conv_dim=[8] * 3,
    conv_kernel=[10, 3, 2],
    conv_stride=[5, 2, 2],
    num_feat_extract_layers=3,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)
KINDS = {
    "base": {},
    "large": dict(
        do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True
    ),
    "25 Hz": dict(conv_pos_batch_norm=True),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    config = transformers.HubertConfig(**SMALL, **KINDS[request.param])
    model = randomized(transformers.HubertModel(config))
    with torch.no_grad():
        for name, x in model.named_buffers():
            if name.endswith("running_var"):
                x.abs_().add_(0.1)
        for name, x in model.named_parameters():
            if "norm.weight" in name:
                x.add_(1.0)
    folder = tmp_path_factory.mktemp("hubert")
    model.save_pretrained(folder)
    return model, folder, read_encoder(Checkpoint(folder))


def noise(samples, batch=2):
    rng = np.random.default_rng(0)
    return rng.normal(0.1, 0.3, (batch, samples)).astype("float32")


def theirs(model, encoder, audio):
    """Activations of all blocks, of audio that ends with our zeros."""
    frames = -(-audio.shape[1] // encoder.hop_length)
    whole = (frames - 1) * encoder.hop_length + encoder.reach
    if encoder.normalize_audio:
        audio = audio - audio.mean(1, keepdims=True)
        audio = audio / np.sqrt(audio.var(1, keepdims=True) + 1e-7)
    audio = np.pad(audio, [(0, 0), (0, whole - audio.shape[1])])
    with torch.no_grad():
        out = model(torch.tensor(audio), output_hidden_states=True)
    return [x.numpy() for x in (*out.hidden_states[1:], out.last_hidden_state)]


def ours(encoder, audio, layer, *lengths):
    function = CompiledFunction(
        encoder, lambda audio, *rest: encoder.encode(audio, layer, *rest)
    )
    return to_numpy(function(audio, *lengths))


@pytest.mark.parametrize("samples", [400, 413])
def test_activations_of_each_block_are_theirs(pair, samples):
    model, _, encoder = pair
    audio = noise(samples)
    expected = theirs(model, encoder, audio)
    assert encoder.hop_length == 20
    for layer in (1, 2):
        made = ours(encoder, audio, layer)
        assert made.shape == (2, -(-samples // 20), 16)
        np.testing.assert_allclose(made, expected[layer - 1], atol=1e-4)
    whole = to_numpy(CompiledFunction(encoder, encoder.call)(audio))
    np.testing.assert_allclose(whole, expected[-1], atol=1e-4)


def test_what_comes_after_the_end_changes_nothing(pair):
    _, _, encoder = pair
    audio = noise(600)
    lengths = np.array([600, 410], "int32")
    together = ours(encoder, audio, 2, lengths)
    alone = ours(encoder, audio[1:, :410], 2)
    np.testing.assert_allclose(together[1, :21], alone[0], atol=1e-5)
    np.testing.assert_allclose(
        together[0], ours(encoder, audio[:1], 2)[0], atol=1e-5
    )


def test_blocks_after_the_layer_of_interest_may_be_left_out(pair):
    _, folder, encoder = pair
    short = read_encoder(Checkpoint(folder), num_layers=2)
    assert short.count_params() < encoder.count_params()
    audio = noise(400)
    np.testing.assert_array_equal(
        ours(short, audio, 2), ours(encoder, audio, 2)
    )
    with pytest.raises(ValueError, match="has 3 blocks. Received: 4"):
        read_encoder(Checkpoint(folder), num_layers=4)


def test_every_weight_is_set(pair):
    names = [path.split("/")[-1] for path in untouched(pair[2])]
    assert names == []
