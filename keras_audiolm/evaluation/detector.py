"""The detector of synthetic audio: is this a recording, or did we make it?"""

import io
import pathlib

import keras
import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from keras_audiolm.data.audio import (
    AudioFileError,
    load_audible,
    load_audio,
    save_audio,
)
from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.evaluation.classifier import (
    AudioClassifier,
    equalise,
    with_noise,
)
from keras_audiolm.evaluation.codec import reconstruct

LABELS = ("real", "synthetic")
# A tenth of the paper's widths suffices for a model of a few voices.
CHANNELS = (16, 32, 64, 64, 96, 96)
# What a detector is trained on, of each kind.
EXAMPLE_SECONDS = 2100.0
PROMPT_DURATION, NEW_DURATION = 3.0, 7.0
EXAMPLE_BATCH = 10


def make_detector(sample_rate, channels=CHANNELS):
    """An untrained detector: an `AudioClassifier` of windows of a second."""
    return AudioClassifier(
        LABELS, sample_rate, channels, hop_duration=0.5, name="detector"
    )


# === What it learns from ===


def make_examples(pipeline, files, folder, seconds, seed=0):
    """Real recordings through the codec, and continuations of such.

    Without the codec, and as many levels of it as are generated, its traces
    alone would tell both apart, in tokens nobody made. Continuations are those
    of random crops; their prompts are left out. Of a recording no more is taken
    than a continuation lasts, so that both are of many recordings. Both are
    kept as FLAC files, and made only where they are not there yet.

    Args:
        pipeline: `AudioLMPipeline`.
        files: list of paths of recordings.
        folder: path; gets the folders `real` and `synthetic`.
        seconds: float. Of each kind.
        seed: int.

    Returns:
        Dictionary by label of lists of paths.
    """
    folder = pathlib.Path(folder)
    batches = max(round(seconds / NEW_DURATION / EXAMPLE_BATCH), 1)
    prompts = AudioCrops(
        files,
        sample_rate=pipeline.sample_rate,
        duration=PROMPT_DURATION,
        batch_size=EXAMPLE_BATCH,
        steps_per_epoch=batches,
        seed=seed,
    )
    synthetic = []
    for batch in tqdm(range(batches), "Making synthetic examples"):
        stem = folder / "synthetic"
        names = [stem / f"{batch}-{i}.flac" for i in range(EXAMPLE_BATCH)]
        if not all(name.is_file() for name in names):
            made = pipeline.generate(
                prompts[batch],
                duration=NEW_DURATION,
                seed=seed + EXAMPLE_BATCH * batch,
            )
            for name, audio in zip(names, made, strict=True):
                new = audio[-round(NEW_DURATION * pipeline.sample_rate) :]
                save_audio(name, new, pipeline.sample_rate)
        synthetic += names
    real = _real_examples(pipeline, files, folder / "real", seconds, seed)
    return {"real": real, "synthetic": synthetic}


def _real_examples(pipeline, files, folder, seconds, seed):
    """Random stretches of recordings through the codec, `seconds` of them."""
    rng = np.random.default_rng(seed)
    longest = round(NEW_DURATION * pipeline.sample_rate)
    chosen, left = {}, seconds
    while left > 0:
        before = len(chosen)
        for number in rng.permutation(len(files)):
            if left <= 0:
                break
            try:
                # Shorter ones hold no window.
                clip = load_audible(files[number], pipeline.sample_rate, 1.0)
            except AudioFileError:
                continue
            start = rng.integers(max(len(clip) - longest, 0) + 1)
            clip = clip[start : start + longest]
            left -= len(clip) / pipeline.sample_rate
            chosen[folder / f"{number}-{start}.flac"] = clip
        if len(chosen) == before:
            break  # all of them are taken
    missing = {k: v for k, v in chosen.items() if not k.is_file()}
    made = reconstruct(
        pipeline.codec, list(missing.values()), pipeline.generated_levels
    )
    for name, clip in zip(missing, made, strict=True):
        save_audio(name, clip, pipeline.sample_rate)
    if not chosen:
        raise ValueError(
            "A detector learns from recordings of a second or more, and there "
            f"is none among the {len(files)} files."
        )
    return list(chosen)


class DetectorCrops(keras.utils.PyDataset):
    """Batches of random windows, as many real as synthetic.

    Windows never go over the end of a clip: seams would tell the shorter
    recordings from the longer. All are changed as `LabelledCrops` does.

    Args:
        clips: dictionary by label of lists of `(samples,)` float32, none of
            them shorter than a window.
        samples: int. Of a window.
        crops_per_class, steps_per_epoch, seed: int.
    """

    def __init__(
        self,
        clips,
        samples,
        crops_per_class=16,
        steps_per_epoch=300,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.clips = [clips[label] for label in LABELS]
        self.samples = samples
        self.crops_per_class = crops_per_class
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.epoch = 0
        # As many windows as a clip has places for.
        self.ends = [
            np.cumsum([len(clip) - samples + 1 for clip in kind])
            for kind in self.clips
        ]

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, self.epoch, index))
        audio = np.stack(
            [
                self._window(rng, kind)
                for kind in range(len(LABELS))
                for _ in range(self.crops_per_class)
            ]
        )
        audio = equalise(rng, audio, 6.0)
        gain = 10.0 ** (rng.uniform(-12.0, 6.0, (len(audio), 1)) / 20.0)
        audio = with_noise(rng, audio * gain.astype("float32"), (20.0, 60.0))
        labels = np.repeat(np.arange(2, dtype="int32"), self.crops_per_class)
        return audio, labels

    def _window(self, rng, kind):
        ends = self.ends[kind]
        place = int(rng.integers(ends[-1]))
        clip = int(np.searchsorted(ends, place, side="right"))
        start = place - (int(ends[clip - 1]) if clip else 0)
        return self.clips[kind][clip][start : start + self.samples]

    def on_epoch_end(self):
        self.epoch += 1


