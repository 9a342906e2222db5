"""Make a piano corpus: public-domain scores on a sampled grand piano.

The scores are those that music21 ships and that may be used freely. They are
played by `piano_performance.py` (phrasing, voicing, pedal), rendered by
FluidSynth with the grand piano of FluidR3 (Debian's `fluid-soundfont-gm`), and
written as 16 kHz mono 16-bit FLAC:

    OUT/train/<piece>/<number>.flac      excerpts of about 45 s, in order
    OUT/train/<piece>/performance.mid    what the keys and the pedal did
    OUT/held_out/<piece>/...
    OUT/manifest.csv     path, composer, title, source, licence, start, ...
    OUT/licences/        the soundfont's, and music21's word on its corpus

Five hours to train on (59 pieces) and 36 minutes held out (14 pieces).

A piece is a movement. String quartets are played as they stand, by as many
hands as it takes. Repeats are not repeated. All movements of a work are in one
split, so that nothing held out was heard in training.

Which scores: `score_piano.csv`, one line a piece. It lists

| composer                       | works                     | licence         |
|--------------------------------|---------------------------|-----------------|
| Beethoven, Haydn, Mozart       | 16 string quartets        | public domain   |
| Weber                          | Concertino Op. 26         | public domain   |
| C. Schumann                    | 4 Polonaises Op. 1        | CC-BY-SA-4.0    |
| Corelli, Luca, Beach           | 3 short pieces            | CC-BY, CC-BY-SA |
| Lusitano, Johnson, Liliuokalani| 3 short pieces            | CC0             |

All composers died before 1955. Of the *encodings*, two kinds are taken:

* what names a free licence, or the public domain, in the file itself (column
  `claim`: words that the file has to contain);
* the quartets of Beethoven, Haydn and Mozart, which claim nothing. Music21's
  documentation ("Authors, Acknowledgments, Contributing, and Licensing") says
  that they come from Project Gutenberg's public-domain music.

Both are checked again in the files that are rendered. Everything else is left
out: the Bach chorales and kern files (a copyright without a licence),
Palestrina ("rights reserved"), Essen (non-commercial), Monteverdi (a
publisher's edition), and what is unclear (Joplin, R. Schumann, Chopin,
Trecento, ...).

On Debian or Ubuntu, as root `apt-get install fluidsynth fluid-soundfont-gm`
(after `apt-get update`); then `pip install music21 mido soundfile soxr tqdm`:

    python examples/corpora/score_piano.py corpora/score_piano

Elsewhere give the soundfont and its licence by `--soundfont` and
`--soundfont-licence`. A run that was stopped goes on where it was: a piece is
there whole or not at all. `--takes 2` plays the training pieces once more, in
another key and at another tempo; the manifest tells takes apart.
"""

import argparse
import collections
import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from xml.etree import ElementTree

import numpy as np
from piano_performance import perform
from score_reading import read_score

SAMPLE_RATE = 16000
# What the samples hold above 16 kHz folds to 10 kHz and above, and is removed
# by the resampling to 16 kHz.
RENDER_RATE = 32000
EXCERPT_SECONDS = (20.0, 45.0)  # shortest, usual
LOUDNESS = -23.0  # dB below full scale: RMS of a piece
PEAK = 0.89
CATALOGUE = pathlib.Path(__file__).with_suffix(".csv")
SOUNDFONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"
SOUNDFONT_LICENCE = "/usr/share/doc/fluid-soundfont-gm/copyright"
INSTALL = (
    "Run `apt-get update` and `apt-get install fluidsynth fluid-soundfont-gm` "
    "as root"
)
CLAIM = re.compile(
    r"(?i)©|\(c\)|copyright|licen[cs]e|rights|public domain|\bCC"
)
FIELDS = (
    "path",
    "piece",
    "composer",
    "title",
    "source",
    "measures",
    "licence",
    "rights",
    "take",
    "transposition",
    "tempo_factor",
    "start",
    "seconds",
    "split",
)
Take = collections.namedtuple("Take", "index transposition tempo_factor")


