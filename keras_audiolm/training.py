"""Trains the parts of a pipeline in order, and resumes after a stop."""

import json
import math
import os
import pathlib
import shutil
import tempfile
import zlib

import keras
import numpy as np

from keras_audiolm.backup import Backup
from keras_audiolm.data.audio import check_local, find_audio_files
from keras_audiolm.data.batches import (
    FollowEpochs,
    Rest,
    check_distribution,
    share,
)
from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.data.store import (
    check_metadata,
    is_store,
    make_metadata,
)
from keras_audiolm.data.tokens import (
    TokenCorpus,
    TokenCrops,
    tokenize_corpus,
)
from keras_audiolm.language_model.layout import (
    PADDING,
    from_start,
    without_repeats,
)
from keras_audiolm.layers.checksum import weights_checksum
from keras_audiolm.layers.distribution import process, refuse_replicas
from keras_audiolm.presets import PARTS

LANGUAGE_MODELS = ("semantic_lm", "coarse_lm", "fine_lm", "parallel_decoder")
TOKEN_MODELS = ("codec", "semantic_tokenizer")
# Seconds of the crops of the parts that hear audio. The language models know
# their own.
CROP_DURATION = {"codec": 1.0, "semantic_tokenizer": 6.0}
BATCH_SIZE = {
    "codec": 12,
    "semantic_tokenizer": 16,
    "semantic_lm": 8,
    "coarse_lm": 4,
    "fine_lm": 4,
    "parallel_decoder": 4,
    "detector": 32,
}
# Steps between backups.
BACKUP_EVERY = 1000
# Batches of crops that k-means sees in a pass.
KMEANS_BATCHES = 64


class Plan:
    """What to train on, for how long, and where to keep what is made.

    Args: those of `AudioLMPipeline.fit`.
    """

    def __init__(
        self,
        files,
        validation_files,
        epochs,
        steps_per_epoch,
        batch_size,
        token_dir,
        checkpoint_dir,
        backup_every,
        speed_range,
        callbacks,
        verbose,
        seed,
    ):
        for folder in (token_dir, checkpoint_dir):
            check_local(folder or "")
        self.files = list_files(files)
        self.validation_files = (
            None if validation_files is None else list_files(validation_files)
        )
        check_counts(
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            backup_every=backup_every,
        )
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.token_dir = token_dir
        self.checkpoint_dir = checkpoint_dir and pathlib.Path(checkpoint_dir)
        self.backup_every = backup_every
        self.speed_range = speed_range
        self.callbacks = list(callbacks or [])
        self.verbose = verbose
        self.seed = seed

    def of(self, name, part, default=None):
        """A setting for a part: a number for all, or a dictionary by part."""
        value = getattr(self, name)
        if isinstance(value, dict):
            value = value.get(part)
        return default if value is None else value

    def settings(self, part):
        """What a part was trained with, as its checkpoints say it."""
        return {
            "epochs": self.of("epochs", part),
            "steps_per_epoch": self.of("steps_per_epoch", part),
            "batch_size": self.of("batch_size", part),
            "seed": self.seed,
            "files": len(self.files),
        }


def list_files(data):
    """The audio files of a folder, or a list of files as it is; of a store of
    tokens, its `TokenCorpus`."""
    if isinstance(data, (str, pathlib.Path)):
        return TokenCorpus(data) if is_store(data) else find_audio_files(data)
    files = [pathlib.Path(path) for path in data]
    if not files:
        raise ValueError("There are no files to train on: the list is empty.")
    return files


def check_counts(**settings):
    for name, value in settings.items():
        by_part = value if isinstance(value, dict) else {"": value}
        values = by_part.values()
        for part in by_part:
            if part and part not in PARTS:
                raise ValueError(
                    f"`{name}` names a part {part!r}. Parts are "
                    f"{', '.join(PARTS)}."
                )
        if any(v is not None and v < 1 for v in values):
            raise ValueError(f"`{name}` must be 1 or more. Received: {value}")


def fit_parts(pipeline, parts, plan):
    """Trains `parts` in the order in which they need each other.

    Returns:
        Dictionary by part of Keras's history.
    """
    history = {}
    with tempfile.TemporaryDirectory() as scratch:
        token_dir = pathlib.Path(plan.token_dir or scratch)
        corpora = {}
        for part in [p for p in pipeline.part_names if p in parts]:
            if plan.verbose:
                print(f"Training {part} ...", flush=True)
            if part in LANGUAGE_MODELS and not corpora:
                corpora = tokenize_all(pipeline, plan, token_dir)
            done = Finished(plan, part, pipeline)
            if done.load():
                history[part] = {}
            else:
                history[part] = _fit_part(
                    pipeline, part, plan, corpora, token_dir
                )
                done.save()
            pipeline.mark_trained(part)
    return history


