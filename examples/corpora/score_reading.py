"""Read a score with music21 into what `piano_performance.py` plays.

Ties are joined, transposing instruments sound as they sound, trills and turns
are written out, grace notes are numbered, and dynamic marks become a level for
each note, with crescendos between them. Chord symbols and percussion are left
out. Repeats stay unexpanded.
"""

import functools
import re
import sys
import warnings

import numpy as np
from piano_performance import NOTE, Score

LEVELS = {
    "ppp": 0.18,
    "pp": 0.25,
    "p": 0.35,
    "mp": 0.45,
    "mf": 0.55,
    "f": 0.7,
    "ff": 0.85,
    "fff": 0.95,
}
SFORZATO = re.compile(r"s?f{1,2}z|sf+p*|rfz?|fp+")
GROWING = re.compile(r"(?i)cresc")
FADING = re.compile(r"(?i)dim|decresc|calando|morendo|smorz|perden")
HAIRPIN_STEP = 0.15
TRILL_SECONDS = 0.09  # a note of a trill lasts about as long


def read_score(path, measures="", tempo="100"):
    """Read a score, or a range of its measures.

    Args:
        path: a file that music21 reads.
        measures: such as `"1-271"`; empty for all.
        tempo: quarter notes a minute, such as `"56 30:156"`: 56, and 156
            from measure 30 on.

    Returns:
        A `piano_performance.Score`.
    """
    first, last = parse_range(measures)
    parts = [
        [
            measure
            for measure in part.getElementsByClass("Measure")
            if first <= measure.number <= last
        ]
        for part in parse(path).parts
    ]
    if not parts or not parts[0]:
        raise ValueError(f"{path} has no measures {measures}.")
    longest = max(parts, key=len)
    pulse, full = read_meter(longest)
    bars = align_bars(parts, full)
    tempo = parse_tempo(tempo, [measure.number for measure in longest])
    rows, fermatas = [], []
    for part in parts:
        reader = PartReader(bars, tempo)
        reader.read(part)
        rows += reader.rows
        fermatas += reader.fermatas
    notes = np.array([tuple(row) for row in rows], NOTE)
    notes = notes[np.lexsort((notes["pitch"], notes["onset"]))]
    return Score(notes, bars, pulse, tempo, fermatas)


def align_bars(parts, full):
    """Where bars start, if one part's bar is longer than in the others.

    Some files have a bar with too many notes in one part (a trill written
    out), after which music21 has this part late for good. Here a bar is as
    long as its longest part that fits into the meter: an upbeat stays short.

    Args:
        parts: lists of measures.
        full: (num_bars,) quarter notes that the meter allows.

    Returns:
        (num_bars + 1,) beats, from 0.
    """
    lengths = []
    for index, limit in enumerate(full):
        found = [
            float(part[index].duration.quarterLength)
            for part in parts
            if index < len(part)
        ]
        fitting = [length for length in found if length <= limit + 1e-6]
        lengths.append(max(fitting) if fitting else min(found))
    return np.r_[0, np.cumsum(lengths)]


@functools.lru_cache(1)  # several movements may share a file
def parse(path):
    import music21

    with warnings.catch_warnings():
        # Of bars that are too full: `align_bars` sees to them.
        warnings.simplefilter("ignore")
        score = music21.converter.parse(
            path, forceSource=True, storePickle=False
        )
    score.toSoundingPitch(inPlace=True)
    return score


def parse_range(text):
    """`"1-271"` to `(1, 271)`; the empty text takes all."""
    if not text:
        return 0, sys.maxsize
    first, last = text.split("-")
    return int(first), int(last)


def parse_tempo(text, numbers):
    """Quarter notes a minute for each of the measure numbers."""
    start, *changes = text.split()
    tempo = np.full(len(numbers), float(start))
    for change in changes:
        number, value = change.split(":")
        tempo[np.asarray(numbers) >= int(number)] = float(value)
    return tempo


