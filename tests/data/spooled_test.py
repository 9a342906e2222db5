from fractions import Fraction

import numpy as np
import pytest
import soxr

from keras_audiolm.data import spooled
from keras_audiolm.data.spooled import SpooledAudio, blocks_of, windows_of


def noise(*shape):
    return np.random.default_rng(0).normal(0, 0.1, shape).astype("float32")


@pytest.fixture
def audio():
    return noise(1000)


@pytest.fixture
def on_disk(audio):
    return SpooledAudio(np.array_split(audio, [0, 3, 700]))


SLICES = [
    slice(None),
    slice(10, 20),
    slice(-7, None),
    slice(990, 2000),
    slice(2000, 3000),
    slice(20, 10),
]


@pytest.mark.parametrize("piece", SLICES)
@pytest.mark.parametrize("inner", SLICES[:4])
def test_slices_are_those_of_the_array(audio, on_disk, piece, inner):
    view = on_disk[piece][inner]
    assert len(view) == len(audio[piece][inner])
    np.testing.assert_array_equal(np.asarray(view), audio[piece][inner])
    assert np.asarray(view).dtype == np.float32


def test_a_full_disk_is_an_error(monkeypatch):
    full = lambda **_: open("/dev/full", "wb")  # noqa: E731
    monkeypatch.setattr(spooled.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        SpooledAudio([noise(10)])


@pytest.mark.parametrize("size", [1, 300, 1000, 1001])
def test_blocks_make_up_the_whole(audio, on_disk, size):
    for source in (audio, on_disk):
        blocks = list(blocks_of(source, size))
        assert {len(block) for block in blocks[:-1]} <= {size}
        np.testing.assert_array_equal(np.concatenate(blocks), audio)


@pytest.mark.parametrize("speed", [1, Fraction(2, 3), Fraction(31 * 512, 9999)])
@pytest.mark.parametrize("size", [97, 2000])
def test_windows_make_up_the_resampled_whole(monkeypatch, speed, size):
    rows = noise(2, 1000)
    whole = rows
    if speed != 1:
        rates = speed.denominator, speed.numerator
        whole = np.stack([soxr.resample(row, *rates) for row in rows])
    count = -(-1000 * speed.numerator // speed.denominator)
    monkeypatch.setattr(spooled, "BLOCK", 300)
    for source in (rows, [SpooledAudio([row]) for row in rows]):
        windows = list(windows_of(source, size, speed))
        assert [w.shape[1] for w in windows[:-1]] == [size] * (count // size)
        found = np.concatenate(windows, axis=1)
        assert found.shape == (2, count)
        there = min(count, whole.shape[1])
        assert count - there <= 1
        np.testing.assert_allclose(
            found[:, :there], whole[:, :there], atol=1e-6
        )
