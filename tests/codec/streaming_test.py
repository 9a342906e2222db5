"""The codec step by step, its bit rates and its switch."""

import keras
import numpy as np
import pytest

from tests.codec.soundstream_test import MODES, make_codec, normal, to_numpy

FRAMES = 6


@pytest.fixture(scope="module", params=MODES)
def codec(request):
    return make_codec(request.param)


@pytest.fixture(scope="module")
def wave():
    return make_codec("wave")


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def switchable(request):
    return make_codec("wave", denoising=request.param)


def stream(codec, audio, chunks, **kwargs):
    """Codes and audio of chunks of so many hops, joined."""
    state = codec.init_state(len(audio))
    codes, decoded, start = [], [], 0
    for hops in chunks:
        stop = start + hops * codec.hop_length
        chunk, state = codec.encode_step(audio[:, start:stop], state)
        codes.append(chunk)
        chunk, state = codec.decode_step(chunk, state)
        decoded.append(chunk)
        start = stop
    decoded.append(codec.flush(state))
    return np.concatenate(codes, 1), np.concatenate(decoded, 1)


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [2, 1, 3]])
def test_streaming_is_offline(codec, chunks):
    audio = normal(2, FRAMES * codec.hop_length)
    codes, decoded = stream(codec, audio, chunks)
    np.testing.assert_array_equal(codes, codec.encode(audio))
    np.testing.assert_allclose(
        decoded[:, codec.delay :], codec.decode(codes), atol=1e-5
    )


def test_a_beam_streams_and_searches_the_levels_that_are_wanted():
    codec = make_codec("mdct", beam_width=4)
    audio = normal(1, FRAMES * codec.hop_length)
    codes, _ = stream(codec, audio, [2, 1, 3])
    np.testing.assert_array_equal(codes, codec.encode(audio))
    level = codec.sample_rate / codec.hop_length * np.log2(codec.codebook_size)
    for levels in range(1, codec.num_quantizers + 1):
        codes = codec.encode(audio, bandwidth=levels * level)
        embeddings = codec.embed(audio)
        expected = codec.quantizer.encode(embeddings, levels)
        np.testing.assert_array_equal(codes, to_numpy(expected))


def test_a_state_is_left_as_it_was(codec):
    audio = normal(1, 2 * codec.hop_length)
    first, second = np.split(audio, 2, axis=1)
    codes, state = codec.encode_step(first, codec.init_state(1))
    before = [to_numpy(x) for x in keras.tree.flatten(state)]
    once, _ = codec.encode_step(second, state)
    again, _ = codec.encode_step(second, state)
    np.testing.assert_array_equal(once, again)
    codec.decode_step(codes, state)
    for a, b in zip(before, keras.tree.flatten(state), strict=True):
        np.testing.assert_array_equal(a, to_numpy(b))


def test_streams_of_a_batch_are_alone(wave):
    audio = normal(3, 4 * wave.hop_length)
    codes, decoded = stream(wave, audio, [1, 3])
    for row, x in enumerate(audio):
        alone = stream(wave, x[None], [1, 3])
        np.testing.assert_array_equal(alone[0][0], codes[row])
        np.testing.assert_allclose(alone[1][0], decoded[row], atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="runs eagerly")
def test_each_length_of_chunk_compiles_once():
    codec = make_codec("mdct")
    audio = normal(1, 5 * codec.hop_length)
    for _ in range(2):
        stream(codec, audio, [1, 1, 2, 1])
    assert codec._encode_step.num_traces == 2
    # the third is the empty frame of one level that flushes
    assert codec._decode_step.num_traces == 3


# === Bit rates ===


def test_bandwidth_picks_the_levels(wave):
    # 4 bits a code, 6 samples a hop: 10,666.7 bits per second and level
    audio = normal(1, 12)
    everything = wave.encode(audio)
    for bandwidth, levels in [(10_667, 1), (31_999, 2), (32_000, 3)]:
        assert wave.num_levels(bandwidth) == levels
        codes = wave.encode(audio, bandwidth=bandwidth)
        np.testing.assert_array_equal(codes, everything[..., :levels])
        chunk, _ = wave.encode_step(
            audio, wave.init_state(1), bandwidth=bandwidth
        )
        np.testing.assert_array_equal(chunk, codes)


