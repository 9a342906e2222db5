"""Make a small multilingual speech corpus from Debian's Asterisk voice prompts.

Four studio voices in five languages, 125 minutes, freely licensed:

| package                       | language | speaker      | licence      |
|-------------------------------|----------|--------------|--------------|
| asterisk-core-sounds-en-g722  | en       | Allison      | CC-BY-SA-3.0 |
| asterisk-core-sounds-es-g722  | es       | Allison      | CC-BY-SA-3.0 |
| asterisk-core-sounds-fr-g722  | fr       | June         | CC-BY-SA-3.0 |
| asterisk-core-sounds-it-g722  | it       | Carlo        | CC-BY-3.0    |
| asterisk-core-sounds-ru-g722  | ru       | IvrvoiceRU   | CC-BY-3.0    |

(English and Spanish are the same speaker.) The prompts are G.722 at 16 kHz;
they become 16 kHz 16-bit FLAC:

    OUT/train/<language>/<stem>.flac
    OUT/held_out/<language>/<stem>.flac
    OUT/manifest.csv        path, speaker, language, package, licence, ...
    OUT/licences/           each package's copyright file, with both licences

A prompt in a sub-folder (`digits/1.g722`) gets the joined name
(`digits-1.flac`), so that one folder holds one voice. Left out are the
`silence` folders and prompts shorter than 0.4 seconds. The split is fixed:
of the prompts kept, sorted by stem within a language, those whose index
(counted from 0) is divisible by 20 are held out. Then the beep and the
screaming monkeys are left out: no voice made them, and each language has the
same ones, which would be in both parts of the split.

Run it on Debian or Ubuntu, with `pip install av soundfile tqdm`:

    python examples/corpora/debian_voices.py corpora/debian_voices

Elsewhere download the five `.deb` files from
https://packages.debian.org/source/stable/asterisk-core-sounds, unpack them
into one folder (`dpkg -x`, or `ar x` and `tar x`) and give it as `--raw`.
"""

import argparse
import collections
import csv
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SAMPLE_RATE = 16000
MIN_SECONDS = 0.4
HELD_OUT_EVERY = 20
# Left out after the split, which stays what it was when they were in it.
NOT_SPEECH = {"beep", "tt-monkeys"}

Voice = collections.namedtuple(
    "Voice", "language speaker folder licence credit"
)
VOICES = (
    Voice("en", "Allison", "en_US_f_Allison", "CC-BY-SA-3.0", "Allison Smith"),
    Voice("es", "Allison", "es_MX_f_Allison", "CC-BY-SA-3.0", "Allison Smith"),
    Voice("fr", "June", "fr_CA_f_June", "CC-BY-SA-3.0", "June Wallack"),
    Voice("it", "Carlo", "it_IT_m_Carlo", "CC-BY-3.0", "Carlo Flora"),
    Voice(
        "ru",
        "IvrvoiceRU",
        "ru_RU_f_IvrvoiceRU",
        "CC-BY-3.0",
        "provided by Maxim Topal, ivrvoice.ru",
    ),
)
FIELDS = (
    "path",
    "speaker",
    "language",
    "package",
    "source",
    "licence",
    "credit",
    "seconds",
    "split",
)


def package_name(voice):
    return f"asterisk-core-sounds-{voice.language}-g722"


def run(command, cwd=None):
    """Run `command`; a `ValueError` says what is missing or went wrong."""
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"`{command[0]}` is not on this machine. It belongs to Debian and "
            "Ubuntu; elsewhere unpack the packages by hand and give the "
            "folder as --raw."
        )
    done = subprocess.run(
        command, check=False, cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}\n"
            "If the package is not found, run `apt-get update` as root first."
        )


def find_package(folder, voice):
    """The newest `.deb` of `voice` in `folder`, or `None`."""
    found = sorted(pathlib.Path(folder).glob(f"{package_name(voice)}_*.deb"))
    return found[-1] if found else None


def unpack(voices, raw, packages=None):
    """Put the packages of `voices` into the folder `raw`.

    Args:
        voices: sequence of `Voice`.
        raw: folder that receives `usr/share/...`.
        packages: folder of downloaded `.deb` files; `None` downloads them.
    """
    with tempfile.TemporaryDirectory() as downloads:
        for voice in voices:
            if packages is None:
                run(["apt-get", "download", package_name(voice)], downloads)
            deb = find_package(packages or downloads, voice)
            if deb is None:
                raise ValueError(
                    f"No {package_name(voice)}_*.deb in {packages}. Put it "
                    "there, or leave out --packages to download it."
                )
            run(["dpkg", "-x", str(deb), str(raw)])


