"""ABX: whether two of a phone are nearer to each other than to another."""

import math
import pathlib
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

COLUMNS = "#file onset offset #phone prev-phone next-phone speaker"
# Seconds by which an item may go beyond its file's last frame: models drop
# what does not fill a frame.
SLACK = 0.1


def abx(
    item_file,
    features,
    frame_rate,
    max_group_size=10,
    max_x_speakers=5,
    seed=0,
):
    """ABX error rates within and across speakers, as Libri-Light has them.

    A and X are of one triphone and B of another that differs in its middle
    phone alone. Within speakers one speaker says all three; across, X is said
    by another than A and B. The error is the share of triples in which X is
    farther from A than from B, ties counted half, averaged over the triples
    of a context (and speaker of X), over those, over speakers, and over
    ordered pairs of phones. Half is chance.

    Distances are the mean along the path of dynamic time warping of the
    angle between frames, as a share of 180 degrees. Codes are as far apart as
    the levels in which they differ; with one level the error is that of
    one-hot vectors, as ZeroSpeech takes units. AudioLM measured a codec's
    frames by the sum of their embeddings (`codec.quantizer.decode`): give it
    as floats.

    An item has the frames from `ceil(frame_rate * onset - 0.5)` to
    `floor(frame_rate * offset - 0.5)`, exclusive. The end is Libri-Light's,
    one frame earlier than ABXpy's: the published figures are of it. On features
    and on codes of three speakers at random, both errors are those of
    zerospeech-libriabx2 0.9.8 within 1e-7 (docs/evaluation_tokens.md).

    Args:
        item_file: path of an `.item` file: a line of titles, then the columns
            file, onset and offset (in seconds), phone, the phones before and
            after, and speaker.
        features: callable from a file's name, as in the item file, to a NumPy
            array of the whole file: float `(frames, dim)`, or int `(frames,)`
            or `(frames, levels)` codes.
        frame_rate: float. Frames a second of the features: 25 or 50, and not
            the 100 that Libri-Light's script takes unless told.
        max_group_size: int. So many of a speaker's items of one triphone are
            drawn where there are more. Libri-Light draws anew for each
            comparison, here it is once.
        max_x_speakers: int. So many speakers of X are drawn for an A.
        seed: int. Of what is drawn.

    Returns:
        Dictionary: `within_error` and `across_error`, from 0 to 1, or `None`
        where no triple exists; of each `..._pairs`, the ordered pairs of
        phones, and `..._cells`, the comparisons of groups, that it is the
        mean of; `items`, and `skipped_items` that are shorter than a frame.

    Raises:
        ValueError: if the item file is missing or has other columns; if
            features have another shape, are not finite, or end before their
            items, as at a wrong `frame_rate`; or if there is no triple at all.

    Example:

    ```python
    def tokens(name):
        audio = load_audio(f"dev-clean/{name}.flac", tokenizer.sample_rate)
        return tokenizer.encode(audio[None])[0]

    abx("dev-clean.item", tokens, frame_rate=25.0)
    ```

    Reference:
     - [Schatz et al., 2013](https://hal.science/hal-00918599)
     - [Libri-Light](https://arxiv.org/abs/1912.07875)
     - [AudioLM, table I](https://arxiv.org/abs/2209.03143)
    """
    if max_group_size < 2 or max_x_speakers < 1 or not frame_rate > 0:
        raise ValueError(
            "`max_group_size` must be 2 or more, `max_x_speakers` 1 or more "
            "and `frame_rate` above 0. Received: "
            f"max_group_size={max_group_size}, "
            f"max_x_speakers={max_x_speakers}, frame_rate={frame_rate}"
        )
    rng = np.random.default_rng(seed)
    items = read_items(item_file)
    contexts, used = group_items(items, features, frame_rate)
    for speakers in contexts.values():
        for groups in speakers.values():
            for phone, group in groups.items():
                groups[phone] = draw(rng, group, max_group_size)
    result = {"items": used, "skipped_items": len(items) - used}
    for mode, cells in (
        ("within", within_cells),
        ("across", lambda s: across_cells(s, rng, max_x_speakers)),
    ):
        errors = defaultdict(list)
        for speakers in tqdm(contexts.values(), f"ABX {mode}", leave=False):
            score_cells(speakers, cells(speakers), errors)
        result.update(summarise(mode, errors))
    if not result["within_cells"] + result["across_cells"]:
        raise ValueError(
            f"{item_file} holds no triple: it takes two phones between the "
            "same neighbours, and two of the one, by one speaker or by two. "
            f"{used} items have a frame or more, of {len(items)}."
        )
    return result


