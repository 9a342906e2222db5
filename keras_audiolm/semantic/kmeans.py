"""K-means over more vectors than memory holds."""

import keras
import numpy as np
from keras import ops

_CHUNK = 16384  # vectors compared with all centroids at once


@keras.saving.register_keras_serializable(package="keras_audiolm")
class KMeans(keras.layers.Layer):
    """Nearest of `num_clusters` centroids of standardised vectors.

    `fit` reads its data as a stream. The first pass gathers the mean and the
    deviation of each dimension and a uniform sample (reservoir) of the
    vectors; k-means++ and Lloyd's algorithm on that sample give the start.
    Each further pass is mini-batch k-means: a centroid is the running mean of
    all vectors that chose it. Mean and deviation are weights like the
    centroids, so that they are saved with them and applied by `predict`.

    Args:
        num_clusters: int. Number of centroids.
        seed: int. Of the reservoir and of k-means++. Defaults to `0`.

    Call arguments:
        x: tensor of shape `(..., dim)`.

    Returns:
        Int32 tensor of shape `(...)`: the nearest centroid's index.

    Example:

    ```python
    kmeans = KMeans(num_clusters=512)
    kmeans.fit(lambda: (np.load(path) for path in shards), passes=3)
    tokens = kmeans.predict(activations)
    ```

    Reference:
     - [Sculley, 2010](https://dl.acm.org/doi/10.1145/1772690.1772862)
     - [AudioLM, section III-B](https://arxiv.org/abs/2209.03143)
    """

    def __init__(self, num_clusters, seed=0, **kwargs):
        kwargs.update(dtype="float32", trainable=False)
        super().__init__(**kwargs)
        if num_clusters < 1:
            raise ValueError(
                "`num_clusters` must be at least 1. Received: "
                f"num_clusters={num_clusters}."
            )
        # === Config ===
        self.num_clusters = num_clusters
        self.seed = seed

    def build(self, input_shape):
        dim = input_shape[-1]
        for name, shape, initializer in (
            ("mean", (dim,), "zeros"),
            ("std", (dim,), "ones"),
            ("centroids", (self.num_clusters, dim), "zeros"),
            ("counts", (self.num_clusters,), "zeros"),
        ):
            weight = self.add_weight(
                shape=shape,
                initializer=initializer,
                trainable=False,
                name=name,
            )
            setattr(self, name, weight)

    @property
    def initialized(self):
        """Whether the centroids were fitted or loaded."""
        return bool(self.built and np.any(_numpy(self.counts) > 0))

    def call(self, x):
        x = (ops.cast(x, "float32") - self.mean) / self.std
        centroids = ops.convert_to_tensor(self.centroids)
        # |x - c|^2 without |x|^2, which is the same for every centroid.
        distance = ops.sum(ops.square(centroids), axis=-1)
        distance = distance - 2.0 * ops.matmul(x, ops.transpose(centroids))
        return ops.cast(ops.argmin(distance, axis=-1), "int32")

    def predict(self, x):
        """Same as calling the layer."""
        return self(x)

    def fit(self, batches, passes=2, reservoir_size=None, lloyd_steps=20):
        """Fits statistics and centroids to a stream of vectors.

        Args:
            batches: a callable that returns an iterator of arrays of shape
                `(n, dim)`, or such arrays in a list. A plain iterator can be
                read once only and so allows one pass.
            passes: int. How often to read the data: once for statistics and
                the sample, the other times for mini-batch updates. Defaults
                to `2`.
            reservoir_size: int. Vectors in the sample. Defaults to 256 per
                cluster.
            lloyd_steps: int. Most steps of Lloyd's algorithm on the sample.
                Defaults to `20`.

        Returns:
            Dictionary: `inertia`, the mean squared distance of a standardised
            vector to its centroid after the start and after each pass; and
            `num_vectors`, how many a pass holds.
        """
        make = self._make_stream(batches, passes)
        rng = np.random.default_rng(self.seed)
        size = reservoir_size or 256 * self.num_clusters
        statistics, sample = _scan(make(), size, rng)
        self._check_sample(sample)
        if not self.built:
            self.build(sample.shape)
        mean, std = statistics.mean, statistics.std
        sample = ((sample - mean) / std).astype("float32")
        centroids = _plus_plus(sample, self.num_clusters, rng)
        centroids, counts, inertia = _lloyd(sample, centroids, lloyd_steps)
        history = [inertia]
        for _ in range(passes - 1):
            total = 0.0
            for batch in make():
                x = ((_check_batch(batch) - mean) / std).astype("float32")
                total += _mini_batch(x, centroids, counts)
            history.append(total / statistics.count)
        self.mean.assign(mean)
        self.std.assign(std)
        self.centroids.assign(centroids)
        self.counts.assign(counts)
        return {"inertia": history, "num_vectors": statistics.count}

    def _make_stream(self, batches, passes):
        if callable(batches):
            return batches
        if iter(batches) is not batches:
            return lambda: iter(batches)
        if passes > 1:
            raise ValueError(
                "An iterator can be read once, so `passes` must be 1; give a "
                "callable that returns a new iterator to read the data "
                f"several times. Received: passes={passes}."
            )
        return lambda: batches

    def _check_sample(self, sample):
        if len(sample) < self.num_clusters:
            raise ValueError(
                f"{self.num_clusters} clusters need at least as many vectors. "
                f"Received: {len(sample)} vectors. Give more data, or ask for "
                "fewer clusters."
            )
        if self.built and sample.shape[1] != self.mean.shape[0]:
            raise ValueError(
                f"The layer was built for vectors of {self.mean.shape[0]} "
                f"dimensions. Received: {sample.shape[1]} dimensions."
            )

    def get_config(self):
        config = super().get_config()
        del config["dtype"], config["trainable"]
        config.update(num_clusters=self.num_clusters, seed=self.seed)
        return config


