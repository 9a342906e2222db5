"""What a semantic language model finds likely: units, and their order."""

import math

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from keras_audiolm.language_model.layout import PADDING, without_repeats
from keras_audiolm.layers.compiled import CompiledFunction, padded_frames

# Windows that go through the model at once.
WINDOW_BATCH = 16
# Differences that are rounding: of two likelihoods, as a share.
TIE = 1e-5
# Recordings that are joined to one of a pair, in order and out of it.
JOINED = 4
# How often another order is drawn until it differs from the real one.
DRAWS = 20


def log_likelihoods(lm, tokens):
    """How likely each of several recordings is, in nats.

    Runs of a token are one where the model's layout has them as one. What is
    longer than the model's `crop_duration` goes through it in windows that
    overlap by half, where what was scored before is context alone: every
    token but a recording's first is told half a window or more. That the
    recording ends is not scored.

    Args:
        lm: `StageLM` of semantic tokens.
        tokens: list of int `(frames,)` arrays, of any lengths.

    Returns:
        A pair of NumPy arrays `(len(tokens),)`: the log-likelihoods, float64,
        and the numbers of tokens that they are of.

    Raises:
        ValueError: on no arrays or an empty one, tokens that the model does
            not know, or a model of another stage.

    Example:

    ```python
    tokenizer = pipeline.semantic_tokenizer
    tokens = [tokenizer.encode(clip[None])[0] for clip in clips]
    totals, counts = log_likelihoods(pipeline.semantic_lm, tokens)
    ```
    """
    tokens = checked_tokens(lm, tokens)
    lm.build()
    most = window_tokens(lm)
    score = CompiledFunction(lm, lambda codes: token_scores(lm, codes))
    windows = [
        (row, start, first)
        for row, codes in enumerate(tokens)
        for start, first in window_starts(len(codes), most)
    ]
    # Windows of one length together, each of which compiles once.
    windows.sort(key=lambda window: len(tokens[window[0]]) - window[1])
    totals = np.zeros(len(tokens))
    batches = range(0, len(windows), WINDOW_BATCH)
    for index in tqdm(batches, "Likelihoods", delay=2, leave=False):
        part = windows[index : index + WINDOW_BATCH]
        codes, scored = window_batch(tokens, part, most)
        scores = np.asarray(ops.convert_to_numpy(score(codes)), "float64")
        sums = np.where(scored, scores, 0.0).sum(axis=1)
        for (row, _, _), value in zip(part, sums, strict=False):
            totals[row] += value
    return totals, np.array([len(codes) for codes in tokens])


def unit_perplexity(lm, tokens):
    """How many tokens the next one is as hard to guess as.

    It is a figure of the model and the units together: of two sets of units
    the smaller, or the slower, tends to have the lower one.

    Args:
        lm, tokens: as of `log_likelihoods`.

    Returns:
        Dictionary: `perplexity`, its logarithm `cross_entropy` in nats a
        token, and the numbers of `tokens` and `files`.
    """
    totals, counts = log_likelihoods(lm, tokens)
    cross_entropy = float(-totals.sum() / counts.sum())
    return {
        "perplexity": math.exp(cross_entropy),
        "cross_entropy": cross_entropy,
        "tokens": int(counts.sum()),
        "files": len(counts),
    }


def real_against(lm, tokens, how, block=1, seed=0):
    """How often the model prefers real tokens to the same in another order.

    Args:
        lm, tokens: as of `log_likelihoods`.
        how: `"reversed"`, last to first; `"shuffled"`, in blocks of `block`
            tokens; or `"reordered"`, recordings joined out of order, four at
            a time, against the same in the order of `tokens`. The last says
            something only of recordings that follow each other, like those of
            one book.
        block: int. Tokens of a block. The longer, the more is left of the
            real order, and the harder it is to tell.
        seed: int. Of what is drawn.

    Returns:
        Dictionary: `preferred`, the share of pairs in which the real one is
        the likelier a token, ties counted half, so that half is chance;
        `nats_per_token`, the mean logarithm of the likelihoods' ratio a
        token; the numbers of `pairs` and `ties`; and `skipped`, what is the
        same in another order, such as a single block.

    Raises:
        ValueError: as of `log_likelihoods`; on settings out of range; or if
            nothing is left of which there is another order.
    """
    if how not in ("reversed", "shuffled", "reordered") or block < 1:
        raise ValueError(
            "`how` must be 'reversed', 'shuffled' or 'reordered', and `block` "
            f"1 or more. Received: how={how!r}, block={block}"
        )
    rows = checked_tokens(lm, tokens)
    rng = np.random.default_rng(seed)
    if how == "reversed":
        pairs = [(row, row[::-1]) for row in rows]
    elif how == "shuffled":
        parts = [np.split(row, range(block, len(row), block)) for row in rows]
        pairs = [other_order(rng, part) for part in parts]
    else:
        starts = range(0, len(rows), JOINED)
        pairs = [other_order(rng, rows[i : i + JOINED]) for i in starts]
    different = [(a, b) for a, b in pairs if not np.array_equal(a, b)]
    if not different:
        raise ValueError(
            f"None of {len(pairs)} differs from itself {how}: recordings "
            f"must be longer than block={block}, or, to be reordered, two or "
            "more."
        )
    result = compare_pairs(lm, different)
    return {**result, "skipped": len(pairs) - len(different)}


