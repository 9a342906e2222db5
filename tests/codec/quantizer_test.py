import keras
import numpy as np
import pytest
from keras import ops
from sklearn.cluster import KMeans

from keras_audiolm.codec.quantizer import (
    ResidualVectorQuantizer,
    lloyd,
    smallest,
)
from keras_audiolm.layers.compiled import CompiledFunction

LEVELS, CODES, DIM = 3, 8, 4


def to_numpy(x):
    return np.array(ops.convert_to_numpy(ops.stop_gradient(x)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def gradient(function, x):
    """The gradient of a scalar function, on whichever backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.array(jax.jit(jax.grad(function))(x))
    x = ops.convert_to_tensor(x)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x).numpy()
    x.requires_grad_(True)
    function(x).backward()
    return x.grad.numpy()


def make_quantizer(spread=1.0, **kwargs):
    """A quantizer with codebooks that NumPy drew."""
    config = dict(num_quantizers=LEVELS, codebook_size=CODES)
    quantizer = ResidualVectorQuantizer(**{**config, **kwargs})
    quantizer.build((None, None, DIM))
    usage = np.random.default_rng(7).uniform(0.5, 2, (LEVELS, CODES))
    centroids = spread * normal(LEVELS, CODES, DIM, seed=3)
    quantizer.usage.assign(usage)
    quantizer.embedding_sum.assign(centroids * usage[..., None])
    return quantizer


def codebooks(quantizer):
    usage = to_numpy(quantizer.usage)
    return to_numpy(quantizer.embedding_sum) / usage[..., None]


def slow_codes(books, x):
    """One vector at a time, one level at a time, one code at a time."""
    codes = np.zeros((*x.shape[:2], len(books)), "int32")
    for index in np.ndindex(*x.shape[:2]):
        residual = x[index].astype("float64")
        for level, book in enumerate(books):
            distances = [np.linalg.norm(residual - c) for c in book]
            codes[(*index, level)] = np.argmin(distances)
            residual = residual - book[codes[(*index, level)]]
    return codes


def slow_decode(books, codes):
    return sum(books[i][codes[..., i]] for i in range(codes.shape[-1]))


def train_step(quantizer, x):
    """One training call; eager, so that its assignments stay."""
    return quantizer(x, training=True)


# === Inference ===


def test_encode_and_decode_match_a_slow_quantizer():
    quantizer = make_quantizer()
    x = normal(2, 5, DIM)
    expected = slow_codes(codebooks(quantizer), x)
    codes = to_numpy(CompiledFunction(quantizer, quantizer.encode)(x))
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, expected)
    decode = CompiledFunction(quantizer, quantizer.decode)
    for levels in range(1, LEVELS + 1):
        np.testing.assert_allclose(
            to_numpy(decode(codes[..., :levels])),
            slow_decode(codebooks(quantizer), codes[..., :levels]),
            atol=1e-5,
        )


def all_sums(books):
    """Every choice of one code a level: the choices, and their sums."""
    choices = np.stack(list(np.ndindex(*[len(book) for book in books])))
    return choices, slow_decode(books, choices)


@pytest.mark.parametrize("levels", range(1, LEVELS + 1))
def test_a_beam_of_every_choice_finds_the_nearest_sum(levels):
    quantizer = make_quantizer(beam_width=CODES**LEVELS)
    x = normal(2, 5, DIM)
    encode = CompiledFunction(quantizer, quantizer.encode)
    choices, sums = all_sums(codebooks(quantizer)[:levels])
    distance = np.square(x[:, :, None] - sums).sum(-1)
    codes = to_numpy(encode(x, levels=levels))
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, choices[distance.argmin(-1)])


def test_a_wider_beam_comes_nearer():
    x = normal(4, 50, DIM)
    errors = []
    for width in (1, 2, 8, 64):
        quantizer = make_quantizer(beam_width=width)
        made = to_numpy(quantizer.decode(quantizer.encode(x)))
        errors.append(np.square(x - made).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("size", [24, 512, 2048, 2000])
def test_the_smallest_are_those_of_a_sort(size):
    x = normal(2, 3, size)
    found = to_numpy(smallest(ops.convert_to_tensor(x), 16))
    np.testing.assert_array_equal(found, np.argsort(x, axis=-1)[..., :16])


@pytest.mark.parametrize("config", [{"beam_width": 0}, {"code_dim": 2}])
def test_a_beam_that_cannot_be_is_refused(config):
    with pytest.raises(ValueError, match="beam_width"):
        ResidualVectorQuantizer(2, 4, **{"beam_width": 2, **config})


def test_call_agrees_with_encode_and_decode_and_learns_nothing():
    quantizer = make_quantizer()
    x = normal(2, 5, DIM)
    before = [to_numpy(w) for w in quantizer.weights]
    out = quantizer(x)
    codes = slow_codes(codebooks(quantizer), x)
    np.testing.assert_array_equal(to_numpy(out.codes), codes)
    # Inference uses all levels.
    embeddings = slow_decode(codebooks(quantizer), codes)
    np.testing.assert_allclose(to_numpy(out.embeddings), embeddings, atol=1e-5)
    for old, new in zip(before, quantizer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(new))


def test_half_precision_input_is_quantized_in_float32():
    quantizer = make_quantizer(dtype="bfloat16")
    x = ops.cast(normal(1, 5, DIM), "bfloat16")
    out = quantizer(x)
    assert keras.backend.standardize_dtype(out.embeddings.dtype) == "float32"
    expected = slow_codes(
        codebooks(quantizer), to_numpy(ops.cast(x, "float32"))
    )
    np.testing.assert_array_equal(to_numpy(out.codes), expected)


# === Commitment and straight-through ===


def test_commitment_loss_matches_numpy():
    quantizer = make_quantizer()
    x = normal(2, 5, DIM)
    books = codebooks(quantizer)
    codes = slow_codes(books, x)
    errors = [
        np.mean(np.square(x - slow_decode(books, codes[..., : i + 1])))
        for i in range(LEVELS)
    ]
    expected = np.mean(errors) / np.mean(np.square(x))
    loss = float(to_numpy(quantizer(x).commitment_loss))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_commitment_reaches_the_encoder_from_every_level():
    quantizer = make_quantizer()
    x = normal(2, 5, DIM)
    books = codebooks(quantizer)
    codes = slow_codes(books, x)
    residuals = [
        x - slow_decode(books, codes[..., : i + 1]) for i in range(LEVELS)
    ]
    # The mean over levels of |residual|^2, each with slope 2 * residual.
    expected = 2 * sum(residuals) / LEVELS / x.size / np.mean(np.square(x))
    slope = gradient(lambda x: quantizer(x).commitment_loss, x)
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_gradient_passes_straight_through():
    quantizer = make_quantizer()
    x, weight = normal(2, 5, DIM), normal(2, 5, DIM, seed=5)
    slope = gradient(
        lambda x: ops.sum(ops.multiply(quantizer(x).embeddings, weight)), x
    )
    np.testing.assert_allclose(slope, weight, atol=1e-5)


# === Learning ===


def test_moving_averages_match_numpy():
    quantizer = make_quantizer(decay=0.9, dropout=0.0, dead_code_ratio=0.0)
    x = normal(2, 50, DIM)
    books = codebooks(quantizer)
    codes = slow_codes(books, x).reshape(-1, LEVELS)
    usage, sums = to_numpy(quantizer.usage), to_numpy(quantizer.embedding_sum)
    residual = x.reshape(-1, DIM)
    for level in range(LEVELS):
        for code in range(CODES):
            chose = residual[codes[:, level] == code]
            usage[level, code] *= 0.9
            usage[level, code] += 0.1 * len(chose)
            sums[level, code] *= 0.9
            sums[level, code] += 0.1 * chose.sum(0)
        residual = residual - books[level][codes[:, level]]
    train_step(quantizer, x)
    np.testing.assert_allclose(to_numpy(quantizer.usage), usage, rtol=1e-4)
    np.testing.assert_allclose(
        to_numpy(quantizer.embedding_sum), sums, atol=1e-4
    )


def test_codebooks_converge_to_the_means_of_what_chose_them():
    quantizer = make_quantizer(decay=0.5, dropout=0.0)
    centers = 5 * normal(CODES, DIM, seed=1)
    quantizer.initialize(centers)
    x = 0.3 + centers[:, None] + 0.1 * normal(CODES, 20, DIM)
    for _ in range(15):
        train_step(quantizer, x)
    book, means = codebooks(quantizer)[0], x.mean(1)
    order = np.lexsort(book.T), np.lexsort(means.T)
    np.testing.assert_allclose(book[order[0]], means[order[1]], atol=1e-3)


@pytest.mark.parametrize("frames", [1, 10, 200])
def test_the_first_step_after_the_start_does_not_shrink(frames):
    """Means, not sums of a batch of another size, come out of a step."""
    quantizer = make_quantizer(dropout=0.0)
    data = 3.0 + normal(400, DIM)
    quantizer.initialize(data)
    before = codebooks(quantizer)[0]
    train_step(quantizer, data[None, :frames])
    after = codebooks(quantizer)[0]
    moved = np.linalg.norm(after - before, axis=-1)
    # A dead code may jump to a vector of the batch; no other moves far.
    jumped = [
        np.linalg.norm(data[:frames] - c, axis=-1).min() < 1e-4 for c in after
    ]
    assert ((moved < 0.5) | jumped).all()
    assert np.sum(moved < 0.5) >= CODES - 2
    assert np.linalg.norm(after, axis=-1).min() > 3.0


# === Dead codes ===


def test_dead_code_is_revived_in_the_same_step_and_survives():
    quantizer = make_quantizer(dropout=0.0)
    x = normal(4, 50, DIM)
    quantizer.initialize(x.reshape(-1, DIM))
    # Code 5 of level 0 lies far from everything, and is hardly used.
    usage = to_numpy(quantizer.usage)
    sums = to_numpy(quantizer.embedding_sum)
    usage[0, 5], sums[0, 5] = 0.01, 1000 * 0.01
    quantizer.usage.assign(usage)
    quantizer.embedding_sum.assign(sums)
    train_step(quantizer, x)
    revived = codebooks(quantizer)[0, 5]
    distance = np.linalg.norm(x.reshape(-1, DIM) - revived, axis=-1)
    assert distance.min() < 1e-4  # it is a vector of the batch
    usage = to_numpy(quantizer.usage)[0]
    assert usage[5] > 0.5 * usage.mean()
    # It wins vectors at once, and the next steps do not replace it.
    for _ in range(3):
        codes = to_numpy(train_step(quantizer, x).codes)
        assert (codes[..., 0] == 5).any()
    now = codebooks(quantizer)[0, 5]
    assert np.linalg.norm(now - revived) < 0.5


@pytest.mark.parametrize("frames", [10, 400])
def test_used_codes_are_not_revived_at_any_batch_size(frames):
    """The threshold is a part of uniform usage, not a count."""
    quantizer = make_quantizer(dropout=0.0, spread=10.0)
    x = np.resize(codebooks(quantizer)[0], (1, frames, DIM))
    before = codebooks(quantizer)[0]
    for _ in range(3):
        train_step(quantizer, x)
    np.testing.assert_allclose(codebooks(quantizer)[0], before, atol=1e-3)


# === Level dropout ===


def used_levels(quantizer, x, embeddings):
    """How many levels each example got: what its embeddings sum up."""
    books = codebooks(quantizer)
    codes = slow_codes(books, x)
    sums = [slow_decode(books, codes[..., : i + 1]) for i in range(LEVELS)]
    errors = [np.abs(embeddings - s).max((1, 2)) for s in sums]
    assert (np.min(errors, 0) < 1e-4).all()
    return np.argmin(errors, 0) + 1


def test_every_example_draws_its_own_number_of_levels():
    quantizer = make_quantizer(decay=1.0, dead_code_ratio=0.0)
    x = normal(60, 2, DIM)
    out = train_step(quantizer, x)
    levels = used_levels(quantizer, x, to_numpy(out.embeddings))
    counts = np.bincount(levels, minlength=LEVELS + 1)[1:]
    assert (counts > 60 / LEVELS / 3).all()
    # Another step draws others.
    again = train_step(quantizer, x)
    again = used_levels(quantizer, x, to_numpy(again.embeddings))
    assert (levels != again).any()


@pytest.mark.parametrize("dropout, least, most", [(0.0, 60, 60), (0.5, 30, 54)])
def test_dropout_is_the_part_of_examples_that_draw(dropout, least, most):
    quantizer = make_quantizer(
        decay=1.0, dead_code_ratio=0.0, dropout=dropout, seed=1
    )
    x = normal(60, 2, DIM)
    out = train_step(quantizer, x)
    levels = used_levels(quantizer, x, to_numpy(out.embeddings))
    # Of those that draw, a third draws all levels too.
    assert least <= np.sum(levels == LEVELS) <= most


def test_frozen_codes_are_those_of_inference_and_still_drop_levels():
    quantizer = make_quantizer(dropout=1.0, beam_width=4)
    quantizer.trainable = False
    x = normal(60, 1, DIM)
    out = quantizer(x, training=True)
    codes = to_numpy(quantizer.encode(x))
    np.testing.assert_array_equal(to_numpy(out.codes), codes)
    made = to_numpy(out.embeddings)
    sums = [
        to_numpy(quantizer.decode(codes[..., : level + 1]))
        for level in range(LEVELS)
    ]
    errors = [np.abs(made - part).max(axis=(1, 2)) for part in sums]
    np.testing.assert_allclose(np.min(errors, axis=0), 0.0, atol=1e-5)
    assert len(set(np.argmin(errors, axis=0))) == LEVELS
    assert float(out.commitment_loss) == 0.0


def test_dropped_levels_learn_nothing_from_an_example():
    quantizer = make_quantizer(decay=0.5, dead_code_ratio=0.0)
    x = normal(30, 2, DIM)
    before = to_numpy(quantizer.usage).sum(-1)
    books = codebooks(quantizer)
    codes = slow_codes(books, x)
    embeddings = to_numpy(train_step(quantizer, x).embeddings)
    sums = [slow_decode(books, codes[..., : i + 1]) for i in range(LEVELS)]
    errors = [np.abs(embeddings - s).max((1, 2)) for s in sums]
    levels = np.argmin(errors, 0) + 1
    after = to_numpy(quantizer.usage).sum(-1)
    for level in range(LEVELS):
        frames = 2 * np.sum(levels > level)
        expected = 0.5 * before[level] + 0.5 * frames
        assert after[level] == pytest.approx(expected, rel=1e-4)


# === Start ===


def test_lloyd_comes_near_scikit_learn():
    centers = 4 * normal(6, DIM, seed=2)
    x = np.repeat(centers, 40, 0) + normal(240, DIM)
    inertias = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        centroids, usage, codes = lloyd(x, 6, 20, generator)
        inertias.append(np.square(x - centroids[codes]).sum())
        np.testing.assert_array_equal(usage, np.bincount(codes, minlength=6))
    best = KMeans(6, n_init=10, random_state=0).fit(x).inertia_
    assert best * 0.999 < min(inertias) < 1.1 * best


def test_every_level_starts_from_what_the_others_leave_over():
    quantizer = make_quantizer()
    x = normal(500, DIM)
    quantizer.initialize(x)
    codes = slow_codes(codebooks(quantizer), x[None])
    errors = [
        np.square(
            x - slow_decode(codebooks(quantizer), codes[..., : i + 1])
        ).mean()
        for i in range(LEVELS)
    ]
    assert errors[0] < 0.8 * np.square(x).mean()
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]
    # All codes are in use, as their usage says.
    for level in range(LEVELS):
        count = np.bincount(codes[0, :, level], minlength=CODES)
        np.testing.assert_allclose(
            to_numpy(quantizer.usage)[level],
            np.maximum(count / count.mean(), 0.1),
            atol=0.1,
        )


def test_start_is_reproducible():
    x = normal(100, DIM)
    books = []
    for seed in (0, 0, 1):
        quantizer = make_quantizer(seed=seed)
        quantizer.initialize(x)
        books.append(codebooks(quantizer))
    np.testing.assert_array_equal(books[0], books[1])
    assert (books[0] != books[2]).any()


def test_start_needs_as_many_vectors_as_codes():
    with pytest.raises(ValueError, match="8 codes.*Received: 7 frames"):
        make_quantizer().initialize(normal(CODES - 1, DIM))


def test_config_round_trip():
    quantizer = make_quantizer(decay=0.9, dead_code_ratio=0.2, dropout=0.5)
    copy = ResidualVectorQuantizer.from_config(quantizer.get_config())
    assert copy.get_config() == quantizer.get_config()
    assert (copy.decay, copy.dropout) == (0.9, 0.5)


# === Few dimensions ===

FACTORISED = pytest.mark.parametrize("split_first", [False, True])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_factorised(split_first):
    quantizer = ResidualVectorQuantizer(
        LEVELS, CODES, code_dim=2, split_first=split_first, dropout=0.0
    )
    quantizer.build((None, None, DIM))
    quantizer.embedding_sum.assign(normal(LEVELS, CODES, 2, seed=4))
    return quantizer


@FACTORISED
def test_factorised_codes_are_the_nearest_directions(split_first):
    quantizer = make_factorised(split_first)
    x = normal(2, 5, DIM, seed=5)
    books = codebooks(quantizer)
    there, back = to_numpy(quantizer.to_code), to_numpy(quantizer.from_code)
    residual, expected, total = x, [], 0
    for level, book in enumerate(books):
        likeness = unit(residual @ there[level]) @ unit(book).T
        expected.append(likeness.argmax(-1))
        made = book[expected[-1]] @ back[level]
        total = total + made
        if level or not split_first:
            residual = residual - made
    codes = to_numpy(quantizer.encode(x))
    np.testing.assert_array_equal(codes, np.stack(expected, -1))
    np.testing.assert_allclose(
        to_numpy(quantizer.decode(codes)), total, atol=1e-5
    )
    called = quantizer(x)
    np.testing.assert_array_equal(to_numpy(called.codes), codes)
    np.testing.assert_allclose(to_numpy(called.embeddings), total, atol=1e-5)


@FACTORISED
def test_factorised_levels_all_learn(split_first):
    """From what comes out: each level's projections, and the encoder."""
    quantizer = make_factorised(split_first)
    x = normal(2, 5, DIM, seed=5)

    class Model(keras.Model):
        def call(self, x):
            return quantizer(x).embeddings

    model = Model()
    model.quantizer = quantizer
    model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    before = to_numpy(quantizer.to_code), to_numpy(quantizer.from_code)
    model.train_on_batch(x, x)
    after = to_numpy(quantizer.to_code), to_numpy(quantizer.from_code)
    for old, new in zip(before, after, strict=True):
        assert (old != new).any(axis=(1, 2)).all()
    slope = gradient(lambda x: ops.sum(quantizer(x).embeddings[..., 0]), x)
    assert (slope != 0).any(axis=-1).all()


@FACTORISED
def test_factorised_start_gets_nearer_with_every_level(split_first):
    x = normal(400, DIM, seed=6) * np.array([4, 2, 1, 0.5], "float32")
    quantizer = ResidualVectorQuantizer(
        LEVELS, CODES, code_dim=2, split_first=split_first
    )
    quantizer.build((None, None, DIM))
    quantizer.initialize(x)
    codes = to_numpy(quantizer.encode(x[None]))
    errors = [
        np.square(x - to_numpy(quantizer.decode(codes[..., :k]))[0]).mean()
        for k in range(1, LEVELS + 1)
    ]
    assert errors[0] < 0.6 * np.square(x).mean()
    if not split_first:
        assert errors == sorted(errors, reverse=True)


def test_split_first_needs_projections():
    with pytest.raises(ValueError, match="split_first.*code_dim"):
        ResidualVectorQuantizer(2, 4, split_first=True)