def read_catalogue(path=CATALOGUE):
    """The pieces: a list of dictionaries."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# === Rights ===


def open_musicxml(path):
    """Open a MusicXML file, compressed or not, for reading bytes."""
    if path.suffix != ".mxl":
        return open(path, "rb")
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if not n.startswith("META-INF")]
        return archive.open(next(n for n in names if n.endswith("xml")))


def find_claims(path):
    """What the head of a MusicXML file says about rights: a list of lines."""
    lines = []
    with open_musicxml(path) as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag in ("rights", "credit-words"):
                lines.append(" ".join((element.text or "").split()))
            elif element.tag == "part-list":  # the music begins
                break
    return list(dict.fromkeys(line for line in lines if CLAIM.search(line)))


def check_rights(piece, claims):
    """Compare what the file says with the catalogue.

    Args:
        piece: row of the catalogue.
        claims: list of lines, from `find_claims`.

    Raises:
        ValueError: the file claims something that the catalogue does not
            know, or no longer names its licence.
    """
    if not piece["claim"] and claims:
        raise ValueError(
            f"{piece['source']} claims {claims}, and {CATALOGUE.name} has it "
            "without a claim. Leave the piece out, or note its licence."
        )
    if piece["claim"] and not any(piece["claim"] in line for line in claims):
        raise ValueError(
            f"{piece['source']} does not say {piece['claim']!r} (it says "
            f"{claims}). Leave the piece out of {CATALOGUE.name}."
        )


def corpus_folder():
    """The folder of the scores that music21 ships."""
    try:
        import music21
    except ImportError:
        raise ValueError(
            "The scores are those of music21: pip install music21."
        ) from None
    folder = pathlib.Path(music21.__file__).parent / "corpus"
    if not (folder / "license.txt").is_file():
        raise ValueError(
            f"{folder} has no license.txt: this music21 came without its "
            "corpus. Install it from PyPI."
        )
    return folder


# === From a score to audio ===


def plan_takes(piece, number, seed):
    """The takes of a piece: as written, then varied ones for training."""
    takes = [Take(0, 0, 1.0)]
    for index in range(1, number if piece["split"] == "train" else 1):
        rng = np.random.default_rng([seed, index, *piece["piece"].encode()])
        semitones = int(rng.choice([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6]))
        takes.append(
            Take(index, semitones, round(float(rng.uniform(0.9, 1.1)), 3))
        )
    return takes


def play(piece, take, folder, seed):
    """Read a piece and play it: a `Performance`."""
    score = read_score(
        folder / piece["source"], piece["measures"], piece["tempo"]
    )
    score = score._replace(tempo=score.tempo * take.tempo_factor)
    name = f"{piece['piece']}/{take.index}"
    return perform(score, [seed, *name.encode()], take.transposition)


def write_midi(path, performance):
    """Write the keys and the pedal as a MIDI file, 1 ms to 2 ticks."""
    import mido

    second = 2000  # 1000 ticks a beat of half a second
    events = []
    for key in performance.keys.tolist():
        start, stop, pitch, velocity = key
        events.append(
            (start, 2, "note_on", {"note": pitch, "velocity": velocity})
        )
        events.append((stop, 0, "note_off", {"note": pitch}))
    for time, down in performance.pedal:
        control = {"control": 64, "value": 127 if down else 0}
        events.append((time, 1, "control_change", control))
    track = mido.MidiTrack()
    now = 0
    for time, _, kind, values in sorted(events, key=lambda e: e[:2]):
        tick = max(round(time * second), now)
        track.append(mido.Message(kind, time=tick - now, **values))
        now = tick
    # The last chord rings on for three seconds.
    track.append(mido.MetaMessage("end_of_track", time=3 * second))
    mido.MidiFile(tracks=[track], ticks_per_beat=1000).save(path)


def render(midi, soundfont):
    """Render a MIDI file with FluidSynth.

    Returns:
        (samples,) float32 at 16 kHz.
    """
    import soundfile
    import soxr

    with tempfile.TemporaryDirectory() as folder:
        wave = pathlib.Path(folder, "piece.wav")
        command = ["fluidsynth", "-ni", "-q", "-g", "0.4", "-C", "0"]
        # Floats: loud chords are scaled below, not clipped here.
        command += ["-r", str(RENDER_RATE), "-T", "wav", "-O", "float"]
        done = subprocess.run(
            [*command, "-F", str(wave), str(soundfont), str(midi)],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode or not wave.is_file():
            raise ValueError(f"fluidsynth failed: {done.stderr.strip()}")
        audio, _ = soundfile.read(wave, dtype="float32", always_2d=True)
    return soxr.resample(audio.mean(axis=1), RENDER_RATE, SAMPLE_RATE)


def set_level(audio):
    """Scale to the usual loudness, less where a peak would clip."""
    rms, peak = np.sqrt(np.mean(audio**2)), np.max(np.abs(audio))
    if peak < 1e-4:
        raise ValueError("FluidSynth rendered silence.")
    return audio * min(10 ** (LOUDNESS / 20) / rms, PEAK / peak)


def plan_excerpts(phrases, end):
    """Cut at the starts of phrases: seconds, first 0 and last `end`.

    Args:
        phrases: (num_phrases + 1,) seconds at which phrases start.
        end: seconds of audio.
    """
    shortest, usual = EXCERPT_SECONDS
    cuts = [0.0]
    # A little before the phrase: the first note may be early.
    for time in np.asarray(phrases)[1:-1] - 0.06:
        if time - cuts[-1] >= usual and end - time >= shortest:
            cuts.append(float(time))
    return [*cuts, end]


def write_excerpts(folder, audio, cuts):
    """Write `001.flac`, `002.flac`, ...

    Args:
        folder: an existing folder.
        audio: (samples,) float32.
        cuts: seconds, from `plan_excerpts`.
    """
    import soundfile

    edge = np.linspace(0, 1, SAMPLE_RATE // 100, dtype="float32")
    samples = np.round(np.array(cuts) * SAMPLE_RATE).astype(int)
    for number, (begin, end) in enumerate(
        zip(samples[:-1], samples[1:], strict=True), 1
    ):
        excerpt = audio[begin:end].copy()
        excerpt[: len(edge)] *= edge
        excerpt[-len(edge) :] *= edge[::-1]
        pcm = np.round(excerpt * 32767).astype("int16")
        path = folder / f"{number:03d}.flac"
        soundfile.write(path, pcm, SAMPLE_RATE, "PCM_16")


def write_piece(folder, performance, soundfont):
    """Write one take into a folder that appears when it is complete."""
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    midi = half / "performance.mid"
    write_midi(midi, performance)
    audio = set_level(render(midi, soundfont))
    cuts = plan_excerpts(performance.phrases, len(audio) / SAMPLE_RATE)
    write_excerpts(half, audio, cuts)
    os.replace(half, folder)


# === The corpus ===


def list_excerpts(out, folder, piece, take, rights):
    """The rows of the manifest of one take."""
    import soundfile

    rows, start = [], 0.0
    for path in sorted(folder.glob("*.flac")):
        seconds = soundfile.info(path).duration
        row = {name: piece[name] for name in FIELDS if name in piece}
        row |= {
            "path": path.relative_to(out).as_posix(),
            "rights": rights,
            "take": take.index,
            "transposition": take.transposition,
            "tempo_factor": take.tempo_factor,
            "start": f"{start:.3f}",
            "seconds": f"{seconds:.3f}",
        }
        rows.append(row)
        start += seconds
    return rows


def make_corpus(out, scores, pieces, soundfont, seed=0, takes=1):
    """Render the pieces that `out` does not hold yet.

    Args:
        out: folder to write.
        scores: folder of music21's corpus.
        pieces: list of rows of the catalogue.
        soundfont: path of the `.sf2` file.
        seed: integer.
        takes: how often each training piece is played.

    Returns:
        The rows of the manifest, a list of dictionaries.
    """
    from tqdm import tqdm

    rights = {}
    for piece in pieces:
        claims = find_claims(scores / piece["source"])
        check_rights(piece, claims)
        rights[piece["piece"]] = " | ".join(claims)
    rows = []
    jobs = [(p, take) for p in pieces for take in plan_takes(p, takes, seed)]
    for piece, take in tqdm(jobs, unit="piece"):
        name = piece["piece"] + (f"_take{take.index}" if take.index else "")
        folder = out / piece["split"] / name
        if not folder.is_dir():
            performance = play(piece, take, scores, seed)
            write_piece(folder, performance, soundfont)
        rows += list_excerpts(out, folder, piece, take, rights[piece["piece"]])
        write_manifest(out / "manifest.csv", rows)
    return rows


def check_settings(out, settings):
    """Refuse to go on with a corpus that other settings began."""
    path = out / "settings.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != settings:
            raise ValueError(
                f"{out} was begun with {found}, not {settings}. Give another "
                "folder, or remove this one."
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files. Give an empty folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def write_text(path, text):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def copy_licences(out, scores, soundfont_licence):
    (out / "licences").mkdir(exist_ok=True)
    shutil.copyfile(
        soundfont_licence, out / "licences" / "fluid-soundfont-gm.txt"
    )
    shutil.copyfile(
        scores / "license.txt", out / "licences" / "music21-corpus.txt"
    )


def write_manifest(path, rows):
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def summarize(rows):
    """One line per split and composer: pieces, files and minutes.

    Further takes stand in lines of their own.
    """
    totals = collections.defaultdict(lambda: [set(), 0, 0.0])
    for row in rows:
        kind = "further takes" if row["take"] else row["composer"]
        for key in {(row["split"], kind), (row["split"], "all")}:
            totals[key][0].add(row["piece"])
            totals[key][1] += 1
            totals[key][2] += float(row["seconds"]) / 60
    return "\n".join(
        f"{split:>8} {kind:24} {len(pieces):3d} pieces, {files:4d} files, "
        f"{minutes:6.1f} min"
        for (split, kind), (pieces, files, minutes) in sorted(totals.items())
    )


def check_tools(soundfont, soundfont_licence):
    if shutil.which("fluidsynth") is None:
        raise ValueError(f"`fluidsynth` is not on this machine. {INSTALL}.")
    for path, option in (
        (soundfont, "--soundfont"),
        (soundfont_licence, "--soundfont-licence"),
    ):
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist. {INSTALL}, or give {option}."
            )


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
    )
    parser.add_argument("out", type=pathlib.Path, help="folder to write to")
    parser.add_argument(
        "--takes",
        type=int,
        default=1,
        help="how often each training piece is played: 1 as written, the "
        "others transposed and at another tempo (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--soundfont", type=pathlib.Path, default=SOUNDFONT, help=".sf2 file"
    )
    parser.add_argument(
        "--soundfont-licence",
        type=pathlib.Path,
        default=SOUNDFONT_LICENCE,
        help="its licence text, copied into OUT/licences",
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        check_tools(options.soundfont, options.soundfont_licence)
        scores = corpus_folder()
        settings = {"seed": options.seed, "soundfont": options.soundfont.name}
        check_settings(options.out, settings)
        copy_licences(options.out, scores, options.soundfont_licence)
        rows = make_corpus(
            options.out,
            scores,
            read_catalogue(),
            options.soundfont,
            options.seed,
            options.takes,
        )
    except ValueError as error:
        sys.exit(f"score_piano: {error}")
    print(summarize(rows))


if __name__ == "__main__":
    main()