def _fit_part(pipeline, part, plan, corpora, token_dir):
    for files in (plan.files, plan.validation_files):
        if part not in LANGUAGE_MODELS and isinstance(files, TokenCorpus):
            raise ValueError(
                f"The part {part!r} is trained on audio, and {files.folder} "
                "holds tokens. Give recordings, or train the language models "
                "alone: parts=['semantic_lm', 'coarse_lm', 'fine_lm']"
            )
    if part == "codec":
        return fit_codec(pipeline, plan)
    if part == "semantic_tokenizer":
        return fit_semantic_tokenizer(pipeline, plan)
    if part == "detector":
        return fit_detector(pipeline, plan, token_dir / "detector")
    return fit_language_model(pipeline, part, plan, corpora)


class Finished:
    """A part whose training was finished by an earlier, stopped call."""

    def __init__(self, plan, part, pipeline):
        self.model = pipeline.part(part)
        self.folder = plan.checkpoint_dir and plan.checkpoint_dir / part
        self.settings = plan.settings(part)

    def load(self):
        """Loads the part's weights, if they were trained as asked for now."""
        if not self.folder or not (self.folder / "done.json").is_file():
            return False
        if json.loads((self.folder / "done.json").read_text()) != self.settings:
            return False
        self.model.load_weights(self.folder / "model.weights.h5")
        return True

    def save(self):
        if not self.folder or process()[0] > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, self.folder / "model.weights.h5")
        temporary = self.folder / "done.tmp"
        temporary.write_text(json.dumps(self.settings))
        os.replace(temporary, self.folder / "done.json")
        shutil.rmtree(self.folder / "backup", ignore_errors=True)