class StreamedStatistics:
    """Mean and deviation of each dimension, one batch at a time (Chan)."""

    def __init__(self):
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, x):
        x = x.astype("float64")
        mean = x.mean(axis=0)
        squares = np.square(x - mean).sum(axis=0)
        total = self.count + len(x)
        delta = mean - self.mean
        self._squares = (
            self._squares
            + squares
            + np.square(delta) * (self.count * len(x) / total)
        )
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    @property
    def std(self):
        std = np.sqrt(self._squares / max(self.count, 1))
        return np.where(std < 1e-6, 1.0, std)  # a constant dimension


class Reservoir:
    """A uniform sample of a stream (algorithm R)."""

    def __init__(self, size, rng):
        self.size, self.rng = size, rng
        self.seen, self.sample = 0, None

    def update(self, x):
        if self.sample is None:
            self.sample = np.zeros((0, x.shape[1]), "float32")
        room = max(self.size - self.seen, 0)
        self.sample = np.concatenate([self.sample, x[:room]])
        self.seen += min(room, len(x))
        x = x[room:]
        # Vector i replaces a random one with probability size / (i + 1).
        place = self.rng.integers(0, self.seen + 1 + np.arange(len(x)))
        kept = place < self.size
        self.sample[place[kept]] = x[kept]
        self.seen += len(x)


def _numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def _check_batch(batch):
    batch = _numpy(batch)
    if batch.ndim != 2 or not np.isfinite(batch).all():
        raise ValueError(
            "k-means takes arrays of finite numbers of shape (n, dim). "
            f"Received: shape {batch.shape}, "
            f"{int((~np.isfinite(batch)).sum())} values not finite."
        )
    return batch.astype("float32", copy=False)


def _scan(stream, size, rng):
    statistics, reservoir = StreamedStatistics(), Reservoir(size, rng)
    for batch in stream:
        batch = _check_batch(batch)
        if len(batch):
            statistics.update(batch)
            reservoir.update(batch)
    if reservoir.sample is None:
        raise ValueError("k-means received no data: the stream was empty.")
    return statistics, reservoir.sample


def _assign(x, centroids):
    """Index of, and squared distance to, the nearest centroid."""
    index = np.zeros(len(x), "int64")
    distance = np.zeros(len(x), "float32")
    offset = np.square(centroids).sum(axis=1)
    for i in range(0, len(x), _CHUNK):
        part = x[i : i + _CHUNK]
        score = offset - 2.0 * (part @ centroids.T)
        nearest = score.argmin(axis=1)
        index[i : i + _CHUNK] = nearest
        score = score[np.arange(len(part)), nearest]
        distance[i : i + _CHUNK] = score + np.square(part).sum(axis=1)
    return index, np.maximum(distance, 0.0)


def _sums(x, index, num_clusters):
    """How many vectors chose each centroid, and their sum."""
    counts = np.bincount(index, minlength=num_clusters).astype("float32")
    order = np.argsort(index, kind="stable")
    chosen = np.flatnonzero(counts)
    starts = np.searchsorted(index[order], chosen)
    sums = np.zeros((num_clusters, x.shape[1]), "float32")
    sums[chosen] = np.add.reduceat(x[order], starts, axis=0)
    return counts, sums


def _plus_plus(x, num_clusters, rng):
    """k-means++: each start is drawn by its squared distance to the others."""
    centroids = np.zeros((num_clusters, x.shape[1]), "float32")
    centroids[0] = x[rng.integers(len(x))]
    norms = np.square(x).sum(axis=1)
    distance = np.full(len(x), np.inf, "float32")
    for i in range(1, num_clusters):
        last = centroids[i - 1]
        new = norms - 2.0 * (x @ last) + np.square(last).sum()
        distance = np.minimum(distance, np.maximum(new, 0.0))
        total = distance.astype("float64").cumsum()
        # All vectors may coincide with a start: then any will do.
        pick = np.searchsorted(total, rng.uniform() * total[-1], side="right")
        centroids[i] = x[min(pick, len(x) - 1)]
    return centroids


def _lloyd(x, centroids, steps):
    """Lloyd's algorithm until assignments stop changing, or `steps`."""
    index = None
    for _ in range(steps):
        previous = index
        index, distance = _assign(x, centroids)
        counts, sums = _sums(x, index, len(centroids))
        if previous is not None and np.array_equal(index, previous):
            break
        centroids = sums / np.maximum(counts, 1.0)[:, None]
        # An empty cluster moves to a vector that is served worst.
        empty = np.flatnonzero(counts == 0)
        worst = np.argsort(-distance, kind="stable")[: len(empty)]
        centroids[empty] = x[worst]
    index, distance = _assign(x, centroids)
    counts, _ = _sums(x, index, len(centroids))
    return centroids, counts, float(distance.mean())


def _mini_batch(x, centroids, counts):
    """Moves centroids and counts in place; the summed squared distance."""
    index, distance = _assign(x, centroids)
    new_counts, sums = _sums(x, index, len(centroids))
    counts += new_counts
    step = (sums - new_counts[:, None] * centroids) / np.maximum(counts, 1.0)[
        :, None
    ]
    centroids += step
    return float(distance.sum(dtype="float64"))
