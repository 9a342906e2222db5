"""Measure a preset on held-out speech, for its model card.

    python examples/corpora/debian_voices.py corpora/debian_voices
    python benchmarks/measure_preset.py corpora/debian_voices \\
        --preset voices_small --out runs/voices_small.json

The corpus needs a `manifest.csv` with the columns path, speaker, language and
split (`train` or `held_out`). Everything is measured on held-out files; the
classifiers, the unigram baselines and nothing else come from the training
files. Sections, of which `--only` picks some (the others keep their figures,
if the weights are still the same):

    speed          time to load, to compile and to continue, real-time factor
    codec          reconstruction, PESQ and STOI (pip install pesq pystoi), and
                   how much of each codebook is used
    semantic       use of the semantic tokens, losses of the encoder
    lms            cross entropy of each language model, beside its unigrams'
    continuations  AudioLM's Table III: who speaks in what is made, and in
                   which language, as two small classifiers hear it

The classifiers (`--classifiers`) and the tokens (`--token_dir`) are kept: the
next run takes minutes less. Writes JSON after each section and prints Markdown
at the end.
"""

import argparse
import csv
import datetime
import functools
import json
import math
import os
import pathlib
import platform
import shlex
import sys
import time
import zlib

import keras_audiolm  # chooses the backend  # isort: skip
import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from keras_audiolm import training
from keras_audiolm.codec.losses import PerceptualLoss
from keras_audiolm.data.audio import load_audio, save_audio
from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.data.tokens import TokenCrops
from keras_audiolm.evaluation.classifier import AudioClassifier, LabelledCrops
from keras_audiolm.evaluation.codec import (
    codebook_use,
    compare,
    reconstruct,
)
from keras_audiolm.layers.checksum import weights_checksum
from keras_audiolm.layers.compiled import CompiledFunction

SECTIONS = ("speed", "codec", "semantic", "lms", "continuations")
# What a classifier tells apart, and its training: three or four minutes on
# one core. The two languages of one speaker take longer than the speakers.
CLASSIFIER_STEPS = {"speaker": 400, "language": 500}
CLASSIFIER_CHANNELS = (16, 32, 64, 64, 96, 96)
CROPS_PER_CLASS = 4


# === Corpus ===


class Corpus:
    """The files of a corpus with a manifest, and who speaks in them.

    Args:
        folder: path of the folder that holds `manifest.csv`.
        sample_rate: int. Of the audio that `load` gives.

    Raises:
        ValueError: if there is no manifest with the columns needed.
    """

    def __init__(self, folder, sample_rate):
        self.folder = pathlib.Path(folder)
        self.sample_rate = sample_rate
        path = self.folder / "manifest.csv"
        if not path.is_file():
            raise ValueError(
                f"{path} is missing. Make the corpus: python "
                "examples/corpora/debian_voices.py FOLDER"
            )
        with open(path, newline="") as file:
            self.rows = list(csv.DictReader(file))
        columns = {"path", "speaker", "language", "split"}
        lacking = columns - set(self.rows[0] if self.rows else ())
        if lacking:
            raise ValueError(f"{path} lacks the columns {sorted(lacking)}.")

    def split(self, name):
        """The manifest's rows of `"train"` or `"held_out"`."""
        return [row for row in self.rows if row["split"] == name]

    def files(self, name):
        return [self.folder / row["path"] for row in self.split(name)]

    def files_by(self, column, name):
        """Files of a split by their label, labels in order."""
        files = {}
        for row in self.split(name):
            path = self.folder / row["path"]
            files.setdefault(row[column], []).append(path)
        return dict(sorted(files.items()))

    @functools.cached_property
    def held_out(self):
        """Audio of the held-out files, in the order of `split`."""
        files = tqdm(self.files("held_out"), "Reading held-out files")
        return [load_audio(path, self.sample_rate) for path in files]


# === Speed ===


def measure_speed(preset, prompt_duration, duration, seed=0, repeats=3):
    """Loads a preset and continues noise, cold and warm.

    Returns:
        A pair of the pipeline and the figures.
    """
    start = time.perf_counter()
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(preset)
    for name in pipeline.part_names:
        pipeline.part(name)
    load = time.perf_counter() - start
    rng = np.random.default_rng(seed)
    samples = round(prompt_duration * pipeline.sample_rate)
    # How long it takes does not depend on what is said.
    prompt = rng.normal(0, 0.1, samples).clip(-1, 1).astype("float32")
    seconds = []
    for _ in tqdm(range(repeats + 1), "Timing generate"):
        start = time.perf_counter()
        pipeline.generate(prompt, duration=duration, seed=seed)
        seconds.append(time.perf_counter() - start)
    warm = float(np.median(seconds[1:]))
    return pipeline, {
        "load_seconds": load,
        "first_generate_seconds": seconds[0],
        "generate_seconds": warm,
        "prompt_seconds": prompt_duration,
        "new_seconds": duration,
        "repeats": repeats,
        "real_time_factor": warm / duration,
        "parameters": {
            name: int(pipeline.part(name).count_params())
            for name in pipeline.part_names
        },
    }


