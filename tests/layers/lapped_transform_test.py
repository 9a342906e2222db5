import keras
import numpy as np
import pytest
import scipy.fft
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.layers.lapped_transform import MDCT, compress, expand


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def forward(mdct, x):
    return to_numpy(CompiledFunction(mdct, mdct)(x))


def inverse(mdct, frames):
    return to_numpy(CompiledFunction(mdct, mdct.inverse)(frames))


def scipy_mdct(x, hop):
    """By folding the windowed frame in half and SciPy's DCT-IV."""
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))
    x = np.concatenate([np.zeros(hop), x])
    frames = []
    for start in range(0, len(x) - hop, hop):
        a, b, c, d = np.split(x[start : start + 2 * hop] * window, 4)
        folded = np.concatenate([-c[::-1] - d, a - b[::-1]])
        frames.append(scipy.fft.dct(folded, type=4, norm="ortho"))
    return np.array(frames)


@pytest.mark.parametrize("hop", [2, 16, 320])
def test_matches_scipy(hop):
    x = normal(2, 5 * hop)
    frames = forward(MDCT(hop), x)
    assert frames.shape == (2, 5, hop)
    expected = [scipy_mdct(row, hop) for row in x]
    np.testing.assert_allclose(frames, expected, atol=1e-4)


@pytest.mark.parametrize("hop", [2, 16, 320])
@pytest.mark.parametrize("frames", [2, 5])
def test_inverse_gives_back_all_but_the_last_hop(hop, frames):
    mdct = MDCT(hop)
    x = normal(2, frames * hop)
    back = inverse(mdct, forward(mdct, x))
    assert back.shape == (2, (frames - 1) * hop)
    np.testing.assert_allclose(back, x[:, :-hop], atol=1e-4)


def test_is_orthonormal():
    """The shifted basis vectors of all frames are a rotation."""
    hop, frames = 8, 6
    basis = MDCT(hop).analysis.astype("float64")
    matrix = np.zeros((frames * hop, (frames + 1) * hop))
    for i in range(frames):
        rows = slice(i * hop, (i + 1) * hop)
        matrix[rows, i * hop : (i + 2) * hop] = basis.T
    gram = matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(frames * hop), atol=1e-5)


def test_later_samples_do_not_change_earlier_frames():
    mdct = MDCT(16)
    x = normal(1, 80)
    y = x.copy()
    y[:, 48:] = 9.0
    a, b = forward(mdct, x), forward(mdct, y)
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert (a[:, 3:] != b[:, 3:]).any()


def test_computes_in_float32():
    mdct = MDCT(16, dtype="bfloat16")
    out = mdct(ops.cast(normal(1, 32), "bfloat16"))
    assert keras.backend.standardize_dtype(out.dtype) == "float32"


def test_output_shape_and_config():
    mdct = MDCT(16)
    assert mdct.compute_output_shape((3, 160)) == (3, 10, 16)
    assert mdct.compute_output_shape((3, None)) == (3, None, 16)
    copy = MDCT.from_config(mdct.get_config())
    np.testing.assert_array_equal(copy.analysis, mdct.analysis)


def test_expand_inverts_compress():
    x = np.array([[-2.0, -0.1, -1e-3, 0.0, 1e-4, 0.5, 3.0]], "float32")
    y = to_numpy(compress(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(np.sign(y), np.sign(x))
    assert (np.diff(y) > 0).all()
    back = to_numpy(expand(ops.convert_to_tensor(y)))
    # The floor costs sqrt(4 * floor * |x|) at most.
    assert (np.abs(back - x) <= np.sqrt(4e-5 * np.abs(x)) + 1e-6).all()
