"""Play a score as a pianist might: timing, loudness and pedal, from a seed.

A score says which keys and for how many beats. A performance says when each
key goes down and up, how fast, and when the pedal moves. What is added here is
what measurements of pianists agree on:

* phrases: faster and louder towards the middle, slower and softer at the end;
  a long slowing at the end of the piece; fermatas held;
* a slow drift of tempo and loudness that no score explains;
* voicing: the highest voice is louder and a few hundredths of a second early,
  inner voices step back; wide chords are spread from below;
* metre: the first beat heavier, what is between the beats lighter;
* articulation: staccato short, slurred notes joined;
* pedal: changed just after the beat on which the harmony changes, up where
  neighbouring keys would blur.

Only NumPy is needed. Beats are quarter notes throughout.

Reference:
    Todd, "The dynamics of dynamics: a model of musical expression", 1992
    Friberg and Sundberg, "Does music performance allude to locomotion?", 1999
    Goebl, "Melody lead in piano performance", 2001
"""

import collections

import numpy as np

NOTE = np.dtype(
    [
        ("onset", "f8"),  # beats
        ("duration", "f8"),  # beats; 0 for a grace note
        ("pitch", "i4"),  # MIDI key number
        ("level", "f8"),  # dynamic mark, 0 (silent) to 1; NaN: none written
        ("grace", "i4"),  # 0, or 1 for the last grace note before a beat, ...
        ("staccato", "?"),
        ("accent", "?"),
        ("slurred", "?"),
    ]
)
# A key going down and up: seconds, seconds, MIDI key number, MIDI velocity.
KEY = np.dtype(
    [("start", "f8"), ("stop", "f8"), ("pitch", "i4"), ("velocity", "i4")]
)
PIANO = (21, 108)
# The dynamic mark mf, for scores that write none.
MEZZOFORTE = 0.55
STEPS_PER_BEAT = 16
PHRASE_SECONDS = (3.0, 6.0, 12.0)  # shortest, usual, longest

Score = collections.namedtuple(
    "Score",
    [
        "notes",  # array of NOTE, sorted by onset
        "bars",  # (num_bars + 1,) beats at which bars start; the end
        "pulse",  # (num_bars,) beats from one felt beat to the next
        "tempo",  # (num_bars,) quarter notes a minute
        "fermatas",  # list of (start, stop) in beats
    ],
)
Performance = collections.namedtuple(
    "Performance",
    [
        "keys",  # array of KEY, sorted by start
        "pedal",  # list of (seconds, is_down)
        "phrases",  # (num_phrases + 1,) seconds; the last one is the end
    ],
)


def perform(score, seed, transposition=0):
    """Turn a score into key and pedal movements.

    Args:
        score: `Score`.
        seed: integer or sequence of integers.
        transposition: semitones added to every pitch. Notes beyond the 88 keys
            are moved by octaves.

    Returns:
        A `Performance`, whose first key goes down after about 0.2 seconds.

    Example:

        score = Score(notes, bars, pulse, tempo, fermatas=[])
        keys, pedal, phrases = perform(score, seed=0)
    """
    if len(score.notes) == 0:
        raise ValueError("The score has no notes.")
    rng = np.random.default_rng(seed)
    phrases = find_phrases(score)
    to_seconds = make_clock(score, phrases, rng)
    melody = is_melody(score.notes)
    velocity = shape_velocity(score, phrases, melody, rng)
    start, stop = shape_timing(score.notes, melody, to_seconds, rng)
    keys = np.zeros(len(score.notes), KEY)
    keys["start"], keys["stop"], keys["velocity"] = start, stop, velocity
    keys["pitch"] = fold_into_piano(score.notes["pitch"] + transposition)
    pedal = shape_pedal(score, to_seconds)
    return Performance(one_hammer_a_key(keys), pedal, to_seconds(phrases))


def fold_into_piano(pitch):
    """Move pitches beyond the 88 keys by octaves."""
    low, high = PIANO
    pitch = np.where(pitch < low, low + (pitch - low) % 12, pitch)
    return np.where(pitch > high, high - (high - pitch) % 12, pitch)


def is_melody(notes):
    """Which notes are the highest that sound when they start."""
    stop = notes["onset"] + np.maximum(notes["duration"], 0.125)
    highest = np.empty(len(notes), bool)
    for i, note in enumerate(notes):
        sounding = (notes["onset"] <= note["onset"]) & (stop > note["onset"])
        highest[i] = note["pitch"] >= notes["pitch"][sounding].max()
    return highest


