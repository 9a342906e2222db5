import math

import numpy as np
import pytest

from keras_audiolm.data.audio import load_audio
from keras_audiolm.evaluation.codec import (
    codebook_use,
    compare,
    log_mel_distance,
    multi_log_mel_distance,
    reconstruct,
    si_sdr,
)
from tests.tiny import tiny_pipeline


def test_si_sdr_is_the_noise_that_was_added():
    rng = np.random.default_rng(0)
    real = rng.normal(0, 1, 100_000).astype("float32")
    noise = rng.normal(0, 0.1, 100_000).astype("float32")
    assert si_sdr(real, real + noise) == pytest.approx(20, abs=0.1)
    # It knows neither gain nor offset.
    other = si_sdr(real, 0.3 * (real + noise) + 0.5)
    assert other == pytest.approx(20, abs=0.1)


def test_log_mel_distance_of_a_gain_is_its_logarithm():
    rng = np.random.default_rng(0)
    real = rng.normal(0, 0.1, 8000).astype("float32")
    assert log_mel_distance(real, real, 16000) == 0
    for distance in (log_mel_distance, multi_log_mel_distance):
        found = distance(real, real / 2, 16000)
        assert found == pytest.approx(math.log(2), abs=1e-3)


def test_codebook_use_counts_what_is_used():
    even = np.tile(np.arange(4), 25)
    codes = np.stack([even, np.zeros(100, int)], axis=1)
    use = codebook_use(codes, 8)
    assert use["used"] == [4, 1] and use["frames"] == 100
    assert use["perplexity"] == pytest.approx([4.0, 1.0])


def test_reconstruct_keeps_order_and_lengths():
    codec = tiny_pipeline().codec
    codec.sample_rate = 8000  # so that one clip is longer than a second
    rng = np.random.default_rng(0)
    clips = [
        rng.normal(0, 0.1, samples).astype("float32")
        for samples in (9000, 7000, 8999)
    ]
    for clip, made in zip(clips, reconstruct(codec, clips, 2), strict=True):
        alone = codec.decode(codec.encode(clip[None])[..., :2], len(clip))
        np.testing.assert_allclose(made, alone[0], atol=1e-5)


def test_compare_hears_more_noise_as_worse():
    """On real speech, by every measure."""
    rng = np.random.default_rng(0)
    real = load_audio("examples/recordings/en.flac", 16000)[:48000]
    noise = rng.normal(0, 1, len(real)).astype("float32")
    short = real[8000:16000]  # too short for PESQ and STOI
    results = [
        compare([real, short], [real + level * noise, short.copy()], 16000)
        for level in (0.0, 0.003, 0.01, 0.03)
    ]
    clean = results[0]
    assert clean["pesq_wb"] > 4.5 and clean["stoi"] > 0.999
    for name, sign in [
        ("pesq_wb", -1),
        ("stoi", -1),
        ("si_sdr_db", -1),
        ("log_mel_distance", 1),
        ("multi_log_mel_distance", 1),
    ]:
        values = [sign * x[name] for x in results]
        assert values == sorted(values) and len(set(values)) == 4, name
    assert clean["log_mel_distance"] == clean["multi_log_mel_distance"] == 0
    assert clean["files"] == 2
    assert clean["pesq_wb_files"] == clean["stoi_files"] == 1