# === Items ===


class Item(NamedTuple):
    """A stretch of a file in which a phone stands between two others."""

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


def read_items(path):
    """The lines of an item file, as a list of `Item`."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} is missing. An item file says where phones stand in a "
            f"corpus, in the columns {COLUMNS}. Those of LibriSpeech come "
            "with Libri-Light and with the ZeroSpeech 2021 data set "
            "(phonetic/*.item); another corpus needs a forced alignment."
        )
    items = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        values = line.split()
        try:
            file, onset, offset, *rest = values
            items.append(Item(file, float(onset), float(offset), *rest))
        except (TypeError, ValueError):
            raise ValueError(
                f"Line {number} of {path} must have the columns {COLUMNS}. "
                f"Received: {line!r}"
            ) from None
    if not items:
        raise ValueError(f"{path} lists no items.")
    return items


def group_items(items, features, frame_rate):
    """What each speaker says of each triphone.

    Returns:
        `groups[before, after][speaker][phone]`, lists of arrays `(frames,
        dim)`, and how many arrays there are.
    """
    files = defaultdict(list)
    for item in items:
        files[item.file].append(item)
    groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    used, kinds = 0, {}
    for file, members in tqdm(files.items(), "ABX features", leave=False):
        frames = check_features(file, features(file))
        kind = (frames.dtype.kind in "iu", frames.shape[1])
        kinds.setdefault(kind, file)
        check_duration(file, frames, members, frame_rate)
        for item in members:
            start = math.ceil(frame_rate * item.onset - 0.5)
            end = math.floor(frame_rate * item.offset - 0.5)
            part = frames[max(start, 0) : max(end, 0)]
            if len(part):
                context = groups[item.before, item.after]
                context[item.speaker][item.phone].append(part)
                used += 1
    if len(kinds) > 1:
        raise ValueError(
            "The features of all files must be of one type and width. "
            "Received: "
            + ", ".join(
                f"{'codes' if codes else 'floats'} (frames, {width}) for "
                f"{file!r}"
                for (codes, width), file in kinds.items()
            )
        )
    return groups, used


def check_features(file, frames):
    frames = np.asarray(frames)
    if frames.ndim == 1 and frames.dtype.kind in "iu":
        frames = frames[:, None]
    if frames.ndim != 2 or frames.dtype.kind not in "iuf":
        raise ValueError(
            "Features must be float (frames, dim), or int (frames,) or "
            f"(frames, levels). Received: {frames.dtype} of shape "
            f"{frames.shape} for {file!r}"
        )
    if not np.isfinite(frames).all():
        raise ValueError(f"The features of {file!r} are not all finite.")
    return frames


def check_duration(file, frames, items, frame_rate):
    end = max(item.offset for item in items)
    if len(frames) / frame_rate < end - SLACK:
        raise ValueError(
            f"An item of {file!r} ends at {end} s, and its features "
            f"({len(frames)} frames) at {len(frames) / frame_rate:.2f} s: is "
            f"frame_rate={frame_rate} theirs?"
        )


def draw(rng, group, most):
    """No more than `most` of a list, in their order."""
    if len(group) <= most:
        return group
    chosen = np.sort(rng.choice(len(group), most, replace=False))
    return [group[i] for i in chosen]


# === Comparisons ===


def within_cells(speakers):
    """Groups of X, A and B, each `(speaker, phone)`."""
    for speaker, phones in speakers.items():
        for a, group in phones.items():
            if len(group) > 1:
                for b in phones:
                    if b != a:
                        yield (speaker, a), (speaker, a), (speaker, b)


def across_cells(speakers, rng, max_x_speakers):
    """`within_cells` with X by another speaker."""
    for speaker, phones in speakers.items():
        if len(phones) < 2:
            continue
        for a in phones:
            others = [s for s in speakers if s != speaker and a in speakers[s]]
            for other in draw(rng, others, max_x_speakers):
                for b in phones:
                    if b != a:
                        yield (other, a), (speaker, a), (speaker, b)


def score_cells(speakers, cells, errors):
    """Adds each cell's error to `errors[speaker of A, A, B]`."""
    by_x = defaultdict(list)
    for x, a, b in cells:
        by_x[x].append((a, b))
    for x, pairs in by_x.items():
        # Each group once: A is compared with several B.
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        groups = [speakers[speaker][phone] for speaker, phone in names]
        found = group_distances(speakers[x[0]][x[1]], groups)
        distances = dict(zip(names, found, strict=True))
        for a, b in pairs:
            error = cell_error(distances[a], distances[b], x == a)
            errors[*a, b[1]].append(error)