def find_phrases(score):
    """Beats at which phrases start, and the end of the piece.

    A phrase starts with the bar before which the music waits longest, among
    the bars that make it neither too short nor too long.
    """
    shortest, usual, longest = PHRASE_SECONDS
    bars = score.bars
    seconds = np.r_[0, np.cumsum(np.diff(bars) * 60 / score.tempo)]
    onsets = np.unique(score.notes["onset"])
    gaps = np.diff(np.r_[onsets, max(bars[-1], onsets[-1])])
    before = np.searchsorted(onsets, bars - 1e-6) - 1
    wait = np.log2(gaps[np.maximum(before, 0)] / np.median(gaps) + 0.25)
    starts, end = [0], len(bars) - 1
    while starts[-1] < end:
        length = seconds - seconds[starts[-1]]
        fits = np.flatnonzero((length >= shortest) & (length <= longest))
        if len(fits) == 0:  # very slow bars
            fits = np.array([starts[-1] + 1])
        cost = 0.2 * np.abs(length[fits] - usual) - wait[fits]
        starts.append(int(fits[cost.argmin()]))
        if seconds[end] - seconds[starts[-1]] < shortest:
            starts[-1] = end
    return bars[starts]


def smooth_noise(beats, every, rng):
    """Noise of unit variance that needs `every` beats to change its mind."""
    knots = np.arange(beats[0] - every, beats[-1] + 2 * every, every)
    return np.interp(beats, knots, rng.standard_normal(len(knots))) * 1.2


def phrase_arch(beats, phrases, depth):
    """Rise to the middle of a phrase and fall to its end, mean near 0.

    Args:
        beats: (n,) beats.
        phrases: (num_phrases + 1,) from `find_phrases`.
        depth: (num_phrases,) height of each arch.

    Returns:
        (n,) float64.
    """
    index = np.searchsorted(phrases, beats, "right") - 1
    index = np.clip(index, 0, len(phrases) - 2)
    length = np.diff(phrases)[index]
    position = np.clip((beats - phrases[index]) / length, 0, 1)
    return depth[index] * (4 * position * (1 - position) - 2 / 3)


def make_clock(score, phrases, rng):
    """The tempo curve, as a function from beats to seconds."""
    end = max(score.bars[-1], np.max(score.notes["onset"]) + 1)
    beats = np.arange(0, end + 1, 1 / STEPS_PER_BEAT)
    bar = np.searchsorted(score.bars, beats, "right") - 1
    bar = np.clip(bar, 0, len(score.tempo) - 1)
    tempo = score.tempo[bar].astype("float64")
    depth = rng.uniform(0.06, 0.2, len(phrases) - 1)
    tempo *= 1 + phrase_arch(beats, phrases, depth)
    pulse = float(np.median(score.pulse))
    tempo *= 1 + 0.02 * smooth_noise(beats, 2 * pulse, rng)
    tempo *= 1 + 0.02 * smooth_noise(beats, 16 * pulse, rng)
    held = np.zeros(len(beats), bool)
    for start, stop in score.fermatas:  # often written in every part
        held |= (beats >= start) & (beats < stop)
    tempo[held] *= 0.6
    # The end comes to rest like a runner: speed falls with the square root.
    slowing = min(score.tempo[-1] / 60 * 3.5, score.bars[-1] / 2)  # beats
    position = np.clip((beats - (score.bars[-1] - slowing)) / slowing, 0, 1)
    tempo *= np.sqrt(1 - (1 - 0.55**2) * position)
    seconds = np.cumsum(60 / tempo) / STEPS_PER_BEAT
    seconds = np.r_[0, seconds[:-1]] + 0.2
    return lambda at: np.interp(at, beats, seconds)


def metric_weight(score, onset):
    """1 on the first beat of a bar, 0.4 on other beats, -0.5 between them."""
    bar = np.searchsorted(score.bars, onset + 1e-6, "right") - 1
    bar = np.clip(bar, 0, len(score.pulse) - 1)
    place = (onset - score.bars[bar]) / score.pulse[bar]
    on_beat = np.abs(place - np.round(place)) < 0.02
    return np.where(np.abs(place) < 0.02, 1.0, np.where(on_beat, 0.4, -0.5))