def other_order(rng, parts):
    """Arrays joined as they are, and in another order where there is one."""
    real = np.concatenate(parts)
    for _ in range(DRAWS):
        order = rng.permutation(len(parts))
        other = np.concatenate([parts[i] for i in order])
        if not np.array_equal(real, other):
            break
    return real, other


def compare_pairs(lm, pairs):
    totals, counts = log_likelihoods(
        lm, [row for pair in pairs for row in pair]
    )
    real, other = (totals / counts).reshape(-1, 2).T
    won = np.array([preference(a, b) for a, b in zip(real, other, strict=True)])
    return {
        "preferred": float(won.mean()),
        "nats_per_token": float((real - other).mean()),
        "pairs": len(pairs),
        "ties": int((won == 0.5).sum()),
    }


def preference(real, other):
    """1 where the first of two log-likelihoods is the higher, 0 where it is
    the lower, and 1/2 where they are the same but for rounding."""
    if math.isclose(real, other, rel_tol=TIE):
        return 0.5
    return float(real > other)


# === Windows ===


def checked_tokens(lm, tokens):
    """Arrays as the model's layout has them, runs taken as one if it does."""
    segment = lm.layout.predicted
    if len(lm.layout.segments) != 1 or segment.levels != 1:
        raise ValueError(
            "Only a stage of one level that is told nothing can score tokens "
            "alone, as the semantic one. Received: a layout of "
            f"{[(s.name, s.levels) for s in lm.layout.segments]}"
        )
    if not len(tokens):
        raise ValueError("There are no tokens to score: the list is empty.")
    rows = []
    for index, row in enumerate(tokens):
        row = np.asarray(row)
        if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
            raise ValueError(
                "Tokens must be int arrays (frames,), of one frame or more. "
                f"Received: {row.dtype} of shape {row.shape} at {index}"
            )
        if row.min() < 0 or row.max() >= segment.codebook_size:
            raise ValueError(
                f"Tokens must be from 0 to {segment.codebook_size - 1}. "
                f"Received: {row.min()} to {row.max()} at {index}"
            )
        row = row.astype("int32")
        if segment.deduplicated:
            row = without_repeats(row[None, :, None])[0, :, 0]
        rows.append(row)
    return rows


def window_tokens(lm):
    """Tokens of the longest sequence that the model was trained on."""
    frames = lm.layout.predicted.frames_in(lm.crop_duration)
    if lm.layout.predicted.deduplicated:
        per_token = float(ops.convert_to_numpy(lm.frames_per_token))
        frames = max(round(frames / per_token), 1)
    return frames


def window_starts(length, most):
    """Where each window starts, and the first of its tokens to be scored."""
    yield 0, 0
    context = most - max(most // 2, 1)
    for scored in range(most, length, most - context):
        yield scored - context, context


def window_batch(tokens, windows, most):
    """Codes `(WINDOW_BATCH, longest, 1)` of windows, and which are scored."""
    parts = [tokens[row][start : start + most] for row, start, _ in windows]
    longest = min(padded_frames(max(map(len, parts))), most)
    # One shape for each length: what is padded on changes nothing.
    codes = np.full((WINDOW_BATCH, longest, 1), PADDING, "int32")
    scored = np.zeros((WINDOW_BATCH, longest), bool)
    for i, (part, (_, _, first)) in enumerate(zip(parts, windows, strict=True)):
        codes[i, : len(part), 0] = part
        scored[i, first : len(part)] = True
    return codes, scored


def token_scores(lm, codes):
    """The log-likelihood of each token, `(batch, frames)`."""
    logits = lm({lm.layout.predicted.name: codes}, training=False)
    losses = keras.losses.sparse_categorical_crossentropy(
        ops.maximum(codes, 0), logits, from_logits=True
    )
    return -losses[..., 0]
