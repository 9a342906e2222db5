"""AudioLMPipeline: five models behind one object."""

import copy
import functools
import itertools
import math
from collections import namedtuple
from fractions import Fraction

import keras
import numpy as np
import tqdm

from keras_audiolm import presets, training
from keras_audiolm.data.audio import check_audio, load_audio
from keras_audiolm.data.spooled import windows_of
from keras_audiolm.generation import (
    ACOUSTIC_DECODERS,
    Cascade,
    Player,
    Tokens,
    by_stage,
    check_decoder,
    check_stages,
    split_decoder,
)
from keras_audiolm.language_model.layout import PADDING
from keras_audiolm.layers.distribution import make_layout_map

# Seconds that are tokenized at once, and the past that the codec hears again
# at the start of each: more than its convolutions reach back.
TOKENIZE_DURATION = 30.0
CODEC_CONTEXT = 3.0
# A prompt's tokens, all of which the stages read, must fit into memory.
MAX_PROMPT_DURATION = 600.0
# Seconds between frames of both kinds that begin together: where they would be
# more, the semantic hop is changed by up to so great a part of it.
LONGEST_UNIT = 2.0
HOP_TOLERANCE = 0.001


class AudioLMPipeline:
    """AudioLM: a codec, a semantic tokenizer and three language models.

    It learns from recordings alone and continues what it hears in the same
    voice and room. Parts are built when they are first used.

    Args:
        parts: dictionary of models by name: `"codec"`,
            `"semantic_tokenizer"`, `"semantic_lm"`, `"coarse_lm"`, where the
            codec has levels that the coarse stage leaves out, `"fine_lm"`,
            and maybe a `"parallel_decoder"` and a `"detector"`.
        trained: names of the parts that are trained.

    Example:

    ```python
    pipeline = keras_audiolm.AudioLMPipeline.from_preset("voices_small")
    audio = pipeline.generate("prompt.wav", duration=7, seed=0)
    keras_audiolm.save_audio("out.wav", audio, pipeline.sample_rate)

    pipeline.compile(coarse_lm=keras.optimizers.AdamW(1e-3))
    pipeline.fit("my_recordings/", epochs=10)
    pipeline.save_to_preset("my_preset")
    ```

    Reference:
     - [AudioLM, Borsos et al., 2022](https://arxiv.org/abs/2209.03143)
    """

    def __init__(self, parts, trained=()):
        presets.check_parts(parts, trained)
        self._parts = dict(parts)
        self._configs = {}
        self._builders = {}
        self._trained = set(trained)
        self._compiled = {}
        self.remat = False
        self._sampling = {}
        self._card = None
        # What the tokenizers were loaded from, while they are as they were.
        self.preset = None

    # === Presets ===

    @classmethod
    def from_preset(cls, preset, load_weights=True, dtype=None):
        """A pipeline of a preset; returns before anything large is built.

        Args:
            preset: the name of a bundled preset, a folder,
                `kaggle://owner/model/framework/variation` or
                `hf://owner/name`.
            load_weights: bool. Whether trained parts get their weights;
                otherwise the pipeline has the preset's sizes and is
                untrained.
            dtype: str, optional. A dtype policy in the place of the preset's,
                like `"mixed_bfloat16"`. The codec and a trained tokenizer
                keep theirs, and so their tokens.

        Raises:
            ValueError: if there is no such preset or its files do not fit.
        """
        folder = presets.find_preset(preset)
        metadata = presets.read_metadata(folder)
        names = metadata["parts"]
        if names == ["codec"]:
            raise ValueError(
                f"The preset {str(preset)!r} is a codec alone. Load it with "
                f"SoundStream.from_preset({str(preset)!r})."
            )
        trained = metadata["trained"] if load_weights else []
        pipeline = cls(dict.fromkeys(names), trained)
        for name in names:
            pipeline._configs[name] = presets.read_config(folder, name)
            if name in trained:
                presets.check_weights(folder, name)
            pipeline._builders[name] = functools.partial(
                presets.load_part,
                folder,
                name,
                load_weights=name in trained,
                dtype=dtype,
            )
        try:
            pipeline.sampling = metadata.get("sampling", {})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / 'metadata.json'}: {error}") from None
        if load_weights:
            pipeline._card = presets.read_card(folder)
            pipeline.preset = str(preset)
        return pipeline

    def save_to_preset(self, folder, dtype="float32"):
        """Writes the pipeline as a preset, or nothing at all.

        Args:
            folder: path. A preset that stands there is replaced.
            dtype: `"float32"` or `"float16"`: of the weights on disk.

        Raises:
            ValueError: if `folder` holds something else.
        """
        for name in self._trained:
            self.part(name)
        presets.save_preset(
            folder,
            {name: self._parts[name] for name in self.part_names},
            self._trained,
            self._configs,
            sampling=self._sampling,
            card=self._card,
            dtype=dtype,
        )

    # === Parts ===

    @property
    def part_names(self):
        return [name for name in presets.PARTS if name in self._parts]

    @property
    def trained_parts(self):
        """Names of the parts that are trained, in order."""
        return [name for name in self.part_names if name in self._trained]

    def part(self, name):
        """The model of a part, built when it is first asked for."""
        if name not in self._parts:
            raise ValueError(
                f"This pipeline has no {name!r}. It has "
                f"{', '.join(self.part_names)}."
            )
        if self._parts[name] is None:
            self._parts[name] = self._builders[name]()
        return self._parts[name]

    def add_part(self, name, model):
        """Adds an untrained part, or puts it in the place of another.

        Args:
            name: str, like `"parallel_decoder"`.
            model: such as `ParallelDecoder`.

        Example:

        ```python
        layout = keras_audiolm.TokenLayout.coarse(128, 8, 1024, 25.0, 50.0)
        decoder = keras_audiolm.ParallelDecoder(layout, num_layers=6)
        pipeline.add_part("parallel_decoder", decoder)
        pipeline.fit("my_recordings/", parts="parallel_decoder")
        ```

        Raises:
            ValueError: if there is no such part, or the model does not fit.
        """
        parts = {**self._parts, name: model}
        presets.check_parts(parts, ())
        expected = presets.PART_CLASSES[name]
        if type(model).__name__ not in expected:
            raise ValueError(
                f"The part {name!r} must be a {' or '.join(expected)}. "
                f"Received: {type(model).__name__}"
            )
        before, self._parts = self._parts, parts
        try:
            if hasattr(model, "layout"):
                self._check_language_model(name)
        except ValueError:
            self._parts = before
            raise
        self._trained -= {name, *presets.DEPENDENTS.get(name, ())}
        self._forget_preset(name)
        self.__dict__.pop("unit", None)

    @property
    def sampling(self):
        """How this pipeline sounds best: what `generate`, `stream` and
        `resynthesize` take where they are not told otherwise. A dictionary of
        `acoustic_decoder`, `temperature`, `top_k`, `top_p` and
        `repetition_penalty`, as of `generate`; saved with the preset.

        ```python
        pipeline.sampling = {"temperature": {"semantic": 0.9}}
        ```
        """
        return copy.deepcopy(self._sampling)

    @sampling.setter
    def sampling(self, settings):
        decoder, others = split_decoder(settings)
        check_decoder(decoder)
        by_stage(others)
        self._sampling = copy.deepcopy(settings)

    @property
    def generated_levels(self):
        """Levels of the codec, from the first on, that `generate` makes where
        it is not told otherwise."""
        stages = self._stages(split_decoder(self._sampling)[0])
        return sum(
            self.part(name).layout.predicted.levels
            for stage, name in stages.items()
            if stage != "semantic"
        )

    @property
    def codec(self):
        return self.part("codec")

    @property
    def semantic_tokenizer(self):
        return self.part("semantic_tokenizer")

    @property
    def semantic_lm(self):
        return self.part("semantic_lm")

    @property
    def coarse_lm(self):
        return self.part("coarse_lm")

    @property
    def fine_lm(self):
        return self.part("fine_lm")

    @property
    def parallel_decoder(self):
        return self.part("parallel_decoder")

    @property
    def detector(self):
        """An `AudioClassifier` that tells what is synthetic."""
        return self.part("detector")

    @property
    def sample_rate(self):
        """Hertz, of all audio in and out."""
        if self._parts["codec"] is None:
            config = self._configs["codec"]["config"]
            if "sample_rate" in config:
                return config["sample_rate"]
        return self.codec.sample_rate

    @functools.cached_property
    def unit(self):
        """Semantic and acoustic frames of the shortest stretch of whole ones.

        Where the two rates only meet after more than `LONGEST_UNIT` seconds,
        they are taken to meet at the first place where they are at most
        `HOP_TOLERANCE` apart. A DAC of 44.1 kHz and 25 semantic tokens a
        second: 9 and 31 frames, 0.36 s, 0.03 % apart.
        """
        codec, tokenizer = self.codec, self.semantic_tokenizer
        rates = Fraction(codec.sample_rate, tokenizer.sample_rate)
        # How many acoustic frames a semantic one lasts.
        ratio = tokenizer.hop_length * rates / codec.hop_length
        samples = ratio.numerator * codec.hop_length
        if samples > LONGEST_UNIT * codec.sample_rate:
            return nearest_ratio(ratio)
        return ratio.denominator, ratio.numerator

    @property
    def unit_samples(self):
        """Samples of `unit`."""
        return self.unit[1] * self.codec.hop_length

    @property
    def semantic_hop(self):
        """A semantic frame in samples at `sample_rate`, a `Fraction`.

        The tokenizer may work at a rate of its own: it hears the audio
        resampled so that its hop is exactly so long. Where `unit` is not
        exact, that changes speed and pitch by less than 0.1 %, and both kinds
        of tokens stay together however long the audio is.
        """
        return Fraction(self.unit_samples, self.unit[0])

    def _require(self, names, purpose):
        missing = [n for n in names if n not in self._trained]
        if missing:
            raise ValueError(
                f"{purpose} needs trained parts, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} untrained. Train: "
                f"pipeline.fit('my_recordings/', parts={missing})"
            )

    # === Training ===

    @staticmethod
    def get_layout_map(device_mesh):
        """The layout maps of `StageLM`, `ParallelDecoder` and `W2vBert` in one.

        Args:
            device_mesh: `keras.distribution.DeviceMesh` with axes `"batch"`
                and `"model"`.

        Returns:
            `keras.distribution.LayoutMap`, to train all parts with. The codec
            stands on every device.
        """
        from keras_audiolm.language_model import parallel_decoder, stage_lm
        from keras_audiolm.semantic import w2v_bert

        axes = "batch", "model"
        layouts = {
            **stage_lm.StageLM.weight_layouts(*axes),
            **parallel_decoder.ParallelDecoder.weight_layouts(*axes),
            **w2v_bert.W2vBert.weight_layouts(*axes),
        }
        return make_layout_map(device_mesh, layouts)

    def compile(self, remat=False, **parts):
        """Sets how parts are trained; parts not named keep their defaults.

        Gradient accumulation and averages of the weights are arguments of the
        optimizers, `gradient_accumulation_steps` and `use_ema`.

        Args:
            remat: bool. Whether the blocks of the language models and of the
                semantic encoder recompute their activations in the backward
                pass, to save memory.
            **parts: by part name, an optimizer; for `codec`, also a compiled
                `SoundStreamTrainer` around this pipeline's codec, to choose
                its discriminators and losses.

        Raises:
            ValueError: on a part that does not exist.
        """
        for name, value in parts.items():
            if name not in self._parts:
                raise ValueError(
                    f"There is no part {name!r} to compile. Parts: "
                    f"{', '.join(self.part_names)}"
                )
            if value is not None:
                self._compiled[name] = value
        self.remat = remat

    def fit(
        self,
        data,
        parts=None,
        epochs=1,
        steps_per_epoch=None,
        batch_size=None,
        validation_data=None,
        token_dir=None,
        checkpoint_dir=None,
        backup_every=None,
        speed_range=None,
        callbacks=None,
        verbose=1,
        seed=0,
    ):
        """Trains the parts in order: codec, semantic tokenizer, the LMs.

        Files of one folder are taken to be one voice. Tokens are computed
        once and kept in `token_dir`, like the examples of the detector, which
        is trained on what this pipeline makes, and only where `parts` names it
        (a pipeline without one gets one). With a `checkpoint_dir`, a run that
        was stopped, by whatever, goes on from its last backup when it is
        called again, and ends with the weights that it would have had.

        Args:
            data: folder of recordings, or a list of files. For the language
                models alone also a store of tokens, which `keras-audiolm
                tokenize` makes.
            parts: names of the parts to train. Defaults to the untrained
                ones but the detector or, where all are trained, to the
                language models: new tokenizers would make the old tokens
                mean nothing.
            epochs, steps_per_epoch, batch_size: int, or a dictionary by part.
                By default an epoch is as much audio as there is.
            validation_data: as `data`, optional.
            token_dir: folder for tokens. Defaults to a temporary one.
            checkpoint_dir: folder for checkpoints. Defaults to none.
            backup_every: int, or a dictionary by part. Steps between backups
                in `checkpoint_dir`, 1000 by default; there is one after each
                epoch as well.
            speed_range: pair of floats, optional, like (0.8, 1.25): speed and
                pitch of the audio that codec and encoder hear are changed at
                random.
            callbacks: list of Keras callbacks, for every part.
            verbose: as in `keras.Model.fit`.
            seed: int. Of crops and order.

        Returns:
            Dictionary by part of `keras.callbacks.History.history`.

        Raises:
            ValueError: if there is no audio or a part does not exist.
        """
        plan = training.Plan(
            files=data,
            validation_files=validation_data,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            token_dir=token_dir,
            checkpoint_dir=checkpoint_dir,
            backup_every=backup_every,
            speed_range=speed_range,
            callbacks=callbacks,
            verbose=verbose,
            seed=seed,
        )
        if parts is None:
            names = [n for n in self.part_names if n != "detector"]
            parts = [n for n in names if n not in self._trained]
            parts = parts or names[2:]
        parts = [parts] if isinstance(parts, str) else parts
        if "detector" in parts and "detector" not in self._parts:
            from keras_audiolm.evaluation.detector import make_detector

            self.add_part("detector", make_detector(self.sample_rate))
        for name in parts:
            if name not in self._parts:
                raise ValueError(
                    f"There is no part {name!r} to train. Parts: "
                    f"{', '.join(self.part_names)}"
                )
        return training.fit_parts(self, parts, plan)

    def optimizer(self, name):
        """What `compile` was given for a part, if anything."""
        return self._compiled.get(name)

    def mark_trained(self, name):
        """Counts a part as trained from now on.

        A tokenizer that was trained anew gives other tokens: the language
        models that learned the old ones no longer count as trained. What a
        detector learned is how the decoder of the codec sounds.
        """
        dependents = presets.DEPENDENTS.get(name, ())
        if name == "codec" and self.codec.codes_frozen:
            dependents = ("detector",)
        self._trained.add(name)
        self._trained -= set(dependents)
        self._forget_preset(name)

    def _forget_preset(self, changed):
        if changed in ("codec", "semantic_tokenizer"):
            self.preset = None

    # === Tokens ===

    def tokenize(self, audio):
        """Audio to tokens.

        Args:
            audio: path, `(samples,)` or `(batch, samples)` at `sample_rate`.

        Returns:
            A named tuple: `semantic` `(batch, frames)` int32 and `acoustic`
            `(batch, frames, levels)` int32, without the batch axis where
            `audio` had none.

        Raises:
            ValueError: on unusable audio or untrained tokenizers.
        """
        self._require(["codec", "semantic_tokenizer"], "Tokenizing")
        audio, batched = self._read(audio)
        tokens = self._tokenize(audio)
        return tokens if batched else Tokens(*(t[0] for t in tokens))

    def _read(self, audio, name="audio"):
        """Checked `(batch, samples)` audio, and whether it had a batch."""
        if isinstance(audio, (str, bytes)) or hasattr(audio, "__fspath__"):
            audio = load_audio(audio, self.sample_rate)
        audio = np.asarray(keras.ops.convert_to_numpy(audio))
        checked = check_audio(
            audio,
            min_samples=self.unit_samples,
            name=name,
            sample_rate=self.sample_rate,
        )
        return checked, audio.ndim == 2

    def _tokenize(self, audio):
        lengths = [audio.shape[1]] * len(audio)
        semantic, acoustic = self._tokenize_padded(audio, lengths)
        return Tokens(semantic, acoustic)

    def _tokenize_padded(self, rows, lengths):
        return (
            self._semantic_tokens(rows, lengths),
            self._acoustic_tokens(rows, lengths),
        )

    def _semantic_tokens(self, rows, lengths):
        """`(batch, frames)` of rows of audio; see `semantic_hop`."""
        tokenizer = self.semantic_tokenizer
        # Samples that the tokenizer hears for each of the audio.
        speed = tokenizer.hop_length / self.semantic_hop
        ends = np.array([math.ceil(length * speed) for length in lengths])
        samples = math.ceil(len(rows[0]) * speed)
        hop, size = tokenizer.hop_length, tokenizer.window_samples(samples)
        # One array, as small ones would break up the memory between windows.
        tokens = np.empty((len(rows), -(-samples // hop)), "int32")
        for i, audio in enumerate(windows_of(rows, size, speed)):
            here = np.clip(ends - i * size, 0, audio.shape[1])
            place = slice(i * size // hop, (i + 1) * size // hop)
            tokens[:, place] = tokenizer.encode(audio, lengths=here)
        return tokens

    def _acoustic_tokens(self, rows, lengths):
        """`(batch, frames, levels)` of rows of audio."""
        if self.codec.window_step > 1:
            # It takes its own windows, and what follows a recording would
            # count in the last of them.
            codes = [
                self._encode([row[:length]])[0]
                for row, length in zip(rows, lengths, strict=True)
            ]
            most = max(map(len, codes))
            return np.stack(
                [np.pad(c, [(0, most - len(c)), (0, 0)]) for c in codes]
            )
        return self._encode(rows)

    def _encode(self, rows):
        """The codec's codes of rows of audio, window by window."""
        codec = self.codec
        hop, step = codec.hop_length, codec.window_step
        window, before = (
            int(seconds * self.sample_rate) // hop
            for seconds in (TOKENIZE_DURATION, CODEC_CONTEXT)
        )  # frames
        after = 0
        if step > 1:
            # A window of its own on both sides, which it fades into.
            window, before, after = step * max(window // step, 1), step, step
        frames, codes = codec.num_frames(len(rows[0])), None
        for start in range(0, frames, window):
            first, stop = max(0, start - before), start + window
            heard = slice(first * hop, (stop + after) * hop)
            part = codec.encode(np.stack([row[heard] for row in rows]))
            if codes is None:
                codes = np.empty((len(rows), frames, part.shape[2]), "int32")
            codes[:, start:stop] = part[:, start - first : stop - first]
        return codes

    def tokenize_many(self, clips, batch_size=16):
        """Tokens of clips of different lengths, near lengths batched.

        Args:
            clips: list of `(samples,)` float32 arrays or `SpooledAudio`, of
                which a window is read at a time.
            batch_size: int.

        Returns:
            List of `(semantic, acoustic)` arrays, in the order of `clips`.
        """
        results = [None] * len(clips)
        order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
        longest = TOKENIZE_DURATION * self.sample_rate
        while order:
            # Long recordings go one by one, to bound the memory.
            rows = batch_size if len(clips[order[0]]) <= longest else 1
            indices, order = order[:rows], order[rows:]
            if len(clips[indices[-1]]) > longest and len(indices) > 1:
                short = [i for i in indices if len(clips[i]) <= longest]
                order = indices[len(short) :] + order
                indices = short
            tokens = self._tokenize_batch([clips[i] for i in indices], rows)
            for i, pair in zip(indices, tokens, strict=True):
                results[i] = pair
        return results

    def _tokenize_batch(self, clips, rows):
        """Tokens of up to `rows` clips, as one padded batch."""
        lengths = [len(clip) for clip in clips]
        audio = clips
        if rows > 1:
            # Rows of silence keep the shape, and so the compiled program.
            audio = np.zeros((rows, max(lengths)), "float32")
            for row, clip in enumerate(clips):
                audio[row, : len(clip)] = clip
        padded = lengths + [max(lengths)] * (rows - len(clips))
        semantic, acoustic = self._tokenize_padded(audio, padded)
        frames = [
            (
                math.ceil(length / self.semantic_hop),
                -(-length // self.codec.hop_length),
            )
            for length in lengths
        ]
        return [
            (semantic[row, :s], acoustic[row, :a])
            for row, (s, a) in enumerate(frames)
        ]

    # === Generation ===

    def generate(
        self,
        prompt=None,
        duration=7.0,
        batch_size=None,
        seed=None,
        num_candidates=1,
        scorer=None,
        acoustic_decoder=None,
        overlap=None,
        stop="duration",
        return_tokens=False,
        verbose=False,
        **sampling,
    ):
        """Continues a recording, or makes sound from nothing.

        Args:
            prompt: path, `(samples,)` or `(batch, samples)` in [-1, 1] at
                `sample_rate`, or a list of paths and `(samples,)` of any
                lengths; `None` to start from nothing.
            duration: float. Seconds of new audio.
            batch_size: int, optional. How many continuations to sample of a
                single prompt (or of nothing).
            seed: int, optional. The same seed gives the same audio.
            num_candidates: int. So many continuations of each prompt are
                sampled, and the best is returned.
            scorer: callable of a candidate's audio `(samples,)` and `Tokens`
                that gives a number, the higher the better. By default the
                language models' own likelihood.
            acoustic_decoder: `"cascade"`, the coarse and the fine stage;
                `"coarse"`, the coarse stage alone, whose levels are then all
                that is decoded; or `"parallel"`, the parallel decoder, a
                stage that stands in for both. Defaults to what `sampling`
                says, and to `"cascade"` otherwise.
            overlap: float, or a dictionary by stage. Seconds of what is known
                that a stage hears before it goes on, where a window of it
                does not hold the whole. Defaults to 3 (half a window where
                that is less), and to 0 of the fine stage, whose chunks then
                run as one batch.
            stop: `"duration"`, or `"eos"` to end each row where the semantic
                stage says that a recording is over, after `duration` at the
                latest. Its layout must have an end: see `TokenLayout`.
            return_tokens: bool. Whether to return the tokens as well.
            verbose: bool. Whether to show progress.
            **sampling: `temperature`, `top_k`, `top_p` and
                `repetition_penalty`, each one number for all stages, or a
                dictionary by stage (`"semantic"`, `"coarse"`, `"fine"`,
                `"parallel"`). Default to what `sampling` says, and
                temperatures to the paper's 0.6, 0.8 and 0.6 otherwise (and
                0.8 of the parallel decoder).

        Returns:
            Float32 audio: the prompt, followed by exactly `duration` new
            seconds (up to that with `stop="eos"`). `(samples,)`, or `(batch,
            samples)` where the prompt had a batch axis or `batch_size` is
            given; a list of `(samples,)` of a list of prompts, and of any
            batch with `stop="eos"`. With `return_tokens`, a pair of it and
            `Tokens`, which of a list of prompts begin with -1 where one is
            shorter than others, and end with -1 where a row was over sooner.

        Raises:
            ValueError: on unusable audio, a duration of zero or less, an
                overlap that leaves no room in a window, settings of a stage
                that has no part in it, untrained parts, or `stop="eos"` where
                the semantic stage knows no end.
        """
        acoustic_decoder = self._choose_decoder(acoustic_decoder, "Generating")
        if stop == "eos" and num_candidates > 1 and scorer is None:
            raise ValueError(
                "Candidates that end where they like cannot be compared by "
                "their likelihood: the shortest would win. Give a scorer, or "
                "stop='duration'."
            )
        given = self._prompts(prompt, batch_size)
        prompts = given.repeated(num_candidates)
        cascade = self._cascade(sampling, seed, acoustic_decoder, overlap, stop)
        pieces = self._continue(cascade, prompts.clips, duration, verbose)
        tokens, done = [next(pieces)], 0
        made = room_for(len(prompts.clips), duration, self.sample_rate)
        for chunk, piece in pieces:
            made[:, done : done + chunk.shape[1]] = chunk
            done += chunk.shape[1]
            tokens.append(piece)
        ends = self._samples_left(cascade, tokens[0], done).astype("int")
        audio = [
            np.concatenate([clip, row[:end]])
            for clip, row, end in zip(prompts.clips, made, ends, strict=True)
        ]
        known = tokens[0].acoustic.shape[1]
        tokens = Tokens(
            *(
                np.concatenate(parts, axis=1)
                for parts in zip(*tokens, strict=True)
            )
        )
        if stop == "eos":
            frames = known + -(-ends // self.codec.hop_length)
            place = np.arange(tokens.acoustic.shape[1])
            tokens.acoustic[place >= frames[:, None]] = PADDING
        if num_candidates > 1:
            scores = cascade.log_likelihood
            if scorer is not None:
                rows = [Tokens(*row) for row in zip(*tokens, strict=True)]
                scores = list(map(scorer, audio, rows))
            best = best_of_each(scores, len(given.clips))
            audio = [audio[row] for row in best]
            tokens = Tokens(*(part[best] for part in tokens))
        if given.kind == "one":
            audio, tokens = audio[0], Tokens(*(t[0] for t in tokens))
        elif given.kind == "batch" and stop == "duration":
            audio = np.stack(audio)
        return (audio, tokens) if return_tokens else audio

    def stream(
        self,
        prompt=None,
        duration=None,
        batch_size=None,
        seed=None,
        acoustic_decoder=None,
        overlap=None,
        stop="duration",
        verbose=False,
        **sampling,
    ):
        """`generate`, piece by piece as soon as it exists.

        A piece is what a window of the coarse stage adds. The pieces joined
        are the new audio that `generate` gives for the same seed; memory does
        not grow with the duration. Closing the iterator, or leaving it, stops
        the work.

        Args:
            duration: float, optional. Seconds of new audio. By default it
                never ends.
            prompt, batch_size, seed, acoustic_decoder, overlap, stop,
                verbose, **sampling: as of `generate`.

        Returns:
            An iterator of float32 `(samples,)`, or `(batch, samples)` where
            the prompt is a batch or a list, or `batch_size` is given. Rows
            that are over go on with zeros until the last one is.

        Example:

        ```python
        for chunk in pipeline.stream("prompt.wav", duration=60, seed=0):
            speaker.write(chunk)
        ```
        """
        acoustic_decoder = self._choose_decoder(acoustic_decoder, "Generating")
        prompts = self._prompts(prompt, batch_size)
        if duration is None:
            duration = math.inf
        cascade = self._cascade(sampling, seed, acoustic_decoder, overlap, stop)
        pieces = self._continue(cascade, prompts.clips, duration, verbose)
        next(pieces)
        return (c[0] if prompts.kind == "one" else c for c, _ in pieces)

    def _prompts(self, prompt, batch_size):
        """What `generate` was given, as `Prompts`."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(
                f"`batch_size` must be 1 or more. Received: {batch_size}"
            )
        if prompt is None:
            nothing = np.zeros(0, "float32")
            return Prompts(
                [nothing] * (batch_size or 1), "batch" if batch_size else "one"
            )
        if isinstance(prompt, (list, tuple)):
            clips, kind = self._clips(prompt), "list"
        else:
            clips, batched = self._read(prompt, "prompt")
            clips, kind = list(clips), "batch" if batched else "one"
        seconds = max(map(len, clips)) / self.sample_rate
        if seconds > MAX_PROMPT_DURATION:
            raise ValueError(
                f"The prompt lasts {seconds:.0f} seconds; at most "
                f"{MAX_PROMPT_DURATION:.0f} are read. Give a part of it, like "
                "prompt[-10 * pipeline.sample_rate :] or, on the command "
                "line, --prompt-duration 10"
            )
        if batch_size is None or (kind != "one" and len(clips) == batch_size):
            return Prompts(clips, kind)
        if len(clips) > 1:
            raise ValueError(
                f"`batch_size` is {batch_size}, and the prompt has "
                f"{len(clips)} rows. Give one of them."
            )
        return Prompts(clips * batch_size, "batch")

    def _clips(self, prompts):
        """A list of prompts as a list of `(samples,)`."""
        if not prompts:
            raise ValueError(
                "The list of prompts is empty. Give None to start from nothing."
            )
        clips = []
        for number, prompt in enumerate(prompts):
            clip, batched = self._read(prompt, f"prompt {number}")
            if batched:
                raise ValueError(
                    "In a list, each prompt is a path or (samples,). Received: "
                    f"shape {clip.shape} at {number}"
                )
            clips.append(clip[0])
        return clips

    def _continue(self, cascade, clips, duration, verbose):
        """Yields the prompts' tokens, then pairs of new audio and tokens."""
        if not duration > 0.5 / self.sample_rate:
            raise ValueError(
                "`duration` must be a number of seconds above zero, a sample "
                f"or more. Received: duration={duration}"
            )
        samples = duration * self.sample_rate
        samples = samples if samples == math.inf else round(samples)
        known = self._prompt_tokens(clips, cascade.levels)
        yield known
        yield from self._play(cascade, known, samples, verbose)

    def _play(self, cascade, known, samples, verbose):
        """Yields pairs of audio and tokens that follow what is known.

        Args:
            known: `Tokens`; of the acoustic ones, maybe none.
            samples: int, or infinity.
        """
        units = math.inf
        if samples < math.inf:
            units = known.acoustic.shape[1] // self.unit[1]
            units += -(-samples // self.unit_samples)
        player = Player(self.codec, known.acoustic)
        seconds = samples / self.sample_rate
        with tqdm.tqdm(
            total=None if seconds == math.inf else round(seconds, 2),
            unit="s",
            disable=not verbose,
        ) as bar:
            cascade.progress = bar.set_description_str
            heard = decoded = 0
            for tokens in cascade.continuation(known, units):
                ends = self._samples_left(cascade, known, samples)
                decoded += tokens.acoustic.shape[1] * self.codec.hop_length
                last = decoded >= ends.max()
                audio = player.play(tokens.acoustic, last)
                audio = silent_after(ends - heard, audio)
                heard += audio.shape[1]
                bar.update(round(audio.shape[1] / self.sample_rate, 2))
                yield audio, tokens
            ends = self._samples_left(cascade, known, samples)
            if 0 < heard < ends.max():
                # The end was found behind the last piece.
                nothing = Tokens(*(part[:, :0] for part in known))
                yield silent_after(ends - heard, player.finish()), nothing

    def _samples_left(self, cascade, known, most):
        """The new samples of each row, `(batch,)`: `most`, or less where a row
        is over sooner."""
        known = known.acoustic.shape[1] / self.unit[1]
        left = np.round((cascade.ends - known) * self.unit_samples)
        return np.minimum(left, most)

    def _prompt_tokens(self, clips, levels):
        """`Tokens` of whole units that end together, -1 before the shorter.
        Of the acoustic ones, the first `levels`.

        What is over is cut off where a prompt begins, so that what is new
        follows at once, and before the prompt is tokenized, so that its
        tokens are those of a recording that begins there.
        """
        s, a = self.unit
        known = [len(clip) // self.unit_samples for clip in clips]
        longest = max(known)
        semantic = np.full((len(clips), longest * s), PADDING, "int32")
        acoustic = np.full((len(clips), longest * a, levels), PADDING, "int32")
        for count in sorted(set(known) - {0}):
            rows = [row for row, units in enumerate(known) if units == count]
            samples = count * self.unit_samples
            tokens = self._tokenize(
                np.stack([clips[row][-samples:] for row in rows])
            )
            semantic[rows, (longest - count) * s :] = tokens.semantic
            new = tokens.acoustic[..., :levels]
            acoustic[rows, (longest - count) * a :] = new
        return Tokens(semantic, acoustic)

    def resynthesize(
        self,
        audio,
        seed=None,
        acoustic_decoder=None,
        overlap=None,
        verbose=False,
        **sampling,
    ):
        """Keeps what is said and samples how it sounds.

        The paper's acoustic generation: the semantic tokens of a recording
        stay, the voice and the room are drawn anew.

        Args:
            audio: path, `(samples,)` or `(batch, samples)` at `sample_rate`.
            seed, acoustic_decoder, overlap, verbose, **sampling: as of
                `generate`.

        Returns:
            Float32 audio of the same shape.
        """
        acoustic_decoder = self._choose_decoder(
            acoustic_decoder, "Resynthesizing"
        )
        audio, batched = self._read(audio)
        units = -(-audio.shape[1] // self.unit_samples)
        padding = units * self.unit_samples - audio.shape[1]
        padded = np.pad(audio, [(0, 0), (0, padding)])
        semantic = self._semantic_tokens(padded, [audio.shape[1]] * len(audio))
        cascade = self._cascade(sampling, seed, acoustic_decoder, overlap)
        nothing = np.zeros((len(audio), 0, cascade.levels), "int32")
        known = Tokens(semantic, nothing)
        pieces = self._play(cascade, known, audio.shape[1], verbose)
        made = np.concatenate([chunk for chunk, _ in pieces], axis=1)
        return made if batched else made[0]

    def _check_language_model(self, name):
        """Raises `ValueError` if it was made for other tokens."""
        for segment in self.part(name).layout.segments:
            kind = (
                "semantic_tokenizer" if segment.name == "semantic" else "codec"
            )
            size = self.part(kind).codebook_size
            if segment.codebook_size != size:
                raise ValueError(
                    f"The {name} was made for {segment.codebook_size} "
                    f"{segment.name} tokens, and the {kind} has {size}. Train "
                    "a language model of its own for it."
                )
        if name != "parallel_decoder":
            return
        levels = self.parallel_decoder.layout.predicted.levels
        if levels != self.codec.num_quantizers:
            raise ValueError(
                f"The parallel_decoder was made for {levels} levels, and the "
                f"codec has {self.codec.num_quantizers}; it fills in them all."
            )

    def _choose_decoder(self, acoustic_decoder, purpose):
        """The one asked for, or the default.

        Raises:
            ValueError: if there is no such, or a part that it needs is not
                trained.
        """
        if acoustic_decoder is None:
            acoustic_decoder = split_decoder(self._sampling)[0]
        check_decoder(acoustic_decoder)
        if acoustic_decoder == "parallel" and (
            "parallel_decoder" not in self._parts
        ):
            raise ValueError(
                "This pipeline has no parallel decoder. Add one with "
                "pipeline.add_part('parallel_decoder', ...) and train it, "
                "or generate with acoustic_decoder='cascade'."
            )
        stages = self._stages(acoustic_decoder).values()
        self._require(["codec", "semantic_tokenizer", *stages], purpose)
        return acoustic_decoder

    def _stages(self, acoustic_decoder):
        """Names of the parts by stage."""
        names = ACOUSTIC_DECODERS[acoustic_decoder]
        return {
            stage: name
            for stage, name in {"semantic": "semantic_lm", **names}.items()
            if name in self._parts
        }

    def _cascade(
        self, sampling, seed, acoustic_decoder, overlap, stop="duration"
    ):
        names = self._stages(acoustic_decoder)
        for name in names.values():
            self._check_language_model(name)
        check_stages({**sampling, "overlap": overlap}, names)
        self._check_semantic_tokens([*names.values()][1], stop)
        return Cascade(
            {stage: self.part(name) for stage, name in names.items()},
            self.unit,
            self.unit_samples / self.sample_rate,
            by_stage(sampling, split_decoder(self._sampling)[1]),
            overlap,
            seed,
            stop == "eos",
        )

    def _check_semantic_tokens(self, name, stop):
        """Raises `ValueError` where the semantic stage and the part `name` do
        not go together, or there is no end to stop at."""
        if stop not in ("duration", "eos"):
            raise ValueError(
                f"`stop` must be 'duration' or 'eos'. Received: {stop!r}"
            )
        segment = self.semantic_lm.layout.predicted
        told = self.part(name).layout.segments[0]
        if stop == "eos" and not segment.ends:
            raise ValueError(
                "stop='eos' needs a semantic_lm that was taught where "
                "recordings end, and the layout of this one has no end. Use "
                "stop='duration', or put another in its place, with "
                "TokenLayout.semantic(..., ends=True), and train it."
            )
        if segment.deduplicated > told.deduplicated:
            raise ValueError(
                "The semantic_lm gives de-duplicated tokens, and the "
                f"{name} was made for tokens that are aligned with frames. "
                "Train a coarse_lm with "
                "TokenLayout.coarse(..., deduplicated=True)."
            )


def nearest_ratio(ratio):
    """The fewest frames, as `unit`, whose ratio is within `HOP_TOLERANCE` of
    a `Fraction`."""
    for semantic in itertools.count(1):
        acoustic = round(semantic * ratio)
        if abs(acoustic / (semantic * ratio) - 1) <= HOP_TOLERANCE:
            return semantic, acoustic


def room_for(batch_size, duration, sample_rate):
    """An array for so much audio, or a `ValueError` where none fits."""
    try:
        samples = round(duration * sample_rate)
        return np.zeros((batch_size, samples), "float32")
    except (MemoryError, OverflowError, ValueError):
        raise ValueError(
            f"Audio of duration={duration} seconds does not fit into memory. "
            "Take it piece by piece: `for chunk in pipeline.stream(...)`"
        ) from None


def silent_after(ends, audio):
    """Audio that ends with the last row, and is zero where another is over.

    Args:
        ends: `(batch,)`, samples of each row, maybe none left or infinitely
            many.
        audio: `(batch, samples)` float32.

    Raises:
        ValueError: on audio that is not finite.
    """
    audio = audio[:, : int(min(ends.max(), audio.shape[1]))]
    place = np.arange(audio.shape[1])
    audio = np.where(place < ends[:, None], audio, np.float32(0))
    if not np.isfinite(audio).all():
        raise ValueError(
            "The codec's sound is not finite: its weights are broken. Load or "
            "train them again."
        )
    return audio


def best_of_each(scores, count):
    """The row of the highest score in each of `count` groups of rows.

    Raises:
        ValueError: on scores that are not numbers.
    """
    scores = np.asarray(scores, "float64")
    if np.isnan(scores).any():
        raise ValueError(f"The scorer gave scores that are NaN: {scores}")
    groups = scores.reshape(count, -1)
    return np.arange(count) * groups.shape[1] + groups.argmax(axis=1)


class Prompts(namedtuple("Prompts", ["clips", "kind"])):
    """The recordings to continue, `(samples,)` each, and how they were given:
    as `"one"`, as a `"batch"` or as a `"list"`."""

    def repeated(self, count):
        """Each recording so many times, one after the other."""
        if count < 1:
            raise ValueError(
                f"`num_candidates` must be 1 or more. Received: {count}"
            )
        clips = [clip for clip in self.clips for _ in range(count)]
        return self._replace(clips=clips)
