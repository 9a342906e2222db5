"""Figures of `evaluation.preset` as JSON, as Markdown and as one HTML page."""

import base64
import io
import json
import os
import pathlib

import numpy as np

from keras_audiolm.evaluation.display import figure, spectrogram
from keras_audiolm.evaluation.tables import tables

TITLES = {
    "codec": "Codec: how well held-out recordings come back",
    "tokenizer": "Semantic tokens",
    "language": "Language models, in nats a token",
    "continuation": "Continuations",
    "music": "Music",
    "resynthesis": "Resynthesis: the words stay, the voice is drawn anew",
    "detector": "The detector of synthetic audio",
}


def write_report(results, folder):
    """Writes `report.json` and `report.html`, each whole or not at all.

    Args:
        results: dictionary of `evaluate_preset`.
        folder: path; its folder `audio` holds the examples, if there are any.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    for name, content in (
        ("report.json", text),
        ("report.html", html(results, folder / "audio")),
    ):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(content)
        os.replace(temporary, folder / name)


# === Markdown ===


def markdown(results):
    """The figures as a model card shows them."""
    parts = []
    for section in TITLES:
        for table in tables(section, results.get(section, {"left_out": ""})):
            parts.append(markdown_table(table))
    return "\n\n".join([*parts, origin(results["about"])])


def markdown_table(table):
    def line(cells):
        return "| " + " | ".join(cells) + " |"

    rule = ["---"] + ["---:"] * (len(table.header) - 1)
    text = "\n".join([line(table.header), line(rule), *map(line, table.rows)])
    return f"{text}\n\n{table.note}" if table.note else text


def origin(about):
    """Where the figures come from, in one sentence."""
    return (
        f"Measured on {about['date']} by `{about['command']}` on "
        f"{place(about['machine'])}."
    )


def place(machine):
    return (
        f"{machine['cores_used']} of {machine['cores']} cores of "
        f"{machine['cpu']} (keras_audiolm {machine['keras_audiolm']}, Keras "
        f"{machine['keras']}, {machine['backend']})"
    )


# === HTML ===


def html(results, audio):
    """One page with everything in it: tables, pictures and sound.

    Args:
        results: dictionary of `evaluate_preset`.
        audio: path of the folder of examples.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_audiolm.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {
            "name": name,
            "title": title,
            "tables": tables(name, results[name]),
            "left_out": results[name].get("left_out"),
            "notes": results[name].get("notes", []),
            "pictures": pictures(name, results[name]),
        }
        for name, title in TITLES.items()
        if name in results
    ]
    return environment.get_template("report.html").render(
        about=results["about"],
        place=place(results["about"]["machine"]),
        sections=sections,
        examples=examples(
            audio, results["about"]["settings"]["prompt_duration"]
        ),
    )


def examples(folder, prompt_duration):
    """The examples, by number: kind, sound and spectrogram of each, with a
    line where a prompt ends."""
    import soundfile

    rows = {}
    for path in sorted(folder.glob("*.flac")) if folder.is_dir() else []:
        prompt, kind = path.stem.split(" ", 1)
        clip, rate = soundfile.read(path, dtype="float32")
        rows.setdefault(prompt, []).append(
            {
                "kind": kind,
                "sound": data_address("audio/flac", path.read_bytes()),
                "picture": png(
                    spectrogram(
                        clip,
                        rate,
                        prompt_duration if "continuation" in kind else None,
                    )
                ),
            }
        )
    order = ("original", "through the codec")
    for row in rows.values():
        row.sort(key=lambda x: (x["kind"] not in order, x["kind"]))
    return rows


def data_address(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(picture):
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=100)
    return data_address("image/png", file.getvalue())


def pictures(section, result):
    """Pairs of caption and address."""
    if "left_out" in result:
        return []
    if section == "detector":
        return [("Receiver operating characteristic", roc_picture(result))]
    memory = result.get("memorisation", {"left_out": ""})
    if section == "continuation" and "left_out" not in memory:
        caption = "How near the nearest second of the training set is"
        return [(caption, distance_picture(memory))]
    return []


def roc_picture(result):
    picture = figure(4.5, 3.6)
    axes = picture.subplots()
    for name, figures in result.items():
        if name != "notes":
            axes.plot(*figures["roc"], label=name)
    axes.set(xlabel="real taken for synthetic", ylabel="synthetic found")
    axes.legend(loc="lower right", fontsize="small")
    return png(picture)


def distance_picture(memory):
    picture = figure(5.5, 3.0)
    axes = picture.subplots()
    for kind in ("continuations", "held_out"):
        nearest = memory[kind]["nearest_second"]
        counts = np.array(nearest["counts"]) / max(nearest["windows"], 1)
        axes.stairs(counts, nearest["edges"], label=kind.replace("_", "-"))
    axes.set(
        xlabel="share of semantic tokens that differ", ylabel="share of seconds"
    )
    axes.legend()
    return png(picture)