def read_meter(part):
    """Quarter notes of a beat and of a bar: two arrays (num_bars,)."""
    signature = part[0].getContextByClass("TimeSignature")
    pulse, full = [], []
    for measure in part:
        signature = measure.timeSignature or signature
        if signature is None:  # as music21 plays it
            pulse.append(1.0)
            full.append(4.0)
            continue
        pulse.append(float(signature.beatDuration.quarterLength))
        full.append(float(signature.barDuration.quarterLength))
    return np.array(pulse), np.array(full)


class PartReader:
    """Collects the notes of one part.

    Args:
        bars: (num_bars + 1,) beats at which bars start.
        tempo: (num_bars,) quarter notes a minute.
    """

    def __init__(self, bars, tempo):
        self.bars, self.tempo = bars, tempo
        self.start, self.squeeze = 0.0, 1.0  # of the measure at hand
        self.rows = []  # lists in the order of NOTE
        self.fermatas = []
        self.tied = {}  # pitch -> row that goes on
        self.graces = {}  # voice -> rows that wait for their main note
        self.marks = []  # (beat, text) of dynamics
        self.places = {}  # id of a note -> beat

    def read(self, part):
        lengths = np.diff(self.bars)
        for measure, start, length in zip(
            part, self.bars, lengths, strict=False
        ):
            # Too many notes are played faster, so that the bar fits.
            written = float(measure.duration.quarterLength)
            self.start, self.squeeze = (
                start,
                min(1, length / max(written, 1e-6)),
            )
            self._read_marks(measure)
            self._read_voice(measure, 0.0, "")
            for voice in measure.voices:
                self._read_voice(voice, float(voice.offset), voice.id)
        slurs, wedges = find_spanners(part, self.places)
        onsets = np.array([row[0] for row in self.rows])
        levels, accents = read_dynamics(self.marks + wedges, onsets)
        for row, level, accent in zip(self.rows, levels, accents, strict=True):
            row[3] = level
            row[6] = row[6] or bool(accent)
            row[7] = any(
                a <= row[0] < b for a, b in slurs.get(row[0] // 64, ())
            )

    def _beat(self, offset):
        return self.start + self.squeeze * float(offset)

    def _read_marks(self, measure):
        for mark in measure.getElementsByClass(["Dynamic", "TextExpression"]):
            text = getattr(mark, "value", None) or getattr(mark, "content", "")
            self.marks.append((self._beat(mark.offset), text))

    def _read_voice(self, stream, offset, voice):
        for element in stream.notes:
            if "Harmony" in element.classes or not element.pitches:
                continue
            beat = self._beat(offset + float(element.offset))
            self.places[id(element)] = beat
            if element.duration.isGrace:
                waiting = self.graces.setdefault(voice, [])
                for pitch in element.pitches:
                    row = self._row(beat, 0.0, pitch.midi)
                    waiting.append(row)
                    self.rows.append(row)
                continue
            # The last grace note before the beat has number 1.
            for number, row in enumerate(
                reversed(self.graces.pop(voice, [])), 1
            ):
                row[0], row[4] = beat, number
            self._read_note(element, beat)

    def _read_note(self, element, beat):
        length = self.squeeze * float(element.quarterLength)
        names = {type(a).__name__ for a in element.articulations}
        if any("Fermata" in e.classes for e in element.expressions):
            self.fermatas.append((beat, beat + length))
        for note in getattr(element, "notes", [element]):
            pitch = note.pitch.midi
            tie = note.tie.type if note.tie is not None else None
            if tie in ("continue", "stop") and self._goes_on(pitch, beat):
                self.tied[pitch][1] = beat + length - self.tied[pitch][0]
                continue
            row = self._row(beat, length, pitch)
            row[5] = bool(names & {"Staccato", "Staccatissimo", "Spiccato"})
            row[6] = bool(names & {"Accent", "StrongAccent"})
            if tie in ("start", "continue"):
                self.tied[pitch] = row
                self.rows.append(row)
            else:
                self.rows += self._write_out(element, row)

    def _goes_on(self, pitch, beat):
        """Whether a tied note of this pitch ends where another begins."""
        row = self.tied.get(pitch)
        return row is not None and abs(row[0] + row[1] - beat) < 1e-3

    def _row(self, onset, duration, pitch):
        return [onset, duration, pitch, np.nan, 0, False, False, False]

    def _write_out(self, element, row):
        """The notes of a trill, turn or mordent; else the row itself."""
        from music21 import expressions

        ornaments = [
            e
            for e in element.expressions
            if isinstance(e, expressions.Ornament)
            and not isinstance(e, expressions.Tremolo)
        ]
        if not ornaments or "Note" not in element.classes:
            return [row]
        bar = np.searchsorted(self.bars, row[0] + 1e-6, "right") - 1
        beats = TRILL_SECONDS * self.tempo[bar] / 60
        ornaments[0].quarterLength = 2.0 ** round(np.log2(beats))
        try:
            played = expressions.realizeOrnaments(element)
        except expressions.ExpressionException:  # too short a note
            return [row]
        rows, onset = [], row[0]
        for note in played:
            length = self.squeeze * float(note.quarterLength)
            rows.append([onset, length, note.pitch.midi, *row[3:]])
            onset += length
        return rows


def find_spanners(part, places):
    """Slurs and hairpins of a part.

    Returns:
        Slurs as (start, stop) beats, grouped by `beat // 64` so that they are
        found fast; hairpins as (beat, text).
    """
    slurs, wedges, seen = {}, [], set()
    for measure in part:
        for element in measure.recurse().notes:
            for spanner in element.getSpannerSites():
                if id(spanner) in seen:
                    continue
                seen.add(id(spanner))
                beats = [
                    places[id(e)]
                    for e in spanner.getSpannedElements()
                    if id(e) in places
                ]
                if not beats:
                    continue
                if "Slur" in spanner.classes:
                    for block in range(
                        int(min(beats) // 64), int(max(beats) // 64) + 1
                    ):
                        slurs.setdefault(block, []).append(
                            (min(beats), max(beats))
                        )
                elif "Crescendo" in spanner.classes:
                    wedges.append((min(beats), "cresc"))
                elif "Diminuendo" in spanner.classes:
                    wedges.append((min(beats), "dim"))
    return slurs, wedges


def is_turn(text):
    return bool(GROWING.search(text) or FADING.search(text))


def read_dynamics(marks, onsets):
    """The level and the sforzato of every note.

    Args:
        marks: list of (beat, text) such as `(4.0, "fp")` or `(8.0, "cresc.")`.
        onsets: (num_notes,) beats.

    Returns:
        Levels (num_notes,), NaN where no mark stands in the part, and accents
        (num_notes,) of bool.
    """
    beats, levels = [], []
    accents = np.zeros(len(onsets), bool)
    level, turn = None, 0  # turn: 1 in a crescendo, -1 in a diminuendo
    for beat, text in sorted(marks, key=lambda m: (m[0], is_turn(m[1]))):
        if is_turn(text):
            if level is not None:
                beats.append(beat)
                levels.append(level)
                turn = -1 if FADING.search(text) else 1
            continue
        if SFORZATO.fullmatch(text):
            accents |= np.abs(onsets - beat) < 1e-6
            text = "p" if text.endswith("p") else ""
        if text not in LEVELS:
            continue
        new = LEVELS[text]
        if level is not None:
            reached = level
            if turn:
                reached = new
                if (new - level) * turn <= 0:  # cresc., then a sudden piano
                    reached = level + turn * HAIRPIN_STEP
            beats.append(beat - 1e-3)
            levels.append(reached)
        beats.append(beat)
        levels.append(new)
        level, turn = new, 0
    if not beats:
        return np.full(len(onsets), np.nan), accents
    return np.interp(onsets, beats, levels), accents