def shape_velocity(score, phrases, melody, rng):
    """(num_notes,) MIDI velocities."""
    notes = score.notes
    onset, written = notes["onset"], notes["level"]
    count = len(phrases) - 1
    index = np.searchsorted(phrases, onset + 1e-6, "right") - 1
    index = np.clip(index, 0, count - 1)
    # Without dynamic marks the pianist plans his own, phrase by phrase.
    plan = rng.normal(0, 1, count)
    level = np.where(
        np.isnan(written),
        MEZZOFORTE + 0.1 * plan[index],
        written + 0.02 * plan[index],
    )
    velocity = 18 + 92 * np.clip(level, 0.15, 1)
    velocity += phrase_arch(onset, phrases, rng.uniform(6, 16, count))
    pulse = float(np.median(score.pulse))
    velocity += 2 * smooth_noise(onset, 4 * pulse, rng)
    velocity += 4 * metric_weight(score, onset)
    velocity += np.where(melody, 7, -6)
    velocity += 12 * notes["accent"] - 8 * (notes["grace"] > 0)
    velocity += rng.normal(0, 2.5, len(notes))
    return np.clip(np.round(velocity), 15, 120).astype("int32")


def shape_timing(notes, melody, to_seconds, rng):
    """Seconds at which keys go down and up: two arrays (num_notes,)."""
    start = to_seconds(notes["onset"])
    written_stop = to_seconds(notes["onset"] + notes["duration"])
    length = written_stop - start
    # Accompanying hands follow the melody by about 15 ms.
    late = np.where(melody, 0.0, rng.normal(0.015, 0.005, len(notes)))
    late += spread_chords(notes, rng) + rng.normal(0, 0.004, len(notes))
    grace = notes["grace"] > 0
    step = rng.uniform(0.06, 0.085, len(notes)).mean()
    start = np.maximum(start + late - step * notes["grace"], 0.0)
    share = np.where(notes["staccato"], 0.45, 0.9)
    share = np.where(notes["slurred"] & ~notes["staccato"], 1.02, share)
    stop = start + np.maximum(length * share, 0.06)
    return start, np.where(grace, start + step, stop)


def spread_chords(notes, rng):
    """Seconds by which each note of a wide chord waits for the lower ones."""
    wait = np.zeros(len(notes))
    _, first, count = np.unique(
        notes["onset"], return_index=True, return_counts=True
    )
    # The notes are sorted by onset, so that a chord is a slice of them.
    for begin, size in zip(first[count >= 3], count[count >= 3], strict=True):
        pitch = notes["pitch"][begin : begin + size]
        wide = pitch.max() - pitch.min() > 19
        step = rng.uniform(0.008, 0.022) if wide else rng.uniform(0, 0.004)
        rank = pitch.argsort().argsort()
        # The top note stays on the beat: the others start before it.
        wait[begin : begin + size] = (rank - (size - 1)) * step
    return wait


def shape_pedal(score, to_seconds):
    """When the pedal moves: a list of (seconds, is_down).

    It is kept while what sounds makes no pair of neighbouring pitch classes,
    at most one bar; changed on a beat otherwise; and up for a beat that holds
    such a pair of its own, as a scale does.
    """
    notes = score.notes
    moves, held, down = [], set(), False
    for bar, (begin, end) in enumerate(
        zip(score.bars[:-1], score.bars[1:], strict=True)
    ):
        for beat in np.arange(begin, end - 1e-6, score.pulse[bar]):
            inside = slice(
                *np.searchsorted(
                    notes["onset"],
                    [beat - 1e-6, min(beat + score.pulse[bar], end) - 1e-6],
                )
            )
            new = set((notes["pitch"][inside] % 12).tolist())
            if blurs(new):
                wanted, held = False, set()
            elif beat > begin and new and down and not blurs(held | new):
                held |= new
                continue
            else:
                wanted, held = bool(new), new
            seconds = float(to_seconds(beat))
            if down:
                moves.append((seconds + 0.03, False))
            if wanted:
                moves.append((seconds + 0.11, True))
            down = wanted
    if down:
        moves.append((float(to_seconds(score.bars[-1])) + 1.0, False))
    # A fast beat may end before the pedal is down.
    return sorted(moves)


def blurs(pitch_classes):
    """Whether two of the pitch classes are neighbours on the keyboard."""
    return any((pitch + 1) % 12 in pitch_classes for pitch in pitch_classes)


def one_hammer_a_key(keys):
    """Let no key go down while it is down: join unisons, cut what overlaps."""
    keys = keys[np.lexsort((keys["start"], keys["pitch"]))]
    kept = []
    for key in keys:
        last = kept[-1] if kept else None
        if last is not None and last["pitch"] == key["pitch"]:
            if key["start"] - last["start"] < 0.04:
                last["stop"] = max(last["stop"], key["stop"])
                last["velocity"] = max(last["velocity"], key["velocity"])
                continue
            last["stop"] = min(last["stop"], key["start"] - 0.015)
        kept.append(key)
    keys = np.array(kept, KEY)
    return keys[np.argsort(keys["start"], kind="stable")]