def detector_crops(detector, examples, **kwargs):
    """`DetectorCrops` of the files of `make_examples`."""
    samples = round(detector.window_duration * detector.sample_rate)
    clips = {
        label: [
            clip
            for path in paths
            if len(clip := load_audio(path, detector.sample_rate)) >= samples
        ]
        for label, paths in examples.items()
    }
    return DetectorCrops(clips, samples, **kwargs)


# === How well it does ===


def synthetic_probability(detector, audio):
    """How likely each window of audio was made by a machine.

    Args:
        detector: `AudioClassifier` with the labels real and synthetic.
        audio: `(samples,)` at its rate.

    Returns:
        Pair of the seconds at which windows begin and their probabilities,
        both `(windows,)`.

    Raises:
        ValueError: if the classifier tells other things apart.
    """
    if detector.labels != LABELS:
        raise ValueError(
            f"A detector tells {' from '.join(LABELS)}. This classifier tells "
            f"{', '.join(detector.labels)}."
        )
    windows = detector.classify_windows(audio)[:, LABELS.index("synthetic")]
    return np.arange(len(windows)) * detector.hop_duration, windows


def detection_figures(real, synthetic):
    """Scores of what is real and what is synthetic as figures.

    Args:
        real, synthetic: `(count,)` float, the higher the likelier synthetic.

    Returns:
        Dictionary: `balanced_accuracy` at 0.5, `area_under_roc`,
        `equal_error_rate`, the counts, and the curve `roc` of false and true
        positive rates.

    Raises:
        ValueError: if either is empty.
    """
    from sklearn import metrics

    if not len(real) or not len(synthetic):
        raise ValueError(
            "Detection needs sounds of both kinds. Received: "
            f"{len(real)} real and {len(synthetic)} synthetic"
        )
    scores = np.concatenate([real, synthetic])
    truth = np.repeat([0, 1], [len(real), len(synthetic)])
    false, true, _ = metrics.roc_curve(truth, scores)
    # Where as many real ones are taken for synthetic as the other way round.
    equal = np.interp(0.0, false + true - 1.0, false)
    return {
        "balanced_accuracy": float(
            metrics.balanced_accuracy_score(truth, scores > 0.5)
        ),
        "area_under_roc": float(metrics.roc_auc_score(truth, scores)),
        "equal_error_rate": float(equal),
        "real": len(real),
        "synthetic": len(synthetic),
        "roc": [false.tolist(), true.tolist()],
    }


def detection_by_degradation(detector, real, synthetic):
    """`detection_figures` of clips as they are, and after what they meet.

    A clip's score is the mean of those of its windows, as in the paper.

    Args:
        detector: `AudioClassifier`.
        real: list of `(samples,)`, recordings through the codec.
        synthetic: list of `(samples,)`, what was made, without prompts.

    Returns:
        Dictionary by degradation, `"nothing"` first, of the figures of clips,
        and in `windows` those of their windows. `skipped` counts clips shorter
        than a window.

    Reference:
     - [AudioLM, sections IV-D and IV-H](https://arxiv.org/abs/2209.03143)
    """
    samples = round(detector.window_duration * detector.sample_rate)
    sets = [
        [c for c in clips if len(c) >= samples] for clips in (real, synthetic)
    ]
    skipped = len(real) + len(synthetic) - sum(map(len, sets))
    result = {}
    for name, degrade in DEGRADATIONS.items():
        scores = [
            [
                synthetic_probability(
                    detector, degrade(clip, detector.sample_rate)
                )[1]
                for clip in tqdm(clips, f"Detecting ({name})", leave=False)
            ]
            for clips in sets
        ]
        if not all(scores):
            raise ValueError(
                "Detection needs clips of both kinds, of a window "
                f"({detector.window_duration:g} s) or more. Received: "
                f"{len(sets[0])} real and {len(sets[1])} synthetic"
            )
        of_clips = [[one.mean() for one in kind] for kind in scores]
        result[name] = {
            **detection_figures(*of_clips),
            "windows": detection_figures(*map(np.concatenate, scores)),
            "skipped": skipped,
        }
    return result


def _through_file(clip, sample_rate, **how):
    """A clip through a lossy format of libsndfile, at its length."""
    file = io.BytesIO()
    soundfile.write(file, clip, sample_rate, **how)
    file.seek(0)
    made, _ = soundfile.read(file, dtype="float32")
    made = made[: len(clip)]
    return np.pad(made, (0, len(clip) - len(made)))


def _with_noise(clip, sample_rate):
    rng = np.random.default_rng(0)
    return with_noise(rng, clip[None], (20.0, 20.0))[0]


def _telephone(clip, sample_rate):
    narrow = soxr.resample(clip, sample_rate, 8000)
    made = soxr.resample(narrow, 8000, sample_rate)[: len(clip)]
    return np.pad(made, (0, len(clip) - len(made)))


MP3 = dict(
    format="MP3",
    subtype="MPEG_LAYER_III",
    bitrate_mode="CONSTANT",
    compression_level=0.9,
)
OPUS = dict(format="OGG", subtype="OPUS", compression_level=0.95)
DEGRADATIONS = {
    "nothing": lambda clip, sample_rate: clip,
    "MP3 of 24 kbps": lambda clip, rate: _through_file(clip, rate, **MP3),
    "Opus of 20 kbps": lambda clip, rate: _through_file(clip, rate, **OPUS),
    "noise at 20 dB": _with_noise,
    "8 kHz and back": _telephone,
}
