"""Figures of a section of an evaluation as tables."""

from collections import namedtuple

# A header of strings and rows of cells, both as long; the cells are strings.
Table = namedtuple("Table", ["header", "rows", "note"], defaults=[""])


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


def music_tables(result):
    rows = [
        [
            f"within the variability of the recording: {title}",
            percent(result["within"][name]),
            percent(result["other"][name]),
        ]
        for name, title in (
            ("pace", "notes begun a second"),
            ("key", "key profile"),
            ("both", "both"),
        )
    ]
    rows.append(
        [
            "pitch classes nearer to the prompt's than to another piece's",
            percent(result["closer"]),
            "50.0 %",
        ]
    )
    rows.append(
        ["the same of what really follows", percent(result["real_closer"]), ""]
    )
    note = f"{result['continuations']} continuations."
    header = ["music", "continuations", "other pieces"]
    return [Table(header, rows, note)]


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
            percent(d["windows"]["balanced_accuracy"]),
            f"{d['windows']['real']} + {d['windows']['synthetic']}",
        ]
        for name, d in result.items()
        if name != "notes"
    ]
    header = [
        "what the sound went through",
        "balanced accuracy",
        "equal error rate",
        "area under ROC",
        "clips, real + synthetic",
        "balanced accuracy of windows",
        "windows, real + synthetic",
    ]
    note = (
        "Clips by the mean of their windows, as in the paper: held-out files, "
        "which neither the language models nor the detector heard in training, "
        "through the codec, against continuations of their beginnings without "
        "the prompts."
    )
    return [Table(header, rows, note)]


WRITERS = {
    "codec": codec_tables,
    "tokenizer": tokenizer_tables,
    "language": language_tables,
    "continuation": continuation_tables,
    "music": music_tables,
    "resynthesis": resynthesis_tables,
    "detector": detector_tables,
}