def save_weights(model, path):
    """`model.save_weights`, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    model.save_weights(temporary)
    os.replace(temporary, path)


# === Parts that hear audio ===


def fit_codec(pipeline, plan):
    trainer = codec_trainer(pipeline)
    trainer.build()
    crops, validation = audio_crops(pipeline, "codec", plan)
    if process()[1] > 1:
        # In `fit`, each process would start them from its own rows.
        trainer.initialize_codebooks(crops)
    return run_fit(trainer, "codec", plan, crops, validation)


def codec_trainer(pipeline):
    """The trainer that `compile` was given, or one that suits the codec."""
    from keras_audiolm.codec.losses import PerceptualLoss
    from keras_audiolm.codec.training import (
        SoundStreamTrainer,
        check_trainable,
    )

    codec = pipeline.codec
    given = pipeline.optimizer("codec")
    if isinstance(given, SoundStreamTrainer):
        if given.codec is not codec:
            raise ValueError(
                "The trainer given to compile(codec=...) trains another "
                "codec. Make it from this pipeline's: "
                "SoundStreamTrainer(pipeline.codec)"
            )
        return given
    check_trainable(codec)
    if codec.transform:
        trainer = SoundStreamTrainer(
            codec,
            discriminators=None,
            reconstruction_loss=PerceptualLoss(
                codec.sample_rate,
                transform_hop=codec.hop_length,
                # Of phases, which only waveforms keep.
                transform_weight=1.0 if codec.transform == "mdct" else 0.0,
            ),
            commitment_weight=5.0,
        )
        optimizer = keras.optimizers.AdamW(4e-4, beta_2=0.98, clipnorm=1.0)
    else:
        trainer = SoundStreamTrainer(codec)
        optimizer = trainer.make_optimizer()
    trainer.compile(given or optimizer)
    return trainer


def fit_semantic_tokenizer(pipeline, plan):
    """The encoder, then k-means on what it says."""
    tokenizer = pipeline.semantic_tokenizer
    encoder, history = tokenizer.encoder, {}
    if getattr(encoder, "self_supervised", False):
        encoder.remat = pipeline.remat
        encoder.compile(
            pipeline.optimizer("semantic_tokenizer")
            or keras.optimizers.AdamW(1e-3, beta_2=0.98, clipnorm=1.0)
        )
        crops, validation = audio_crops(pipeline, "semantic_tokenizer", plan)
        history = run_fit(
            encoder, "semantic_tokenizer", plan, crops, validation
        )
    clean = audio_crops(
        pipeline, "semantic_tokenizer", plan, for_clusters=True
    )[0]
    tokenizer.fit_kmeans(
        lambda: (clean[i] for i in range(clean.steps_per_epoch))
    )
    return history


def audio_crops(pipeline, part, plan, for_clusters=False):
    """Crops to train a part on, and to validate it on or `None`."""
    duration = CROP_DURATION[part]
    batch_size = plan.of("batch_size", part, BATCH_SIZE[part])

    def crops(files, steps, **kwargs):
        made = AudioCrops(
            files,
            sample_rate=pipeline.part(part).sample_rate,
            duration=duration,
            batch_size=batch_size,
            steps_per_epoch=steps or 1,
            seed=plan.seed,
            **kwargs,
        )
        made.steps_per_epoch = steps or max(
            round(made.total_duration / duration / batch_size), 1
        )
        return made

    if for_clusters:
        return crops(plan.files, KMEANS_BATCHES), None
    training = crops(
        plan.files,
        plan.of("steps_per_epoch", part),
        speed_range=plan.speed_range,
    )
    if plan.validation_files is None:
        return training, None
    return training, crops(plan.validation_files, None, same_every_epoch=True)


# === Language models ===


def tokenize_all(pipeline, plan, token_dir):
    """The corpora of training and validation tokens."""
    splits = {"training": plan.files, "validation": plan.validation_files}
    return {
        name: tokenize_split(pipeline, files, token_dir / name)
        for name, files in splits.items()
        if files is not None
    }


def tokenize_split(pipeline, files, folder):
    """The `TokenCorpus` of files, kept in a folder, or of a store."""
    metadata = token_metadata(pipeline)
    if isinstance(files, TokenCorpus):
        check_metadata(files.folder, files.metadata, metadata, TOKEN_MODELS)
        return files
    tokenize = pipeline.tokenize_many
    if process()[1] > 1:
        tokenize = refuse_to_tokenize
    return tokenize_corpus(files, folder, tokenize, metadata)


def token_metadata(pipeline, trim_silence=False, licence=None):
    """What a store says of the tokens that a pipeline makes.

    Args:
        pipeline: `AudioLMPipeline`.
        trim_silence: bool. Whether silence at both ends of a recording is cut
            off.
        licence: str, optional. That of the recordings.
    """
    pipeline._require(TOKEN_MODELS, "Tokenizing")
    codec, tokenizer = pipeline.codec, pipeline.semantic_tokenizer

    def describe(layers, frame_rate, codes, **others):
        return {
            "preset": pipeline.preset,
            "weights": f"{weights_checksum(*layers):08x}",
            "frame_rate": float(frame_rate),
            "codes": int(codes),
            **others,
        }

    rate = pipeline.sample_rate
    return make_metadata(
        codec=describe(
            codec.encoding_layers(),
            rate / codec.hop_length,
            codec.codebook_size,
            levels=int(codec.num_quantizers),
        ),
        semantic_tokenizer=describe(
            [tokenizer], rate / pipeline.semantic_hop, tokenizer.codebook_size
        ),
        sample_rate=rate,
        unit=pipeline.unit,
        min_duration=pipeline.unit_samples / rate,
        trim_silence=trim_silence,
        licence=licence,
    )


def refuse_to_tokenize(clips):
    raise ValueError(
        "Tokens are made by one process and read by all, and there are some "
        "missing in token_dir. Call fit in a single process first, with the "
        "same token_dir; it may be stopped once it begins to train."
    )


def fingerprint(pipeline):
    """A checksum of the weights that tokens depend on."""
    pipeline._require(TOKEN_MODELS, "Tokenizing")
    checksum = weights_checksum(
        *pipeline.codec.encoding_layers(), pipeline.semantic_tokenizer
    )
    return f"{checksum:08x}"


def fit_language_model(pipeline, part, plan, corpora):
    model = pipeline.part(part)
    pipeline._check_language_model(part)
    batch_size = plan.of("batch_size", part, BATCH_SIZE[part])
    seconds = pipeline.unit_samples / pipeline.sample_rate
    units = max(round(model.crop_duration / seconds), 1)
    coarse = model if part == "parallel_decoder" else pipeline.coarse_lm
    levels = coarse.layout.predicted.levels

    def crops(corpus, steps, **kwargs):
        made = TokenCrops(
            corpus,
            units,
            stage_inputs(model.layout, levels),
            batch_size,
            steps or 1,
            seed=plan.seed,
            **kwargs,
        )
        made.steps_per_epoch = steps or max(
            round(made.ends[-1] / units / batch_size), 1
        )
        return made

    training = crops(corpora["training"], plan.of("steps_per_epoch", part))
    validation = None
    if "validation" in corpora:
        validation = crops(corpora["validation"], None, same_every_epoch=True)
    model.build()
    if model.layout.predicted.deduplicated:
        model.frames_per_token.assign(corpora["training"].mean_run)
    steps = training.steps_per_epoch * plan.of("epochs", part, 1)
    getattr(model, "backbone", model).remat = pipeline.remat
    model.compile(pipeline.optimizer(part) or default_optimizer(model, steps))
    return run_fit(model, part, plan, training, validation)


def stage_inputs(layout, coarse_levels):
    """A function from aligned tokens, as of `TokenCrops`, to the inputs of a
    stage with this layout."""

    def split(semantic, acoustic, last):
        codes = {
            "semantic": semantic[..., None],
            "coarse": acoustic[..., :coarse_levels],
            "fine": acoustic[..., coarse_levels:],
        }
        inputs = {s.name: codes[s.name] for s in layout.segments}
        for segment in layout.segments:
            block = inputs[segment.name]
            if segment.ends:
                block = with_ends(block, last, segment.end_code)
            if segment.deduplicated:
                frames = block.shape[1]
                block = from_start(without_repeats(block))
                block = np.pad(
                    block,
                    [(0, 0), (0, frames - block.shape[1]), (0, 0)],
                    constant_values=PADDING,
                )
            inputs[segment.name] = block
        return inputs

    return split


def with_ends(codes, last, end_code):
    """Codes of crops, with a code where a recording is over.

    Args:
        codes: `(batch, frames, 1)` int32.
        last: `(batch, units)` bool, the units that are the last of a
            recording.
        end_code: int.

    Returns:
        `(batch, frames, 1)` int32: what follows an end stands a frame later,
        and the last frames may be cut off.
    """
    step = codes.shape[1] // last.shape[1]
    result = np.empty_like(codes)
    for row, ends in enumerate(last):
        places = (np.flatnonzero(ends) + 1) * step
        longer = np.insert(codes[row], places, end_code, axis=0)
        result[row] = longer[: codes.shape[1]]
    return result


def default_optimizer(model, steps):
    """AdamW with warm-up and cosine decay; wider models go slower."""
    width = getattr(model, "backbone", model).hidden_dim
    peak = 0.016 / math.sqrt(width)
    warmup = min(max(steps // 20, 1), 1000)
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            max(steps - warmup, 1),
            alpha=0.05,
            warmup_target=peak,
            warmup_steps=warmup,
        ),
        weight_decay=0.01,
        beta_2=0.98,
        clipnorm=1.0,
    )


# === The detector ===


def fit_detector(pipeline, plan, folder):
    """Makes examples with the pipeline itself, and learns to tell them."""
    from keras_audiolm.evaluation import detector as detectors

    makers = [n for n in pipeline.trained_parts if n != "detector"]
    checksum = weights_checksum(*map(pipeline.part, makers))
    sampling = zlib.crc32(repr(pipeline.sampling).encode())
    examples = detectors.make_examples(
        pipeline,
        plan.files,
        # What other weights or other settings made is another kind of sound.
        folder / f"{checksum:08x}-{sampling:08x}",
        detectors.EXAMPLE_SECONDS,
        plan.seed,
    )
    model = pipeline.part("detector")
    batch_size = plan.of("batch_size", "detector", BATCH_SIZE["detector"])
    crops = detectors.detector_crops(
        model,
        examples,
        crops_per_class=max(batch_size // 2, 1),
        steps_per_epoch=plan.of("steps_per_epoch", "detector", 600),
        seed=plan.seed,
    )
    steps = len(crops) * plan.of("epochs", "detector", 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=3e-3, warmup_steps=min(20, steps)
    )
    model.compile(
        pipeline.optimizer("detector")
        or keras.optimizers.AdamW(schedule, weight_decay=0.01)
    )
    return run_fit(model, "detector", plan, crops, None)


# === The loop ===


def run_fit(model, part, plan, training, validation):
    """`fit`, resumable: the same steps whether it is stopped or not.

    Returns:
        The history, with the epochs before a stop.
    """
    refuse_replicas()
    check_distribution(part, plan.of("batch_size", part, BATCH_SIZE[part]))
    callbacks = [FollowEpochs(training), *plan.callbacks]
    epochs = plan.of("epochs", part, 1)

    def fit(crops, first, last):
        return model.fit(
            share(crops),
            validation_data=share(validation),
            epochs=last,
            initial_epoch=first,
            shuffle=False,
            callbacks=callbacks,
            verbose=plan.verbose,
        )

    if not plan.checkpoint_dir:
        return fit(training, 0, epochs).history
    backup = Backup(
        plan.checkpoint_dir / part / "backup",
        plan.settings(part),
        plan.of("backup_every", part, BACKUP_EVERY),
    )
    backup.restore(model)
    callbacks.append(backup)
    if backup.step:
        # All epochs of a `fit` have as many steps: the rest of the one that
        # was stopped is a `fit` of its own.
        rest = Rest(training, backup.step)
        fit(rest, backup.epoch, backup.epoch + 1)
        if model.stop_training:
            return backup.history
        backup.restore_end_of_epoch(model)
    fit(training, backup.epoch, epochs)
    return backup.history