def decode_g722(path):
    """Decode a raw G.722 file to int16 samples at 16 kHz."""
    import av
    import numpy as np

    with av.open(str(path), format="g722") as container:
        rate = container.streams.audio[0].rate
        if rate != SAMPLE_RATE:
            raise ValueError(f"{path} decodes to {rate} Hz, not {SAMPLE_RATE}.")
        blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int16)


def list_prompts(raw, voice):
    """Map each stem to its G.722 file, without the `silence` folders."""
    folder = pathlib.Path(raw, "usr/share/asterisk/sounds", voice.folder)
    prompts = {}
    for path in sorted(folder.rglob("*.g722")):
        parts = path.relative_to(folder).with_suffix("").parts
        if "silence" in parts[:-1]:
            continue
        stem = "-".join(parts)
        if stem in prompts:
            raise ValueError(f"{path} and {prompts[stem]} would be one file.")
        prompts[stem] = path
    if not prompts:
        raise ValueError(
            f"No .g722 files in {folder}. Is {package_name(voice)} unpacked "
            "into that folder?"
        )
    return prompts


def is_long_enough(path):
    # G.722 at 64 kbit/s is 8000 bytes a second, without a header.
    return path.stat().st_size / 8000 >= MIN_SECONDS


def write_flac(path, samples):
    """Write under a temporary name first, so that no half file remains."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    soundfile.write(temporary, samples, SAMPLE_RATE, "PCM_16", format="FLAC")
    os.replace(temporary, path)


def convert_voice(raw, out, voice):
    """Write the FLAC files of one voice; return its manifest rows."""
    from tqdm import tqdm

    prompts = list_prompts(raw, voice)
    stems = sorted(s for s, path in prompts.items() if is_long_enough(path))
    rows = []
    for index, stem in enumerate(tqdm(stems, desc=voice.language)):
        if stem in NOT_SPEECH:
            continue
        samples = decode_g722(prompts[stem])
        split = "train" if index % HELD_OUT_EVERY else "held_out"
        path = pathlib.Path(split, voice.language, f"{stem}.flac")
        write_flac(out / path, samples)
        rows.append(
            {
                "path": path.as_posix(),
                "speaker": voice.speaker,
                "language": voice.language,
                "package": package_name(voice),
                "source": prompts[stem].relative_to(raw).as_posix(),
                "licence": voice.licence,
                "credit": voice.credit,
                "seconds": f"{len(samples) / SAMPLE_RATE:.3f}",
                "split": split,
            }
        )
    return rows


def copy_licence(raw, out, voice):
    """Keep the package's copyright file: both licences ask for it."""
    package = package_name(voice)
    source = pathlib.Path(raw, "usr/share/doc", package, "copyright")
    if not source.is_file():
        raise ValueError(f"{source} is missing: is {package} unpacked there?")
    (out / "licences").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, out / "licences" / f"{package}.txt")


def write_manifest(path, rows):
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def make_corpus(out, raw, voices=VOICES):
    """Convert unpacked packages into the corpus.

    Args:
        out: folder to write.
        raw: folder with the unpacked packages (holds `usr/share/...`).
        voices: sequence of `Voice`.

    Returns:
        The rows of the manifest, a list of dictionaries.
    """
    out, raw = pathlib.Path(out), pathlib.Path(raw)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for voice in voices:
        copy_licence(raw, out, voice)
        rows += convert_voice(raw, out, voice)
    write_manifest(out / "manifest.csv", rows)
    return rows


def summarize(rows):
    """One line per split and language: files and minutes."""
    totals = collections.defaultdict(lambda: [0, 0.0])
    for row in rows:
        for key in ((row["split"], row["language"]), (row["split"], "all")):
            totals[key][0] += 1
            totals[key][1] += float(row["seconds"]) / 60
    return "\n".join(
        f"{split:>8} {language:>3}: {files:5d} files, {minutes:6.1f} min"
        for (split, language), (files, minutes) in sorted(totals.items())
    )


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
    )
    parser.add_argument("out", help="folder to write the corpus to")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--packages", help="folder of already downloaded .deb files"
    )
    sources.add_argument(
        "--raw", help="folder into which the packages are already unpacked"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        if options.raw:
            rows = make_corpus(options.out, options.raw)
        else:
            with tempfile.TemporaryDirectory() as raw:
                unpack(VOICES, raw, options.packages)
                rows = make_corpus(options.out, raw)
    except ValueError as error:
        sys.exit(f"debian_voices: {error}")
    print(summarize(rows))


if __name__ == "__main__":
    main()
