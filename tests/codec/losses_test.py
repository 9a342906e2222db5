import keras
import numpy as np
import pytest
import scipy.signal
from keras import ops

from keras_audiolm.codec import losses
from keras_audiolm.codec.losses import MelSpectralLoss, PerceptualLoss
from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.layers.lapped_transform import MDCT


def to_numpy(x):
    return np.array(ops.convert_to_numpy(ops.stop_gradient(x)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(function, *args):
    """A loss as a number; compiled, which beats many small traces."""
    layer = function if isinstance(function, keras.layers.Layer) else None
    layer = layer or keras.layers.Identity()
    return float(to_numpy(CompiledFunction(layer, function)(*args)))


def gradient(function, x):
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


def slow_stft(x, window, fft_length):
    """Frame by frame, centred by reflection, `(batch, frames, bins)`."""
    hop, side = window // 4, fft_length // 2
    x = np.pad(x.astype("float64"), [(0, 0), (side, side)], mode="reflect")
    hann = np.zeros(fft_length)
    start = (fft_length - window) // 2
    hann[start : start + window] = scipy.signal.get_window("hann", window)
    frames = [
        np.fft.rfft(x[:, i : i + fft_length] * hann)
        for i in range(0, x.shape[1] - fft_length + 1, hop)
    ]
    return np.stack(frames, 1)


def slow_mel_filters(num_mels, fft_length, sample_rate):
    """Triangle by triangle: HTK's scale, interpolated in mels."""

    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    edges = np.linspace(0, mel(sample_rate / 2), num_mels + 2)
    filters = np.zeros((fft_length // 2 + 1, num_mels))
    for i in range(1, len(filters)):
        at = mel(i * sample_rate / fft_length)
        for j in range(num_mels):
            filters[i, j] = np.interp(at, edges[j : j + 3], [0, 1, 0])
    return filters


# === Spectral ===


def test_mel_loss_matches_equations_4_and_5():
    real, fake = normal(2, 3000), normal(2, 3000, seed=1)
    expected = 0.0
    for window in (64, 1024):
        fft_length = max(window, 512)
        filters = slow_mel_filters(16, fft_length, 16000)
        a = np.abs(slow_stft(real, window, fft_length)) @ filters
        b = np.abs(slow_stft(fake, window, fft_length)) @ filters
        logs = np.log(a + 1e-5) - np.log(b + 1e-5)
        expected += np.abs(a - b).sum(-1).mean()
        expected += np.sqrt(window / 2) * np.linalg.norm(logs, axis=-1).mean()
    loss = MelSpectralLoss(16000, windows=(64, 1024), num_mels=16)
    assert run(loss, real, fake) == pytest.approx(expected, rel=1e-3)


def test_mel_loss_has_the_papers_windows_and_no_empty_filter():
    loss = MelSpectralLoss()
    assert loss.windows == tuple(2**i for i in range(6, 12))
    assert loss.num_mels == 64
    for filters in loss.filters[3:]:  # 512 points and more
        assert (filters.sum(0) > 0).mean() > 0.9


def test_perceptual_loss_matches_numpy():
    real, fake = normal(2, 1280), normal(2, 1280, seed=1)
    spectral, loudness = 0.0, 0.0
    for window in (64, 1024):
        fft_length = max(window, 512)
        a, b = (
            np.abs(slow_stft(x, window, fft_length)) ** 2 for x in (real, fake)
        )
        hertz = np.linspace(0, 8000, a.shape[-1])
        mels = (700 + hertz) ** -2
        difference = np.abs((a + 1e-8) ** 0.15 - (b + 1e-8) ** 0.15)
        spectral += np.average(difference.mean((0, 1)), weights=mels) / 2
        filters = slow_mel_filters(16, fft_length, 16000) / window
        a, b = ((x @ filters + 1e-6) ** 0.25 for x in (a, b))
        centres = hertz @ filters / (filters.sum(0) + 1e-9)
        mels = 1 / (700 + centres)
        a, b = (x * mels / mels.mean() for x in (a, b))
        loudness += np.abs(a - b).mean() / (a.mean() + 1e-5) / 2
    mdct = MDCT(32)
    a, b = (
        np.sign(c) * (np.sqrt(np.abs(c) + 1e-5) - np.sqrt(1e-5))
        for c in (to_numpy(mdct(real)), to_numpy(mdct(fake)))
    )
    weights = 1 / (700 + (np.arange(32) + 0.5) * 250) ** 2
    size = (np.abs(a) * weights).mean() / weights.mean() + 1e-5
    transform = (np.abs(a - b) * weights).mean() / weights.mean() / size
    loss = PerceptualLoss(
        16000,
        2.0,
        3.0,
        5.0,
        windows=(64, 1024),
        num_mels=(16, 16),
        transform_hop=32,
    )
    expected = 2 * spectral + 3 * loudness + 5 * transform
    assert run(loss, real, fake) == pytest.approx(expected, rel=1e-3)


LOSSES = [
    MelSpectralLoss(16000, windows=(64, 256), num_mels=16),
    PerceptualLoss(windows=(64, 256), num_mels=(8, 16), transform_hop=64),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)
def test_loss_is_least_where_the_audio_is_right(loss):
    real, noise = normal(2, 1024), normal(2, 1024, seed=1)
    values = [run(loss, real, real + s * noise) for s in (0.0, 0.01, 0.1, 1.0)]
    assert values == sorted(values)
    assert values[0] < 1e-2 * values[-1]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("real, fake", [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_gradient_is_finite_in_silence_too(loss, real, fake):
    audio = 0.1 * normal(1, 1024)
    slope = gradient(lambda x: loss(real * audio, x), fake * audio)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)
def test_config_round_trip(loss):
    copy = type(loss).from_config(loss.get_config())
    assert copy.get_config() == loss.get_config()


def test_mel_loss_does_not_grow_with_the_crop():
    tone = np.sin(np.arange(8192) * 0.3)[None].astype("float32")
    short = run(LOSSES[0], tone[:, :4096], 0.5 * tone[:, :4096])
    assert run(LOSSES[0], tone, 0.5 * tone) == pytest.approx(short, rel=0.05)


# === Adversarial ===


def judged(seed):
    """Features as two judges give them: two inner layers, and the logits."""
    return [
        [normal(2, 9, 4, seed=seed), normal(2, 5, 6, seed=seed + 1)]
        + [2 * normal(2, 7, 1, seed=seed + 2)],
        [normal(2, 6, 5, 3, seed=seed + 3), 2 * normal(2, 4, seed=seed + 4)],
    ]


def tensors(lists):
    return keras.tree.map_structure(ops.convert_to_tensor, lists)


def test_hinge_losses_match_numpy():
    real, fake = judged(0), judged(10)
    judge = np.mean(
        [
            np.maximum(0, 1 - r[-1]).mean() + np.maximum(0, 1 + f[-1]).mean()
            for r, f in zip(real, fake, strict=True)
        ]
    )
    generator = np.mean([np.maximum(0, 1 - f[-1]).mean() for f in fake])
    real, fake = tensors(real), tensors(fake)
    loss = losses.discriminator_loss(real, fake)
    assert float(to_numpy(loss)) == pytest.approx(judge, rel=1e-5)
    loss = losses.adversarial_loss(fake)
    assert float(to_numpy(loss)) == pytest.approx(generator, rel=1e-5)


def test_hinge_losses_stop_at_the_margin():
    sure = [[ops.full((1, 3), 2.0)]]
    wrong = [[ops.full((1, 3), -2.0)]]
    assert float(to_numpy(losses.discriminator_loss(sure, wrong))) == 0
    assert float(to_numpy(losses.discriminator_loss(wrong, sure))) == 6
    assert float(to_numpy(losses.adversarial_loss(sure))) == 0
    assert float(to_numpy(losses.adversarial_loss(wrong))) == 3


def test_feature_loss_is_over_inner_layers_only():
    real, fake = judged(0), judged(10)
    differences = [
        np.abs(a - b).mean()
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r[:-1], f[:-1], strict=True)
    ]
    assert len(differences) == 3
    value = to_numpy(losses.feature_loss(tensors(real), tensors(fake)))
    assert float(value) == pytest.approx(np.mean(differences), rel=1e-5)


def test_feature_loss_leaves_the_real_side_alone():
    fake = tensors([[normal(1, 4, 2, seed=1), normal(1, 4, 1)]])
    logits = ops.zeros((1, 4, 1))
    real = normal(1, 4, 2)
    slope = gradient(
        lambda x: losses.feature_loss([[x, logits]], fake) + 0 * ops.sum(x),
        real,
    )
    np.testing.assert_array_equal(slope, np.zeros_like(real))
