import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from benchmarks import piano_codec
from keras_audiolm.codec.soundstream import SoundStream


class Wire:
    """Gives back what it hears, or half a second of something else first."""

    sample_rate = 16000

    def __init__(self, begin=None):
        self.begin = begin

    def encode(self, audio):
        return audio

    def decode(self, codes):
        if self.begin is None:
            return codes
        return np.concatenate([self.begin, codes[:, len(self.begin[0]) :]], 1)


def tone(hertz, seconds=2.0):
    time = np.arange(round(seconds * 16000)) / 16000
    return 0.2 * np.sin(2 * np.pi * hertz * time)[None].astype("float32")


def test_a_codec_that_changes_nothing_is_without_fault():
    np.testing.assert_allclose(
        piano_codec.measure(Wire(), tone(440.0)), 0.0, atol=1e-6
    )


def test_another_tone_counts_by_what_it_changes():
    # The second quarter of the sound is a third higher.
    begin = np.concatenate([tone(440.0, 0.5), tone(554.4, 0.5)], axis=1)
    distance, onsets, loss = piano_codec.measure(Wire(begin), tone(440.0))
    assert 0.1 < distance < 0.4
    assert onsets > 0
    assert loss > 0.1


def test_distance_between_recordings():
    audio = np.concatenate([tone(440.0), tone(440.0), tone(554.4)])
    # Of the three pairs one is the same.
    found = piano_codec.distance_between(audio, 16000)
    assert abs(found - 2 / 3) < 0.05


def test_a_beam_has_the_weights():
    codec = SoundStream(
        channels=2, strides=(8,), embedding_dim=4, num_quantizers=2
    )
    codec.build()
    other = piano_codec.with_beam(codec, 4)
    assert other.beam_width == 4
    audio = tone(440.0, 0.1)
    before, after = map(to_numpy, (codec.embed(audio), other.embed(audio)))
    np.testing.assert_allclose(before, after)
