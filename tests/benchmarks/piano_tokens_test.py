import mido
import numpy as np
import pytest

from benchmarks import piano_tokens


def write_midi(path, events):
    """Events: `(seconds, kind, number, value)`."""
    track = mido.MidiTrack()
    now = 0
    for seconds, kind, number, value in events:
        names = {"control_change": ("control", "value")}
        first, second = names.get(kind, ("note", "velocity"))
        tick = round(2000 * seconds)
        track.append(
            mido.Message(
                kind, time=tick - now, **{first: number, second: value}
            )
        )
        now = tick
    mido.MidiFile(tracks=[track], ticks_per_beat=1000).save(path)


def test_notes_sound_until_key_and_pedal_are_up(tmp_path):
    events = [
        (0.0, "note_on", 60, 80),
        (0.5, "note_off", 60, 0),
        (1.0, "control_change", 64, 127),
        (1.0, "note_on", 62, 80),
        (1.25, "note_off", 62, 0),
        (1.5, "note_on", 62, 80),  # struck again under the pedal
        (1.75, "note_off", 62, 0),
        (2.0, "control_change", 64, 0),
        (2.5, "note_on", 64, 80),
        (3.0, "note_on", 64, 0),  # the other way to end a note
    ]
    write_midi(tmp_path / "notes.mid", events)
    np.testing.assert_allclose(
        piano_tokens.read_notes(tmp_path / "notes.mid"),
        [(0, 0.5, 60), (1, 1.5, 62), (1.5, 2, 62), (2.5, 3, 64)],
    )


def test_truth_of_an_excerpt():
    notes = np.array([(0.0, 1.1, 60), (1.25, 1.35, 74), (9.0, 9.5, 66)])
    truth = piano_tokens.frame_truth(notes, start=1.0, frames=4, rate=10.0)
    # D begins in the third frame; C, from before, ends in the second.
    assert truth[:, 0].tolist() == [1, 1, 0, 0]
    assert truth[:, 2].tolist() == [0, 0, 1, 1]
    assert truth[:, 12].tolist() == [0, 0, 1, 0]
    assert truth.sum() == 5


@pytest.mark.parametrize("knows, share", [(True, 1.0), (False, 0.0)])
def test_share_that_is_explained(knows, share):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (4000, 13)).astype("float32")
    tokens = truth[:, 0].astype(int) if knows else rng.integers(0, 2, 4000)
    found = piano_tokens.explained(tokens, truth, tokens, truth, count=2)
    assert abs(found[0] - share) < 0.01
    np.testing.assert_allclose(found[1:], 0.0, atol=0.01)
