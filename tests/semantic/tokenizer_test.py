import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_audiolm.semantic.tokenizer import SemanticTokenizer
from keras_audiolm.semantic.w2v_bert import W2vBert


def make(**kwargs):
    encoder = W2vBert(
        num_mels=20,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_contrastive_layers=1,
        num_masked_layers=2,
        kernel_size=3,
        codebook_size=8,
        codebook_dim=8,
    )
    return SemanticTokenizer(
        encoder, **{"num_clusters": 12, "layer": 2, **kwargs}
    )


def tones(*shape, seed=0):
    """Noise that changes its spectrum every 0.1 s."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(size=shape)
    time = np.arange(shape[-1])
    for row in audio.reshape(-1, shape[-1]):
        for start in range(0, shape[-1], 1600):
            hertz = rng.uniform(200, 6000)
            row[start : start + 1600] += 8 * np.sin(
                2 * np.pi * hertz * time[start : start + 1600] / 16000
            )
    return (0.03 * audio).astype("float32")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = make()
    audio = tones(4, 16000, seed=1)
    tokenizer.fit_kmeans(lambda: iter(audio[:, None].reshape(2, 2, 16000)))
    return tokenizer


@pytest.mark.parametrize("samples", [1, 640, 641, 5000])
def test_tokens(tokenizer, samples):
    tokens = tokenizer.encode(tones(2, samples))
    assert tokens.shape == (2, -(-samples // 640))
    assert tokens.dtype == "int32"
    assert tokens.min() >= 0 and tokens.max() < tokenizer.codebook_size == 12
    assert tokenizer.sample_rate == 16000 and tokenizer.hop_length == 640


def test_different_sounds_get_different_tokens(tokenizer):
    assert len(np.unique(tokenizer.encode(tones(4, 16000)))) >= 6


def test_padding_to_few_lengths_changes_nothing(tokenizer):
    audio = tones(2, 5000)
    plain = np.asarray(keras.ops.convert_to_numpy(tokenizer(audio)))
    np.testing.assert_array_equal(tokenizer.encode(audio), plain)


def test_lengths(tokenizer):
    audio = tones(2, 5000)
    audio[1, 3000:] = 0.5
    tokens = tokenizer.encode(audio, lengths=[5000, 3000])
    np.testing.assert_array_equal(tokens[:1], tokenizer.encode(audio[:1]))
    alone = tokenizer.encode(audio[1:, :3000])
    np.testing.assert_array_equal(tokens[1:, : alone.shape[1]], alone)


def test_gain_changes_nothing(tokenizer):
    audio = tones(2, 5000)
    quiet = tokenizer.encode(0.1 * audio)
    assert (quiet == tokenizer.encode(audio)).mean() > 0.95


def test_long_audio_is_encoded_in_equal_windows():
    tokenizer = make(max_duration=0.4)
    audio = tones(2, 16000 + 7)  # 26 frames: windows of 9, 9 and 8
    tokenizer.fit_kmeans(lambda: iter([audio]), passes=1)
    lengths = [16007, 6000]
    tokens = tokenizer.encode(audio, lengths=lengths)
    assert tokens.shape == (2, 26)
    window = 9 * 640
    for i in range(3):
        part = audio[:1, i * window : (i + 1) * window]
        np.testing.assert_array_equal(
            tokens[:1, i * 9 : (i + 1) * 9], tokenizer.encode(part)
        )
    alone = tokenizer.encode(audio[1:, :window])
    np.testing.assert_array_equal(tokens[1:, :9], alone)


def test_compiles_once_for_similar_lengths():
    tokenizer = make()
    audio = tones(2, 16000)
    tokenizer.fit_kmeans(lambda: iter([audio]), passes=1)
    for samples in (5000, 5100, 640, 5000):
        tokenizer.encode(audio[:, :samples])
    traces = tokenizer._compiled.num_traces
    assert traces <= (4 if keras.backend.backend() == "torch" else 1)


def test_before_fitting():
    tokenizer = make()
    assert not tokenizer.initialized
    with pytest.raises(ValueError, match="fit_kmeans"):
        tokenizer.encode(tones(1, 640))


def test_bad_arguments(tokenizer):
    audio = tones(2, 640)
    with pytest.raises(ValueError, match=r"\(640,\)"):
        tokenizer.encode(audio[0])
    with pytest.raises(ValueError, match=r"\(2, 0\)"):
        tokenizer.encode(audio[:, :0])
    with pytest.raises(ValueError, match="1 values that are not finite"):
        tokenizer.encode(np.where(np.arange(640) == 3, np.nan, audio[:1]))
    for lengths in ([640], [640, 641], [640, -1]):
        with pytest.raises(ValueError, match="lengths="):
            tokenizer.encode(audio, lengths=lengths)
    with pytest.raises(ValueError, match="1 to 2.*layer=7"):
        make(layer=7)


def test_round_trip(tokenizer, tmp_path):
    path = tmp_path / "model.weights.h5"
    tokenizer.save_weights(path)
    config = json.dumps(keras.saving.serialize_keras_object(tokenizer))
    again = keras.saving.deserialize_keras_object(json.loads(config))
    assert again.get_config() == tokenizer.get_config()
    assert not again.initialized
    again.load_weights(path)
    assert again.initialized
    audio = tones(2, 5000)
    np.testing.assert_array_equal(tokenizer.encode(audio), again.encode(audio))


@pytest.mark.large  # starts another Python
def test_loads_where_nothing_else_was_imported(tokenizer):
    config = json.dumps(keras.saving.serialize_keras_object(tokenizer))
    code = (
        "import json, sys, keras\n"
        "from keras_audiolm.semantic.tokenizer import SemanticTokenizer\n"
        "config = json.load(sys.stdin)['config']\n"
        "print(SemanticTokenizer.from_config(config).encoder.hidden_dim)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=config,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["16"], result.stderr


def test_kmeans_sees_the_chosen_layer():
    tokenizer = make(layer=1)
    audio = tones(2, 16000)
    tokenizer.fit_kmeans(lambda: iter([audio]), passes=1)
    x = tokenizer.encoder.encode(audio, layer=1)
    x = np.asarray(keras.ops.convert_to_numpy(keras.ops.stop_gradient(x)))
    mean = keras.ops.convert_to_numpy(tokenizer.kmeans.mean)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 1)), atol=1e-3)
