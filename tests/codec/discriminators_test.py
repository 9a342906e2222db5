import numpy as np
import pytest
from keras import ops

from keras_audiolm.codec.discriminators import (
    Discriminators,
    STFTDiscriminator,
    STFTUnit,
    WaveDiscriminator,
)
from keras_audiolm.layers.compiled import CompiledFunction


def to_numpy(x):
    return np.array(ops.convert_to_numpy(x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(layer, shape=(None, None)):
    """The layer with weights that NumPy drew."""
    layer.build(shape)
    for i, weight in enumerate(layer.weights):
        weight.assign(0.3 * normal(*weight.shape, seed=i))
    return layer


def run(layer, x):
    features = CompiledFunction(layer, layer)(x)
    if isinstance(features, list):
        return [to_numpy(f) for f in features]
    return to_numpy(features)


def slow_conv(x, kernel, bias, stride, groups):
    """One-dimensional, `same` padding: the odd zero stands at the end."""
    frames = -(-x.shape[1] // stride)
    pad = max((frames - 1) * stride + len(kernel) - x.shape[1], 0)
    x = np.pad(x, [(0, 0), (pad // 2, pad - pad // 2), (0, 0)])
    inputs, width = kernel.shape[1], kernel.shape[2] // groups
    y = np.zeros((len(x), frames, kernel.shape[2])) + bias
    for i in range(frames):
        part = x[:, i * stride : i * stride + len(kernel)]
        for g in range(groups):
            out = slice(g * width, (g + 1) * width)
            into = slice(g * inputs, (g + 1) * inputs)
            y[:, i, out] += np.einsum(
                "bki,kio->bo", part[..., into], kernel[..., out]
            )
    return y


def slow_pool(x, factor):
    """The mean over the samples under the window that exist."""
    size, frames = 2 * factor, -(-x.shape[1] // factor)
    start = ((frames - 1) * factor + size - x.shape[1]) // 2
    return np.stack(
        [
            x[:, max(i * factor - start, 0) : i * factor - start + size].mean(1)
            for i in range(frames)
        ],
        1,
    )


@pytest.mark.parametrize("downsampling", [1, 4])
def test_wave_judge_matches_numpy(downsampling):
    judge = built(WaveDiscriminator(8, 32, downsampling))
    audio = normal(2, 1030)
    x = audio[..., None].astype("float64")
    if downsampling > 1:
        x = slow_pool(x, downsampling)
    expected = []
    for layer in (*judge.convolutions, judge.to_logits):
        kernel, bias = (to_numpy(w) for w in layer.weights)
        stride, groups = np.ravel(layer.strides)[0], layer.groups
        x = slow_conv(x, kernel, bias, stride, groups)
        if layer is not judge.to_logits:
            x = np.where(x > 0, x, 0.2 * x)
        expected.append(x)
    features = run(judge, audio)
    assert len(features) == len(expected) == 7
    for a, b in zip(features, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_stft_unit_matches_numpy():
    """Against four loops, with TensorFlow's `same` padding."""
    unit = built(STFTUnit(3, 4, (2, 2)), (None, None, None, 2))
    x = normal(1, 7, 6, 2)

    def conv(layer, x):
        kernel, bias = (to_numpy(w) for w in layer.weights)
        size, strides = kernel.shape[:2], layer.strides
        shape = [-(-n // s) for n, s in zip(x.shape[1:3], strides, strict=True)]
        pads = [
            max((m - 1) * s + k - n, 0)
            for m, s, k, n in zip(
                shape, strides, size, x.shape[1:3], strict=True
            )
        ]
        pads = [(p // 2, p - p // 2) for p in pads]
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
        y = np.zeros((len(x), *shape, kernel.shape[-1]))
        for i, j in np.ndindex(*shape):
            a, b = i * strides[0], j * strides[1]
            part = x[:, a : a + size[0], b : b + size[1]]
            y[:, i, j] = np.einsum("bhwi,hwio->bo", part, kernel) + bias
        return y

    def elu(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    kernel, bias = (to_numpy(w) for w in unit.shortcut.weights)
    expected = x[:, ::2, ::2] @ kernel + bias
    expected = expected + conv(unit.outer, elu(conv(unit.inner, elu(x))))
    assert expected.shape == (1, 4, 3, 4)
    np.testing.assert_allclose(run(unit, x), expected, atol=1e-4)


def test_stft_judge_gives_a_logit_per_time_step():
    judge = built(STFTDiscriminator(channels=2, window=256, hop=64))
    features = run(judge, normal(2, 4096))
    # Bins halve in every unit, time in every other one.
    assert [f.shape for f in features] == [
        (2, 65, 128, 2),
        (2, 65, 64, 4),
        (2, 33, 32, 8),
        (2, 33, 16, 8),
        (2, 17, 8, 16),
        (2, 17, 4, 16),
        (2, 9, 2, 32),
        (2, 9, 1),
    ]


def test_stft_judge_hears_phase():
    """Real and imaginary parts, not magnitudes, are what it looks at."""
    judge = built(STFTDiscriminator(channels=2, window=256, hop=64))
    audio = normal(1, 2048)
    logits = [run(judge, x)[-1] for x in (audio, -audio)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_wave_judge_reaches_as_far_as_its_kernels():
    """A logit sees the samples around it and nothing else."""
    judge = built(WaveDiscriminator(4, 8))
    reach, stride = 1, 1
    for layer in (*judge.convolutions, judge.to_logits):
        reach += (np.ravel(layer.kernel_size)[0] - 1) * stride
        stride *= np.ravel(layer.strides)[0]
    assert (reach, stride) == (15 + 40 * (1 + 4 + 16 + 64) + 6 * 256, 256)
    audio = normal(1, 16384)
    before = run(judge, audio)[-1][0, :, 0]
    changed = audio.copy()
    changed[0, 8000] += 100.0
    frames = np.flatnonzero(run(judge, changed)[-1][0, :, 0] != before)
    assert len(frames) <= -(-reach // stride)
    assert len(frames) > 0.5 * reach / stride
    assert abs(frames.mean() * stride - 8000) < reach / 2


def count(layer):
    return sum(int(np.prod(w.shape)) for w in layer.trainable_weights)


def wave_parameters(channels=16, widest=1024):
    total, width = 15 * channels + channels, channels
    for _ in range(4):
        out = min(4 * width, widest)
        total += 41 * 4 * out + out  # groups of four input channels
        width = out
    return total + 5 * width**2 + width + 3 * width + 1


def stft_parameters(c=32):
    """papers.md 2.3, unit by unit."""
    total, inputs = 7 * 7 * 2 * c + c, c
    units = [
        (c, 2, 1, 2),
        (2 * c, 2, 2, 2),
        (4 * c, 1, 1, 2),
        (4 * c, 2, 2, 2),
        (8 * c, 1, 1, 2),
        (8 * c, 2, 2, 2),
    ]
    for n, m, s_t, s_f in units:
        assert inputs == n
        total += 3 * 3 * n * n + n
        total += (s_t + 2) * (s_f + 2) * n * m * n + m * n
        total += n * m * n + m * n  # the shortcut
        inputs = m * n
    return total + 8 * inputs + 1


@pytest.mark.large
def test_paper_sizes():
    jury = Discriminators()
    jury.build((None, None))
    *waves, stft = jury.judges
    assert [judge.downsampling for judge in waves] == [1, 2, 4]
    for judge in waves:
        groups = [layer.groups for layer in judge.convolutions]
        assert groups == [1, 4, 16, 64, 256, 1]
        widths = [layer.filters for layer in judge.convolutions]
        assert widths == [16, 64, 256, 1024, 1024, 1024]
        assert count(judge) == wave_parameters()
    assert [unit.filters for unit in stft.units] == [
        64,
        128,
        128,
        256,
        256,
        512,
    ]
    assert (stft.window, stft.hop) == (1024, 256)
    assert stft.bins == 8
    assert count(stft) == stft_parameters()


def test_jury_is_the_judges_together():
    jury = Discriminators(4, 8, 2, scales=(1, 2))
    built(jury)
    audio = normal(1, 1024)
    features = CompiledFunction(jury, jury)(audio)
    assert len(features) == len(jury.judges) == 3
    for judge, part in zip(jury.judges, features, strict=True):
        alone = run(judge, audio)
        for a, b in zip(part, alone, strict=True):
            np.testing.assert_allclose(to_numpy(a), b, atol=1e-3)


@pytest.mark.parametrize(
    "layer",
    [
        WaveDiscriminator(4, 8, 2),
        STFTDiscriminator(2, 256, 64),
        STFTUnit(2, 4, (1, 2)),
        Discriminators(4, 8, 2, (1, 4)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