def cell_error(to_a, to_b, same):
    """The share of triples in which X is nearer to B.

    Args:
        to_a: `(X, A)` distances.
        to_b: `(X, B)` distances.
        same: bool. Whether X and A are one group: none is compared with
            itself, and the distance of two is that of the earlier to the
            later, both ways.
    """
    if same:
        to_a = np.triu(to_a, 1) + np.triu(to_a, 1).T
    to_a, to_b = to_a[:, :, None], to_b[:, None, :]
    wrong = (to_a > to_b) + 0.5 * (to_a == to_b)  # (X, A, B)
    if same:
        wrong = wrong[~np.eye(len(wrong), dtype=bool)]
    return float(wrong.mean())


def summarise(mode, errors):
    by_pair = defaultdict(list)
    for (_, a, b), values in errors.items():
        by_pair[a, b].append(np.mean(values))
    means = [np.mean(values) for values in by_pair.values()]
    return {
        f"{mode}_error": float(np.mean(means)) if means else None,
        f"{mode}_pairs": len(means),
        f"{mode}_cells": sum(map(len, errors.values())),
    }


# === Distances ===


def group_distances(items, groups):
    """Of items to those of several groups: a list of `(items, others)`."""
    others = [item for group in groups for item in group]
    between = frame_distances(np.concatenate(items), np.concatenate(others))
    rows, lengths = places(items)
    columns, other_lengths = places(others)
    # (items, frames, others, frames) -> (frames, frames, items, others)
    between = between[rows][:, :, columns].transpose(1, 3, 0, 2)
    distances = warped_distances(between, lengths, other_lengths)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(distances, ends, axis=1)


def places(items):
    """Where frames are once items are joined, and the items' lengths.

    Returns:
        `(items, longest)`, with any place for what a shorter item lacks, and
        `(items,)`.
    """
    lengths = np.array([len(item) for item in items])
    starts = np.cumsum(lengths) - lengths
    rows = starts[:, None] + np.arange(lengths.max())
    return np.minimum(rows, lengths.sum() - 1), lengths


def frame_distances(x, y):
    """Angles between frames over pi, `(frames of x, frames of y)`.

    A frame of zeros has no direction: 1 from any other, and 0 from its like.
    Codes: the number of levels that differ, whole so that ties stay ties.
    """
    if x.dtype.kind in "iu":
        return (x[:, None] != y[None]).sum(axis=-1).astype("float64")
    x, y = x.astype("float64"), y.astype("float64")
    norms = [np.linalg.norm(frames, axis=1) for frames in (x, y)]
    scale = np.outer(*norms)
    cosine = (x @ y.T) / np.where(scale > 0, scale, 1.0)
    distances = np.arccos(np.clip(cosine, -1.0, 1.0)) / np.pi
    silent = [norm == 0 for norm in norms]
    distances[silent[0]], distances[:, silent[1]] = 1.0, 1.0
    distances[np.ix_(*silent)] = 0.0
    return distances


def warped_distances(between, lengths, other_lengths):
    """Mean distance along the paths of dynamic time warping.

    Ours, since the mean is over the path's length, which among paths of one
    cost depends on which step is preferred: codes have many such paths. Of
    equal ways to a pair of frames it is, as in Libri-Light, the one from both
    frames before, then from the other item's, then from the item's.

    Args:
        between: `(frames, frames, items, others)`, padded; padding changes
            nothing.
        lengths: `(items,)`.
        other_lengths: `(others,)`.

    Returns:
        `(items, others)`.

    Reference:
     - [dtw.pyx of Libri-Light](https://github.com/facebookresearch/libri-light)
    """
    cost, steps = np.empty_like(between), np.ones(between.shape, "int32")
    cost[0], cost[:, 0] = between[0].cumsum(0), between[:, 0].cumsum(0)
    steps[0], steps[:, 0] = steps[0].cumsum(0), steps[:, 0].cumsum(0)
    for i in range(1, between.shape[0]):
        for j in range(1, between.shape[1]):
            best, taken = cost[i - 1, j - 1], steps[i - 1, j - 1]
            for place in ((i, j - 1), (i - 1, j)):
                cheaper = cost[place] < best
                best = np.where(cheaper, cost[place], best)
                taken = np.where(cheaper, steps[place], taken)
            cost[i, j] = between[i, j] + best
            steps[i, j] = 1 + taken
    ends = np.ix_(np.arange(len(lengths)), np.arange(len(other_lengths)))
    last = (lengths[:, None] - 1, other_lengths[None] - 1, *ends)
    return cost[last] / steps[last]
