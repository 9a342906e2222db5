"""w2v-BERT 2.0 beside `transformers`, with random weights."""

import numpy as np
import pytest

from keras_audiolm.convert.checkpoint import Checkpoint
from keras_audiolm.convert.w2v_bert_2 import read_encoder
from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.semantic.w2v_bert_2 import FilterBank
from tests.codec.soundstream_test import to_numpy
from tests.convert.encodec_test import randomized, untouched
from tests.convert.hubert_test import noise, ours

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = dict(
    hidden_size=16,
    feature_projection_input_dim=160,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    conv_depthwise_kernel_size=5,
    left_max_position_embeddings=3,
    right_max_position_embeddings=2,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = transformers.Wav2Vec2BertConfig(**SMALL)
    model = randomized(transformers.Wav2Vec2BertModel(config))
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "norm.weight" in name:
                x.add_(1.0)
    folder = tmp_path_factory.mktemp("w2v_bert_2")
    model.save_pretrained(folder)
    return model, folder, read_encoder(Checkpoint(folder))


def completed(audio):
    """Audio with the zeros that complete its last frame of 20 ms."""
    frames = -(-audio.shape[1] // 320)
    rest = (2 * frames - 1) * 160 + 400 - audio.shape[1]
    return np.pad(audio, [(0, 0), (0, rest)])


def their_features(audio):
    extract = transformers.SeamlessM4TFeatureExtractor()
    rows = [
        extract(row, sampling_rate=16000, return_tensors="np")
        for row in completed(audio)
    ]
    return np.concatenate([row["input_features"] for row in rows])


def test_filter_bank_is_theirs():
    audio = noise(4000)
    lengths = np.full(2, 4000, "int32")
    made = to_numpy(FilterBank(multiple=2)(audio, lengths))
    made = made.reshape(2, -1, 160)
    np.testing.assert_allclose(made, their_features(audio), atol=1e-3)


@pytest.mark.parametrize("samples", [3200, 3333])
def test_activations_of_each_block_are_theirs(pair, samples):
    model, _, encoder = pair
    audio = noise(samples)
    with torch.no_grad():
        features = torch.tensor(their_features(audio)).float()
        out = model(features, output_hidden_states=True)
    expected = [x.numpy() for x in out.hidden_states[1:]]
    for layer in (1, 2, 3):
        made = ours(encoder, audio, layer)
        assert made.shape == (2, -(-samples // 320), 16)
        np.testing.assert_allclose(made, expected[layer - 1], atol=1e-3)
    whole = to_numpy(CompiledFunction(encoder, encoder.call)(audio))
    np.testing.assert_allclose(whole, out.last_hidden_state.numpy(), atol=1e-3)


def test_what_comes_after_the_end_changes_nothing(pair):
    _, _, encoder = pair
    audio = noise(4800)
    lengths = np.array([4800, 3300], "int32")
    together = ours(encoder, audio, 2, lengths)
    alone = ours(encoder, audio[1:, :3300], 2)
    np.testing.assert_allclose(together[1, :11], alone[0], atol=1e-4)
    np.testing.assert_allclose(
        together[0], ours(encoder, audio[:1], 2)[0], atol=1e-4
    )


def test_blocks_after_the_layer_of_interest_may_be_left_out(pair):
    _, folder, encoder = pair
    short = read_encoder(Checkpoint(folder), num_layers=1)
    assert short.count_params() < encoder.count_params()
    audio = noise(3200)
    np.testing.assert_array_equal(
        ours(short, audio, 1), ours(encoder, audio, 1)
    )


def test_every_weight_is_set(pair):
    # Those of the depthwise convolutions, which have none there.
    names = [path.split("/")[-1] for path in untouched(pair[2])]
    assert names == ["bias"] * 3
