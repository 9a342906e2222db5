"""EnCodec of 48 kHz beside `transformers`, with random weights."""

import numpy as np
import pytest

import keras_audiolm
from keras_audiolm import WindowedEnCodec
from keras_audiolm.convert.sources import codec_from
from keras_audiolm.generation import Player
from keras_audiolm.layers.compiled import CompiledFunction
from tests.codec.soundstream_test import to_numpy
from tests.convert.encodec_test import audio_of, make, untouched

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# The public model's kind: strides of which one is odd, windows of a second
# (40 frames of 10 samples), of which 4 frames overlap.
SMALL = dict(
    audio_channels=2,
    normalize=True,
    norm_type="time_group_norm",
    use_causal_conv=False,
    chunk_length_s=1.0,
    overlap=0.1,
    sampling_rate=400,
    upsampling_ratios=[5, 2],
    target_bandwidths=[0.48, 0.72],  # 40 Hz x 6 bits x 2 or 3 levels
    num_lstm_layers=1,
)
WINDOW, STEP, OVERLAP = 40, 36, 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    model, _ = make(tmp_path_factory, **SMALL)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.endswith("norm.weight"):
                x.add_(1.0)  # so that sizes are those of sound
    folder = tmp_path_factory.mktemp("windowed")
    model.save_pretrained(folder)
    return model, codec_from(folder)


def stereo(audio):
    """What their model hears of mono audio, `(batch, 2, samples)`."""
    return torch.tensor(audio)[:, None].repeat(1, 2, 1)


def their_codes(model, audio):
    """Of each window `(windows, batch, frames, levels)`, and its scales
    `(windows, batch)`."""
    with torch.no_grad():
        out = model.encode(stereo(audio), bandwidth=0.72)
    scales = np.stack([s.numpy()[:, 0] for s in out.audio_scales])
    return out.audio_codes.numpy().transpose(0, 1, 3, 2), scales


def test_latents_are_theirs(pair):
    model, codec = pair
    audio = audio_of(codec, WINDOW)
    with torch.no_grad():
        there = model.encoder(stereo(audio)).numpy().transpose(0, 2, 1)
    embed = CompiledFunction(codec, lambda x: codec.embed(x))
    np.testing.assert_allclose(to_numpy(embed(audio)), there, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 8, WINDOW])
def test_a_window_is_theirs(pair, frames):
    model, codec = pair
    audio = audio_of(codec, frames)
    with torch.no_grad():
        there, scale = model._encode_frame(stereo(audio), 0.72)
    codes = codec.encode(audio)
    np.testing.assert_array_equal(
        codes[..., 1:], there.numpy().transpose(0, 2, 1)
    )
    decoded = codec.decode(codes)
    with torch.no_grad():
        loudness = torch.tensor(loudness_of(codec, codes[:, 0, 0]))
        made = model._decode_frame(there, loudness).numpy()
    np.testing.assert_allclose(decoded, made.mean(axis=1), atol=1e-4)
    # The scale was rounded to decibels: half a step is 0.8 of 100 in 63.
    ratio = loudness / scale[:, 0]
    assert np.abs(20 * np.log10(ratio.numpy())).max() < 0.8


def loudness_of(codec, codes):
    """The root mean square that a code stands for: 0 to -100 dB."""
    decibels = 100 * (codes / (codec.codebook_size - 1) - 1)
    return np.float32(10 ** (decibels / 20))


