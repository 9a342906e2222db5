"""Frechet audio distance: how far two sets of recordings lie apart."""

import numpy as np

# Seconds that one embedding stands for.
WINDOW_DURATION = 1.0
# Windows that are embedded at once.
BATCH = 16


def frechet_distance(real, fake):
    """The Frechet distance of two normal distributions, fitted to points.

    With `A` and `B` the centred points, divided by the root of their number
    less one, the trace of the root of the covariances' product is the sum of
    the singular values of `A Bᵀ`. No covariance is formed, squared or
    inverted, so that fewer points than dimensions do no harm. The triangular
    factors of `A` and `B` stand for them, so that memory grows with the
    dimensions alone.

    Args:
        real, fake: `(points, dim)` float, two or more points each.

    Returns:
        float, zero or more.

    Raises:
        ValueError: on fewer points, other dimensions or values that are not
            finite.

    Reference:
     - [Dowson and Landau, 1982](https://doi.org/10.1016/0047-259X(82)90077-X)
     - [FID, Heusel et al., 2017](https://arxiv.org/abs/1706.08500)
    """
    real, fake = (np.asarray(points, "float64") for points in (real, fake))
    for name, points in (("real", real), ("fake", fake)):
        if points.ndim != 2 or len(points) < 2:
            raise ValueError(
                f"`{name}` must be (points, dim) with two points or more. "
                f"Received: shape {points.shape}"
            )
        if not np.isfinite(points).all():
            raise ValueError(f"`{name}` holds values that are not finite.")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            "Both sets must have one dimension. Received: "
            f"{real.shape[1]} and {fake.shape[1]}"
        )
    means = real.mean(axis=0) - fake.mean(axis=0)
    a, b = _root(real), _root(fake)
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = means @ means + np.sum(a * a) + np.sum(b * b) - 2 * common
    return float(max(distance, 0.0))


def _root(points):
    """A triangular `r` of which `rᵀ r` is the covariance of points."""
    centred = points - points.mean(axis=0)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(points) - 1)


def frechet_audio_distance(real, fake, embed, sample_rate):
    """The Frechet distance of the windows of two sets of recordings.

    Args:
        real, fake: lists of `(samples,)` float32.
        embed: callable from windows `(batch, samples)` to embeddings
            `(batch, dim)`, such as `encoder_embedding` makes.
        sample_rate: int. Hertz.

    Returns:
        Dictionary: `distance`, and the windows of a second of each,
        `real_windows` and `fake_windows`. What is left of a recording after
        its last whole window is not heard.

    Raises:
        ValueError: if a set has fewer than two windows.

    Reference:
     - [FAD, Kilgour et al., 2019](https://arxiv.org/abs/1812.08466)
    """
    samples = round(WINDOW_DURATION * sample_rate)
    sets = {"real": _windows(real, samples), "fake": _windows(fake, samples)}
    for name, windows in sets.items():
        if len(windows) < 2:
            raise ValueError(
                f"A Frechet distance needs two windows of {WINDOW_DURATION:g} "
                f"s or more of each set; the {name} one has {len(windows)}."
            )
    points = [_embed(embed, windows) for windows in sets.values()]
    return {
        "distance": frechet_distance(*points),
        "real_windows": len(sets["real"]),
        "fake_windows": len(sets["fake"]),
        "dim": points[0].shape[1],
    }


def _windows(clips, samples):
    whole = [clip[: len(clip) // samples * samples] for clip in clips]
    windows = [clip.reshape(-1, samples) for clip in whole]
    return np.concatenate(windows or [np.zeros((0, samples), "float32")])


def _embed(embed, windows):
    count = len(windows)
    # One shape, and so one compiled program.
    windows = np.pad(windows, [(0, -count % BATCH), (0, 0)])
    points = [
        embed(windows[start : start + BATCH])
        for start in range(0, len(windows), BATCH)
    ]
    return np.concatenate(points)[:count]


def encoder_embedding(tokenizer):
    """The mean over time of the activations that semantic tokens come from.

    Args:
        tokenizer: `SemanticTokenizer`.

    Returns:
        A function of `(batch, samples)` at the tokenizer's rate that gives
        `(batch, dim)`, a NumPy array.
    """
    from keras import ops

    from keras_audiolm.layers.compiled import CompiledFunction

    encoder, layer = tokenizer.encoder, tokenizer.layer
    run = CompiledFunction(
        encoder,
        lambda audio: ops.mean(
            ops.cast(encoder.encode(audio, layer), "float32"), axis=1
        ),
    )
    return lambda audio: ops.convert_to_numpy(run(audio))
