"""Train the codec's architectures under one budget, and compare them.

    python examples/corpora/debian_voices.py corpora/debian_voices
    python benchmarks/codec_architectures.py train corpora/debian_voices \\
        --architecture mdct --minutes 60 --out runs/mdct
    python benchmarks/codec_architectures.py export runs/mdct --card card.md \\
        --out presets/soundstream_voices
    python benchmarks/codec_architectures.py preset corpora/debian_voices \\
        --preset voices_small --out runs/voices_small
    python benchmarks/codec_architectures.py opus corpora/debian_voices \\
        --bit-rate 6000 --out runs/opus_6  # pip install av
    python benchmarks/codec_architectures.py table runs/*
    python benchmarks/codec_architectures.py plot runs/* \\
        --out curves.png  # pip install matplotlib

Same data, loss, quantizer and optimizer for all: crops of a second with speed,
pitch and gain perturbation (unless others are asked for), 8 levels of 1024
codes at 50 Hz (4 kbps). The last third of the budget adds narrow discriminators
on short random stretches. `--option` changes one thing of an architecture.
Minutes are of processor time, so that a run is the same beside another.
`train` goes on where it was stopped, and measures held-out files at the end,
at 1 to 8 levels and by language. With all measures (`pip install
"keras-audiolm[quality]"`): `--measures pesq_wb stoi visqol speaker_similarity
--whisper base`.
"""

import argparse
import csv
import io
import json
import os
import pathlib
import sys
import time

import keras_audiolm  # chooses the backend  # isort: skip
import keras
import numpy as np

from keras_audiolm.codec.discriminators import Discriminators
from keras_audiolm.codec.losses import MelSpectralLoss, PerceptualLoss
from keras_audiolm.codec.training import SoundStreamTrainer
from keras_audiolm.data.audio import load_audio
from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.evaluation.codec import codebook_use, compare, reconstruct
from keras_audiolm.evaluation.perceptual import MEASURES, WordErrors

ARCHITECTURES = {
    # The paper's, at half its width.
    "wave": dict(channels=16, embedding_dim=64),
    "light": dict(
        channels=64,
        strides=(5, 2, 2),
        stem_stride=16,
        unit="separable",
        max_groups=4,
        activation="leaky_relu",
        embedding_dim=64,
    ),
    "mdct": dict(
        channels=224,
        strides=(1,),
        embedding_dim=64,
        transform="mdct",
        noise_filling=True,
    ),
    "spectrogram": dict(
        channels=224, strides=(1,), embedding_dim=64, transform="spectrogram"
    ),
}
QUANTIZER = dict(
    num_quantizers=8,
    codebook_size=1024,
    codebook_decay=0.99,
    quantizer_dropout=0.5,
)
# One thing at a time that is otherwise: arguments of the codec, the judges and
# the trainer.
OPTIONS = {
    "none": {},
    "no noise filling": dict(codec=dict(noise_filling=False)),
    "convnext units": dict(
        codec=dict(unit="convnext", dilations=(1, 3, 9) * 2, channels=176)
    ),
    "codes of 8 dimensions": dict(codec=dict(code_dim=8)),
    "a beam of 16": dict(codec=dict(beam_width=16)),
    "first level split off": dict(codec=dict(code_dim=8, split_first=True)),
    "spectral judges alone": dict(
        judges=dict(scales=(), stft_windows=(2048, 1024, 512))
    ),
    "absolute feature loss": dict(
        trainer=dict(relative_features=False, feature_weight=100.0)
    ),
    "the paper's spectral loss": dict(
        trainer=dict(reconstruction_loss=MelSpectralLoss)
    ),
}
BATCH_SIZE = 4
STEPS_PER_EPOCH = 100
JUDGED_SAMPLES = 6000
# The part of the budget before the discriminators join.
ALONE = 2 / 3
WARMUP_STEPS = 100
# Seconds of processor time between checkpoints.
CHECKPOINT_INTERVAL = 150
CLIP_SECONDS = (1.5, 8.0)


JUDGES = dict(
    wave_channels=8,
    max_wave_channels=256,
    stft_channels=8,
    scales=(1,),
    stft_windows=(1024,),
)
TRAINER = dict(
    reconstruction_loss=PerceptualLoss,
    commitment_weight=5.0,
    feature_weight=4.0,
    relative_features=True,
)


def make_codec(architecture, option="none", **changes):
    config = {**ARCHITECTURES[architecture], **QUANTIZER}
    config.update(OPTIONS[option].get("codec", {}), **changes)
    return keras_audiolm.SoundStream(**config, name="codec")


