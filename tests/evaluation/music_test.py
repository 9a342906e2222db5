import numpy as np
import pytest

from keras_audiolm.evaluation.music import (
    compare_music,
    histogram_distance,
    key_profile,
    onset_density,
    pitch_classes,
)

RATE = 16000
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)


def play(notes, seconds=0.3, overtones=3):
    """Notes `(midi numbers,)` one after the other, each dying away."""
    time = np.arange(round(seconds * RATE)) / RATE
    fade = np.exp(-time / 0.15) * np.minimum(time / 0.005, 1.0)
    return np.concatenate(
        [
            fade
            * sum(
                np.sin(2 * np.pi * k * 440 * 2 ** ((note - 69) / 12) * time)
                / k**2
                for k in range(1, overtones + 1)
            )
            for note in notes
        ]
    )


def scale(tonic, rng, count=24):
    return [
        tonic + 12 * rng.integers(2) + rng.choice(MAJOR_SCALE)
        for _ in range(count)
    ]


def test_each_note_is_its_own_pitch_class():
    for note in range(48, 84):
        classes = pitch_classes(play([note], overtones=1), RATE)
        assert classes.argmax() == note % 12
        assert classes.max() > 0.99


def test_transposed_music_has_the_classes_moved():
    notes = [60, 64, 67, 71, 62]
    low = pitch_classes(play(notes), RATE)
    high = pitch_classes(play([n + 3 for n in notes]), RATE)
    assert histogram_distance(np.roll(low, 3), high) < 0.05
    assert histogram_distance(low, high) > 0.5


def test_loudness_changes_nothing():
    audio = play([60, 63, 67])
    for of in (pitch_classes, onset_density):
        np.testing.assert_allclose(of(0.01 * audio, RATE), of(audio, RATE))


@pytest.mark.parametrize("tonic", [60, 62, 67, 69])
def test_the_key_of_a_scale(tonic):
    notes = [tonic + step for step in (*MAJOR_SCALE, 12, 7, 4, 0, 4, 7)]
    classes = np.bincount(np.array(notes) % 12, minlength=12)
    assert key_profile(classes).argmax() == tonic % 12


@pytest.mark.parametrize("a_second", [1, 2, 4, 8])
def test_counts_notes(a_second):
    notes = 60 + np.arange(6 * a_second) * 5 % 13
    audio = play(notes, 1 / a_second)
    assert onset_density(audio, RATE) == pytest.approx(a_second, rel=0.1)


def test_one_held_note_is_one_onset():
    time = np.arange(4 * RATE) / RATE
    assert onset_density(np.sin(2 * np.pi * 440 * time), RATE) == 0.25


def test_silence_is_no_music():
    silence = np.zeros(RATE)
    assert onset_density(silence, RATE) == 0
    np.testing.assert_allclose(pitch_classes(silence, RATE), 1 / 12)
    assert not key_profile(pitch_classes(silence, RATE)).any()


def test_knows_what_goes_on_as_it_began():
    rng = np.random.default_rng(0)
    tonics, seconds = (60, 66, 61, 69), (0.15, 0.3, 0.2, 0.5)
    recordings = [
        play(scale(tonic, rng, round(7 / each)), each)
        for tonic, each in zip(tonics, seconds, strict=True)
    ]
    prompts = [audio[: 2 * RATE] for audio in recordings]
    goes_on = np.stack([audio[3 * RATE : 6 * RATE] for audio in recordings])
    pieces = list("abcd")
    same = compare_music(recordings, pieces, prompts, goes_on[None], RATE)
    assert same["closer"] == same["real_closer"] == 1.0
    assert same["within"]["both"] > same["other"]["both"]
    mixed_up = compare_music(
        recordings, pieces, prompts, goes_on[None, [1, 0, 3, 2]], RATE
    )
    assert mixed_up["closer"] < 0.5
    assert mixed_up["within"]["both"] < same["within"]["both"]


def test_refuses_a_single_piece():
    with pytest.raises(ValueError, match="all recordings are of 'a'"):
        compare_music([], ["a", "a"], [], np.zeros((1, 2, RATE)), RATE)
