"""Public checkpoints by address and folder, and those that are refused."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest

import keras_audiolm
from keras_audiolm import cli
from keras_audiolm.convert.checkpoint import INDEX, PICKLED, SAFE
from keras_audiolm.convert.sources import codec_from
from tests.codec.soundstream_test import to_numpy

pytest.importorskip("safetensors")

# EnCodec's as small as it goes: one block, one level.
CONFIG = dict(
    model_type="encodec",
    sampling_rate=800,
    num_filters=2,
    hidden_size=4,
    codebook_size=8,
    upsampling_ratios=[4],
    target_bandwidths=[0.6],
    num_lstm_layers=1,
    kernel_size=7,
    residual_kernel_size=3,
    pad_mode="reflect",
)


def tensors():
    """What such a checkpoint holds, random."""
    rng = np.random.default_rng(0)
    shapes = {}

    def conv(name, filters, channels, size):
        shapes[f"{name}.conv.weight_g"] = (filters, 1, 1)
        shapes[f"{name}.conv.weight_v"] = (filters, channels, size)
        shapes[f"{name}.conv.bias"] = (filters,)

    def unit(name):
        conv(f"{name}.block.1", 1, 2, 3)
        conv(f"{name}.block.3", 2, 1, 1)
        conv(f"{name}.shortcut", 2, 2, 1)

    def lstm(name):
        for side in ("ih", "hh"):
            shapes[f"{name}.lstm.weight_{side}_l0"] = (16, 4)
            shapes[f"{name}.lstm.bias_{side}_l0"] = (16,)

    conv("encoder.layers.0", 2, 1, 7)
    unit("encoder.layers.1")
    conv("encoder.layers.3", 4, 2, 8)
    lstm("encoder.layers.4")
    conv("encoder.layers.6", 4, 4, 7)
    conv("decoder.layers.0", 4, 4, 7)
    lstm("decoder.layers.1")
    conv("decoder.layers.3", 4, 2, 8)  # transposed: channels first
    shapes["decoder.layers.3.conv.bias"] = (2,)
    unit("decoder.layers.4")
    conv("decoder.layers.6", 1, 2, 7)
    shapes["quantizer.layers.0.codebook.embed"] = (8, 4)
    return {
        name: rng.normal(size=shape).astype("float32")
        for name, shape in shapes.items()
    }


def write(folder, weights=None, **config):
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if weights is None:
        weights = tensors()
    save_file(weights, folder / SAFE)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "encodec")


AUDIO = np.random.default_rng(1).normal(0, 0.3, (1, 80)).astype("float32")


def test_a_converted_codec_is_a_preset(folder, tmp_path, capsys):
    codec = codec_from(folder)
    out = tmp_path / "preset"
    assert cli.main(["convert", str(folder), "--out", str(out)]) == 0
    assert "EnCodec" in capsys.readouterr().out
    loaded = keras_audiolm.AudioCodec.from_preset(out)
    codes = codec.encode(AUDIO)
    assert codes.shape == (1, 20, 1)
    np.testing.assert_array_equal(loaded.encode(AUDIO), codes)
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))
    with pytest.raises(ValueError, match="of class EnCodec, not SoundStream"):
        keras_audiolm.SoundStream.from_preset(out)


def test_options_reach_the_family(folder):
    assert codec_from(folder).padding == "reflect"
    assert codec_from(folder, padding="zeros").init_state(1)
    with pytest.raises(ValueError, match="unexpected keyword.*'levels'"):
        codec_from(folder, levels=3)


def test_parts_of_a_checkpoint_are_joined(folder):
    from safetensors.numpy import save_file

    expected = codec_from(folder).encode(AUDIO)
    names = sorted(tensors())
    index = {}
    for part in range(2):
        chosen = {name: tensors()[name] for name in names[part::2]}
        save_file(chosen, folder / f"part{part}.safetensors")
        index.update(dict.fromkeys(chosen, f"part{part}.safetensors"))
    (folder / SAFE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    np.testing.assert_array_equal(codec_from(folder).encode(AUDIO), expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read_as_it_is(tmp_path, dtype):
    half = {k: v.astype(dtype) for k, v in tensors().items()}
    whole = {k: v.astype("float32") for k, v in half.items()}
    codec = codec_from(write(tmp_path / "half", half))
    expected = codec_from(write(tmp_path / "whole", whole))
    for there, here in zip(expected.weights, codec.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(here), to_numpy(there))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.layers.3.conv.bias"), "lacks.*3.conv.bias"),
        (lambda w: w.update(more=np.zeros(2, "float32")), "no place.*more"),
        (
            lambda w: w.update(
                {"encoder.layers.3.conv.bias": np.zeros(5, "float32")}
            ),
            r"3.conv.bias has shape \(5,\), and \(4,\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_other_tensors_are_named(tmp_path, change, message):
    weights = tensors()
    change(weights)
    with pytest.raises(ValueError, match=message):
        codec_from(write(tmp_path / "broken", weights))


def test_other_configurations_are_named(tmp_path):
    with pytest.raises(ValueError, match="24 kHz.*audio_channels=1 alone.*=2"):
        codec_from(write(tmp_path / "a", audio_channels=2))
    windowed = dict(
        norm_type="time_group_norm",
        normalize=True,
        audio_channels=2,
        use_causal_conv=False,
        chunk_length_s=1.0,
        overlap=0.01,
    )
    with pytest.raises(ValueError, match="48 kHz.*chunk_length_s=1.0.*=2.0"):
        write(tmp_path / "a", **{**windowed, "chunk_length_s": 2.0})
        codec_from(tmp_path / "a")
    with pytest.raises(ValueError, match="`padding` is of EnCodec of 24 kHz"):
        write(tmp_path / "a", **windowed)
        codec_from(tmp_path / "a", padding="zeros")
    with pytest.raises(ValueError, match="'wav2vec2', which is no codec"):
        codec_from(write(tmp_path / "b", model_type="wav2vec2"))
    folder = write(tmp_path / "d")
    config = {k: v for k, v in CONFIG.items() if k != "num_filters"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="says nothing of num_filters"):
        codec_from(folder)
    (folder / SAFE).unlink()
    (folder / INDEX).write_text("[]")
    with pytest.raises(ValueError, match="does not say where tensors are"):
        codec_from(folder)
    with pytest.raises(ValueError, match="not a folder"):
        codec_from(tmp_path / "nothing")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="has no config.json"):
        codec_from(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        codec_from(tmp_path / "c")


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_truncated_file_is_refused(folder, size):
    whole = (folder / SAFE).read_bytes()
    (folder / SAFE).write_bytes(whole[:size])
    with pytest.raises(ValueError, match="cannot be read"):
        codec_from(folder)


class Hostile:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_pickle_is_executed(folder, tmp_path):
    torch = pytest.importorskip("torch")
    expected = codec_from(folder).encode(AUDIO)
    (folder / SAFE).unlink()
    trap = tmp_path / "trap"
    weights = {k: torch.tensor(v) for k, v in tensors().items()}
    torch.save(weights, folder / PICKLED)
    np.testing.assert_array_equal(codec_from(folder).encode(AUDIO), expected)

    torch.save({**weights, "more": Hostile(trap)}, folder / PICKLED)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        codec_from(folder)
    (folder / PICKLED).write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        codec_from(folder)
    assert not trap.exists()


def test_what_is_cached_is_not_asked_for_again(folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    def download(repository, local_files_only=False, allow_patterns=None):
        calls.append((repository, local_files_only, allow_patterns))
        if local_files_only and len(calls) == 1:
            raise hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    codec_from("hf://somebody/encodec")
    assert [call[1] for call in calls] == [True, False]
    assert "*.safetensors" in calls[1][2]
    codec_from("hf://somebody/encodec")
    assert [call[1] for call in calls] == [True, False, True]