def make_trainer(codec, judged, option="none"):
    jury = None
    if judged:
        judges = {**JUDGES, **OPTIONS[option].get("judges", {})}
        jury = Discriminators(**judges, name="discriminators")
    config = {**TRAINER, **OPTIONS[option].get("trainer", {})}
    loss = config.pop("reconstruction_loss")()
    trainer = SoundStreamTrainer(
        codec, jury, loss, judged_samples=JUDGED_SAMPLES, **config
    )
    trainer.build()
    return trainer


class Budget(keras.callbacks.Callback):
    """Learning rate by the budget spent, checkpoints, and the end.

    Args:
        out: folder of the checkpoint.
        minutes: of processor time, in all.
        until: the part of them at which to stop.
        peak: highest learning rate.
    """

    def __init__(self, out, minutes, until, peak):
        super().__init__()
        self.out = out
        self.budget = 60.0 * minutes
        self.until = until
        self.peak = peak
        self.state = {"epoch": 0, "seconds": 0.0, "judged": False}
        if (out / "state.json").is_file():
            self.state = json.loads((out / "state.json").read_text())
        self.saved = self.clock = time.process_time()

    @property
    def spent(self):
        return self.state["seconds"] / self.budget

    def on_epoch_begin(self, epoch, logs=None):
        done = min(self.spent, 1.0)
        rate = self.peak * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * done)))
        rate *= min((epoch + 1) * STEPS_PER_EPOCH / WARMUP_STEPS, 1.0)
        for optimizer in optimizers(self.model):
            optimizer.learning_rate = rate

    def on_epoch_end(self, epoch, logs=None):
        now = time.process_time()
        self.state["seconds"] += now - self.clock
        self.state["epoch"] = epoch + 1
        self.clock = now
        figures = {k: round(float(v), 4) for k, v in logs.items()}
        line = {**self.state, "minutes": self.state["seconds"] / 60, **figures}
        with open(self.out / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        over = self.spent >= self.until
        if over or now - self.saved > CHECKPOINT_INTERVAL:
            self.saved = now
            save(self.model, self.out, self.state)
        if over:
            self.model.stop_training = True


def optimizers(model):
    optimizer = model.optimizer
    return getattr(optimizer, "optimizers", None) or [optimizer]


def save(trainer, out, state):
    """Weights and state, each whole; the state last."""
    trainer.save_weights(out / "next.weights.h5")
    os.replace(out / "next.weights.h5", out / "trainer.weights.h5")
    (out / "state.tmp").write_text(json.dumps(state))
    os.replace(out / "state.tmp", out / "state.json")


def adam(rate, **kwargs):
    return keras.optimizers.AdamW(
        rate, weight_decay=1e-4, clipnorm=1.0, **kwargs
    )


def make_optimizer(judged):
    if not judged:
        return adam(1e-3, beta_2=0.98)
    gan = dict(beta_1=0.5, beta_2=0.9)
    judges = {r".*discriminators/.*": adam(1e-3, **gan)}
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(1e-3, **gan), judges)
    )


def train(args):
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    crops = AudioCrops(
        sorted((args.corpus / "train").rglob("*.flac")),
        sample_rate=16000,
        duration=args.crop_duration,
        batch_size=BATCH_SIZE,
        steps_per_epoch=STEPS_PER_EPOCH,
        speed_range=args.speed_range,
        gain_db=args.gain_db,
    )
    changes = {}
    if args.dropout is not None:
        changes["quantizer_dropout"] = args.dropout
    codec = make_codec(args.architecture, args.option, **changes)
    if args.start:
        codec.build()
        start = keras_audiolm.SoundStream.from_preset(args.start)
        codec.set_weights(start.get_weights())
    if args.decoder_only:
        codec.freeze_codes()
    for judged, until in ((False, args.alone), (True, 1.0)):
        budget = Budget(out, args.minutes, until, args.learning_rate)
        if budget.spent >= until:
            continue
        trainer = make_trainer(codec, judged, args.option)
        trainer.compile(make_optimizer(judged))
        trainer.optimizer.build(trainer.trainable_variables)
        restore(trainer, codec, out, budget.state, judged)
        crops.epoch = budget.state["epoch"]
        budget.state["judged"] = judged
        trainer.fit(
            crops,
            epochs=10**6,
            initial_epoch=budget.state["epoch"],
            shuffle=False,
            verbose=0,
            callbacks=[budget],
        )
        codec.save_weights(out / "codec.weights.h5")
    codec.build()
    codec.load_weights(out / "codec.weights.h5")
    write_result(
        out,
        architecture=args.architecture,
        option=args.option,
        minutes=args.minutes,
        **measure(codec, Held(args)),
    )


