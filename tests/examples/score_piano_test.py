import csv
import pathlib
import shutil
import zipfile

import numpy as np
import piano_performance
import pytest
import score_piano
import soundfile

XML = "<score-partwise>{}</score-partwise>"


def piece(name, split="train", claim="", **more):
    row = {"piece": name, "split": split, "claim": claim, "measures": ""}
    row |= {"source": f"{name}.xml", "composer": "A", "title": name}
    return row | {"licence": "Public domain", "tempo": "100"} | more


def performance(num_phrases=12):
    keys = np.zeros(12, piano_performance.KEY)
    keys["start"] = np.arange(12) + 0.2
    keys["stop"] = keys["start"] + 0.8
    keys["pitch"], keys["velocity"] = 60 + np.arange(12), 70
    pedal = [(0.3, True), (11.0, False)]
    phrases = np.linspace(0.2, 12.2, num_phrases + 1)
    return piano_performance.Performance(keys, pedal, phrases)


def test_the_catalogue():
    pieces = score_piano.read_catalogue()
    names = [p["piece"] for p in pieces]
    assert len(set(names)) == len(names) >= 60
    assert {p["licence"] for p in pieces} <= {
        "Public domain",
        "CC0-1.0",
        "CC-BY",
        "CC-BY-SA",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
    }
    for p in pieces:
        assert p["tempo"] and p["split"] in ("train", "held_out")
        # Without a claim of their own: the quartets from Project Gutenberg.
        assert p["claim"] or p["composer"].split()[-1] in (
            "Beethoven",
            "Haydn",
            "Mozart",
        )