@pytest.mark.parametrize("frames", [41, 44, 77, 113])
def test_windows_are_theirs(pair, frames):
    model, codec = pair
    audio = audio_of(codec, frames)
    audio[:, 300:] *= 0.1  # a window is not as loud as another
    there, scales = their_codes(model, audio)
    codes = codec.encode(audio)
    assert codes.shape == (2, frames, 4)
    # A window that begins where the last one has not ended is theirs alone.
    starts = range(0, max(frames - OVERLAP, 1), STEP)
    owned = [start + (OVERLAP // 2 if start else 0) for start in starts]
    expected = np.zeros((2, frames, 3), "int32")
    for i, (start, own) in enumerate(zip(starts, owned, strict=True)):
        part = there[i][:, own - start : frames - start]
        expected[:, own : start + WINDOW] = part
        rounded = loudness_of(codec, codes[:, own, 0])
        off = 20 * np.log10(rounded / scales[i])
        assert np.abs(off).max() < 0.8
    np.testing.assert_array_equal(codes[..., 1:], expected)
    made = their_audio(model, codec, codes, starts, owned)
    np.testing.assert_allclose(codec.decode(codes), made, atol=1e-4)


def their_audio(model, codec, codes, starts, owned):
    """What they make of windows of our codes, `(batch, samples)`."""
    windows = [codes[:, start : start + WINDOW, 1:] for start in starts]
    short = WINDOW - windows[-1].shape[1]
    windows[-1] = np.pad(windows[-1], [(0, 0), (0, short), (0, 0)])
    scales = [loudness_of(codec, codes[:, own, 0]) for own in owned]
    with torch.no_grad():
        out = model.decode(
            torch.tensor(np.stack(windows)).permute(0, 1, 3, 2).long(),
            [torch.tensor(scale) for scale in scales],
            last_frame_pad_length=short,
        )
    return out.audio_values.numpy().mean(axis=1)


def test_every_weight_is_set(pair):
    # Codebooks come as they are, not as sums over how often they were used.
    assert [p.split("/")[-1] for p in untouched(pair[1])] == ["usage"]


def test_what_is_decoded_is_as_loud(pair):
    _, codec = pair
    audio = audio_of(codec, 44)
    gain = loudness_of(codec, 63 - 20)  # so many steps of decibels less
    codes, other = codec.encode(audio), codec.encode(gain * audio)
    np.testing.assert_array_equal(codes - [20, 0, 0, 0], other)
    np.testing.assert_allclose(
        codec.decode(other), gain * codec.decode(codes), rtol=1e-3, atol=1e-7
    )
    silent = codec.decode(codec.encode(0 * audio))
    assert np.abs(silent).max() < 1e-4


def test_samples_are_hops_and_a_rest(pair):
    _, codec = pair
    audio = audio_of(codec, 44)[:, :-3]
    codes = codec.encode(audio)
    assert codes.shape == (2, 44, 4)
    made = codec.decode(codes, num_samples=audio.shape[1])
    assert made.shape == audio.shape
    call = CompiledFunction(codec, codec.call)
    np.testing.assert_allclose(to_numpy(call(audio)), made, atol=1e-5)


def test_pieces_are_played_without_a_seam(pair):
    _, codec = pair
    codes = codec.encode(audio_of(codec, 152))
    player = Player(codec, codes[:, :36])
    made = [
        player.play(codes[:, start:stop], stop == 152)
        for start, stop in [(36, 44), (44, 77), (77, 113), (113, 152)]
    ]
    whole = codec.decode(codes)[:, 360:]
    np.testing.assert_allclose(np.concatenate(made, axis=1), whole, atol=1e-5)


def test_loudness_alone_is_refused(pair):
    _, codec = pair
    codes = codec.encode(audio_of(codec, 8), bandwidth=480)
    assert codes.shape[-1] == 2
    assert np.isfinite(codec.decode(codes)).all()
    with pytest.raises(ValueError, match="loudness alone.*bandwidth=240"):
        codec.encode(audio_of(codec, 8), bandwidth=240)
    with pytest.raises(ValueError, match=r"loudness alone.*\(2, 8, 1\)"):
        codec.decode(codes[..., :1])
    with pytest.raises(ValueError, match="not causal"):
        codec.init_state(1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(sample_rate=401), "whole hops of 10 samples.*401"),
        (dict(overlap_frames=0), "less than half of their 40.*=0"),
        (dict(overlap_frames=20), "less than half of their 40.*=20"),
    ],
)
def test_windows_that_do_not_work_are_refused(config, message):
    config = {"sample_rate": 400, "channels": 2, "strides": (2, 5), **config}
    with pytest.raises(ValueError, match=message):
        WindowedEnCodec(**config)


def test_it_is_a_preset(pair, tmp_path):
    _, codec = pair
    codec.save_to_preset(tmp_path / "encodec")
    loaded = keras_audiolm.AudioCodec.from_preset(tmp_path / "encodec")
    codes = codec.encode(audio_of(codec, 44))
    np.testing.assert_array_equal(loaded.encode(audio_of(codec, 44)), codes)
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))