# === Codec ===


def measure_codec(pipeline, corpus, corpora):
    """How well held-out files come back, and which codes they use."""
    codec = pipeline.codec
    coarse = pipeline.coarse_lm.layout.predicted.levels
    result = {
        "bits_per_second": codec.num_quantizers
        * math.log2(codec.codebook_size)
        * codec.sample_rate
        / codec.hop_length,
        "reconstruction_loss": reconstruction_loss(codec, corpus),
        "reconstruction": {},
        "codebooks": {
            name: codebook_use(
                np.concatenate(tokens.acoustic), codec.codebook_size
            )
            for name, tokens in corpora.items()
        },
    }
    for levels in sorted({coarse, codec.num_quantizers}):
        made = reconstruct(codec, corpus.held_out, levels)
        result["reconstruction"][str(levels)] = compare(
            corpus.held_out, made, codec.sample_rate
        )
    return result


def reconstruction_loss(codec, corpus):
    """The training loss on random crops of a second, as `fit` validates."""
    crops = held_out_crops(codec, corpus, "codec")
    loss = PerceptualLoss(codec.sample_rate, transform_hop=codec.hop_length)
    run = CompiledFunction(codec, lambda real: loss(real, codec(real)))
    values = [float(run(crops[i])) for i in tqdm(range(len(crops)), "Loss")]
    return {
        "loss": float(np.mean(values)),
        # What a codec that gives silence gets.
        "loss_of_silence": float(
            np.mean([loss(c, c * 0.0) for c in [crops[0]]])
        ),
        "crops": len(crops) * crops.batch_size,
    }


def held_out_crops(model, corpus, part):
    """The crops that `AudioLMPipeline.fit` validates a part on."""
    duration = training.CROP_DURATION[part]
    crops = AudioCrops(
        corpus.files("held_out"),
        sample_rate=model.sample_rate,
        duration=duration,
        batch_size=training.BATCH_SIZE[part],
        steps_per_epoch=1,
        same_every_epoch=True,
    )
    steps = round(crops.total_duration / duration / crops.batch_size)
    crops.steps_per_epoch = max(steps, 1)
    return crops


# === Semantic tokens ===


def measure_semantic(pipeline, corpus, corpora):
    """Use of the tokens, and the encoder's losses on held-out crops."""
    tokenizer = pipeline.semantic_tokenizer
    encoder = tokenizer.encoder
    encoder.compile("sgd")  # `evaluate` asks for it; nothing is trained
    losses = encoder.evaluate(
        held_out_crops(tokenizer, corpus, "semantic_tokenizer"),
        verbose=0,
        return_dict=True,
    )
    return {
        "codebooks": {
            name: codebook_use(
                np.concatenate(tokens.semantic)[:, None],
                tokenizer.codebook_size,
            )
            for name, tokens in corpora.items()
        },
        "encoder": {name: float(value) for name, value in losses.items()},
        # What an encoder that knows nothing gets.
        "encoder_chance": {
            "contrastive_loss": math.log(1 + encoder.num_negatives),
            "mlm_loss": math.log(encoder.codebook_size),
        },
    }


# === Language models ===


def tokenize(pipeline, corpus, token_dir):
    """Tokens of the training and of the held-out files, kept on disk."""
    plan = training.Plan(
        files=corpus.files("train"),
        validation_files=corpus.files("held_out"),
        **dict.fromkeys(
            (
                "epochs",
                "steps_per_epoch",
                "batch_size",
                "token_dir",
                "checkpoint_dir",
                "speed_range",
                "callbacks",
                "verbose",
                "seed",
            )
        ),
    )
    if token_dir.name == "tokens":
        token_dir = token_dir / training.fingerprint(pipeline)
    corpora = training.tokenize_all(pipeline, plan, token_dir)
    return {
        "held_out": corpora["validation"],
        "training": corpora["training"],
    }


