import math
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.codec.noise_filling import band_edges, noise_table
from keras_audiolm.codec.soundstream import SoundStream
from keras_audiolm.data.audio import load_audio
from keras_audiolm.layers.compiled import CompiledFunction, padded_frames
from keras_audiolm.layers.lapped_transform import MDCT

MODES = {
    "wave": dict(channels=2, strides=(2, 3), embedding_dim=4),
    "wave_deep": dict(channels=2, strides=(4, 1, 2), embedding_dim=3),
    "mdct": dict(
        channels=4,
        strides=(1,),
        transform="mdct",
        transform_hop=8,
        embedding_dim=5,
    ),
    "convnext": dict(
        channels=4,
        strides=(1,),
        unit="convnext",
        dilations=(1, 3),
        noise_filling=True,
        transform="mdct",
        transform_hop=8,
        embedding_dim=5,
    ),
    "light": dict(
        channels=4,
        strides=(3, 2),
        stem_stride=2,
        activation="leaky_relu",
        unit="separable",
        max_groups=2,
        embedding_dim=4,
    ),
    "spectrogram": dict(
        channels=4,
        strides=(1,),
        transform="spectrogram",
        transform_hop=6,
        embedding_dim=5,
        denoising="decoder",
    ),
}


def to_numpy(x):
    return np.array(ops.convert_to_numpy(ops.stop_gradient(x)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(codec, function, x):
    """Compiled: one trace is faster than many small ones."""
    return to_numpy(CompiledFunction(codec, function)(x))


def make_codec(mode="wave", seed=0, **kwargs):
    """A codec whose weights NumPy drew: the same on every backend."""
    config = dict(num_quantizers=3, codebook_size=16)
    codec = SoundStream(**{**config, **MODES[mode], **kwargs})
    codec.build()
    generator = np.random.default_rng(seed)
    for weight in sorted(codec.weights, key=lambda w: w.path):
        if "seed" in weight.path or weight is codec.initialized:
            continue
        if weight is codec.quantizer.usage:
            weight.assign(generator.uniform(0.5, 2, weight.shape))
            continue
        scale = np.prod(weight.shape[:-1]) ** -0.5 if weight.ndim > 1 else 0.1
        if weight is codec.quantizer.embedding_sum:
            scale = 1.0
        weight.assign(scale * generator.normal(size=weight.shape))
    return codec


@pytest.fixture(scope="module", params=MODES)
def codec(request):
    return make_codec(request.param)


@pytest.fixture(scope="module")
def wave():
    return make_codec("wave")


# === An independent SoundStream ===


def activate(name, x):
    if name == "elu":
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return np.where(x > 0, x, 0.3 * x)


def slow_conv(layer, x):
    kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
    reach = layer.dilation_rate * (len(kernel) - 1) + 1
    x = np.pad(x, [(reach - layer.strides, 0), (0, 0)])
    frames = (len(x) - reach) // layer.strides + 1
    y = np.zeros((frames, kernel.shape[-1])) + bias
    wide_in, wide_out = kernel.shape[1], kernel.shape[2] // layer.groups
    for k, tap in enumerate(kernel):
        start = k * layer.dilation_rate
        for g in range(layer.groups):
            inner = slice(g * wide_in, (g + 1) * wide_in)
            out = slice(g * wide_out, (g + 1) * wide_out)
            part = x[start :: layer.strides][:frames, inner]
            y[:, out] += part @ tap[:, out]
    return y


def slow_transpose(layer, x):
    kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
    stride = layer.strides
    y = np.zeros((len(x) * stride + len(kernel), layer.filters))
    wide_in, wide_out = len(x[0]) // layer.groups, kernel.shape[1]
    for i, frame in enumerate(x):
        for k, tap in enumerate(kernel):
            for g in range(layer.groups):
                inner = slice(g * wide_in, (g + 1) * wide_in)
                out = slice(g * wide_out, (g + 1) * wide_out)
                y[i * stride + k, out] += tap[:, inner] @ frame[inner]
    return y[: len(x) * stride] + bias


def slow_unit(layer, x):
    y = slow_conv(layer.wide, activate(layer.activation, x))
    if layer.separable:
        y = slow_conv(layer.mix, y)
    return x + slow_conv(layer.narrow, activate(layer.activation, y))


def slow_convnext(layer, x):
    y = slow_conv(layer.depthwise, x)
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)
    y = y * to_numpy(layer.norm.gamma) + to_numpy(layer.norm.beta)
    y = slow_conv(layer.wide, y)
    y = 0.5 * y * (1 + np.vectorize(math.erf)(y / 2**0.5))
    return x + slow_conv(layer.narrow, y)


def slow_network(stack, x, activation):
    for layer in stack.layers:
        name = type(layer).__name__
        if name in ("ELU", "LeakyReLU"):
            x = activate(activation, x)
        elif name == "FiLM":  # off
            x = x * to_numpy(layer.scale)[0] + to_numpy(layer.shift)[0]
        elif name == "ResidualUnit":
            x = slow_unit(layer, x)
        elif name == "ConvNeXtUnit":
            x = slow_convnext(layer, x)
        elif name == "CausalConv1DTranspose":
            x = slow_transpose(layer, x)
        else:
            x = slow_conv(layer, x)
    return x


def slow_bands(codec):
    """The coefficients of each band."""
    if not codec.noise_filling:
        return []
    edges = band_edges(codec.hop_length, codec.sample_rate)
    return [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]


def slow_fill(c, levels, bands):
    made = c.copy()
    for i, band in enumerate(bands):
        wanted = (np.maximum(levels[:, i], 0) / 2 + 0.01) ** 4 - 1e-8
        missing = np.maximum(wanted - np.mean(c[:, band] ** 2, 1), 0) ** 0.5
        noise = noise_table(c.shape[1])[: len(c), band]
        made[:, band] += missing[:, None] * noise
    return made


def hann(hop):
    return np.hanning(4 * hop + 1)[:-1]


def slow_transform(codec, audio):
    """Coefficients of whole hops."""
    hop, overlap = codec.hop_length, codec.ends.overlap
    padded = np.pad(audio, ((overlap - 1) * hop, 0))
    frames = np.lib.stride_tricks.sliding_window_view(padded, overlap * hop)
    frames = frames[::hop]
    if codec.transform == "mdct":
        return frames @ codec.ends.analysis
    size = np.abs(np.fft.rfft(frames * hann(hop), norm="ortho"))
    return np.sqrt(size**2 + 1e-10) - 1e-5


def slow_phases(size):
    """Frame by frame, bin by bin."""
    frames, bins = size.shape
    phase, phases = np.zeros(bins), np.zeros(size.shape)
    for t in range(frames):
        level = np.pad(np.log(size[t] + 1e-5), 1, mode="edge")
        new = np.zeros(bins)
        for k in range(bins):
            peak = k
            for _ in range(2**3):
                here = level[peak : peak + 3]
                if here[2] > here[1] and here[2] >= here[0]:
                    peak += 1
                elif here[0] > here[1] and here[0] > here[2]:
                    peak -= 1
            a, b, c = level[peak : peak + 3]
            offset = 0.5 * (a - c) / min(a - 2 * b + c, -1e-3)
            turn = peak + np.clip(offset, -0.5, 0.5)
            new[k] = phase[peak] + 2 * np.pi * turn / 4 + np.pi * (k - peak)
        phase = new
        phases[t] = new
    return phases


def slow_inverse(codec, c):
    """Samples of coefficients `(frames, coefficients)`."""
    hop, overlap = codec.hop_length, codec.ends.overlap
    if codec.transform == "mdct":
        parts = c @ codec.ends.analysis.T
    else:
        size = np.maximum(c, 0)
        spectrum = size * np.exp(1j * slow_phases(size))
        parts = np.fft.irfft(spectrum, norm="ortho") * hann(hop) / 1.5
    audio = np.zeros((len(parts) + overlap) * hop)
    for i, part in enumerate(parts):
        audio[i * hop : (i + overlap) * hop] += part
    return audio[(overlap - 1) * hop : len(parts) * hop]


def slow_embed(codec, audio):
    """One recording `(samples,)` to `(frames, dim)`."""
    audio = np.pad(audio, (0, -len(audio) % codec.hop_length))
    if not codec.transform:
        x = audio[:, None].astype("float64")
        return slow_network(codec.encoder, x, codec.activation)
    c = slow_transform(codec, audio)
    levels = [np.mean(c[:, band] ** 2, 1) for band in slow_bands(codec)]
    c = np.sign(c) * (np.sqrt(np.abs(c) + 1e-5) - np.sqrt(1e-5))
    if levels:
        levels = 2 * ((np.stack(levels, 1) + 1e-8) ** 0.25 - 0.01)
        c = np.concatenate([c, levels], 1)
    x = slow_network(codec.encoder, c, codec.activation)
    return x + c @ to_numpy(codec.analysis.kernel)


def slow_render(codec, embeddings):
    if not codec.transform:
        return slow_network(codec.decoder, embeddings, codec.activation)[:, 0]
    embeddings = np.pad(embeddings, [(0, codec.ends.overlap - 1), (0, 0)])
    c = slow_network(codec.decoder, embeddings, codec.activation)
    c = c + embeddings @ to_numpy(codec.synthesis.kernel)
    size = codec.ends.num_coefficients
    c, levels = c[:, :size], c[:, size:]
    c = c * np.abs(c)
    if codec.noise_filling:
        c = slow_fill(c, levels, slow_bands(codec))
    return slow_inverse(codec, c)


def codebooks(codec):
    usage = to_numpy(codec.quantizer.usage)[..., None]
    return to_numpy(codec.quantizer.embedding_sum) / usage


def slow_codes(codec, embeddings):
    residual, codes = embeddings, []
    for book in codebooks(codec):
        distances = np.square(residual[:, None] - book).sum(-1)
        codes.append(distances.argmin(-1))
        residual = residual - book[codes[-1]]
    return np.stack(codes, -1)


def test_encode_matches_numpy(codec):
    audio = normal(2, 45)
    expected = [slow_codes(codec, slow_embed(codec, x)) for x in audio]
    np.testing.assert_array_equal(codec.encode(audio), expected)


def test_decode_matches_numpy(codec):
    codes = np.random.default_rng(0).integers(0, 16, (2, 7, 3))
    for levels in (1, 3):
        expected = [
            slow_render(
                codec,
                sum(codebooks(codec)[q][c[:, q]] for q in range(levels)),
            )
            for c in codes
        ]
        audio = codec.decode(codes[..., :levels])
        assert audio.dtype == np.float32
        np.testing.assert_allclose(audio, expected, atol=1e-4)


# === Shapes ===


def test_every_length_comes_back(codec):
    hop = codec.hop_length
    audio = normal(1, 5 * hop)
    for samples in [*range(1, hop + 2), 5 * hop - 1, 5 * hop]:
        codes = codec.encode(audio[:, :samples])
        frames = -(-samples // hop)
        assert codes.shape == (1, frames, 3)
        assert codes.dtype == np.int32
        assert codec.num_frames(samples) == frames
        assert codec.decode(codes).shape == (1, frames * hop)
        assert codec.decode(codes, num_samples=samples).shape == (1, samples)


def test_call_is_decode_of_encode(codec):
    samples = 45  # a part of a hop is left over
    audio = normal(2, samples)
    expected = codec.decode(codec.encode(audio), num_samples=samples)
    np.testing.assert_allclose(run(codec, codec, audio), expected, atol=1e-4)


def test_batch_equals_single(codec):
    audio = normal(2, 45)
    codes = codec.encode(audio)
    alone = np.concatenate([codec.encode(row[None]) for row in audio])
    np.testing.assert_array_equal(codes, alone)
    alone = np.concatenate([codec.decode(row[None]) for row in codes])
    np.testing.assert_allclose(codec.decode(codes), alone, atol=1e-5)


def test_codes_of_padding_do_not_show(codec):
    """Few lengths are compiled: the padded frames change nothing."""
    frames = 9
    assert padded_frames(frames) > frames
    audio = normal(1, 16 * codec.hop_length)
    whole = codec.encode(audio)
    cut = codec.encode(audio[:, : frames * codec.hop_length])
    np.testing.assert_array_equal(cut, whole[:, :frames])


# === Causality ===


def test_codes_do_not_depend_on_later_samples(codec):
    hop = codec.hop_length
    audio = normal(1, 10 * hop)
    codes = codec.encode(audio)
    for frame in (1, 6):
        changed = audio.copy()
        changed[:, frame * hop :] = 5 * normal(1, (10 - frame) * hop, seed=1)
        after = codec.encode(changed)
        np.testing.assert_array_equal(after[:, :frame], codes[:, :frame])
        assert (after[:, frame:] != codes[:, frame:]).any()


def test_audio_does_not_depend_on_later_codes(codec):
    hop = codec.hop_length
    codes = np.random.default_rng(0).integers(0, 16, (1, 10, 3))
    audio = codec.decode(codes)
    # A transform completes a hop with the frames after it.
    latency = codec.delay
    for frame in (1, 5, 9):
        changed = codes.copy()
        changed[:, frame:] = (changed[:, frame:] + 5) % 16
        after = codec.decode(changed)
        same = max(frame * hop - latency, 0)
        np.testing.assert_allclose(
            after[:, :same], audio[:, :same], rtol=0, atol=1e-5
        )
        rest = np.abs(after - audio)[0, same : same + hop]
        assert rest.max() > 1e-3


def test_a_sample_is_heard_in_its_own_frame(codec):
    """Frame `i` ends with the last sample of hop `i`: no extra delay."""
    hop = codec.hop_length
    audio = normal(1, 4 * hop)
    embed = run(codec, codec.embed, audio)
    changed = audio.copy()
    changed[:, 3 * hop - 1] += 1.0
    after = run(codec, codec.embed, changed)
    difference = np.abs(after - embed).max((0, 2))
    assert difference[:2].max() < 1e-5 < 1e-3 < difference[2]


# === The paper's size ===


def parameters(c, dim, strides=(2, 4, 5, 8)):
    """SoundStream's Figure 3, convolution by convolution."""

    def conv(kernel, inputs, outputs):
        return kernel * inputs * outputs + outputs

    def units(n):
        return 3 * (conv(7, n, n) + conv(1, n, n))

    encoder, decoder, width = conv(7, 1, c), conv(7, c, 1), c
    for s in strides:
        encoder += units(width) + conv(2 * s, width, 2 * width)
        decoder += conv(2 * s, 2 * width, width) + units(width)
        width *= 2
    return encoder + conv(3, width, dim), decoder + conv(7, dim, width)


@pytest.mark.large
def test_paper_size():
    codec = SoundStream()
    codec.build()
    assert (codec.hop_length, codec.sample_rate) == (320, 16000)
    assert (codec.num_quantizers, codec.codebook_size) == (12, 1024)
    counts = codec.encoder.count_params(), codec.decoder.count_params()
    assert counts == parameters(32, 128)
    assert 9.4e6 <= sum(counts) <= 9.85e6
    trainable = sum(int(np.prod(w.shape)) for w in codec.trainable_weights)
    assert trainable == sum(counts)  # codebooks learn by moving averages
    assert codec.quantizer.embedding_sum.shape == (12, 1024, 128)


# === Start ===


def test_codebooks_start_from_audio(codec):
    config = codec.get_config()
    fresh = SoundStream.from_config(config)
    assert float(to_numpy(fresh.initialized)) == 0
    audio = normal(4, 30 * fresh.hop_length)
    fresh.initialize_codebooks([audio[:2], audio[2:]])
    assert float(to_numpy(fresh.initialized)) == 1
    embeddings = np.concatenate([slow_embed(fresh, x) for x in audio])
    codes = fresh.encode(audio).reshape(-1, 3)
    levels = [codebooks(fresh)[q][codes[:, q]] for q in range(3)]
    errors = [
        np.square(embeddings - sum(levels[: q + 1])).mean() for q in range(3)
    ]
    assert errors[0] < 0.9 * np.square(embeddings).mean()
    assert errors[2] < errors[1] < errors[0]
    assert (np.bincount(codes[:, 0], minlength=16) > 0).all()


def test_linear_path_starts_at_the_principal_components():
    codec = SoundStream(num_quantizers=1, codebook_size=4, **MODES["mdct"])
    audio = normal(2, 320)
    codec.initialize_codebooks([audio])
    c = to_numpy(MDCT(8)(ops.convert_to_tensor(audio))).reshape(-1, 8)
    levels = [np.mean(c[:, band] ** 2, 1) for band in slow_bands(codec)]
    c = np.sign(c) * (np.sqrt(np.abs(c) + 1e-5) - np.sqrt(1e-5))
    if levels:
        levels = 2 * ((np.stack(levels, 1) + 1e-8) ** 0.25 - 0.01)
        c = np.concatenate([c, levels], 1)
    kernel = to_numpy(codec.analysis.kernel)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(5), atol=1e-5)
    kept = np.square(c @ kernel).sum()
    best = np.square(np.linalg.svd(c, compute_uv=False)[:5]).sum()
    assert kept == pytest.approx(best, rel=1e-4)
    np.testing.assert_array_equal(to_numpy(codec.synthesis.kernel), kernel.T)
    # The network beside it starts as no change at all.
    embed = run(codec, codec.embed, audio)
    np.testing.assert_allclose(embed.reshape(-1, 5), c @ kernel, atol=1e-5)


def test_start_reads_no_more_batches_than_it_needs():
    codec = SoundStream(num_quantizers=1, codebook_size=4, **MODES["wave"])
    read = []

    def batches():
        for i in range(10):
            read.append(i)
            yield normal(2, 60, seed=i)  # 20 frames

    codec.initialize_codebooks(batches(), num_frames=50)
    assert read == [0, 1, 2]


# === Saving ===


def test_weights_and_config_come_back(codec, tmp_path):
    path = str(tmp_path / "codec.weights.h5")
    codec.save_weights(path)
    copy = SoundStream.from_config(codec.get_config())
    assert copy.get_config() == codec.get_config()
    copy.build()
    copy.load_weights(path)
    audio = normal(2, 45)
    codes = codec.encode(audio)
    np.testing.assert_array_equal(copy.encode(audio), codes)
    np.testing.assert_allclose(copy.decode(codes), codec.decode(codes))


def test_a_codec_is_a_preset_of_its_own(wave, tmp_path):
    folder = tmp_path / "codec"
    wave.save_to_preset(folder, card="# A codec")
    assert (folder / "README.md").read_text() == "# A codec"
    copy = SoundStream.from_preset(folder)
    audio = normal(1, 12)
    np.testing.assert_array_equal(copy.encode(audio), wave.encode(audio))
    sizes = SoundStream.from_preset(folder, load_weights=False)
    assert sizes.get_config() == wave.get_config()
    with pytest.raises(ValueError, match="codec of piano is untrained"):
        SoundStream.from_preset("piano")


def test_new_weights_count_in_compiled_functions(tmp_path):
    """Encode and decode read the weights anew, never those of the trace."""
    codec, other = make_codec(seed=0), make_codec(seed=1)
    audio = normal(1, 60)
    assert (codec.encode(audio) != other.encode(audio)).any()
    codec.set_weights(other.get_weights())
    codes = other.encode(audio)
    np.testing.assert_array_equal(codec.encode(audio), codes)
    np.testing.assert_allclose(codec.decode(codes), other.decode(codes))


def test_serializes_as_a_keras_object(wave):
    serialized = keras.saving.serialize_keras_object(wave)
    copy = keras.saving.deserialize_keras_object(serialized)
    assert copy.get_config() == wave.get_config()


# === Bad input ===


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros(10), r"\(batch, samples\).*\(10,\)"),
        (np.zeros((1, 10, 1)), r"\(1, 10, 1\)"),
        (np.zeros((1, 0)), r"zero.*\(1, 0\)"),
        (np.zeros((0, 10)), r"zero.*\(0, 10\)"),
        (np.array([[0.0, np.nan, np.inf]]), "2 samples that are not finite"),
    ],
)
def test_bad_audio(wave, audio, message):
    with pytest.raises(ValueError, match=message):
        wave.encode(audio)
    with pytest.raises(ValueError, match=message):
        wave.initialize_codebooks([audio])


