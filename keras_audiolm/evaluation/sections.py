"""The measurements of a preset, one method a section of the report."""

import dataclasses
import functools
import pathlib
import warnings
import zlib

import keras
import numpy as np
import soxr

from keras_audiolm import training
from keras_audiolm.codec.soundstream import SoundStream
from keras_audiolm.data.audio import load_audio, save_audio
from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.evaluation import detector as detectors
from keras_audiolm.evaluation import generation, labels
from keras_audiolm.evaluation.abx import abx
from keras_audiolm.evaluation.codec import codebook_use, compare, reconstruct
from keras_audiolm.evaluation.corpus import SPLITS
from keras_audiolm.evaluation.frechet import (
    encoder_embedding,
    frechet_audio_distance,
)
from keras_audiolm.evaluation.language import real_against, unit_perplexity
from keras_audiolm.evaluation.memorisation import (
    longest_shared_runs,
    nearest_distances,
)
from keras_audiolm.evaluation.music import compare_music
from keras_audiolm.evaluation.perceptual import MEASURES, WordErrors
from keras_audiolm.evaluation.stages import stage_loss
from keras_audiolm.evaluation.zerospeech import sblimp, swuggy
from keras_audiolm.language_model.layout import without_repeats

# Prompts whose sound the report plays.
EXAMPLES = 4
# What stands for real sound where a collapse is looked for.
REFERENCE_CROPS = 200
# A run of more than these seconds that stands in the training set counts as
# memorised.
MEMORISED_SECONDS = 2.0


@dataclasses.dataclass
class Settings:
    """What is measured, and how long it may take.

    Args:
        prompts: int, optional. Held-out recordings that are continued and
            resynthesized. Defaults to all that are long enough.
        seeds: int. Continuations of each.
        prompt_duration, duration: float. Seconds of a prompt, and new ones.
        batch_size: int. Sounds made at once.
        asr: name or folder of a faster-whisper model, optional. Without one,
            word errors are left out.
        asr_language: str. The language of the files that it hears.
        abx: path of an item file of the data, optional. Without one, ABX is
            left out.
        zerospeech: folder of the ZeroSpeech 2021 data set, optional. Without
            it, sWUGGY and sBLIMP are left out.
    """

    prompts: int | None = None
    seeds: int = 3
    prompt_duration: float = 3.0
    duration: float = 7.0
    batch_size: int = 8
    asr: str | None = None
    asr_language: str = "en"
    abx: str | None = None
    zerospeech: str | None = None


class LeftOut(Exception):
    """A section that cannot be measured; the message says why."""


