"""Who speaks, and in which language: classifiers of a corpus's own labels."""

import json
import os
import zlib

import keras
import numpy as np
from tqdm import tqdm

from keras_audiolm.evaluation.classifier import AudioClassifier, LabelledCrops

# Three or four minutes on one core. The two languages of one speaker take
# longer than the speakers.
STEPS = {"speaker": 400, "language": 500}
CHANNELS = (16, 32, 64, 64, 96, 96)
CROPS_PER_CLASS = 4
# So much that what a codec adds and takes away is no sign of a label: of a
# prompt through the codec they are to hear what they hear of the prompt.
AUGMENTATION = {"noise_db": (0.0, 40.0), "equaliser_db": 9.0}


def get_classifier(column, corpus, folder):
    """A classifier of the corpus's training files, trained or read.

    Args:
        column: `"speaker"` or `"language"`.
        corpus: `Corpus`.
        folder: path where classifiers are kept.

    Raises:
        ValueError: if there are not two labels to tell apart.
    """
    files = corpus.files_by(column, "train")
    if len(files) < 2:
        raise ValueError(
            f"Telling a {column} needs training recordings of two or more. "
            f"The corpus has {', '.join(files) or 'none'}."
        )
    settings = {
        "labels": list(files),
        "files": zlib.crc32(repr(corpus.split("train")).encode()),
        "sample_rate": corpus.sample_rate,
        "channels": list(CHANNELS),
        "crops_per_class": CROPS_PER_CLASS,
        "steps": STEPS[column],
        **{name: np.ravel(x).tolist() for name, x in AUGMENTATION.items()},
    }
    classifier = AudioClassifier(list(files), corpus.sample_rate, CHANNELS)
    weights = folder / f"{column}.weights.h5"
    description = folder / f"{column}.json"
    if description.is_file():
        if json.loads(description.read_text()) == settings:
            classifier.load_weights(weights)
            return classifier
        description.unlink()
    train_classifier(classifier, files, STEPS[column])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{column}.weights.h5"
    classifier.save_weights(temporary)
    os.replace(temporary, weights)
    temporary = description.with_suffix(".tmp")
    temporary.write_text(json.dumps(settings))
    os.replace(temporary, description)
    return classifier


def train_classifier(classifier, files, steps):
    """Trains on random crops, the same number of each class.

    Args:
        classifier: `AudioClassifier`.
        files: dictionary from label to a list of paths.
        steps: int.
    """
    crops = LabelledCrops(
        files,
        classifier.sample_rate,
        classifier.window_duration,
        crops_per_class=CROPS_PER_CLASS,
        steps_per_epoch=steps,
        **AUGMENTATION,
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=3e-3, warmup_steps=min(20, steps)
    )
    classifier.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01))
    with tqdm(total=steps, desc="Training a classifier") as bar:
        classifier.fit(
            crops,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda batch, logs: bar.update()
                )
            ],
        )


def judge(classifier, clips, truth):
    """Accuracy and confusions on clips.

    Args:
        classifier: `AudioClassifier`.
        clips: sequence of `(samples,)` arrays.
        truth: list of the label of each; clips of labels that the classifier
            does not know are left out, and counted.

    Returns:
        Dictionary: `accuracy` (`None` where nothing is left), `right`,
        `total`, `unknown` and `confusion`, a row for each true label and a
        column for each that was heard, in the order of the labels.
    """
    labels = list(classifier.labels)
    confusion = np.zeros((len(labels), len(labels)), int)
    unknown = 0
    for clip, label in zip(
        tqdm(clips, "Classifying", leave=False), truth, strict=True
    ):
        if label not in labels:
            unknown += 1
            continue
        heard = int(np.argmax(classifier.classify(clip)))
        confusion[labels.index(label), heard] += 1
    right, total = int(np.trace(confusion)), int(confusion.sum())
    return {
        "accuracy": right / total if total else None,
        "right": right,
        "total": total,
        "unknown": unknown,
        "confusion": confusion.tolist(),
    }
