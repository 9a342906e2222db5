import numpy as np
import pytest
import score_reading as reading

NOTE = (
    "<note><pitch><step>{0}</step><octave>{1}</octave></pitch>"
    "<duration>{2}</duration>{3}</note>"
)
TIE_START = '<tie type="start"/><notations><tied type="start"/></notations>'
TIE_STOP = '<tie type="stop"/><notations><tied type="stop"/></notations>'
STACCATO = "<notations><articulations><staccato/></articulations></notations>"
TRILL = "<notations><ornaments><trill-mark/></ornaments></notations>"
FERMATA = "<notations><fermata/></notations>"
GRACE = (
    "<note><grace/><pitch><step>A</step><octave>4</octave></pitch>"
    "<type>eighth</type></note>"
)


def dynamics(mark):
    return (
        "<direction><direction-type><dynamics>"
        f"<{mark}/></dynamics></direction-type></direction>"
    )


def musicxml(measures):
    """One part in 2/4, two divisions to a quarter."""
    head = (
        "<attributes><divisions>2</divisions><time><beats>2</beats>"
        "<beat-type>4</beat-type></time></attributes>"
    )
    body = "".join(
        f'<measure number="{i}">{head if i == 1 else ""}{measure}</measure>'
        for i, measure in enumerate(measures, 1)
    )
    return (
        '<?xml version="1.0"?><score-partwise version="3.1"><part-list>'
        '<score-part id="P1"><part-name>x</part-name></score-part></part-list>'
        f'<part id="P1">{body}</part></score-partwise>'
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("music21", reason="reads scores: pip install music21")
    path = tmp_path_factory.mktemp("scores") / "score.musicxml"
    measures = [
        dynamics("p")
        + NOTE.format("C", 4, 2, STACCATO)
        + NOTE.format("D", 4, 2, TIE_START),
        NOTE.format("D", 4, 2, TIE_STOP) + GRACE + NOTE.format("G", 4, 2, ""),
        dynamics("f") + NOTE.format("E", 5, 4, TRILL),
        NOTE.format("C", 5, 4, FERMATA),
    ]
    path.write_text(musicxml(measures))
    return path


def test_notes(path):
    score = reading.read_score(path, tempo="60 3:90")
    notes = score.notes
    np.testing.assert_array_equal(score.bars, [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(score.tempo, [60, 60, 90, 90])
    np.testing.assert_array_equal(score.pulse, 1)
    plain = notes[notes["onset"] < 4]
    assert [
        (float(n["onset"]), float(n["duration"]), int(n["pitch"]))
        for n in plain
    ] == [(0, 1, 60), (1, 2, 62), (3, 1, 67), (3, 0, 69)]
    assert plain["grace"].tolist() == [0, 0, 0, 1]
    assert plain["staccato"].tolist() == [True, False, False, False]
    np.testing.assert_array_equal(plain["level"], reading.LEVELS["p"])
    assert score.fermatas == [(6.0, 8.0)]


def test_trill_is_written_out(path):
    notes = reading.read_score(path, tempo="60").notes
    trill = notes[(notes["onset"] >= 4) & (notes["onset"] < 6)]
    assert set(trill["pitch"].tolist()) == {76, 77}
    assert trill["duration"].sum() == pytest.approx(2)
    assert len(trill) == 16  # 1/8 s each
    np.testing.assert_array_equal(trill["level"], reading.LEVELS["f"])


def test_range_of_measures(path):
    score = reading.read_score(path, measures="3-4")
    np.testing.assert_array_equal(score.bars, [0, 2, 4])
    assert score.fermatas == [(2.0, 4.0)]
    with pytest.raises(ValueError, match="no measures 9-12"):
        reading.read_score(path, measures="9-12")


def test_tempo():
    tempo = reading.parse_tempo("56 3:120 4:90", [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(tempo, [56, 56, 56, 120, 90, 90])


def test_dynamics_grow_to_the_next_mark():
    onsets = np.arange(0, 10, 1.0)
    marks = [(0, "p"), (4, "cresc."), (8, "f"), (9, "sfz")]
    levels, accents = reading.read_dynamics(marks, onsets)
    p, f = reading.LEVELS["p"], reading.LEVELS["f"]
    np.testing.assert_allclose(
        levels,
        [p, p, p, p, p, p + (f - p) / 4, (p + f) / 2]
        + [p + (f - p) * 3 / 4, f, f],
        atol=1e-3,
    )
    assert accents.tolist() == [False] * 9 + [True]


def test_dynamics_without_a_mark_between_are_sudden():
    levels, _ = reading.read_dynamics([(0, "p"), (4, "f")], np.arange(5.0))
    np.testing.assert_allclose(levels, [0.35] * 4 + [0.7])


def test_crescendo_to_a_sudden_piano():
    marks = [(0, "p"), (0, "cresc."), (4, "p")]
    levels, _ = reading.read_dynamics(marks, np.array([0, 2, 3.9, 4]))
    assert levels[0] == levels[3] == 0.35
    assert 0.35 < levels[1] < levels[2] < 0.51


def test_forte_piano():
    levels, accents = reading.read_dynamics(
        [(0, "f"), (2, "fp")], np.arange(4.0)
    )
    np.testing.assert_allclose(levels, [0.7, 0.7, 0.35, 0.35])
    assert accents.tolist() == [False, False, True, False]


def test_no_marks():
    levels, accents = reading.read_dynamics([(0, "dolce")], np.arange(3.0))
    assert np.isnan(levels).all() and not accents.any()


class Measure:
    def __init__(self, length):
        self.duration = self
        self.quarterLength = length


def test_bars_are_as_long_as_the_meter_allows():
    # An upbeat; too full a bar; a bar half empty in one part; a long bar.
    late = [Measure(length) for length in (1, 4.96, 4, 5, 4)]
    others = [Measure(length) for length in (1, 4, 2, 5)]
    bars = reading.align_bars([late, others], np.full(5, 4.0))
    np.testing.assert_array_equal(bars, [0, 1, 5, 9, 14, 18])


def test_too_full_a_measure_is_squeezed(tmp_path):
    pytest.importorskip("music21", reason="reads scores: pip install music21")
    half = NOTE.format("C", 4, 2, "")
    full, crowded = half * 2, half * 3
    text = musicxml([crowded, full])
    first = text[text.index('<part id="P1">') : text.index("</score-partwise")]
    second = first.replace("P1", "P2").replace(crowded, full)
    name = '<score-part id="P1"><part-name>x</part-name></score-part>'
    text = text.replace(name, name + name.replace("P1", "P2"))
    path = tmp_path / "crowded.musicxml"
    path.write_text(text.replace(first, first + second))
    score = reading.read_score(path)
    np.testing.assert_array_equal(score.bars, [0, 2, 4])
    assert score.notes["onset"].tolist() == pytest.approx(
        [0, 0, 2 / 3, 1, 4 / 3, 2, 2, 3, 3]
    )
