import numpy as np
import piano_performance as piano
import pytest


def make_score(rows, num_bars, fermatas=(), tempo=120.0, pulse=1.0):
    """4/4; rows are (onset, duration, pitch) and perhaps named fields."""
    notes = np.zeros(len(rows), piano.NOTE)
    for note, (onset, duration, pitch, *more) in zip(notes, rows, strict=True):
        note["onset"], note["duration"], note["pitch"] = onset, duration, pitch
        note["level"] = np.nan
        for name, value in more[0].items() if more else ():
            note[name] = value
    return piano.Score(
        notes[np.argsort(notes["onset"], kind="stable")],
        np.arange(num_bars + 1) * 4.0,
        np.full(num_bars, pulse),
        np.full(num_bars, tempo),
        list(fermatas),
    )


@pytest.fixture(scope="module")
def chorale():
    """32 bars of four voices; the harmony moves with every bar."""
    rng = np.random.default_rng(1)
    rows = []
    for beat in range(128):
        root = 48 + (0, 5, 7, 0)[beat // 4 % 4]
        for step in (0, 7, 16, 24):
            rows.append((beat, 1.0, root + step + 12 * rng.integers(0, 1)))
    return make_score(rows, 32)


def test_one_seed_is_one_performance(chorale):
    first, again, other = (piano.perform(chorale, s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.keys, again.keys)
    assert first.pedal == again.pedal
    assert not np.array_equal(first.keys["start"], other.keys["start"])


def test_a_key_goes_up_before_it_goes_down_again():
    rng = np.random.default_rng(0)
    rows = [
        (onset, rng.choice([0.25, 0.5, 2.0]), rng.integers(60, 66))
        for onset in np.sort(rng.integers(0, 128, 400)) / 4
    ]
    keys = piano.perform(make_score(rows, 8), 0).keys
    assert np.all(keys["stop"] > keys["start"]) and keys["start"].min() >= 0
    for pitch in range(60, 66):
        of_pitch = keys[keys["pitch"] == pitch]
        assert len(of_pitch) > 10
        assert np.all(of_pitch["start"][1:] > of_pitch["stop"][:-1])


def test_the_melody_is_louder_and_earlier(chorale):
    keys = piano.perform(chorale, 0).keys
    assert len(keys) == 512
    chords = np.sort(keys, order="start").reshape(128, 4)
    top = chords["pitch"].argmax(axis=1)[:, None]
    velocity, start = chords["velocity"], chords["start"]
    lead = np.take_along_axis(velocity, top, 1)[:, 0] - velocity.mean(axis=1)
    assert lead.mean() > 6
    early = start.mean(axis=1) - np.take_along_axis(start, top, 1)[:, 0]
    # The bass of so wide a chord is struck first, the melody on the beat.
    assert -0.03 < early.mean() < 0.03
    assert np.ptp(start, axis=1).max() < 0.15


def test_tempo_breathes_and_comes_to_rest(chorale):
    start = piano.perform(chorale, 0).keys["start"].reshape(128, 4)
    beats = np.diff(np.median(start, axis=1))
    body = beats[:112]
    assert body.mean() == pytest.approx(0.5, rel=0.08)
    assert 0.02 < body.std() / body.mean() < 0.2
    assert beats[-2:].mean() > 1.25 * body.mean()


def test_fermata(chorale):
    held = chorale._replace(fermatas=[(40.0, 41.0), (40.0, 41.0)])
    plain, longer = (
        np.median(piano.perform(s, 0).keys["start"].reshape(128, 4), axis=1)
        for s in (chorale, held)
    )
    assert np.diff(longer)[40] == pytest.approx(
        np.diff(plain)[40] / 0.6, rel=0.1
    )
    np.testing.assert_allclose(
        np.diff(longer)[:38], np.diff(plain)[:38], atol=0.05
    )


def test_phrases_start_after_long_waits():
    rows, beat = [], 0.0
    for _ in range(6):  # phrases of 3 bars that end on a long note
        rows += [(beat + i / 2, 0.5, 60 + i) for i in range(18)]
        rows.append((beat + 9, 3.0, 60))
        beat += 12
    score = make_score(rows, 18)
    np.testing.assert_array_equal(
        piano.find_phrases(score), np.arange(7) * 12.0
    )


def test_arch_is_fast_in_the_middle():
    beats = np.linspace(0, 8, 801)
    arch = piano.phrase_arch(beats, np.array([0, 4, 8]), np.array([0.1, 0.2]))
    assert beats[arch.argmax()] == pytest.approx(6, abs=0.02)
    assert arch[200] == pytest.approx(0.1 / 3, abs=1e-3)
    assert arch.mean() == pytest.approx(0, abs=1e-3)


def test_dynamic_marks_and_accents():
    rows = [(i / 2, 0.5, 60 + i % 5) for i in range(64)]
    rows = [
        (*row, {"level": 0.85 if i >= 32 else 0.25, "accent": i == 10})
        for i, row in enumerate(rows)
    ]
    velocity = piano.perform(make_score(rows, 8), 0).keys["velocity"]
    assert velocity[32:].mean() - velocity[:32].mean() > 40
    assert velocity[10] > velocity[[8, 9, 11, 12]].max()
    assert velocity.min() >= 15 and velocity.max() <= 120


def test_articulation():
    rows = [(i, 1.0, 60 + i % 7, {"staccato": i < 16}) for i in range(32)]
    keys = piano.perform(make_score(rows, 8), 0).keys
    length = keys["stop"] - keys["start"]
    assert length[:16].mean() < 0.6 * length[16:].mean()
    joined = [(i, 1.0, 60 + i % 7, {"slurred": True}) for i in range(32)]
    keys = piano.perform(make_score(joined, 8), 0).keys
    gaps = keys["start"][1:] - keys["stop"][:-1]
    assert gaps.mean() < 0.01


def test_grace_notes_come_before_the_beat():
    rows = [(4.0, 0.0, 70, {"grace": 2}), (4.0, 0.0, 71, {"grace": 1})]
    rows += [(0.0, 4.0, 60), (4.0, 4.0, 72), (8.0, 4.0, 60)]
    keys = piano.perform(make_score(rows, 3), 0).keys
    by_pitch = {int(key["pitch"]): key["start"] for key in keys}
    assert by_pitch[70] < by_pitch[71] < by_pitch[72]
    assert by_pitch[72] - by_pitch[70] < 0.25


def pedal_at(performance, seconds):
    state = False
    for time, down in performance.pedal:
        if time <= seconds:
            state = down
    return state


def test_pedal_changes_with_the_harmony(chorale):
    performance = piano.perform(chorale, 0)
    start = np.median(performance.keys["start"].reshape(128, 4), axis=1)
    assert all(pedal_at(performance, t + 0.3) for t in start)
    moves = [down for _, down in performance.pedal]
    assert moves == [True, False] * (len(moves) // 2)
    # One change a bar, each just after the beat.
    assert len(moves) == 64
    ups = [time for time, down in performance.pedal if not down]
    np.testing.assert_allclose(ups[:-1], start[4::4], atol=0.08)


def test_no_pedal_in_a_scale():
    scale = [(i / 4, 0.25, 60 + i % 24) for i in range(128)]
    assert piano.perform(make_score(scale, 8), 0).pedal == []


def test_transposition_stays_on_the_keyboard(chorale):
    plain = piano.perform(chorale, 0)
    moved = piano.perform(chorale, 0, transposition=3)
    np.testing.assert_array_equal(moved.keys["pitch"], plain.keys["pitch"] + 3)
    pitch = np.array([9, 20, 21, 60, 108, 109, 121])
    folded = piano.fold_into_piano(pitch)
    np.testing.assert_array_equal(folded, [21, 32, 21, 60, 108, 97, 97])


def test_empty_score():
    with pytest.raises(ValueError, match="no notes"):
        piano.perform(make_score([], 2), 0)
