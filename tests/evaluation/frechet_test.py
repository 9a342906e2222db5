import numpy as np
import pytest
import scipy.linalg

from keras_audiolm.data.audio import load_audio
from keras_audiolm.evaluation.frechet import (
    encoder_embedding,
    frechet_audio_distance,
    frechet_distance,
)
from tests.tiny import tiny_semantic_tokenizer


def points(seed, count, dim, scale=1.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, scale, (dim, dim))
    return rng.normal(0, 1, (count, dim)) @ mixing + rng.normal(0, 1, dim)


def by_scipy(real, fake):
    """The textbook formula, with SciPy's square root of a matrix."""
    a, b = np.cov(real.T), np.cov(fake.T)
    root = scipy.linalg.sqrtm(a @ b).real
    means = real.mean(0) - fake.mean(0)
    return means @ means + np.trace(a + b - 2 * root)


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_equals_scipys(dim):
    real, fake = points(0, 300, dim), points(1, 200, dim, 2.0)
    expected = by_scipy(real, fake)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)


def test_of_one_dimension_is_known():
    """(difference of means)² + (difference of deviations)²."""
    real, fake = points(0, 50, 1), points(1, 70, 1)
    expected = (real.mean() - fake.mean()) ** 2
    expected += (real.std(ddof=1) - fake.std(ddof=1)) ** 2
    assert frechet_distance(real, fake) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_fewer_points_than_dimensions_do_no_harm(count):
    """Where SciPy's square root of a singular matrix may fail."""
    real = points(0, count, 40)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    moved = real + 3.0
    assert frechet_distance(real, moved) == pytest.approx(9 * 40)
    # A rotation of both changes nothing.
    turn = np.linalg.qr(np.random.default_rng(0).normal(0, 1, (40, 40)))[0]
    other = points(1, 30, 40)
    expected = frechet_distance(real, other)
    found = frechet_distance(real @ turn, other @ turn)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), r"two points.*\(1, 3\)"),
        (np.zeros((5, 3)), np.zeros((5, 2)), "3 and 2"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "`real`.*finite"),
    ],
)
def test_bad_points(real, fake, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, fake)


def test_real_speech_with_more_noise_lies_farther_away():
    recordings = [
        load_audio(f"examples/recordings/{language}.flac", 16000)
        for language in ("en", "es", "fr")
    ]
    embed = encoder_embedding(tiny_semantic_tokenizer())
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 1, clip.shape) for clip in recordings]

    def at(level):
        noisy = [
            (clip + level * n).astype("float32")
            for clip, n in zip(recordings, noise, strict=True)
        ]
        return frechet_audio_distance(recordings, noisy, embed, 16000)

    results = [at(level) for level in (0.0, 0.01, 0.03, 0.1)]
    distances = [result["distance"] for result in results]
    assert distances[0] == pytest.approx(0, abs=1e-5)
    assert distances == sorted(distances) and distances[1] > 1e-4
    seconds = sum(len(clip) // 16000 for clip in recordings)
    assert results[0]["real_windows"] == seconds


def test_too_little_sound():
    clip = np.zeros(8000, "float32")
    for clips in ([], [clip], [clip] * 9):
        with pytest.raises(ValueError, match="the real one has 0"):
            frechet_audio_distance(clips, clips, None, 16000)