def measure_lm(pipeline, name, corpora):
    """Cross entropy of a stage in nats a token, as `fit` validates it."""
    lm = pipeline.part(name)
    lm.build()
    segment = lm.layout.predicted
    crops = lm_crops(pipeline, name, corpora["held_out"])
    run = CompiledFunction(lm, functools.partial(level_losses, lm))
    losses, targets = [], []
    for index in tqdm(range(len(crops)), f"Evaluating {name}"):
        batch = crops[index]
        losses.append(ops.convert_to_numpy(run(batch)))
        targets.append(batch[segment.name].reshape(-1, segment.levels))
    targets = np.concatenate(targets)
    unigram = unigram_losses(
        training_tokens(pipeline, name, corpora["training"]),
        targets,
        segment.codebook_size,
    )
    losses = np.mean(losses, axis=0)
    return {
        "loss": float(losses.mean()),
        "unigram_loss": float(unigram.mean()),
        "uniform_loss": math.log(segment.codebook_size),
        "level_loss": losses.tolist(),
        "level_unigram_loss": unigram.tolist(),
        "tokens": targets.size,
        "crop_seconds": lm.crop_duration,
    }


def lm_crops(pipeline, name, corpus):
    """The crops that `AudioLMPipeline.fit` validates a stage on."""
    batch_size = training.BATCH_SIZE[name]
    seconds = pipeline.unit_samples / pipeline.sample_rate
    units = max(round(pipeline.part(name).crop_duration / seconds), 1)
    crops = TokenCrops(
        corpus,
        pipeline.unit,
        units,
        training.stage_inputs(
            pipeline.part(name).layout,
            pipeline.coarse_lm.layout.predicted.levels,
        ),
        batch_size,
        1,
        same_every_epoch=True,
    )
    crops.steps_per_epoch = max(round(crops.ends[-1] / units / batch_size), 1)
    return crops


def level_losses(lm, codes):
    """Mean cross entropy of each level: `(levels,)`."""
    target = codes[lm.layout.predicted.name]  # (batch, frames, levels)
    losses = keras.losses.sparse_categorical_crossentropy(
        target, lm(codes, training=False), from_logits=True
    )
    return ops.mean(losses, axis=(0, 1))


def training_tokens(pipeline, name, corpus):
    """All training tokens `(frames, levels)` of what a stage predicts."""
    levels = pipeline.coarse_lm.layout.predicted.levels
    acoustic = np.concatenate(corpus.acoustic)
    codes = {
        "semantic": np.concatenate(corpus.semantic)[:, None],
        "coarse": acoustic[:, :levels],
        "fine": acoustic[:, levels:],
    }
    return codes[pipeline.part(name).layout.predicted.name]


def unigram_losses(known, targets, size):
    """Cross entropy of tokens under the frequencies of others, add-one.

    Args:
        known, targets: `(frames, levels)` int.
        size: int. Codes of a level.

    Returns:
        `(levels,)` nats a token.
    """
    losses = []
    for level, target in zip(known.T, targets.T, strict=True):
        counts = np.bincount(level, minlength=size) + 1.0
        losses.append(-np.mean(np.log(counts / counts.sum())[target]))
    return np.array(losses)


# === Continuations ===


def get_classifier(column, corpus, folder, steps):
    """A classifier of the corpus's training files, trained or read.

    Args:
        column: `"speaker"` or `"language"`, of the manifest.
        corpus: `Corpus`.
        folder: path where classifiers are kept.
        steps: int. Of training.
    """
    files = corpus.files_by(column, "train")
    settings = {
        "labels": list(files),
        "files": zlib.crc32(repr(corpus.split("train")).encode()),
        "sample_rate": corpus.sample_rate,
        "channels": list(CLASSIFIER_CHANNELS),
        "crops_per_class": CROPS_PER_CLASS,
        "steps": steps,
    }
    classifier = AudioClassifier(
        list(files), corpus.sample_rate, CLASSIFIER_CHANNELS
    )
    weights = folder / f"{column}.weights.h5"
    description = folder / f"{column}.json"
    if description.is_file():
        if json.loads(description.read_text()) == settings:
            classifier.load_weights(weights)
            return classifier
        description.unlink()
    print(f"Training the {column} classifier ...", flush=True)
    train_classifier(classifier, files, steps)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{column}.weights.h5"
    classifier.save_weights(temporary)
    os.replace(temporary, weights)
    write_json(description, settings)
    return classifier


