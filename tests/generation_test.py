import numpy as np
import pytest

from keras_audiolm.generation import (
    TEMPERATURES,
    WINDOW_OVERLAP,
    Cascade,
    per_stage,
)
from keras_audiolm.language_model.layout import TokenLayout

UNIT = (1, 2)
UNIT_DURATION = 0.5
LAYOUTS = {
    "semantic": TokenLayout.semantic(10**9, 2.0),
    "coarse": TokenLayout.coarse(10**9, 3, 10**9, 2.0, 4.0),
    "fine": TokenLayout.fine(3, 2, 10**9, 4.0),
}


class FakeLM:
    """Continues with codes that tell which call, row, frame they are of."""

    def __init__(self, stage, crop_duration):
        self.layout = LAYOUTS[stage]
        self.crop_duration = crop_duration
        self.calls = []

    def window_frames(self, segment):
        return round(self.crop_duration * segment.frame_rate)

    def generate(self, codes, num_frames, **sampling):
        segment = self.layout.predicted
        self.layout.check(codes)
        assert 0 < num_frames <= self.window_frames(segment)
        self.calls.append((codes, num_frames, sampling))
        batch = len(next(iter(codes.values())))
        number = len(self.calls) * 10**6
        made = np.zeros((batch, num_frames, segment.levels), "int32")
        made += number + 1000 * np.arange(batch)[:, None, None]
        made += np.arange(num_frames)[:, None]
        prompt = codes.get(segment.name, made[:, :0])
        assert prompt.shape[1] < num_frames
        made[:, : prompt.shape[1]] = prompt
        return made


def cascade_of(durations=(10.0, 10.0, 10.0), seed=0, **kwargs):
    lms = map(FakeLM, LAYOUTS, durations)
    sampling = {
        stage: {"temperature": t, "top_k": None, "top_p": None}
        for stage, t in TEMPERATURES.items()
    }
    return Cascade(*lms, UNIT, UNIT_DURATION, sampling, seed=seed, **kwargs)


def semantic_codes(batch, units):
    return np.arange(batch * units, dtype="int32").reshape(batch, units)


def acoustic_codes(batch, units):
    shape = (batch, 2 * units, 3)
    return np.arange(np.prod(shape), dtype="int32").reshape(shape)


# === Windows ===


@pytest.mark.parametrize("crop_duration", [0.1, 1.0, 1.5, 4.0, 5.5, 10.0])
def test_windows_cover_what_is_missing(crop_duration):
    cascade = cascade_of((crop_duration,) * 3)
    size = max(round(crop_duration / UNIT_DURATION), 2)
    overlap = round(WINDOW_OVERLAP / UNIT_DURATION)
    for known in range(0, 4 * size, 3):
        for units in range(1, 6 * size, 2):
            windows = list(cascade._windows(cascade.semantic_lm, known, units))
            done = known
            for start, stop in windows:
                # Each goes on where the last one stopped, and knows
                # something of what stands before.
                assert 0 <= start <= done < stop <= units
                assert stop - start <= size
                assert start == 0 or 0 < done - start <= overlap
                done = stop
            assert done == max(known, units)
            if known < units <= size:
                assert windows == [(0, units)]


def test_windows_share_three_seconds():
    cascade = cascade_of((10.0,) * 3)
    windows = list(cascade._windows(cascade.semantic_lm, 0, 50))
    assert windows == [(0, 20), (14, 34), (28, 48), (42, 50)]
    windows = list(cascade._windows(cascade.semantic_lm, 30, 40))
    assert windows == [(24, 40)]


# === Stages ===


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("known", [0, 4, 20, 33])
@pytest.mark.parametrize("units", [5, 20, 21, 57])
def test_semantic_goes_on_from_what_is_known(batch, known, units):
    cascade = cascade_of()
    prompt = semantic_codes(batch, min(known, units))
    result = cascade.semantic(prompt, units)
    assert result.shape == (batch, units)
    np.testing.assert_array_equal(result[:, : prompt.shape[1]], prompt)
    windows = list(
        cascade._windows(cascade.semantic_lm, prompt.shape[1], units)
    )
    done = prompt.shape[1]
    for number, (start, stop) in enumerate(windows):
        codes, frames, _ = cascade.semantic_lm.calls[number]
        assert frames == stop - start
        # It was told the end of what is known, and nothing else.
        np.testing.assert_array_equal(
            codes["semantic"][..., 0], result[:, start:done]
        )
        for row in range(batch):
            made = (number + 1) * 10**6 + 1000 * row
            expected = made + np.arange(done - start, stop - start)
            np.testing.assert_array_equal(result[row, done:stop], expected)
        done = stop
    assert len(cascade.semantic_lm.calls) == len(windows)


