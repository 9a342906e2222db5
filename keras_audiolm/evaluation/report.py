"""Figures of `evaluation.preset` as JSON, as Markdown and as one HTML page."""

import base64
import io
import json
import os
import pathlib
from collections import namedtuple

import numpy as np

# A header of strings and rows of cells, both as long; the cells are strings.
Table = namedtuple("Table", ["header", "rows", "note"], defaults=[""])

TITLES = {
    "codec": "Codec: how well held-out recordings come back",
    "tokenizer": "Semantic tokens",
    "language": "Language models, in nats a token",
    "continuation": "Continuations",
    "resynthesis": "Resynthesis: the words stay, the voice is drawn anew",
    "detector": "The detector of synthetic audio, windows of a second",
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


# === Tables ===


def number(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value):
    return "–" if value is None else f"{100 * value:.1f} %"


def tables(section, result):
    """The tables of a section's figures."""
    if "left_out" in result:
        return []
    return WRITERS[section](result)


def codec_tables(result):
    quality = result["reconstruction"]
    names = {
        "pesq_wb": ("PESQ wide-band, 1 to 4.64", 2),
        "stoi": ("STOI, 0 to 1", 3),
        "visqol": ("ViSQOL, 1 to 5", 2),
        "speaker_similarity": ("speaker similarity, up to 1", 3),
        "si_sdr_db": ("SI-SDR, dB", 1),
        "log_mel_distance": ("log-mel distance, lower is better", 2),
        "multi_log_mel_distance": ("the same, of four resolutions", 2),
    }
    first = next(iter(quality.values()))
    rows = [
        [title, *(number(q[name], digits) for q in quality.values())]
        for name, (title, digits) in names.items()
        if name in first
    ]
    header = [
        "held-out files",
        *(
            f"{levels} levels, {bits / 1000:g} kbps"
            for levels, bits in result["bits_per_second"].items()
        ),
    ]
    note = f"{first['files']} files"
    if "stoi_files" in first:
        note += (
            f"; PESQ, STOI, ViSQOL and speakers: the {first['stoi_files']} "
            "of a second or more"
        )
    return [
        Table(header, rows, note),
        use_table("codec level", result["codebooks"]),
    ]


def use_table(name, codebooks):
    """Codes used and perplexity, by split."""
    size = next(iter(codebooks.values()))["size"]
    header = [name]
    for split, use in codebooks.items():
        title = f"{split.replace('_', '-')}, {use['frames']:,} frames"
        header += [f"used of {size}, {title}", "perplexity"]
    rows = []
    for level in range(len(next(iter(codebooks.values()))["used"])):
        row = [str(level + 1)]
        for use in codebooks.values():
            row += [
                str(use["used"][level]),
                number(use["perplexity"][level], 0),
            ]
        rows.append(row)
    return Table(header, rows)


def tokenizer_tables(result):
    made = [use_table("semantic tokens", result["codebooks"])]
    if "encoder" in result:
        chance = result["encoder_chance"]
        rows = [
            [name, number(value, 3), number(chance.get(name), 3)]
            for name, value in result["encoder"].items()
        ]
        made.append(
            Table(["encoder, held-out crops", "measured", "chance"], rows)
        )
    if "abx" in result:
        rows = [
            [kind, percent(e["within_error"]), percent(e["across_error"])]
            for kind, e in result["abx"].items()
        ]
        header = ["ABX error; chance 50 %", "within speakers", "across"]
        made.append(Table(header, rows))
    return made


def language_tables(result):
    made = [stage_table(result["stages"])]
    order = result["order"]
    if "left_out" not in order:
        rows = [
            [
                f"real tokens are likelier than {name}",
                f"{percent(o['preferred'])} of {o['pairs']}",
                number(o["nats_per_token"]),
            ]
            for name, o in order["against"].items()
        ]
        units = order["perplexity"]
        note = (
            f"{units['files']} held-out recordings of a second or more; their "
            f"perplexity is {units['perplexity']:.2f}."
        )
        header = ["semantic stage; chance 50 %", "pairs", "nats a token"]
        made.append(Table(header, rows, note))
    if "zerospeech" in result:
        rows = [
            [
                name,
                *(percent(z[k]["accuracy"]) for k in ("normalised", "total")),
            ]
            for name, z in result["zerospeech"].items()
        ]
        header = ["accuracy; chance 50 %", "a token", "of all tokens"]
        made.append(Table(header, rows))
    return made


def stage_table(stages):
    rows = []
    for name, lm in stages.items():
        figures = ("loss", "perplexity", "unigram_loss", "uniform_loss")
        rows.append(
            [
                name,
                *(number(lm.get(f), 3) for f in figures),
                f"{lm['tokens']:,}",
            ]
        )
        unigram = lm.get("level_unigram_loss", [None] * len(lm["level_loss"]))
        if len(lm["level_loss"]) > 1:
            rows += [
                [f"– its level {i}", number(a, 3), "", number(b, 3), "", ""]
                for i, (a, b) in enumerate(
                    zip(lm["level_loss"], unigram, strict=True), 1
                )
            ]
    header = ["held out", "model", "perplexity", "unigram", "uniform", "tokens"]
    return Table(header, rows)


def heard_tables(heard):
    """Who is heard in sounds, and the confusions of the last kind."""
    if not heard:
        return []
    kinds = [
        kind
        for kind in next(iter(heard.values()))
        if kind not in ("labels", "chance")
    ]
    rows = [
        [
            kind,
            *(
                f"{percent(h[kind]['accuracy'])} "
                f"({h[kind]['right']}/{h[kind]['total']})"
                for h in heard.values()
            ),
        ]
        for kind in kinds
    ]
    rows.append(["chance", *(percent(h["chance"]) for h in heard.values())])
    header = [
        "classified right",
        *(f"{name}, of {len(h['labels'])}" for name, h in heard.items()),
    ]
    note = "The classifiers learned from real training files alone."
    made = [Table(header, rows, note)]
    for name, h in heard.items():
        confusion = zip(h["labels"], h[kinds[-1]]["confusion"], strict=True)
        made.append(
            Table(
                [f"{kinds[-1]}: {name} \\ heard", *h["labels"]],
                [[label, *map(str, row)] for label, row in confusion],
            )
        )
    return made


def continuation_tables(result):
    note = (
        f"{result['prompts']} prompts of {result['prompt_seconds']:g} s, "
        f"{result['seeds']} seeds, {result['new_seconds']:g} new seconds each."
    )
    same, collapse = result["diversity"], result["collapse"]
    rows = [
        [
            "same semantic token at a frame: two seeds of a prompt",
            percent(same["same_prompt"]),
        ],
        ["the same of two prompts", percent(same["other_prompt"])],
        [
            "outside the range of real sound (silence, noise, one token)",
            f"{percent(collapse['share'])} "
            f"({collapse['outside']}/{collapse['clips']})",
        ],
    ]
    rows += [
        [f"– by {name.replace('_', ' ')}", str(count)]
        for name, count in collapse["by_feature"].items()
    ]
    distances = result["frechet_audio_distance"]
    if "left_out" not in distances:
        rows += [
            [
                f"Fréchet distance to held-out files: {name}",
                number(d["distance"], 3),
            ]
            for name, d in distances.items()
        ]
    made = [
        *heard_tables(result["heard"]),
        Table(["continuations", ""], rows, note),
    ]
    memory = result["memorisation"]
    if "left_out" not in memory:
        made.append(memorisation_table(memory))
    return made


def memorisation_table(memory):
    kinds = ["continuations", "held_out"]
    rows = [
        [title, *(write(memory[kind][key]) for kind in kinds)]
        for title, key, write in (
            (
                f"share with a run of more than {memory['seconds']:g} s",
                "memorised",
                percent,
            ),
            ("longest run, s", "longest_run_seconds", number),
            ("median of the longest runs, s", "median_run_seconds", number),
        )
    ]
    header = [
        "semantic tokens that stand in the training set",
        "continuations",
        "held-out recordings",
    ]
    return Table(header, rows)


def resynthesis_tables(result):
    made = heard_tables(result["heard"])
    words = result["words"]
    if "left_out" in words:
        return made
    kinds = ("codec", "resynthesis")
    rows = [
        [title, *(percent(words[kind][key]) for kind in kinds)]
        for title, key in (
            ("word error rate", "word_error_rate"),
            ("character error rate", "character_error_rate"),
        )
    ]
    note = (
        f"Of {words['recognizer']}, against its own transcripts of the "
        f"originals; {words['codec']['files']} files in "
        f"{words['language']}."
    )
    return [
        *made,
        Table(["heard otherwise than in the original", *kinds], rows, note),
    ]


def detector_tables(result):
    rows = [
        [
            name,
            percent(d["balanced_accuracy"]),
            percent(d["equal_error_rate"]),
            number(d["area_under_roc"], 4),
            f"{d['real']} + {d['synthetic']}",
        ]
        for name, d in result.items()
        if name != "notes"
    ]
    header = [
        "what the sound went through",
        "balanced accuracy",
        "equal error rate",
        "area under ROC",
        "windows, real + synthetic",
    ]
    note = (
        "Held-out files, which neither the language models nor the detector "
        "heard in training, through the codec, against continuations of their "
        "beginnings without the prompts."
    )
    return [Table(header, rows, note)]


WRITERS = {
    "codec": codec_tables,
    "tokenizer": tokenizer_tables,
    "language": language_tables,
    "continuation": continuation_tables,
    "resynthesis": resynthesis_tables,
    "detector": detector_tables,
}


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
                "picture": spectrogram(
                    clip,
                    rate,
                    prompt_duration if "continuation" in kind else None,
                ),
            }
        )
    order = ("original", "through the codec")
    for row in rows.values():
        row.sort(key=lambda x: (x["kind"] not in order, x["kind"]))
    return rows


def data_address(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return data_address("image/png", file.getvalue())


def spectrogram(clip, sample_rate, line=None):
    """A mel spectrogram, maybe with a line at a second, as a picture's
    address."""
    from keras_audiolm.evaluation.codec import log_mel

    picture = figure(4.8, 1.9)
    axes = picture.subplots()
    axes.imshow(
        log_mel(clip, sample_rate).T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-9.0,
        vmax=3.0,
        extent=(0, len(clip) / sample_rate, 0, 80),
    )
    if line is not None:
        axes.axvline(line, color="white", linestyle="--")
    axes.set(xlabel="seconds", ylabel="mel band")
    return png(picture)


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