def train_classifier(classifier, files, steps):
    """Trains on random crops, the same number of each class."""
    crops = LabelledCrops(
        files,
        classifier.sample_rate,
        classifier.window_duration,
        crops_per_class=CROPS_PER_CLASS,
        steps_per_epoch=steps,
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=3e-3, warmup_steps=min(20, steps)
    )
    classifier.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01))
    classifier.fit(crops, shuffle=False, verbose=2)


def measure_continuations(pipeline, corpus, classifiers, args):
    """Who speaks in continuations, and in what is real beside them."""
    rows = corpus.split("held_out")
    samples = round(args.prompt_duration * corpus.sample_rate)
    chosen = [
        i for i, clip in enumerate(corpus.held_out) if len(clip) >= samples
    ][: args.prompts]
    if not chosen:
        raise ValueError(
            f"No held-out file lasts {args.prompt_duration} seconds: give a "
            "shorter --prompt_duration."
        )
    prompts = np.stack([corpus.held_out[i][:samples] for i in chosen])
    made = continue_prompts(pipeline, prompts, args)
    if args.audio:
        save_continuations(made, [rows[i] for i in chosen], corpus, args.audio)
    heard = {
        "real, all held-out files": (rows, corpus.held_out),
        "real, the prompts": ([rows[i] for i in chosen], prompts),
        "the prompts through the codec": (
            [rows[i] for i in chosen],
            reconstruct(pipeline.codec, list(prompts)),
        ),
        "continuations, without the prompt": (
            [rows[i] for i in chosen] * args.seeds,
            made[:, samples:],
        ),
    }
    return {
        "prompts": len(chosen),
        "prompt_seconds": args.prompt_duration,
        "new_seconds": args.duration,
        "seeds": args.seeds,
        **{
            column: {
                "labels": list(classifier.labels),
                "chance": 1.0 / len(classifier.labels),
                **{
                    name: judge(classifier, audio, [r[column] for r in labels])
                    for name, (labels, audio) in heard.items()
                },
            }
            for column, classifier in classifiers.items()
        },
    }


def continue_prompts(pipeline, prompts, args):
    """All prompts for one seed after the other, in batches of one shape.

    Returns:
        `(seeds * prompts, samples)`, prompts included.
    """
    batch_size = min(args.batch_size, len(prompts))
    starts = range(0, len(prompts), batch_size)
    bar = tqdm(total=args.seeds * len(starts), desc="Continuing prompts")
    made = []
    for seed in range(args.seeds):
        for start in starts:
            rows = np.arange(start, start + batch_size)
            audio = pipeline.generate(
                # A last batch that is not full starts again from the front.
                prompts[rows % len(prompts)],
                duration=args.duration,
                # Else all batches would draw the same noise.
                seed=1000 * seed + start,
            )
            made.append(audio[rows < len(prompts)])
            bar.update()
    bar.close()
    return np.concatenate(made)


def save_continuations(made, rows, corpus, folder):
    for number, audio in enumerate(made):
        stem = "-".join(pathlib.Path(rows[number % len(rows)]["path"]).parts)
        name = f"{pathlib.Path(stem).stem}-{number // len(rows)}.flac"
        save_audio(folder / name, audio, corpus.sample_rate)


def judge(classifier, audio, truth):
    """Accuracy and confusions on clips.

    Args:
        classifier: `AudioClassifier`.
        audio: sequence of `(samples,)` arrays.
        truth: list of the label of each.

    Returns:
        Dictionary with `confusion`: a row for each true label, a column for
        each that was heard, in the order of the labels.
    """
    labels = list(classifier.labels)
    confusion = np.zeros((len(labels), len(labels)), int)
    for clip, label in zip(tqdm(audio, "Classifying"), truth, strict=True):
        heard = int(np.argmax(classifier.classify(clip)))
        confusion[labels.index(label), heard] += 1
    right, total = int(np.trace(confusion)), int(confusion.sum())
    return {
        "accuracy": right / total,
        "right": right,
        "total": total,
        "confusion": confusion.tolist(),
    }


# === Report ===


def machine():
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            models = [x.split(":")[1] for x in file if "model name" in x]
        model = models[0].strip() if models else model
    except OSError:
        pass
    try:
        used = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        used = os.cpu_count()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "cores_used": used,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }


def preset_checksum(pipeline):
    """Changes when any weight of the pipeline does."""
    parts = [pipeline.part(name) for name in pipeline.part_names]
    return f"{weights_checksum(*parts):08x}"


