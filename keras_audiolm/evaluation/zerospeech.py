"""sWUGGY and sBLIMP: real words and sentences against others."""

import csv
import pathlib
from collections import defaultdict

import numpy as np
from tqdm import tqdm

from keras_audiolm.evaluation.language import log_likelihoods, preference

LEXICAL_COLUMNS = ("id", "filename", "voice", "frequency", "length", "correct")
SYNTACTIC_COLUMNS = ("id", "filename", "voice", "type", "subtype", "correct")
# The official bands of a word's occurrences in LibriSpeech, each with the
# number that it ends before.
BANDS = (
    ("oov", 1),
    ("1-5", 5),
    ("6-20", 20),
    ("21-100", 100),
    (">100", float("inf")),
)


def swuggy(lm, folder, tokenize):
    """How often a word is likelier than one that does not exist.

    As ZeroSpeech 2021 evaluates it: a tie counts half, and a word is the mean
    over its voices.

    Args:
        lm: `StageLM` of semantic tokens.
        folder: path of the ZeroSpeech 2021 data set, with `lexical/dev/*.wav`
            and `lexical/dev/gold.csv`.
        tokenize: callable from the path of a file to its int `(frames,)`
            semantic tokens. A file that gives none is skipped.

    Returns:
        Dictionary. `normalised`, by the log-likelihood a token (what AudioLM
        reports), and `total`, by that of all tokens, each hold `accuracy` and
        `pairs` (words with what they are compared with), those of the words
        that LibriSpeech has (`in_vocabulary_accuracy`, `in_vocabulary_pairs`),
        and both `by_frequency` and `by_length`. `files`, and how many of them
        are `skipped_files`, without tokens, and `unpaired_files`, with nothing
        to compare with.

    Raises:
        ValueError: if files or columns are missing, no pair is left, or the
            tokens are not the model's.

    Example:

    ```python
    def tokenize(path):
        audio = load_audio(path, pipeline.sample_rate)
        return pipeline.semantic_tokenizer.encode(audio[None])[0]

    result = swuggy(pipeline.semantic_lm, "zerospeech2021", tokenize)
    result["normalised"]["in_vocabulary_accuracy"]
    ```

    Reference:
     - [Nguyen et al., 2020](https://arxiv.org/abs/2011.11588)
     - [AudioLM, table IV](https://arxiv.org/abs/2209.03143)
    """
    folder = pathlib.Path(folder) / "lexical" / "dev"
    rows = read_gold(folder, LEXICAL_COLUMNS)
    return judge(lm, folder, rows, tokenize, lexical_accuracy)


def sblimp(lm, folder, tokenize):
    """How often a sentence is likelier than an ungrammatical one.

    `swuggy`, of `syntactic/dev`; `normalised` and `total` hold `accuracy`,
    `pairs`, and both `by_type` of the error. Right sentences are shorter on
    average, which is why AudioLM reports the normalised figure.
    """
    folder = pathlib.Path(folder) / "syntactic" / "dev"
    rows = read_gold(folder, SYNTACTIC_COLUMNS)
    return judge(lm, folder, rows, tokenize, syntactic_accuracy)


def judge(lm, folder, rows, tokenize, accuracy):
    names, tokens = [], []
    for row in tqdm(rows, "Tokens", delay=2, leave=False):
        found = tokenize(folder / f"{row['filename']}.wav")
        if len(found):
            names.append(row["filename"])
            tokens.append(found)
    if not tokens:
        raise ValueError(f"None of {len(rows)} files of {folder} has tokens.")
    totals, counts = log_likelihoods(lm, tokens)
    scores = {
        "normalised": dict(zip(names, totals / counts, strict=True)),
        "total": dict(zip(names, totals, strict=True)),
    }
    pairs = pair_files([r for r in rows if r["filename"] in scores["total"]])
    if not pairs:
        raise ValueError(
            f"No right file of {folder} has a wrong one of its id and voice "
            f"beside it, of {len(names)} that have tokens."
        )
    paired = {row["filename"] for pair in pairs for row in pair}
    return {
        **{name: accuracy(pairs, score) for name, score in scores.items()},
        "files": len(rows),
        "skipped_files": len(rows) - len(names),
        "unpaired_files": len(names) - len(paired),
    }


def read_gold(folder, columns):
    """The rows of `gold.csv`, all of whose files are there."""
    path = folder / "gold.csv"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: give the folder of the ZeroSpeech 2021 data "
            "set, which holds lexical/dev and syntactic/dev."
        )
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    lacking = set(columns) - set(rows[0] if rows else ())
    if lacking:
        raise ValueError(f"{path} lacks rows or the columns {sorted(lacking)}.")
    classes = {row["correct"] for row in rows}
    if classes - {"0", "1"}:
        raise ValueError(
            f"`correct` must be 0 or 1 in {path}. Received: {sorted(classes)}"
        )
    missing = [
        row["filename"]
        for row in rows
        if not (folder / f"{row['filename']}.wav").is_file()
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(rows)} files that {path} lists are "
            f"missing, the first of them {missing[0]}.wav."
        )
    return rows


def pair_files(rows):
    """Right rows with the wrong ones of their id and voice."""
    groups = defaultdict(lambda: ([], []))
    for row in rows:
        key = (row.get("type"), row.get("subtype"), row["id"], row["voice"])
        groups[key][row["correct"] == "0"].append(row)
    return [
        (right, wrong)
        for rights, wrongs in groups.values()
        for right in rights
        for wrong in wrongs
    ]


def lexical_accuracy(pairs, scores):
    """Accuracy over words, and over those of a frequency or length."""
    by_word = mean_over_voices(pairs, scores, ("id",))
    known, by_frequency, by_length = [], defaultdict(list), defaultdict(list)
    for word, accuracy in by_word:
        by_length[word["length"]].append(accuracy)
        if not word["frequency"]:
            continue
        frequency = float(word["frequency"])
        if frequency >= 1:
            known.append(accuracy)
        band = next(name for name, end in BANDS if frequency < end)
        by_frequency[band].append(accuracy)
    everything = summarise([accuracy for _, accuracy in by_word])
    return {
        **everything,
        "in_vocabulary_accuracy": summarise(known)["accuracy"],
        "in_vocabulary_pairs": len(known),
        "by_frequency": {
            name: summarise(by_frequency[name])
            for name, _ in BANDS
            if name in by_frequency
        },
        "by_length": {
            name: summarise(by_length[name])
            for name in sorted(by_length, key=float)
        },
    }


def syntactic_accuracy(pairs, scores):
    """Accuracy over sentences, and over those of a type."""
    keys = ("type", "subtype", "id")
    by_sentence = mean_over_voices(pairs, scores, keys)
    by_type = defaultdict(list)
    for sentence, accuracy in by_sentence:
        by_type[sentence["type"]].append(accuracy)
    return {
        **summarise([accuracy for _, accuracy in by_sentence]),
        "by_type": {name: summarise(by_type[name]) for name in sorted(by_type)},
    }


def mean_over_voices(pairs, scores, keys):
    """A list of right rows and how often each is preferred."""
    groups = defaultdict(list)
    for right, wrong in pairs:
        name = tuple(right[key] for key in keys)
        won = preference(scores[right["filename"]], scores[wrong["filename"]])
        groups[name].append((right, won))
    return [
        (group[0][0], np.mean([won for _, won in group]))
        for group in groups.values()
    ]


def summarise(accuracies):
    accuracy = float(np.mean(accuracies)) if accuracies else None
    return {"accuracy": accuracy, "pairs": len(accuracies)}
