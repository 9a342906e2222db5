import keras
import numpy as np
from keras import ops

from keras_audiolm.codec.noise_filling import (
    PERIOD,
    NoiseFilling,
    band_edges,
    noise_like,
    noise_table,
)
from tests.codec.soundstream_test import make_codec, to_numpy


def test_noise_is_white_and_goes_on_where_it_is_told():
    table = noise_table(320)
    np.testing.assert_allclose(table.std(), 1.0, atol=0.01)
    likeness = np.corrcoef(table) - np.eye(PERIOD)
    assert np.abs(likeness).max() < 0.35  # no row is like another
    frames = np.zeros((2, 5, 320), "float32")
    whole = to_numpy(noise_like(frames))
    np.testing.assert_array_equal(whole[0], table[:5])
    place = ops.convert_to_tensor(np.array([2, PERIOD - 1], "int32"))
    later = to_numpy(noise_like(frames, place))
    np.testing.assert_array_equal(later[0], table[2:7])
    np.testing.assert_array_equal(later[1, 1:], table[:4])  # begins anew


def test_bands_are_the_ears():
    edges = np.array(band_edges(320, 16000))
    assert edges[0] == 0 and edges[-1] == 320
    widths = np.diff(edges)
    assert widths[0] == 4 and (np.diff(widths[:-1]) >= 0).all()


def fill(filling, coefficients, levels):
    return to_numpy(filling.fill(ops.convert_to_tensor(coefficients), levels))


def test_fills_up_to_the_level_and_no_more():
    filling = NoiseFilling(320, 16000)
    rng = np.random.default_rng(1)  # other numbers than the noise's
    loud = rng.normal(0, 0.1, (1, 200, 320)).astype("float32")
    levels = to_numpy(filling.levels(loud))
    assert levels.shape == (1, 200, filling.num_bands)
    # Nothing lacks where everything is there.
    whole = fill(filling, loud, levels)
    np.testing.assert_allclose(whole, loud, atol=1e-3)
    # Where nothing is there, or half of it, noise brings the level back.
    for part in (0.0, 0.5):
        made = fill(filling, part * loud, levels)
        power = np.square(made).mean((0, 1)) / np.square(loud).mean((0, 1))
        np.testing.assert_allclose(power.mean(), 1.0, atol=0.05)
    # Levels below zero, which a network may say, are silence.
    made = fill(filling, np.zeros_like(loud), -levels)
    np.testing.assert_allclose(made, 0, atol=1e-6)


class Filled(keras.Model):
    """A layer whose output is filled up to its own levels."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(16)
        self.filling = NoiseFilling(16, 16000)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        x = self.dense(x)
        return self.filling.fill(x, self.filling.levels(x))


def test_gradients_are_finite_in_silence():
    model = Filled()
    model.compile("sgd", "mse")
    silence = np.zeros((1, 3, 16), "float32")
    model.fit(silence, silence, verbose=0)
    assert all(np.isfinite(to_numpy(w)).all() for w in model.weights)


def test_training_hears_noise_from_anywhere(monkeypatch):
    """A start that is always the same would be learnt by heart."""
    codec, places = make_codec("convnext"), []
    render = codec.render

    def spy(embeddings, denoise=None, place=None):
        places.append(place)
        return render(embeddings, denoise, place)

    monkeypatch.setattr(codec, "render", spy)
    audio = np.zeros((8, codec.hop_length), "float32")
    codec(audio)
    codec(audio, training=True)
    codec(audio, training=True)
    calm, *trained = places
    assert calm is None
    trained = np.concatenate([to_numpy(place) for place in trained])
    assert trained.shape == (16,) and len(set(trained)) > 8
    assert trained.min() >= 0 and trained.max() < PERIOD