def write_json(path, value):
    """Under a temporary name first: no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def markdown(results):
    """The figures as a model card shows them."""
    writers = {
        "codec": codec_markdown,
        "semantic": semantic_markdown,
        "lms": lms_markdown,
        "continuations": continuations_markdown,
        "speed": speed_markdown,
    }
    parts = [write(results[s]) for s, write in writers.items() if s in results]
    about = results["machine"]
    parts.append(
        f"Measured on {results['date']} with `{results['command']}` on "
        f"{about['cores_used']} of {about['cores']} cores of {about['cpu']} "
        f"(Keras {about['keras']}, {about['backend']})."
    )
    return "\n\n".join(parts)


def table(header, rows):
    def line(cells):
        return "| " + " | ".join(str(cell) for cell in cells) + " |"

    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join([line(header), line(rule), *map(line, rows)])


def number(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def codec_markdown(codec):
    names = {
        "log_mel_distance": ("log-mel distance (nats, lower is better)", 3),
        "si_sdr_db": ("SI-SDR (dB)", 2),
        "pesq_wb": ("PESQ-WB (1 to 4.6)", 2),
        "stoi": ("STOI (0 to 1)", 3),
    }
    quality = codec["reconstruction"]
    first = next(iter(quality.values()))
    rows = [
        [title, *(number(q.get(name), digits) for q in quality.values())]
        for name, (title, digits) in names.items()
        if name in first
    ]
    loss = codec["reconstruction_loss"]
    text = table(
        ["codec, held-out files", *(f"{n} levels" for n in quality)], rows
    )
    text += (
        f"\n\n{first['files']} held-out files (PESQ and STOI: those of a "
        f"second or more, {first.get('stoi_files', 0)}); "
        f"{codec['bits_per_second']:.0f} bits a second. Validation loss "
        f"(`PerceptualLoss`, {loss['crops']} crops of 1 s) "
        f"{loss['loss']:.3f}; silence would get "
        f"{loss['loss_of_silence']:.3f}.\n\n"
    )
    return text + use_markdown("codec level", codec["codebooks"])


def use_markdown(name, codebooks):
    """Codes used and perplexity, held-out and training tokens."""
    first = next(iter(codebooks.values()))
    header = [name]
    for title, use in codebooks.items():
        frames = f"{title.replace('_', '-')} ({use['frames']} frames)"
        header += [f"used of {use['size']}, {frames}", "perplexity"]
    rows = []
    for level in range(len(first["used"])):
        row = [level + 1]
        for use in codebooks.values():
            row += [use["used"][level], number(use["perplexity"][level], 0)]
        rows.append(row)
    return table(header, rows)


def semantic_markdown(semantic):
    chance = semantic["encoder_chance"]
    rows = [
        [name, number(value, 3), number(chance.get(name), 3)]
        for name, value in semantic["encoder"].items()
    ]
    return (
        use_markdown("semantic tokens", semantic["codebooks"])
        + "\n\n"
        + table(["encoder, held-out crops", "measured", "chance"], rows)
    )


def lms_markdown(lms):
    rows = []
    for name, lm in lms.items():
        figures = ("loss", "unigram_loss", "uniform_loss")
        rows.append([name, *(number(lm[f], 3) for f in figures), lm["tokens"]])
        levels = zip(lm["level_loss"], lm["level_unigram_loss"], strict=True)
        if len(lm["level_loss"]) > 1:
            rows += [
                [f"– its level {i}", number(a, 3), number(b, 3), "", ""]
                for i, (a, b) in enumerate(levels, 1)
            ]
    header = [
        "language model, held-out nats a token",
        "model",
        "unigram",
        "uniform",
        "tokens",
    ]
    return table(header, rows)


def continuations_markdown(result):
    columns = ("speaker", "language")
    kinds = [k for k in result["speaker"] if k not in ("labels", "chance")]
    rows = []
    for kind in kinds:
        cells = [result[column][kind] for column in columns]
        rows.append(
            [
                kind,
                *(
                    f"{100 * c['accuracy']:.1f} % ({c['right']}/{c['total']})"
                    for c in cells
                ),
            ]
        )
    rows.append(
        [
            "chance",
            *(f"{100 * result[c]['chance']:.1f} %" for c in columns),
        ]
    )
    header = [
        "classified",
        *(f"{c}, of {len(result[c]['labels'])}" for c in columns),
    ]
    text = table(header, rows)
    text += (
        f"\n\n{result['prompts']} prompts of {result['prompt_seconds']:g} s, "
        f"{result['seeds']} seeds, {result['new_seconds']:g} s of new audio "
        "each; the classifiers learned from real training files alone."
    )
    for column in columns:
        labels = result[column]["labels"]
        confusion = result[column][kinds[-1]]["confusion"]
        rows = [
            [label, *row] for label, row in zip(labels, confusion, strict=True)
        ]
        header = [f"{column} of the prompt \\ heard after it", *labels]
        text += "\n\n" + table(header, rows)
    return text


def speed_markdown(speed):
    total = sum(speed["parameters"].values()) / 1e6
    rows = [
        [f"load ({total:.1f} M weights)", f"{speed['load_seconds']:.1f} s"],
        [
            "first `generate` (compiles)",
            f"{speed['first_generate_seconds']:.1f} s",
        ],
        [
            f"`generate`, {speed['prompt_seconds']:g} s prompt + "
            f"{speed['new_seconds']:g} s, median of {speed['repeats']}",
            f"{speed['generate_seconds']:.1f} s",
        ],
        [
            "real-time factor (below 1: faster than real)",
            f"{speed['real_time_factor']:.2f}",
        ],
    ]
    return table(["speed", ""], rows)


# === Command ===


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = pathlib.Path
    parser.add_argument("corpus", type=path, help="with a manifest.csv")
    parser.add_argument("--preset", default="voices_small")
    parser.add_argument("--out", type=path, required=True, help="JSON")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--prompts", type=int, help="default: all there are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=7.0)
    parser.add_argument("--prompt_duration", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--classifiers", type=path, help="default: beside --out"
    )
    parser.add_argument("--token_dir", type=path, help="default: beside --out")
    parser.add_argument("--audio", type=path, help="keep continuations here")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="4 prompts, 1 seed, 2 s, hardly trained classifiers: a trial",
    )
    args = parser.parse_args(argv)
    beside = args.out.parent
    args.classifiers = args.classifiers or beside / "classifiers"
    # A folder of this name gets one for each pair of tokenizers.
    args.token_dir = args.token_dir or beside / "tokens"
    args.steps = CLASSIFIER_STEPS
    if args.quick:
        args.prompts, args.seeds, args.duration = 4, 1, 2.0
        args.steps = dict.fromkeys(CLASSIFIER_STEPS, 5)
        args.classifiers = args.classifiers.with_name("classifiers_quick")
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    results = measure(args, argv)
    print(markdown(results))
    print(f"\nWrote {args.out}", file=sys.stderr)
    return results


def measure(args, argv):
    """Runs the sections; the JSON is whole after each."""
    repeats = 1 if args.quick else 3
    if "speed" in args.only:
        pipeline, speed = measure_speed(
            args.preset, args.prompt_duration, args.duration, repeats=repeats
        )
    else:
        pipeline = keras_audiolm.AudioLMPipeline.from_preset(args.preset)
        speed = None
    corpus = Corpus(args.corpus, pipeline.sample_rate)
    results = earlier_results(args.out, preset_checksum(pipeline))
    results.update(
        preset=pathlib.Path(args.preset).name,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=shlex.join(["python", "benchmarks/measure_preset.py", *argv]),
        machine=machine(),
    )
    if speed:
        results["speed"] = speed
    corpora = None
    if {"codec", "semantic", "lms"} & set(args.only):
        corpora = tokenize(pipeline, corpus, args.token_dir)
    for section in [s for s in SECTIONS if s in args.only and s != "speed"]:
        print(f"Measuring {section} ...", file=sys.stderr, flush=True)
        results[section] = measure_section(
            section, pipeline, corpus, corpora, args
        )
        write_json(args.out, results)
    write_json(args.out, results)
    return results


def measure_section(section, pipeline, corpus, corpora, args):
    if section == "codec":
        return measure_codec(pipeline, corpus, corpora)
    if section == "semantic":
        return measure_semantic(pipeline, corpus, corpora)
    if section == "lms":
        return {
            name: measure_lm(pipeline, name, corpora)
            for name in pipeline.part_names
            if name in training.LANGUAGE_MODELS
        }
    classifiers = {
        column: get_classifier(column, corpus, args.classifiers, steps)
        for column, steps in args.steps.items()
    }
    return measure_continuations(pipeline, corpus, classifiers, args)


def earlier_results(path, checksum):
    """What `--only` leaves as it was, if it was of the same weights."""
    results = {}
    if path.is_file():
        results = json.loads(path.read_text())
    if results.get("weights") != checksum:
        results = {}
    return {**results, "weights": checksum}


if __name__ == "__main__":
    main()
