import dataclasses

import keras
import numpy as np
import pytest

from keras_audiolm.codec.bitstream import (
    CompressedAudio,
    pack,
    unpack,
)
from tests.codec.soundstream_test import make_codec, normal


@pytest.fixture(scope="module")
def codec():
    return make_codec("wave")


def example(size=1000, frames=7, levels=3, seed=0):
    codes = np.random.default_rng(seed).integers(size, size=(frames, levels))
    return CompressedAudio(
        codes.astype("int32"), frames * 6 - 2, 16000, 6, size, 0xC0FFEE, "été"
    )


@pytest.mark.parametrize("size", [2, 3, 16, 1000, 1024, 16384])
def test_what_is_packed_comes_back_at_its_true_size(size):
    compressed = example(size)
    bits = int(np.ceil(np.log2(size)))
    data = compressed.to_bytes()
    assert len(data) == 31 + len("été".encode()) + -(-21 * bits // 8) + 4
    back = CompressedAudio.from_bytes(data)
    np.testing.assert_array_equal(back.codes, compressed.codes)
    assert dataclasses.replace(back, codes=0) == dataclasses.replace(
        compressed, codes=0
    )
    assert back.bits_per_second == 3 * bits * 16000 / 6


def test_the_bits_stand_as_the_format_says():
    assert pack([[1, 2], [3, 0]], 2) == bytes([0b01101100])
    assert pack([[5]], 3) == bytes([0b10100000])
    np.testing.assert_array_equal(
        unpack(bytes([0b01101100]), (2, 2), 2), [[1, 2], [3, 0]]
    )


def test_every_change_and_every_cut_is_noticed():
    data = example().to_bytes()
    for length in range(len(data)):
        with pytest.raises(ValueError, match="cut short|not SoundStream"):
            CompressedAudio.from_bytes(data[:length])
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x10
        with pytest.raises(ValueError):
            CompressedAudio.from_bytes(bytes(changed))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "a.ska is not"),
        (b"RIFF" + bytes(100), "a.ska is not"),
        (b"SKA\x02" + bytes(100), "version 2.*version 1"),
        (b"SKA\x01" + bytes(100), "zeros in its header"),
    ],
)
def test_foreign_files(data, message):
    with pytest.raises(ValueError, match=message):
        CompressedAudio.from_bytes(data, "a.ska")


def test_audio_survives_a_file(codec, tmp_path):
    audio = normal(50)[: codec.hop_length * 4 - 1]
    compressed = CompressedAudio.encode(codec, audio, preset="voices")
    path = tmp_path / "new" / "a.ska"
    compressed.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["a.ska"]
    back = CompressedAudio.load(path)
    assert back.preset == "voices"
    expected = codec.decode(codec.encode(audio[None]))[0, : len(audio)]
    np.testing.assert_array_equal(back.decode(codec), expected)


def test_a_decoder_that_learned_on_is_the_same_codec():
    codec = make_codec("mdct")
    compressed = CompressedAudio.encode(codec, normal(12), preset="voices")
    before = compressed.decode(codec)
    codec.synthesis.kernel.assign(2 * codec.synthesis.kernel)
    assert np.abs(compressed.decode(codec) - before).max() > 1e-3
    for weight in (codec.analysis.kernel, codec.quantizer.embedding_sum):
        kept = np.array(keras.ops.convert_to_numpy(weight))
        weight.assign(2 * kept)
        with pytest.raises(ValueError, match="other weights.*'voices'"):
            compressed.decode(codec)
        weight.assign(kept)
    compressed.decode(codec)


def test_another_codec_is_refused(codec):
    compressed = CompressedAudio.encode(codec, normal(12), preset="voices")
    with pytest.raises(ValueError, match="hop_length=6 .*8.*'voices'"):
        compressed.decode(make_codec("wave_deep"))
    other = make_codec("wave", seed=1)
    with pytest.raises(ValueError, match="other weights.*'voices'"):
        compressed.decode(other)