@pytest.mark.parametrize("known", [0, 4, 33])
@pytest.mark.parametrize("units", [5, 20, 57])
def test_coarse_hears_the_semantic_tokens_of_its_window(known, units):
    cascade = cascade_of()
    semantic = semantic_codes(2, units)
    prompt = acoustic_codes(2, min(known, units))
    result = cascade.coarse(semantic, prompt, units)
    assert result.shape == (2, 2 * units, 3)
    np.testing.assert_array_equal(result[:, : prompt.shape[1]], prompt)
    done = prompt.shape[1] // 2
    windows = list(cascade._windows(cascade.coarse_lm, done, units))
    assert len(cascade.coarse_lm.calls) == len(windows)
    for number, (start, stop) in enumerate(windows):
        codes, frames, _ = cascade.coarse_lm.calls[number]
        assert frames == 2 * (stop - start)
        np.testing.assert_array_equal(
            codes["semantic"][..., 0], semantic[:, start:stop]
        )
        np.testing.assert_array_equal(
            codes["coarse"], result[:, 2 * start : 2 * done]
        )
        made = (number + 1) * 10**6 + 1000 * np.arange(2)
        place = np.arange(2 * (done - start), 2 * (stop - start))
        expected = (made[:, None] + place)[..., None]
        np.testing.assert_array_equal(
            result[:, 2 * done : 2 * stop], expected.repeat(3, axis=2)
        )
        done = stop


@pytest.mark.parametrize("frames", [1, 11, 12, 13, 24, 41])
def test_fine_chunks_run_as_one_batch_and_come_back_in_order(frames):
    cascade = cascade_of((10.0, 10.0, 3.0))  # chunks of 12 frames
    lm = cascade.fine_lm
    coarse = acoustic_codes(3, 21)[:, :frames]
    fine = cascade.fine(coarse)
    assert fine.shape == (3, frames, 2)
    ((codes, num_frames, _),) = lm.calls
    chunks = -(-frames // 12)
    assert num_frames == 12
    assert list(codes) == ["coarse"]
    assert codes["coarse"].shape == (3 * chunks, 12, 3)
    for row in range(3):
        told = codes["coarse"][row * chunks : (row + 1) * chunks]
        told = told.reshape(-1, 3)
        np.testing.assert_array_equal(told[:frames], coarse[row])
        assert np.all(told[frames:] == -1)
        for frame in range(frames):
            index = row * chunks + frame // 12
            assert np.all(fine[row, frame] == 10**6 + 1000 * index + frame % 12)


def test_every_draw_has_a_seed_of_its_own():
    def seeds(seed):
        cascade = cascade_of((10.0, 4.0, 3.0), seed=seed)
        semantic = cascade.semantic(semantic_codes(1, 3), 57)
        coarse = cascade.coarse(semantic, acoustic_codes(1, 3), 57)
        cascade.fine(coarse)
        return [
            sampling["seed"]
            for lm in (cascade.semantic_lm, cascade.coarse_lm, cascade.fine_lm)
            for _, _, sampling in lm.calls
        ]

    first = seeds(5)
    assert len(set(first)) == len(first) > 10
    assert seeds(5) == first
    assert not set(seeds(6)) & set(first)
    assert not set(seeds(None)) & set(seeds(None))


def test_each_stage_samples_with_settings_of_its_own():
    said = []
    cascade = cascade_of(progress=said.append)
    semantic = cascade.semantic(semantic_codes(1, 0), 4)
    cascade.fine(cascade.coarse(semantic, acoustic_codes(1, 0), 4))
    for stage, lm in zip(
        TEMPERATURES,
        (cascade.semantic_lm, cascade.coarse_lm, cascade.fine_lm),
        strict=True,
    ):
        ((_, _, sampling),) = lm.calls
        assert sampling["temperature"] == TEMPERATURES[stage]
        assert sampling["top_k"] is sampling["top_p"] is None
    assert said == [
        "semantic tokens",
        "coarse acoustic tokens",
        "fine acoustic tokens",
    ]


# === Settings ===


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (0.6, 0.8, 0.6)),
        (0.3, (0.3, 0.3, 0.3)),
        (0, (0, 0, 0)),
        ({}, (0.6, 0.8, 0.6)),
        ({"coarse": 0}, (0.6, 0, 0.6)),
        ({"fine": 2, "semantic": 1}, (1, 0.8, 2)),
        ({"fine": None, "semantic": 1}, (1, 0.8, 0.6)),
    ],
)
def test_one_number_or_some_stages(value, expected):
    result = per_stage("temperature", value, TEMPERATURES)
    assert result == dict(zip(TEMPERATURES, expected, strict=True))


def test_a_stage_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="`top_k`.*'medium'.*semantic, coarse"):
        per_stage("top_k", {"medium": 3}, dict.fromkeys(TEMPERATURES))