@pytest.mark.parametrize(
    "codes, message",
    [
        (np.zeros((5, 3), int), r"shape \(5, 3\)"),
        (np.zeros((1, 5, 4), int), r"1 to 3 levels.*\(1, 5, 4\)"),
        (np.zeros((1, 5, 0), int), r"shape \(1, 5, 0\)"),
        (np.zeros((1, 0, 3), int), r"shape \(1, 0, 3\)"),
        (np.zeros((1, 5, 3), "float32"), "integers.*float32"),
        (np.full((1, 5, 3), 16), "0 to 15.*16 to 16"),
        (np.full((1, 5, 3), -1), "0 to 15.*-1 to -1"),
    ],
)
def test_bad_codes(wave, codes, message):
    with pytest.raises(ValueError, match=message):
        wave.decode(codes)


@pytest.mark.parametrize("num_samples", [-1, 0, 31])
def test_bad_number_of_samples(wave, num_samples):
    with pytest.raises(ValueError, match=f"1 to 30.*{num_samples}"):
        wave.decode(np.zeros((1, 5, 3), int), num_samples=num_samples)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(transform="dct"), "transform='dct'"),
        (dict(unit="sparse"), "unit='sparse'"),
        (dict(noise_filling=True), "transform=None"),
        (dict(transform="mdct", strides=(2, 4)), r"strides=\(2, 4\)"),
        (
            dict(transform="mdct", strides=(1,), transform_hop=64),
            "embedding_dim=128, transform_hop=64",
        ),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        SoundStream(**config)


def test_start_needs_enough_audio():
    codec = SoundStream(num_quantizers=1, codebook_size=16, **MODES["wave"])
    with pytest.raises(ValueError, match="no audio"):
        codec.initialize_codebooks([])
    with pytest.raises(ValueError, match="16 codes.*Received: 10 frames"):
        codec.initialize_codebooks([normal(1, 60)])
    assert float(to_numpy(codec.initialized)) == 0


# === What is shipped ===


def test_the_bundled_codec_keeps_real_speech():
    codec = SoundStream.from_preset("soundstream_voices")
    path = pathlib.Path(__file__).parents[2] / "examples/recordings/en.flac"
    speech = load_audio(path, codec.sample_rate)[None, :48000]
    codes = codec.encode(speech)
    assert codes.shape == (1, 150, 8)
    made = codec.decode(codes, 48000)
    noise = ((made - speech) ** 2).sum()
    assert 10 * np.log10((speech**2).sum() / noise) > 4
    fewer = codec.decode(codes[..., :2], 48000)
    assert ((fewer - speech) ** 2).sum() > noise