def restore(trainer, codec, out, state, judged):
    """Goes on from the checkpoint, or from the end of the part before."""
    if state["epoch"] == 0:
        return
    if state["judged"] == judged:
        trainer.load_weights(out / "trainer.weights.h5")
    else:
        codec.load_weights(out / "codec.weights.h5")


class Held:
    """The held-out recordings of a usual length, and what is measured.

    Args:
        args: the command line's `corpus`, `limit`, `measures` and `whisper`.
    """

    def __init__(self, args):
        with open(args.corpus / "manifest.csv", newline="") as file:
            rows = [r for r in csv.DictReader(file) if r["split"] == "held_out"]
        clips = [load_audio(args.corpus / r["path"], 16000) for r in rows]
        low, high = CLIP_SECONDS
        kept = [
            (row["language"], clip)
            for row, clip in zip(rows, clips, strict=True)
            if low <= len(clip) / 16000 <= high
        ][: args.limit]
        self.languages, self.clips = map(list, zip(*kept, strict=True))
        self.measures = args.measures
        self.words = WordErrors(args.whisper) if args.whisper else None
        if self.words:
            self.transcripts = [self.words.transcribe(c) for c in self.english]

    @property
    def english(self):
        return self.of_language("en", self.clips)

    def of_language(self, language, clips):
        pairs = zip(self.languages, clips, strict=True)
        return [clip for name, clip in pairs if name == language]

    def compare(self, made):
        """All measures of what became of the clips."""
        result = compare(self.clips, made, 16000, self.measures)
        if self.words:
            made = self.of_language("en", made)
            errors = self.words.rate(self.transcripts, made)
            result["word_errors"] = errors["word_error_rate"]
        return result

    def by_language(self, made):
        return {
            name: compare(
                self.of_language(name, self.clips),
                self.of_language(name, made),
                16000,
                self.measures,
            )
            for name in sorted(set(self.languages))
        }


def measure(codec, held):
    """Held-out clips through the codec, at every number of levels."""
    levels = []
    for count in range(1, codec.num_quantizers + 1):
        made = reconstruct(codec, held.clips, count)
        levels.append(held.compare(made))
    codes = [codec.encode(clip[None])[0] for clip in held.clips]
    return {
        "parameters": codec.count_params(),
        "best": levels[-1],
        "levels": levels,
        "languages": held.by_language(made),
        "codebooks": codebook_use(np.concatenate(codes), codec.codebook_size),
    }


def write_result(out, **result):
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["best"], indent=1))


def export(args):
    """The codec of a run as a preset, with weights of 16 bits."""
    run = json.loads((args.run_folder / "result.json").read_text())
    codec = make_codec(run["architecture"], run["option"])
    codec.build()
    codec.load_weights(args.run_folder / "codec.weights.h5")
    codec.save_to_preset(args.out, card=args.card.read_text(), dtype="float16")


def preset(args):
    """The codec of a preset as it is."""
    codec = keras_audiolm.SoundStream.from_preset(args.preset)
    write_result(
        args.out,
        architecture=str(args.preset),
        **measure(codec, Held(args)),
    )


# === Opus ===


def opus(args):
    """The same clips through Opus, at its default variable bit rate."""
    held = Held(args)
    made, bits = zip(
        *(through_opus(clip, args.bit_rate) for clip in held.clips), strict=True
    )
    rate = sum(bits) / sum(len(clip) for clip in held.clips) * 16000
    write_result(
        args.out,
        architecture=f"Opus, {rate / 1000:.1f} kbps",
        best=held.compare(made),
        languages=held.by_language(made),
    )


def through_opus(clip, bit_rate, sample_rate=16000):
    """A clip through libopus and back, with its delay taken off.

    Returns:
        `(samples,)` float32, and the bits of the packets.
    """
    import av
    import soxr

    file, bits = io.BytesIO(), 0
    with av.open(file, "w", format="ogg") as box:
        stream = box.add_stream("libopus", rate=sample_rate, layout="mono")
        stream.bit_rate = bit_rate
        stream.options = {"application": "voip"}
        pcm = np.round(clip.clip(-1, 1) * 32767).astype("int16")
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate = sample_rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            bits += 8 * packet.size
            box.mux(packet)
    file.seek(0)
    with av.open(file) as box:
        rate = box.streams.audio[0].rate
        frames = [f.to_ndarray().reshape(-1) for f in box.decode(audio=0)]
    made = np.concatenate(frames).astype("float32")
    made = soxr.resample(made, rate, sample_rate)[: len(clip)]
    return np.pad(made, (0, len(clip) - len(made))), bits