def test_no_work_is_in_both_splits():
    splits = {}
    for p in score_piano.read_catalogue():
        # A file holds a work, or a folder `opus...` or `k...` its movements.
        source = pathlib.PurePosixPath(p["source"])
        movement = source.name.startswith("movement")
        work = source.parent if movement else source
        splits.setdefault(work, set()).add(p["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {
        "train",
        "held_out",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_claims_are_found(tmp_path, encoding):
    plain, packed = tmp_path / "a.musicxml", tmp_path / "a.mxl"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + XML.format(
        "<rights>\u00a9 2014,\n Creative Commons License (CC-BY)</rights>"
        '<credit-words font-size="9">PDF Copyright 2004 A. B.</credit-words>'
        '<credit-words font-size="9">Andante</credit-words><rights></rights>'
    )
    plain.write_text(text, encoding=encoding)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.write(plain, "a.musicxml")
    for path in (plain, packed):
        assert score_piano.find_claims(path) == [
            "\u00a9 2014, Creative Commons License (CC-BY)",
            "PDF Copyright 2004 A. B.",
        ]
    plain.write_text(XML.format("<rights/>"))
    assert score_piano.find_claims(plain) == []


def test_claims_are_checked():
    score_piano.check_rights(piece("a"), [])
    score_piano.check_rights(piece("a", claim="CC0"), ["by X: CC0"])
    with pytest.raises(ValueError, match="a.xml claims .*2004"):
        score_piano.check_rights(piece("a"), ["Copyright 2004"])
    with pytest.raises(ValueError, match="does not say 'CC0'.*2004"):
        score_piano.check_rights(piece("a", claim="CC0"), ["Copyright 2004"])


def test_takes():
    first = score_piano.plan_takes(piece("a"), 3, seed=0)
    assert first == score_piano.plan_takes(piece("a"), 3, seed=0)
    assert first[0] == (0, 0, 1.0) and [t.index for t in first] == [0, 1, 2]
    for take in first[1:]:
        assert take.transposition != 0 and abs(take.transposition) <= 6
        assert 0.9 <= take.tempo_factor <= 1.1
    # What is held out is played once, as it is written.
    assert score_piano.plan_takes(piece("a", "held_out"), 3, 0) == [(0, 0, 1.0)]


def test_level():
    rng = np.random.default_rng(0)
    quiet = 0.001 * rng.standard_normal(16000).astype("float32")
    rms = np.sqrt(np.mean(score_piano.set_level(quiet) ** 2))
    assert 20 * np.log10(rms) == pytest.approx(-23, abs=0.01)
    quiet[100] = 1.0
    assert np.abs(score_piano.set_level(quiet)).max() == pytest.approx(0.89)
    with pytest.raises(ValueError, match="silence"):
        score_piano.set_level(np.zeros(100, "float32"))


def test_excerpts_start_with_phrases():
    phrases = np.arange(0, 205, 5.0)
    cuts = score_piano.plan_excerpts(phrases, 203.0)
    assert cuts[0] == 0 and cuts[-1] == 203.0
    assert np.diff(cuts).min() >= 20
    assert np.diff(cuts).max() <= 45 + 5 + 20
    np.testing.assert_allclose((np.array(cuts[1:-1]) + 0.06) % 5, 0, atol=1e-9)
    assert score_piano.plan_excerpts(np.array([0, 5, 10]), 13.0) == [0.0, 13.0]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Scores without music and a piano that hums: `(make, out, renders)`."""
    scores, out, renders = tmp_path / "scores", tmp_path / "out", []
    scores.mkdir()
    out.mkdir()
    pieces = [piece("a"), piece("b", "held_out", claim="CC0")]
    (scores / "a.xml").write_text(XML.format(""))
    (scores / "b.xml").write_text(XML.format("<rights>CC0, me</rights>"))

    def play(piece, take, folder, seed):
        renders.append((piece["piece"], take.index, seed))
        return performance()

    def hum(midi, soundfont):
        time = np.arange(16000 * 14) / 16000
        return np.sin(2 * np.pi * 220 * time).astype("float32")

    monkeypatch.setattr(score_piano, "play", play)
    monkeypatch.setattr(score_piano, "write_midi", lambda path, _: path.touch())
    monkeypatch.setattr(score_piano, "render", hum)
    monkeypatch.setattr(score_piano, "EXCERPT_SECONDS", (2.0, 5.0))

    def make(**options):
        return score_piano.make_corpus(out, scores, pieces, "x", **options)

    return make, out, renders


def test_corpus(corpus):
    make, out, renders = corpus
    rows = make(seed=7, takes=2)
    assert renders == [("a", 0, 7), ("a", 1, 7), ("b", 0, 7)]
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.flac"))
    assert files == sorted(row["path"] for row in rows)
    assert {f.rsplit("/", 1)[0] for f in files} == {
        "train/a",
        "train/a_take1",
        "held_out/b",
    }
    with open(out / "manifest.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{k: str(v) for k, v in row.items()} for row in rows]
    assert read[-1]["rights"] == "CC0, me" and read[-1]["split"] == "held_out"
    assert (out / "train" / "a_take1" / "performance.mid").is_file()
    for row in rows:
        info = soundfile.info(out / row["path"])
        assert (info.samplerate, info.channels) == (16000, 1)
        assert info.subtype == "PCM_16"
        assert row["path"].startswith(row["split"])
    b = [row for row in rows if row["piece"] == "b"]
    assert sum(float(row["seconds"]) for row in b) == pytest.approx(14)
    assert float(b[1]["start"]) == float(b[0]["seconds"])
    assert "held_out A" in score_piano.summarize(rows)
    assert "further takes" in score_piano.summarize(rows)


def test_a_stopped_run_goes_on(corpus, monkeypatch):
    make, out, renders = corpus
    whole = make()
    shutil.rmtree(out / "held_out")
    renders.clear()
    write = soundfile.write

    def fail(path, *arguments, **options):
        if pathlib.Path(path).name == "002.flac":
            raise OSError("no space left")
        write(path, *arguments, **options)

    monkeypatch.setattr(soundfile, "write", fail)
    with pytest.raises(OSError):
        make()
    assert not (out / "held_out" / "b").exists()
    monkeypatch.setattr(soundfile, "write", write)
    assert make() == whole
    assert renders == [("b", 0, 0)] * 2
    assert not list(out.rglob("*.tmp"))


def test_settings_of_another_run(tmp_path):
    settings = {"seed": 0, "soundfont": "a.sf2"}
    out = tmp_path / "out"
    score_piano.check_settings(out, settings)
    score_piano.check_settings(out, settings)
    with pytest.raises(ValueError, match="begun with.*'seed': 0"):
        score_piano.check_settings(out, settings | {"seed": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="other files"):
        score_piano.check_settings(tmp_path / "mine", settings)


def test_missing_tools(tmp_path, monkeypatch):
    there = tmp_path / "font.sf2"
    there.touch()
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/fluidsynth")
    score_piano.check_tools(there, there)
    arguments = [str(tmp_path / "out"), "--soundfont", str(tmp_path / "no.sf2")]
    with pytest.raises(SystemExit, match="no.sf2 does not exist.*--soundfont"):
        score_piano.main(arguments)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="apt-get install fluidsynth"):
        score_piano.main(arguments)
    assert not (tmp_path / "out").exists()


def test_midi(tmp_path):
    mido = pytest.importorskip("mido", reason="writes MIDI: pip install mido")
    played = performance()
    score_piano.write_midi(tmp_path / "a.mid", played)
    now, starts, pedal = 0.0, [], []
    for message in mido.MidiFile(tmp_path / "a.mid"):
        now += message.time
        if message.type == "note_on":
            starts.append((round(now, 3), message.note, message.velocity))
        elif message.type == "control_change":
            pedal.append((round(now, 3), message.value >= 64))
    keys = played.keys
    assert starts == [
        (pytest.approx(k["start"], abs=1e-3), k["pitch"], k["velocity"])
        for k in keys
    ]
    assert pedal == played.pedal
    assert now == pytest.approx(keys["stop"].max() + 3, abs=0.01)


def test_render(tmp_path):
    pytest.importorskip("mido", reason="writes MIDI: pip install mido")
    soundfont = pathlib.Path(score_piano.SOUNDFONT)
    if shutil.which("fluidsynth") is None or not soundfont.is_file():
        pytest.skip("needs apt-get install fluidsynth fluid-soundfont-gm")
    keys = np.zeros(1, piano_performance.KEY)
    keys[0] = (0.5, 1.5, 69, 80)
    played = piano_performance.Performance(keys, [], np.array([0.5, 1.5]))
    score_piano.write_midi(tmp_path / "a.mid", played)
    audio = score_piano.render(tmp_path / "a.mid", soundfont)
    audio = score_piano.set_level(audio)
    assert audio[:7900].max() < 1e-3 < audio[8000:16000].max()
    note = audio[8000:24000] * np.hanning(16000)
    assert np.abs(np.fft.rfft(note)).argmax() == pytest.approx(440, abs=3)