class Evaluation:
    """The measurements of a pipeline on a corpus, one method a section.

    What takes long, tokens, classifiers and sounds, is made once, when it is
    first asked for; tokens and classifiers are kept in `folder` for the next
    time.

    Args:
        pipeline: `AudioLMPipeline`, trained.
        corpus: `Corpus`.
        folder: path.
        settings: `Settings`.
    """

    def __init__(self, pipeline, corpus, folder, settings):
        self.pipeline = pipeline
        self.corpus = corpus
        self.folder = pathlib.Path(folder)
        self.settings = settings
        self._reconstructed = {}

    # === Made once ===

    @functools.cached_property
    def tokens(self):
        """`TokenCorpus` by split; without training files, the held-out one
        alone."""
        files = {split: self.corpus.files(split) for split in SPLITS}
        folder = self.folder / "tokens" / training.fingerprint(self.pipeline)
        return {
            split: training.tokenize_split(
                self.pipeline,
                paths,
                folder / f"{split}-{zlib.crc32(repr(paths).encode()):08x}",
            )
            for split, paths in files.items()
            if paths
        }

    @functools.cached_property
    def pairs(self):
        """Row and audio of the recordings that are continued."""
        pairs = self.corpus.long_enough(self.settings.prompt_duration)
        return pairs[: self.settings.prompts]

    @functools.cached_property
    def continuations(self):
        return generation.continue_prompts(
            self.pipeline,
            self.pairs,
            self.settings.prompt_duration,
            self.settings.duration,
            self.settings.seeds,
            self.settings.batch_size,
        )

    def reconstructed(self, levels=None):
        """All held-out clips through the codec, or the first of its levels."""
        levels = levels or self.pipeline.codec.num_quantizers
        if levels not in self._reconstructed:
            self._reconstructed[levels] = reconstruct(
                self.pipeline.codec, self.corpus.clips, levels
            )
        return self._reconstructed[levels]

    @functools.cached_property
    def classifiers(self):
        """By column; those that the corpus has no labels for are left out."""
        made = {}
        for column in labels.STEPS:
            try:
                made[column] = labels.get_classifier(
                    column, self.corpus, self.folder / "classifiers"
                )
            except ValueError as error:
                warnings.warn(f"Left out: {error}", stacklevel=2)
        return made

    # === Sections ===

    def codec(self):
        """How well held-out files come back, and which codes they use."""
        codec, clips = self.pipeline.codec, self.corpus.clips
        coarse = self.pipeline.coarse_lm.layout.predicted.levels
        made = {
            levels: self.reconstructed(levels)
            for levels in sorted({coarse, codec.num_quantizers})
        }
        size = np.log2(codec.codebook_size)
        frame_rate = codec.sample_rate / codec.hop_length
        return {
            "bits_per_second": {
                str(levels): float(levels * size * frame_rate)
                for levels in made
            },
            "reconstruction": {
                str(levels): compare(clips, fake, codec.sample_rate, MEASURES)
                for levels, fake in made.items()
            },
            "codebooks": self._codebooks("acoustic", codec.codebook_size),
        }

    def _codebooks(self, kind, size):
        return {
            split: codebook_use(
                np.concatenate(getattr(tokens, kind)).reshape(
                    -1, 1 if kind == "semantic" else tokens.acoustic[0].shape[1]
                ),
                size,
            )
            for split, tokens in self.tokens.items()
        }

    def tokenizer(self):
        """Use of the semantic tokens, and the encoder's losses."""
        tokenizer = self.pipeline.semantic_tokenizer
        encoder = tokenizer.encoder
        result = {
            "codebooks": self._codebooks("semantic", tokenizer.codebook_size)
        }
        if getattr(encoder, "self_supervised", False):
            encoder.compile("sgd")  # `evaluate` asks for it
            losses = encoder.evaluate(
                self._encoder_crops(), verbose=0, return_dict=True
            )
            result["encoder"] = {k: float(v) for k, v in losses.items()}
            # What an encoder that knows nothing gets.
            result["encoder_chance"] = {
                "contrastive_loss": float(np.log(1 + encoder.num_negatives)),
                "mlm_loss": float(np.log(encoder.codebook_size)),
            }
        if self.settings.abx:
            result["abx"] = self._abx()
        return result

    def _abx(self):
        """Of semantic tokens, of the activations that they come from, and of
        the sums of a codec frame's embeddings or, of other codecs, codes."""
        codec, tokenizer = self.pipeline.codec, self.pipeline.semantic_tokenizer
        files = {
            pathlib.Path(row["path"]).stem: self.corpus.folder / row["path"]
            for row in self.corpus.rows
        }

        def audio(name, sample_rate):
            if name not in files:
                raise ValueError(
                    f"{self.settings.abx} names a file {name!r}, which the "
                    "data has not."
                )
            return load_audio(files[name], sample_rate)[None]

        def activations(name):
            x = tokenizer.encoder.encode(
                audio(name, tokenizer.sample_rate), tokenizer.layer
            )
            return keras.ops.convert_to_numpy(x)[0]

        def acoustic(name):
            codes = codec.encode(audio(name, codec.sample_rate))
            if isinstance(codec, SoundStream):
                codes = codec.quantizer.decode(codes)
            return keras.ops.convert_to_numpy(codes)[0]

        kinds = {
            "semantic tokens": (
                lambda name: tokenizer.encode(
                    audio(name, tokenizer.sample_rate)
                )[0],
                tokenizer,
            ),
            "activations": (activations, tokenizer),
            "acoustic tokens": (acoustic, codec),
        }
        return {
            kind: abx(
                self.settings.abx,
                features,
                model.sample_rate / model.hop_length,
            )
            for kind, (features, model) in kinds.items()
        }

    def _encoder_crops(self):
        """The crops that `AudioLMPipeline.fit` validates the encoder on."""
        part = "semantic_tokenizer"
        duration, rows = training.CROP_DURATION[part], training.BATCH_SIZE[part]
        crops = AudioCrops(
            self.corpus.files("held_out"),
            sample_rate=self.pipeline.semantic_tokenizer.sample_rate,
            duration=duration,
            batch_size=rows,
            steps_per_epoch=1,
            same_every_epoch=True,
        )
        steps = round(crops.total_duration / duration / rows)
        crops.steps_per_epoch = max(steps, 1)
        return crops

    def language(self):
        """Cross entropy of each stage beside simpler models, and what the
        semantic one finds likelier than what."""
        stages = ("semantic_lm", "coarse_lm", "fine_lm")
        held_out = self.tokens["held_out"]
        result = {
            "stages": {
                name: stage_loss(
                    self.pipeline, name, held_out, self.tokens.get("train")
                )
                for name in self.pipeline.part_names
                if name in stages
            },
            "order": self._order(held_out.semantic),
        }
        if self.settings.zerospeech:
            result["zerospeech"] = self._zerospeech()
        return result

    def _order(self, tokens):
        """How often real tokens are likelier than in another order."""
        lm = self.pipeline.semantic_lm
        rate = float(self.pipeline.sample_rate / self.pipeline.semantic_hop)
        # A word and more.
        tokens = [row for row in tokens if len(row) >= rate]
        if not tokens:
            return {"left_out": "no held-out recording lasts a second"}
        kinds = {
            "reversed": ("reversed", 1),
            "pieces of 0.4 s shuffled": ("shuffled", round(0.4 * rate)),
            "recordings joined out of order": ("reordered", 1),
        }
        result = {"perplexity": unit_perplexity(lm, tokens), "against": {}}
        for name, (how, block) in kinds.items():
            try:
                found = real_against(lm, tokens, how, block)
            except ValueError as error:
                warnings.warn(f"Left out: {error}", stacklevel=2)
                continue
            result["against"][name] = found
        return result

    def _zerospeech(self):
        tokenizer = self.pipeline.semantic_tokenizer

        def tokenize(path):
            audio = load_audio(path, tokenizer.sample_rate)
            return tokenizer.encode(audio[None])[0]

        lm, folder = self.pipeline.semantic_lm, self.settings.zerospeech
        return {
            "sWUGGY": swuggy(lm, folder, tokenize),
            "sBLIMP": sblimp(lm, folder, tokenize),
        }

    def continuation(self):
        """Table III, and whether what is new is new, diverse and sound."""
        made = self.continuations
        clips = made.audio.reshape(-1, made.audio.shape[-1])
        tokens = [row for seed in made.semantic for row in seed]
        rows = list(made.rows) * self.settings.seeds
        self._save_continuations(made)
        prompts = list(made.prompts)
        heard = {
            "real, all held-out files": (
                [row for row, _ in self.corpus.held_out],
                self.corpus.clips,
            ),
            "real, the prompts": (made.rows, prompts),
            "the prompts through the codec": (
                made.rows,
                reconstruct(self.pipeline.codec, prompts),
            ),
            "continuations, without the prompt": (rows, clips),
        }
        duration = self.settings.duration
        usual = generation.real_range(
            self.pipeline, self._reference_files(), duration, REFERENCE_CROPS
        )
        features = list(map(generation.sound_features, clips, tokens))
        return {
            "prompts": len(made.prompts),
            "prompt_seconds": self.settings.prompt_duration,
            "new_seconds": duration,
            "seeds": self.settings.seeds,
            "heard": self._judge(heard),
            "diversity": generation.diversity(made.semantic),
            "collapse": generation.collapsed(features, usual),
            "memorisation": self._memorisation(tokens),
            "frechet_audio_distance": self._frechet(list(clips)),
        }

    def _reference_files(self):
        return self.corpus.files("train") or self.corpus.files("held_out")

    def _judge(self, heard):
        return {
            column: {
                "labels": list(classifier.labels),
                "chance": 1.0 / len(classifier.labels),
                **{
                    name: labels.judge(
                        classifier, clips, [row[column] for row in rows]
                    )
                    for name, (rows, clips) in heard.items()
                },
            }
            for column, classifier in self.classifiers.items()
        }

    def _memorisation(self, tokens):
        """Runs and windows shared with the training set, beside those that
        held-out recordings share."""
        if "train" not in self.tokens:
            return {"left_out": "the corpus has no training recordings"}
        known = self.tokens["train"].semantic
        real = self.tokens["held_out"].semantic
        if self.pipeline.semantic_lm.layout.predicted.deduplicated:
            known, real = _without_repeats(known), _without_repeats(real)
        rate = float(self.pipeline.sample_rate / self.pipeline.semantic_hop)
        window = round(rate)
        result = {"seconds": MEMORISED_SECONDS}
        for name, sequences in (("continuations", tokens), ("held_out", real)):
            runs = longest_shared_runs(sequences, known) / rate
            distances = nearest_distances(sequences, known, window)
            counts, edges = np.histogram(distances, bins=20, range=(0.0, 1.0))
            result[name] = {
                "sequences": len(sequences),
                "memorised": float(np.mean(runs > MEMORISED_SECONDS)),
                "longest_run_seconds": float(runs.max()),
                "median_run_seconds": float(np.median(runs)),
                "nearest_second": {
                    "windows": len(distances),
                    "counts": counts.tolist(),
                    "edges": edges.tolist(),
                },
            }
        return result

    def _frechet(self, clips):
        """Of continuations, and of the codec alone, to held-out files."""
        tokenizer = self.pipeline.semantic_tokenizer
        embed = encoder_embedding(tokenizer)
        here, there = self.pipeline.sample_rate, tokenizer.sample_rate

        def at_rate(clips):
            if here == there:
                return clips
            return [soxr.resample(clip, here, there) for clip in clips]

        real = at_rate(self.corpus.clips)
        kinds = {"continuations": clips, "codec": self.reconstructed()}
        try:
            return {
                name: frechet_audio_distance(real, at_rate(fake), embed, there)
                for name, fake in kinds.items()
            }
        except ValueError as error:
            return {"left_out": str(error)}

    def _save_continuations(self, made):
        samples = made.prompts.shape[1]
        for number in range(min(EXAMPLES, len(made.prompts))):
            _, clip = self.pairs[number]
            codec = reconstruct(self.pipeline.codec, [clip])[0]
            self._save_example(number, "original", clip)
            self._save_example(number, "through the codec", codec)
            for seed, audio in enumerate(made.audio[:2, number]):
                joined = np.concatenate([codec[:samples], audio])
                self._save_example(number, f"continuation, seed {seed}", joined)

    def _save_example(self, number, kind, audio):
        path = self.folder.parent / "audio" / f"{number + 1} {kind}.flac"
        save_audio(path, audio, self.pipeline.sample_rate)

    def music(self):
        """Whether continuations keep the key and the pace of their prompts."""
        rows = [row for row, _ in self.pairs]
        if not rows or any("piece" not in row for row in rows):
            raise LeftOut(
                "the data is not music: its manifest has no column piece"
            )
        made = self.continuations
        try:
            return compare_music(
                [clip for _, clip in self.pairs],
                [row["piece"] for row in rows],
                made.prompts,
                made.audio,
                self.pipeline.sample_rate,
            )
        except ValueError as error:
            raise LeftOut(str(error)) from None

    def resynthesis(self):
        """Table II: the words stay, the voice does not."""
        rows = [row for row, _ in self.pairs]
        if not self.pairs:
            raise LeftOut(
                "no held-out recording lasts "
                f"{self.settings.prompt_duration:g} seconds"
            )
        pairs = generation.resynthesize_all(
            self.pipeline,
            [clip for _, clip in self.pairs],
            batch_size=self.settings.batch_size,
        )
        real, made = zip(*pairs, strict=True)
        for number, audio in enumerate(made[:EXAMPLES]):
            self._save_example(number, "resynthesis", audio)
        coded = reconstruct(self.pipeline.codec, list(real))
        heard = {"real": real, "codec": coded, "resynthesis": made}
        return {
            "files": len(rows),
            "heard": self._judge({k: (rows, v) for k, v in heard.items()}),
            "words": self._word_errors(rows, real, coded, made),
        }

    def _word_errors(self, rows, real, coded, made):
        language = self.settings.asr_language
        if self.settings.asr is None:
            return {"left_out": "no speech recognizer was given (--asr)"}
        chosen = [
            i
            for i, row in enumerate(rows)
            if row["language"] in (None, language)
        ]
        if not chosen:
            return {"left_out": f"no recording is in {language!r}"}
        words = WordErrors(self.settings.asr, language)
        rate = self.pipeline.sample_rate

        def heard(clips):
            return [soxr.resample(clips[i], rate, 16000) for i in chosen]

        truth = [words.transcribe(clip) for clip in heard(real)]
        return {
            "recognizer": pathlib.Path(self.settings.asr).name,
            "language": language,
            "codec": words.rate(truth, heard(coded)),
            "resynthesis": words.rate(truth, heard(made)),
        }

    def detector(self):
        """How well the preset's detector knows what the preset makes."""
        if "detector" not in self.pipeline.trained_parts:
            raise LeftOut(
                "the preset has no trained detector. Train one: keras-audiolm "
                "train FOLDER --parts detector"
            )
        made = self.continuations.audio
        return detectors.detection_by_degradation(
            self.pipeline.detector,
            # Fewer levels than are generated, or more, would tell.
            self.reconstructed(self.pipeline.generated_levels),
            list(made.reshape(-1, made.shape[-1])),
        )


def _without_repeats(sequences):
    return [without_repeats(s[None, :, None])[0, :, 0] for s in sequences]