@pytest.mark.parametrize("bandwidth", [0, 10_000, 50_000, float("nan")])
def test_bandwidths_out_of_range(wave, bandwidth):
    with pytest.raises(ValueError, match="10666.7 bits.*there are 3"):
        wave.encode(normal(1, 12), bandwidth=bandwidth)


# === The switch that leaves noise out ===


def run(codec, audio, denoise):
    """Decoded audio; the side without the switch is told nothing."""
    side = codec.denoising
    codes = codec.encode(audio, denoise=denoise if side == "encoder" else None)
    return codes, codec.decode(
        codes, denoise=denoise if side == "decoder" else None
    )


def test_the_switch_is_on_per_example_and_over_time(switchable):
    codec = switchable
    film = [x for x in codec.encoder.layers + codec.decoder.layers]
    (film,) = [x for x in film if type(x).__name__ == "FiLM"]
    film.shift.assign(normal(*film.shift.shape, seed=3))
    audio = normal(2, FRAMES * codec.hop_length)
    off, on = run(codec, audio, False), run(codec, audio, True)
    np.testing.assert_array_equal(run(codec, audio, None)[1], off[1])
    assert (on[1] != off[1]).any()
    mixed = run(codec, audio, np.array([True, False]))
    np.testing.assert_allclose(mixed[1][0], on[1][0], atol=1e-6)
    np.testing.assert_allclose(mixed[1][1], off[1][1], atol=1e-6)
    later = np.arange(FRAMES) >= 4
    turned = run(codec, audio, np.stack([later, later]))
    start = 4 * codec.hop_length
    np.testing.assert_allclose(
        turned[1][:, :start], off[1][:, :start], atol=1e-6
    )
    assert (turned[1][:, start:] != off[1][:, start:]).any()


def test_the_switch_streams(switchable):
    codec = switchable
    audio = normal(1, 3 * codec.hop_length)
    encoder = dict(denoise=True) if codec.denoising == "encoder" else {}
    decoder = dict(denoise=True) if codec.denoising == "decoder" else {}
    state = codec.init_state(1)
    codes, state = codec.encode_step(audio, state, **encoder)
    decoded, state = codec.decode_step(codes, state, **decoder)
    whole = run(codec, audio, True)
    np.testing.assert_array_equal(codes, whole[0])
    np.testing.assert_allclose(decoded, whole[1], atol=1e-5)


# === What does not fit ===


def test_bad_chunks(wave):
    state = wave.init_state(2)
    with pytest.raises(ValueError, match="whole number of hops.*7 samples"):
        wave.encode_step(normal(2, 7), state)
    with pytest.raises(ValueError, match=r"shape \(2, 0\)"):
        wave.encode_step(normal(2, 0), state)
    with pytest.raises(ValueError, match="1 samples that are not finite"):
        wave.encode_step(np.array([[0.0, np.nan] + [0.0] * 4]), state)
    with pytest.raises(ValueError, match="of 2 streams.*of 1"):
        wave.encode_step(normal(1, 6), state)
    with pytest.raises(ValueError, match="of 2 streams.*of 3"):
        wave.decode_step(np.zeros((3, 1, 1), "int32"), state)
    with pytest.raises(ValueError, match="init_state.*NoneType"):
        wave.encode_step(normal(1, 6), None)
    with pytest.raises(ValueError, match="batch_size.*0"):
        wave.init_state(0)


def test_another_rate_is_refused(wave):
    with pytest.raises(ValueError, match="16000 Hz.*44100"):
        wave.encode(normal(1, 6), sample_rate=44100)


def test_bad_switches(wave, switchable):
    with pytest.raises(ValueError, match="denoising=None"):
        wave.encode(normal(1, 6), denoise=True)
    side = switchable.denoising
    with pytest.raises(ValueError, match=r"here \(2, 1\).*\(3,\)"):
        if side == "encoder":
            switchable.encode(normal(2, 6), denoise=[True] * 3)
        else:
            codes = np.zeros((2, 1, 1), "int32")
            switchable.decode(codes, denoise=[True] * 3)
