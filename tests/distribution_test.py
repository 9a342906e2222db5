import os
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_audiolm import AudioLMPipeline, ParallelDecoder, save_audio, training
from keras_audiolm.codec.quantizer import ResidualVectorQuantizer
from keras_audiolm.data import batches
from keras_audiolm.data.batches import Rest, Share, check_distribution
from keras_audiolm.language_model.layout import TokenLayout
from keras_audiolm.language_model.stage_lm import StageLM
from keras_audiolm.layers import distribution
from keras_audiolm.layers.distribution import refuse_replicas
from keras_audiolm.semantic.w2v_bert import W2vBert
from tests.distributed_training import train
from tests.tiny import tiny_lm, tiny_pipeline, tiny_semantic_tokenizer


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(7)
    for i in range(3):
        audio = rng.normal(0, 0.1, 16000).astype("float32")
        save_audio(folder / f"{i}.wav", audio, 16000)
    return folder


# === Eight devices, two processes ===


def start(*args, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed_training", *args],
        env={**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.large
@pytest.mark.parametrize(
    ("layout", "parts"),
    [
        # The codec trains with its discriminators and starts its codebooks.
        ("data_parallel", ["codec", "coarse_lm"]),
        ("model_parallel", ["semantic_tokenizer", "coarse_lm"]),
    ],
)
def test_eight_devices_equal_one(
    tiny_preset, recordings, tmp_path, layout, parts
):
    process = start(
        layout, tiny_preset, recordings, tmp_path, *parts, devices=8
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


@pytest.mark.large
def test_two_processes_equal_one(tiny_preset, recordings, tmp_path):
    parts = ["codec"]
    expected = train(tiny_preset, parts, recordings, tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(f"{address}:{i}", tiny_preset, recordings, tmp_path, *parts)
        for i in range(2)
    ]
    errors = [process.communicate()[1][-3000:] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], errors
    with np.load(tmp_path / "weights.npz") as found:
        for name, arrays in expected.items():
            for i, array in enumerate(arrays):
                np.testing.assert_allclose(
                    found[f"{name}/{i}"], array, rtol=1e-3, atol=2e-5
                )


# === Layout maps ===


def mesh(axes=("batch", "model")):
    return keras.distribution.DeviceMesh((1, 1), axes, ["cpu:0"])


def models():
    coarse = TokenLayout.coarse(12, 2, 16, 25.0, 50.0)
    decoder = ParallelDecoder(
        coarse, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16
    )
    for model in (tiny_lm(coarse), decoder):
        model.build()
        yield model
    yield tiny_semantic_tokenizer().encoder


def test_layout_maps_split_every_large_weight():
    whole = AudioLMPipeline.get_layout_map(mesh())
    for model in models():
        layouts, used = model.get_layout_map(mesh()), set()
        for variable in model.trainable_variables:
            layout = layouts[variable.path]
            if layout is None:
                # Norms, biases of what is not split, and the smallest heads.
                small = "norm|bias|embedding$|_head|projection_change"
                assert re.search(small, variable.path), variable.path
                continue
            assert len(layout.axes) == len(variable.shape)
            assert whole[variable.path].axes == layout.axes
            used |= {key for key in layouts if re.fullmatch(key, variable.path)}
        assert used == set(layouts)


def test_layout_maps_say_which_axis_is_missing():
    with pytest.raises(ValueError, match="named .'batch', 'model'.*'data'"):
        StageLM.get_layout_map(mesh(("data", "heads")))
    layouts = W2vBert.get_layout_map(mesh(("data", "heads")), "heads", "data")
    path = "encoder/block_3/attention/query/kernel"
    assert layouts[path].axes == ("data", "heads")


# === What cannot be, is refused ===


def train_quantizer():
    quantizer = ResidualVectorQuantizer(1, 4)
    quantizer(np.ones((1, 5, 2), "float32"), training=True)


def test_one_device_is_not_refused():
    refuse_replicas()
    train_quantizer()


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's strategies"
)
def test_strategies_of_tensorflow_are_refused():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        lm = tiny_lm(TokenLayout.semantic(12, 25.0))
        lm.build()
        lm.compile("sgd")
        with pytest.raises(ValueError, match="MirroredStrategy on tensorflow"):
            train_quantizer()
    codes = {"semantic": np.zeros((2, 25, 1), "int32")}
    with pytest.raises(ValueError, match="MirroredStrategy on tensorflow"):
        lm.fit(codes, verbose=0)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch's processes"
)
def test_processes_of_torch_are_refused(monkeypatch):
    import torch.distributed as processes

    monkeypatch.setattr(processes, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="torch.distributed on torch"):
        train_quantizer()


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has keras.distribution"
)
def test_keras_distribution_is_refused_where_it_does_nothing(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: "any")
    with pytest.raises(ValueError, match="keras.distribution on"):
        refuse_replicas()


class Replicas(keras.distribution.DataParallel):
    def __init__(self, count, auto_shard_dataset=False):
        self.count = count
        self.auto_shard_dataset = auto_shard_dataset

    @property
    def num_model_replicas(self):
        return self.count

    def __repr__(self):
        return "Replicas"


def test_batches_that_devices_cannot_share(monkeypatch):
    check_distribution("codec", 12)
    monkeypatch.setattr(keras.distribution, "distribution", lambda: Replicas(8))
    check_distribution("codec", 16)
    with pytest.raises(ValueError, match="is 12.*8 devices.*{'codec': 16}"):
        check_distribution("codec", 12)


class Split(keras.distribution.ModelParallel):
    def __init__(self):
        pass

    def __repr__(self):
        return "Split"


@pytest.mark.parametrize(
    "found", [None, Replicas(2, auto_shard_dataset=True), Split()]
)
def test_processes_that_would_not_share_their_batches(monkeypatch, found):
    monkeypatch.setattr(batches, "process", lambda: (0, 2))
    monkeypatch.setattr(keras.distribution, "distribution", lambda: found)
    with pytest.raises(ValueError, match=f"2 processes.*Received: {found}"):
        check_distribution("codec", 2)


def test_one_process_makes_the_tokens(recordings, tmp_path, monkeypatch):
    pipeline = tiny_pipeline()
    settings = {"parts": "semantic_lm", "verbose": 0}
    monkeypatch.setattr(training, "process", lambda: (1, 2))
    with pytest.raises(ValueError, match="missing in token_dir"):
        pipeline.fit(recordings, token_dir=tmp_path, **settings)


# === Shares ===


class Numbers(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = np.arange(4) + 10 * index
        return {"a": rows, "b": rows[:, None]}


def test_shares_make_up_the_batches():
    shares = [Share(Numbers(), i, 2) for i in range(2)]
    for index in range(3):
        parts = [share[index] for share in shares]
        for name, whole in Numbers()[index].items():
            assert all(len(part[name]) == 2 for part in parts)
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole)
    assert batches.share(None) is None
    assert distribution.process() == (0, 1)


def test_the_rest_of_an_epoch():
    rest = Rest(Numbers(), 1)
    assert len(rest) == 2
    assert [batch["a"][0] for batch in rest] == [10, 20]
