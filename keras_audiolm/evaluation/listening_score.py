"""What the raters of a listening test got right, by its key."""

import json
import pathlib

from keras_audiolm.evaluation.listening_test import (
    checksum,
    import_package,
    key_path,
)


def score_listening_test(folder, answers):
    """Opens the key of a test and counts what raters got right.

    The p-value is that of an exact two-sided binomial test: how often
    guessing would be as far from one half, above or below. (The paper's 0.23
    for 512 of 1000 is one-sided; here it is 0.47.) The interval is Clopper's
    and Pearson's. For all raters together, all ratings are taken to be
    independent, as in the paper. Clips that a rater left out do not count.

    Args:
        folder: path of the test, as `make_listening_test` wrote it, with the
            key beside it.
        answers: list of paths of files that the page exported.

    Returns:
        Dictionary: `"raters"`, a list in the order of `answers`, and `"all"`,
        for them together. Each is a dictionary of `rated`, `unrated`,
        `correct`, `accuracy`, `interval` (of 95 %, a pair) and `p_value`; of
        a rater also `rater`, the name given. And `"real"`, the names of the
        real clips.

    Raises:
        ImportError: without SciPy.
        ValueError: on a key or clips that were changed, and on answers that
            are not of this test, of clips that it has not, given twice, or
            none at all.

    Reference:
     - [AudioLM, section IV-F](https://arxiv.org/abs/2209.03143)
    """
    seal, clips = unseal(folder)
    texts = [read_text(path, "answers") for path in answers]
    raters = []
    for place, (path, text) in enumerate(zip(answers, texts, strict=True)):
        if text in texts[:place]:
            raise ValueError(
                f"{path} and {answers[texts.index(text)]} hold the same "
                "answers. Give each rater's once."
            )
        rater, rated = parse_answers(path, text, seal, clips)
        correct = sum(real == clips[name] for name, real in rated.items())
        raters.append({"rater": rater, **rate(correct, len(rated), len(clips))})
    if not raters:
        raise ValueError("There are no answers: give one file or more.")
    together = (sum(r[name] for r in raters) for name in ("correct", "rated"))
    return {
        "raters": raters,
        "all": rate(*together, len(raters) * len(clips)),
        "real": [name for name, real in clips.items() if real],
    }


def unseal(folder):
    """The seal, and a dictionary from the name of each clip to whether it is
    real.

    Raises:
        ValueError: if there is no test or no key, or one was changed.
    """
    folder = pathlib.Path(folder).expanduser()
    path = key_path(folder)
    seal = read_text(folder / "seal.txt", "test").strip()
    key = read_text(path, "key")
    if checksum(path) != seal:
        raise ValueError(
            f"{path} was changed, or is of another test: its SHA-256 is not "
            f"the seal in {folder / 'seal.txt'}."
        )
    clips = json.loads(key)["clips"]
    for name, clip in clips.items():
        path = folder / "clips" / name
        if not path.is_file() or checksum(path) != clip["sha256"]:
            raise ValueError(
                f"{path} is missing or was changed: it is not the clip that "
                "the key was made for."
            )
    return seal, {name: clip["real"] for name, clip in clips.items()}


def read_text(path, what):
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"There is no {what} at {path}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no {what}: it is not text.") from None


def parse_answers(path, text, seal, clips):
    """A rater's name, and a dictionary from clips to what was answered."""
    try:
        given = json.loads(text)
        rated = {k: v["real"] for k, v in given["answers"].items()}
        sealed, rater = given["seal"], str(given["rater"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} is not what the page of a test exports."
        ) from None
    if sealed != seal:
        raise ValueError(
            f"{path} has the answers of another test, or this one was changed "
            f"since: its seal is {str(sealed)[:8]}..., and not {seal[:8]}..."
        )
    for name, real in rated.items():
        if name not in clips or not isinstance(real, bool):
            raise ValueError(
                f"{path} answers {real!r} for the clip {name!r}. There are "
                f"{len(clips)} clips, {', '.join(list(clips)[:2])}, ..., and "
                "answers are true or false."
            )
    if not rated:
        raise ValueError(f"No clip is rated in {path}.")
    # A name comes from outside, and goes to a terminal.
    return "".join(c for c in rater if c.isprintable()), rated


def rate(correct, rated, clips):
    """What `score_listening_test` says of so many ratings."""
    test = import_package("scipy.stats").binomtest(correct, rated, 0.5)
    interval = test.proportion_ci(0.95, method="exact")
    return {
        "rated": rated,
        "unrated": clips - rated,
        "correct": correct,
        "accuracy": correct / rated,
        "interval": (float(interval.low), float(interval.high)),
        "p_value": float(test.pvalue),
    }
