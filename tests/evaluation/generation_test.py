import numpy as np
import pytest

from keras_audiolm.data.audio import load_audio
from keras_audiolm.evaluation.generation import (
    collapsed,
    continue_prompts,
    diversity,
    resynthesize_all,
    sound_features,
)
from keras_audiolm.generation import Tokens


class Echo:
    """Goes on with the seed, and tells what it was given."""

    sample_rate = 4
    unit_samples = 2
    unit = (1, 2)

    def generate(self, prompt, duration, seed, return_tokens):
        assert prompt.shape == (2, 4) and return_tokens
        new = np.full((2, int(duration * 4)), seed, "float32")
        semantic = np.tile([-1, 0, seed, seed + 1], (2, 1))
        audio = np.concatenate([prompt, new], axis=1)
        return audio, Tokens(semantic, semantic[..., None])


def test_all_prompts_are_continued_whatever_the_batch():
    pairs = [({"path": str(i)}, np.full(6, i, "float32")) for i in range(3)]
    made = continue_prompts(Echo(), pairs, 1.0, 0.5, seeds=2, batch_size=2)
    assert made.prompts[:, 0].tolist() == [0, 1, 2]
    assert made.audio.shape == (2, 3, 2)
    # Each batch has a seed of its own.
    assert made.audio[:, :, 0].tolist() == [[0, 0, 2], [1000, 1000, 1002]]
    assert [t.tolist() for t in made.semantic[1]] == [
        [1000, 1001],
        [1000, 1001],
        [1002, 1003],
    ]
    with pytest.raises(ValueError, match="lasts 1 seconds"):
        continue_prompts(Echo(), [], 1.0, 0.5, seeds=1)


def test_diversity_counts_equal_frames():
    a, b = np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0])
    found = diversity([[a, b], [b, b[:2]]])
    # Two prompts, two seeds: a against b, and b against its beginning.
    assert found == {
        "same_prompt": pytest.approx((0.5 + 1.0) / 2),
        "other_prompt": pytest.approx((0.5 + 1.0) / 2),
        "pairs": 2,
    }
    assert diversity([[a]])["same_prompt"] is None
    assert diversity([[a[:0]], [b]])["same_prompt"] is None


def test_features_of_known_sounds():
    rng = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * time)).astype("float32")
    noise = rng.normal(0, 0.1, 16000).astype("float32")
    flat = sound_features(noise, np.arange(8))
    assert flat["rms_db"] == pytest.approx(-20, abs=0.2)
    assert flat["spectral_flatness"] > 0.9
    assert flat["token_entropy"] == pytest.approx(np.log(8))
    pure = sound_features(tone, np.zeros(8, int))
    assert pure["rms_db"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)))
    assert pure["spectral_flatness"] < 0.01 and pure["token_entropy"] == 0
    for clip in (np.zeros(16000, "float32"), tone[:100], tone[:1]):
        values = sound_features(clip, np.zeros(0, int)).values()
        assert np.isfinite(list(values)).all()


def test_speech_falls_out_of_its_range_as_it_falls_apart():
    speech = load_audio("examples/recordings/en.flac", 16000)
    pieces = [speech[i : i + 16000] for i in range(0, 64000, 4000)]
    tokens = np.arange(9)
    real = [sound_features(piece, tokens) for piece in pieces]
    usual = {
        name: [min(f[name] for f in real), max(f[name] for f in real)]
        for name in real[0]
    }
    assert collapsed(real, usual)["outside"] == 0
    rng = np.random.default_rng(0)
    shares = []
    for level in (0.0, 0.05, 0.5):
        noisy = [p + level * rng.normal(0, 0.3, p.shape) for p in pieces]
        features = [sound_features(p, tokens) for p in noisy]
        shares.append(collapsed(features, usual)["share"])
    assert shares == sorted(shares) and shares[-1] == 1.0
    silent = [sound_features(0 * pieces[0], tokens * 0)]
    found = collapsed(silent, usual)
    assert found["by_feature"]["rms_db"] == 1
    assert found["by_feature"]["token_entropy"] == 1
    assert (found["outside"], found["clips"]) == (1, 1)


def test_resynthesis_keeps_the_order():
    class Minus:
        def resynthesize(self, audio, seed):
            return -audio

    sizes = (5, 9, 3, 7)
    clips = [np.arange(n) + 100.0 * n for n in sizes]
    pairs = resynthesize_all(Minus(), clips, batch_size=2)
    # 3 and 5 go together, and 7 and 9: the longer is cut.
    assert [len(real) for real, _ in pairs] == [3, 7, 3, 7]
    for clip, (real, made) in zip(clips, pairs, strict=True):
        np.testing.assert_array_equal(real, clip[: len(real)])
        np.testing.assert_array_equal(made, -real)
