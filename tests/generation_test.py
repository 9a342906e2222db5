import itertools
import math

import numpy as np
import pytest

from keras_audiolm.generation import (
    OVERLAPS,
    TEMPERATURES,
    Cascade,
    Player,
    Tokens,
    Track,
    by_stage,
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

    def generate(self, codes, num_frames, return_scores, **sampling):
        assert return_scores
        segment = self.layout.predicted
        self.layout.check(codes)
        assert 0 < num_frames <= segment.frames_in(self.crop_duration)
        self.calls.append((codes, num_frames, sampling))
        batch = len(next(iter(codes.values())))
        number = len(self.calls) * 10**6
        made = np.zeros((batch, num_frames, segment.levels), "int32")
        made += number + 1000 * np.arange(batch)[:, None, None]
        made += np.arange(num_frames)[:, None]
        prompt = codes.get(segment.name, made[:, :0])
        assert prompt.shape[1] < num_frames
        made[:, : prompt.shape[1]] = prompt
        return made, -np.arange(1.0, batch + 1)


def cascade_of(durations=(10.0, 10.0, 10.0), seed=0, fine=True, overlap=None):
    lms = {
        name: FakeLM(name, d)
        for name, d in zip(LAYOUTS, durations, strict=True)
    }
    if not fine:
        del lms["fine"]
    return Cascade(lms, UNIT, UNIT_DURATION, by_stage({}), overlap, seed)


def prompt_of(batch, units, semantic_units=None):
    shape = (batch, units if semantic_units is None else semantic_units)
    semantic = np.arange(math.prod(shape), dtype="int32").reshape(shape)
    shape = (batch, 2 * units, 5)
    acoustic = np.arange(math.prod(shape), dtype="int32").reshape(shape)
    return Tokens(semantic, acoustic)


def continued(cascade, prompt, units):
    """All pieces, joined after the prompt."""
    pieces = [prompt, *cascade.continuation(prompt, units)]
    parts = zip(*pieces, strict=True)
    return Tokens(*(np.concatenate(part, axis=1) for part in parts))


# === Windows ===


@pytest.mark.parametrize("crop_duration", [0.1, 1.0, 1.5, 4.0, 5.5, 10.0])
@pytest.mark.parametrize("seconds", [None, 0, 0.5])
def test_windows_cover_what_is_missing(crop_duration, seconds):
    cascade = cascade_of((crop_duration,) * 3, overlap=seconds)
    size = max(round(crop_duration / UNIT_DURATION), 2)
    seconds = OVERLAPS["semantic"] if seconds is None else seconds
    overlap = round(seconds / UNIT_DURATION)
    for known in range(0, 4 * size, 3):
        for units in range(known + 1, 6 * size, 2):
            done, windows = known, []
            while done < units:
                start, stop = cascade.window("semantic", done, units)
                # Each goes on where the last one stopped, and knows
                # something of what stands before.
                assert 0 <= start <= done < stop <= units
                assert stop - start <= size
                assert start == 0 or done - start <= overlap
                assert start == 0 or done > start or not overlap
                windows.append((start, stop))
                done = stop
            if units <= size:
                assert windows == [(0, units)]


def test_windows_share_three_seconds():
    cascade = cascade_of((10.0,) * 3)

    def windows(known, units):
        while known < units:
            window = cascade.window("semantic", known, units)
            yield window
            known = window[1]

    expected = [(0, 20), (14, 34), (28, 48), (42, 50)]
    assert list(windows(0, 50)) == expected
    assert list(windows(30, 40)) == [(24, 40)]
    assert list(itertools.islice(windows(0, math.inf), 3)) == expected[:3]


# === Stages ===


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("known", [0, 4, 20, 33])
@pytest.mark.parametrize("new", [1, 5, 20, 57])
@pytest.mark.parametrize("durations", [(10, 10, 3), (14, 4, 2), (4, 10, 3)])
@pytest.mark.parametrize("overlap", [None, 0, 1.5])
def test_each_stage_is_told_its_window_and_what_is_known(
    batch, known, new, durations, overlap
):
    cascade = cascade_of(durations, overlap=overlap)
    prompt, units = prompt_of(batch, known), known + new
    result = continued(cascade, prompt, units)
    assert result.semantic.shape == (batch, units)
    assert result.acoustic.shape == (batch, 2 * units, 5)
    for given, made in zip(prompt, result, strict=True):
        np.testing.assert_array_equal(made[:, : given.shape[1]], given)
    for stage, told in (("semantic", ()), ("coarse", (1,))):
        done, lm = known, cascade.stages[stage]
        for codes, frames, _ in lm.calls:
            start, stop = cascade.window(stage, done, units)
            rate = 2 if told else 1
            assert frames == rate * (stop - start)
            if told:
                np.testing.assert_array_equal(
                    codes["semantic"][..., 0], result.semantic[:, start:stop]
                )
            name = lm.layout.predicted.name
            whole = result.acoustic[..., :3] if told else result.semantic
            whole = whole.reshape(batch, rate * units, -1)
            np.testing.assert_array_equal(
                codes[name], whole[:, rate * start : rate * done]
            )
            done = stop
        assert done == units


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("known", [0, 1, 33])
@pytest.mark.parametrize("durations", [(10, 10, 3), (10, 2, 5)])
@pytest.mark.parametrize("overlap", [0.5, 1.5])
def test_with_an_overlap_each_fine_chunk_goes_on_from_the_last(
    batch, known, durations, overlap
):
    cascade = cascade_of(durations, overlap={"fine": overlap})
    prompt, units, done = prompt_of(batch, known), known + 29, known
    result = continued(cascade, prompt, units)
    for codes, frames, _ in cascade.stages["fine"].calls:
        start = max(0, done - round(overlap / UNIT_DURATION))
        assert 0 < frames <= 2 * durations[2] / UNIT_DURATION
        np.testing.assert_array_equal(
            codes["coarse"],
            result.acoustic[:, 2 * start : 2 * start + frames, :3],
        )
        np.testing.assert_array_equal(
            codes["fine"], result.acoustic[:, 2 * start : 2 * done, 3:]
        )
        done = start + frames // 2
    assert done == units


@pytest.mark.parametrize(
    ("overlap", "message"),
    [
        (-1, "`overlap`.*zero or more.*-1"),
        ({"fine": math.nan}, "`overlap`.*nan for the fine stage"),
        (math.inf, "`overlap`.*inf"),
        ({"coarse": 4}, "overlap of 4 .*coarse.*lasts 4.0.*'coarse': 2.0"),
        ({"medium": 1}, "`overlap`.*'medium'.*semantic, coarse, fine"),
    ],
)
def test_overlaps_that_leave_no_room_are_refused(overlap, message):
    with pytest.raises(ValueError, match=message):
        cascade_of((10.0, 4.0, 3.0), overlap=overlap)


def test_pieces_come_as_soon_as_they_exist():
    cascade = cascade_of((30.0, 10.0, 3.0))
    pieces = cascade.continuation(prompt_of(1, 6), math.inf)
    first = next(pieces)
    assert first.acoustic.shape == (1, 2 * 14, 5)
    assert [len(lm.calls) for lm in cascade.stages.values()] == [1, 1, 1]
    # One window of the first stage is good for several of the second.
    for _ in range(2):
        assert next(pieces).acoustic.shape == (1, 2 * 14, 5)
    assert [len(lm.calls) for lm in cascade.stages.values()] == [1, 3, 3]
    next(pieces)
    assert len(cascade.stages["semantic"].calls) == 2


@pytest.mark.parametrize("overlap", [None, 0, 2.5])
def test_what_was_is_forgotten(monkeypatch, overlap):
    held = []
    forget = Track.forget

    def spy(track, unit):
        forget(track, unit)
        held.append(track.codes.shape[1] / track.step)

    monkeypatch.setattr(Track, "forget", spy)
    cascade = cascade_of((30.0, 10.0, 3.0), overlap=overlap)
    pieces = cascade.continuation(prompt_of(1, 100), math.inf)
    for _ in itertools.islice(pieces, 60):
        pass
    assert len(held) > 100 and max(held) <= 60 + 6
    assert cascade.stages["coarse"].calls[-1][0]["semantic"].shape == (1, 20, 1)


def test_semantic_tokens_that_are_known_stay():
    cascade = cascade_of((10.0, 4.0, 3.0))
    prompt = prompt_of(2, 0, semantic_units=30)
    pieces = list(cascade.continuation(prompt, 30))
    assert not cascade.stages["semantic"].calls
    made = np.concatenate([piece.semantic for piece in pieces], axis=1)
    np.testing.assert_array_equal(made, prompt.semantic)


def test_without_a_fine_stage_all_levels_are_coarse():
    cascade = cascade_of(fine=False)
    prompt = prompt_of(1, 0)
    prompt = Tokens(prompt.semantic, prompt.acoustic[..., :3])
    assert continued(cascade, prompt, 7).acoustic.shape == (1, 14, 3)


@pytest.mark.parametrize("units", [1, 5, 6, 7, 12, 20])
def test_fine_chunks_run_as_one_batch_and_come_back_in_order(units):
    cascade = cascade_of((10.0, 10.0, 3.0))  # chunks of 12 frames
    lm, frames = cascade.stages["fine"], 2 * units
    (piece,) = cascade.continuation(prompt_of(3, 0), units)
    coarse, fine = np.split(piece.acoustic, [3], axis=-1)
    ((codes, num_frames, _),) = lm.calls
    chunks = -(-frames // 12)
    assert num_frames == 12
    assert codes["coarse"].shape == (3 * chunks, 12, 3)
    for row in range(3):
        told = codes["coarse"][row * chunks : (row + 1) * chunks]
        told = told.reshape(-1, 3)
        np.testing.assert_array_equal(told[:frames], coarse[row])
        assert np.all(told[frames:] == -1)
        for frame in range(frames):
            index = row * chunks + frame // 12
            assert np.all(fine[row, frame] == 10**6 + 1000 * index + frame % 12)


def test_the_likelihood_is_that_of_all_calls():
    cascade = cascade_of((10.0, 4.0, 3.0))
    continued(cascade, prompt_of(2, 3), 30)
    calls = sum(
        len(cascade.stages[stage].calls) for stage in ("semantic", "coarse")
    )
    expected = -np.array([1.0, 2.0]) * calls
    for codes, _, _ in cascade.stages["fine"].calls:
        # The chunks of a row are rows of a call.
        rows = np.arange(1.0, len(codes["coarse"]) + 1)
        expected -= rows.reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(cascade.log_likelihood, expected)


def test_every_draw_has_a_seed_of_its_own():
    def seeds(seed):
        cascade = cascade_of((10.0, 4.0, 3.0), seed=seed)
        continued(cascade, prompt_of(1, 3), 57)
        return [
            sampling["seed"]
            for lm in cascade.stages.values()
            for _, _, sampling in lm.calls
        ]

    first = seeds(5)
    assert len(set(first)) == len(first) > 10
    assert seeds(5) == first
    assert not set(seeds(6)) & set(first)
    assert not set(seeds(None)) & set(seeds(None))


def test_each_stage_samples_with_settings_of_its_own():
    said = []
    cascade = cascade_of()
    cascade.progress = said.append
    list(cascade.continuation(prompt_of(1, 0), 4))
    for stage, lm in cascade.stages.items():
        ((_, _, sampling),) = lm.calls
        assert sampling["temperature"] == TEMPERATURES[stage]
    assert said == [
        "semantic tokens",
        "coarse acoustic tokens",
        "fine acoustic tokens",
    ]


# === Ends ===


class EndingLM(FakeLM):
    """Ends row `i` at its `ends[i]`th new frame, counted over all calls."""

    def __init__(self, ends, crop_duration, deduplicated=False):
        super().__init__("semantic", crop_duration)
        self.layout = TokenLayout.semantic(10**9, 2.0, True, deduplicated)
        self.ends, self.done = np.array(ends), 0
        self.frames_per_token = 2.0

    def generate(self, codes, num_frames, may_end, **settings):
        assert may_end
        known = codes["semantic"].shape[1]
        assert not (codes["semantic"][:, -1:] == -1).any()
        made, scores = super().generate(codes, num_frames, **settings)
        place = self.done + np.arange(num_frames - known)
        made[:, known:][place >= self.ends[:, None]] = -1
        self.done += len(place)
        return made, scores


def ending_cascade(ends, durations, deduplicated=False, overlap=None):
    lms = {
        "semantic": EndingLM(ends, durations[0], deduplicated),
        "coarse": FakeLM("coarse", durations[1]),
        "fine": FakeLM("fine", durations[2]),
    }
    if deduplicated:
        layout = TokenLayout.coarse(
            10**9, 3, 10**9, 2.0, 4.0, deduplicated=True
        )
        lms["coarse"].layout = layout
    settings = by_stage({})
    return Cascade(lms, UNIT, UNIT_DURATION, settings, overlap, 0, True)


@pytest.mark.parametrize(
    "durations", [(30, 10, 3), (4, 10, 3), (2, 1, 3), (10, 4, 5)]
)
@pytest.mark.parametrize("known", [0, 4, 25])
@pytest.mark.parametrize("ends", [(5,), (0,), (20,), (7, 33), (33, 0), (90, 7)])
@pytest.mark.parametrize("overlap", [None, 0.5, 0])
def test_it_is_over_when_the_last_row_is(durations, known, ends, overlap):
    cascade = ending_cascade(ends, durations, overlap=overlap)
    units = known + 50
    result = continued(cascade, prompt_of(len(ends), known), units)
    expected = known + np.array(ends)
    assert result.semantic.shape[1] == min(expected.max(), units)
    for row, end in enumerate(expected):
        assert (result.semantic[row, :end] >= 0).all()
        assert (result.semantic[row, end:] == -1).all()
        assert cascade.ends[row] == (end if end < units else math.inf)
    # Nobody is asked for more once all is said.
    last = cascade.stages["semantic"]
    size = max(round(durations[0] / UNIT_DURATION), 2)
    assert last.done <= min(max(ends), 50) + size


def test_runs_of_a_token_are_told_and_asked_for_once():
    cascade = ending_cascade((40,), (30, 30, 3), deduplicated=True)
    prompt = prompt_of(1, 6)
    prompt.semantic[:] = [[5, 5, 5, 7, 7, 5]]
    result = continued(cascade, prompt, 20)
    ((codes, length, _),) = cascade.stages["semantic"].calls
    np.testing.assert_array_equal(codes["semantic"][..., 0], [[5, 7, 5]])
    # Fourteen frames, two a token.
    assert length == 3 + 7
    new = result.semantic[0, 6:]
    np.testing.assert_array_equal(new, np.repeat(new[::2], 2))
    ((codes, frames, _),) = cascade.stages["coarse"].calls
    assert frames == 40
    np.testing.assert_array_equal(
        codes["semantic"][0, :, 0], [5, 7, 5, *new[::2]]
    )


# === Playing ===


class FakeCodec:
    """Each code is a sample twice, counted from where the row began."""

    hop_length, can_stream = 2, True

    def __init__(self, delay):
        self.delay = delay

    def decode(self, codes):
        audio = np.repeat(codes[..., 0], 2, axis=1)
        return audio + 1000.0 * np.arange(audio.shape[1])

    def init_state(self, batch_size):
        return np.zeros((batch_size, 0, 1), "int32")

    def decode_step(self, codes, state):
        after = np.concatenate([state, codes], axis=1)
        audio = np.pad(self.decode(after), [(0, 0), (self.delay, 0)])
        first = 2 * state.shape[1]
        return audio[:, first : first + 2 * codes.shape[1]], after

    def flush(self, state):
        return self.decode(state)[:, -self.delay :]


class LookingCodec:
    """Two frames are a second; a frame hears those a second before and after
    it, and no others."""

    hop_length, sample_rate, can_stream = 2, 4, False
    window_step = 1

    def decode(self, codes):
        x = codes[..., 0].astype("float64")
        around = np.pad(x, [(0, 0), (2, 2)])
        x = x + 100 * around[:, :-4] + 10_000 * around[:, 4:]
        return np.repeat(x, 2, axis=1)


@pytest.mark.parametrize("codec", [FakeCodec(2), FakeCodec(6), LookingCodec()])
@pytest.mark.parametrize("pieces", [[9], [4, 5], [1, 1, 7], [3, 3, 3]])
def test_pieces_of_ragged_rows_are_what_each_row_sounds_like(codec, pieces):
    codes = np.arange(1, 40, dtype="int32").reshape(3, 13, 1)
    absent = [2, 0, 2]
    prompt = codes[:, :4].copy()
    for row, count in enumerate(absent):
        prompt[row, :count] = -1
    player, start, audio = Player(codec, prompt), 4, []
    for number, frames in enumerate(pieces):
        piece = codes[:, start : start + frames]
        audio.append(player.play(piece, last=number + 1 == len(pieces)))
        start += frames
    audio = np.concatenate(audio, axis=1)
    assert audio.shape == (3, 2 * 9)
    for row, count in enumerate(absent):
        alone = codec.decode(codes[row : row + 1, count:])
        np.testing.assert_array_equal(audio[row], alone[0, 2 * (4 - count) :])


@pytest.mark.parametrize("codec", [FakeCodec(2), FakeCodec(6), LookingCodec()])
def test_what_is_held_back_comes_at_the_end(codec):
    codes = np.arange(1, 12, dtype="int32").reshape(1, 11, 1)
    player = Player(codec, codes[:, :3])
    audio = [
        player.play(codes[:, a:b], last=False) for a, b in [(3, 6), (6, 11)]
    ]
    audio = np.concatenate([*audio, player.finish()], axis=1)
    np.testing.assert_array_equal(audio, codec.decode(codes)[:, 6:])


# === Settings ===


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (0.6, 0.8, 0.6, 0.8)),
        (0.3, (0.3, 0.3, 0.3, 0.3)),
        (0, (0, 0, 0, 0)),
        ({}, (0.6, 0.8, 0.6, 0.8)),
        ({"coarse": 0}, (0.6, 0, 0.6, 0.8)),
        ({"parallel": 2, "semantic": 1}, (1, 0.8, 0.6, 2)),
        ({"fine": None, "semantic": 1}, (1, 0.8, 0.6, 0.8)),
    ],
)
def test_one_number_or_some_stages(value, expected):
    result = by_stage({"temperature": value, "top_k": {"fine": 3}})
    found = tuple(settings["temperature"] for settings in result.values())
    assert found == expected
    assert result["fine"]["top_k"] == 3
    assert "top_k" not in result["coarse"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_k": {"medium": 3}}, ValueError, "'medium'.*semantic, coarse"),
        ({"temprature": 1}, TypeError, "'temprature'.*temperature, top_k"),
        ({"top_p": {"fine": 2}}, ValueError, "`top_p`.*2"),
    ],
)
def test_settings_that_do_not_exist_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        by_stage(settings)