# === Report ===


COLUMNS = {
    "pesq_wb": ("PESQ-WB", ".2f"),
    "stoi": ("STOI", ".3f"),
    "visqol": ("ViSQOL", ".2f"),
    "speaker_similarity": ("speaker", ".3f"),
    "word_errors": ("WER", ".1%"),
    "si_sdr_db": ("SI-SDR dB", ".1f"),
    "log_mel_distance": ("log-mel", ".2f"),
}


def table(args):
    """The runs as Markdown, best PESQ first; of one run also its parts."""
    runs = [json.loads((r / "result.json").read_text()) for r in args.runs]
    runs.sort(key=lambda r: -r["best"]["pesq_wb"])
    print(rows({name_of(run): run["best"] for run in runs}))
    if len(runs) == 1 and "levels" in runs[0]:
        levels = dict(enumerate(runs[0]["levels"], 1))
        print("\n" + rows({f"{k} levels": v for k, v in levels.items()}))
        print("\n" + rows(runs[0]["languages"]))


def plot(args):
    """The runs' reconstruction losses over their minutes, as a picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for folder in args.runs:
        lines = (folder / "log.jsonl").read_text().splitlines()
        log = [json.loads(line) for line in lines]
        minutes = [line["minutes"] for line in log]
        losses = [line["reconstruction_loss"] for line in log]
        result = json.loads((folder / "result.json").read_text())
        (curve,) = axes.plot(minutes, losses, label=name_of(result))
        joined = [line["minutes"] for line in log if line["judged"]][:1]
        for minute in joined:
            axes.axvline(minute, color=curve.get_color(), ls=":", lw=0.8)
    axes.set(
        xlabel="minutes of one core (dotted: discriminators join)",
        ylabel="reconstruction loss",
        yscale="log",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.out, dpi=120)


def name_of(run):
    name = run["architecture"]
    if run.get("option", "none") != "none":
        name += f", {run['option']}"
    if "parameters" in run:
        name += f", {run['parameters'] / 1e6:.1f} M"
    if "minutes" in run:
        name += f", {run['minutes']:g} minutes"
    return name


def rows(results):
    columns = [c for c in COLUMNS if c in next(iter(results.values()))]
    titles = " | ".join(COLUMNS[c][0] for c in columns)
    lines = [f"| | {titles} |", "|---|" + "---:|" * len(columns)]
    for name, result in results.items():
        cells = [format(result[c], COLUMNS[c][1]) for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def add(run):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        if run not in (table, plot):
            command.add_argument("corpus", type=pathlib.Path)
            command.add_argument("--limit", type=int, help="clips to measure")
            command.add_argument(
                "--measures",
                nargs="+",
                choices=MEASURES,
                default=["pesq_wb", "stoi"],
            )
            command.add_argument(
                "--whisper", help="model (or folder) that counts word errors"
            )
            command.add_argument("--out", type=pathlib.Path, required=True)
        return command

    command = add(train)
    command.add_argument("--architecture", choices=ARCHITECTURES, required=True)
    command.add_argument("--option", choices=OPTIONS, default="none")
    command.add_argument("--minutes", type=float, default=60.0)
    command.add_argument("--alone", type=float, default=ALONE)
    command.add_argument("--learning-rate", type=float, default=1e-3)
    command.add_argument("--start", help="preset whose weights to begin with")
    command.add_argument(
        "--dropout",
        type=float,
        help="part of the examples that are trained with fewer levels",
    )
    command.add_argument(
        "--crop-duration", type=float, default=1.0, help="seconds"
    )
    for name, default in (
        ("--speed-range", (0.8, 1.25)),
        ("--gain-db", (-12.0, 3.0)),
    ):
        command.add_argument(
            name,
            nargs=2,
            type=float,
            default=default,
            metavar=("LEAST", "MOST"),
            help="default: %(default)s",
        )
    command.add_argument(
        "--decoder-only",
        action="store_true",
        help="keep the codes of --start, and what was made of them",
    )
    command = commands.add_parser("export")
    command.set_defaults(run=export)
    command.add_argument("run_folder", type=pathlib.Path)
    command.add_argument("--card", type=pathlib.Path, required=True)
    command.add_argument("--out", type=pathlib.Path, required=True)
    add(preset).add_argument("--preset", required=True)
    add(opus).add_argument("--bit-rate", type=int, required=True)
    for report in (table, plot):
        command = add(report)
        command.add_argument("runs", type=pathlib.Path, nargs="+")
    command.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
