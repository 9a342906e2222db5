"""Lyra v2 beside its own interpreter.

The files are Google's and not part of this project: `LYRA_V2` names the folder
that holds them, `lyra/model_coeffs` of its repository.
"""

import os
import pathlib

import keras
import numpy as np
import pytest

from keras_audiolm import SoundStream
from keras_audiolm.convert import lyra
from keras_audiolm.layers.causal_conv import CausalConv1DTranspose
from keras_audiolm.layers.compiled import CompiledFunction
from tests.codec.soundstream_test import to_numpy

FOLDER = os.environ.get("LYRA_V2")
HOP = 320

golden = pytest.mark.skipif(
    FOLDER is None, reason="LYRA_V2 names no folder of Lyra's files"
)


@pytest.fixture(scope="module")
def codec():
    return lyra.read_codec(FOLDER)


@pytest.fixture(scope="module")
def frames():
    """Voiced noise that comes and goes, `(frames, hop)`."""
    rng = np.random.default_rng(0)
    time = np.arange(60 * HOP) / 16000
    pitch = np.sin(2 * np.pi * 150 * time) ** 7
    audio = (0.3 * pitch + 0.02 * rng.normal(size=time.size)).astype("float32")
    audio *= np.abs(np.sin(2 * np.pi * 1.5 * time))
    return audio.reshape(-1, HOP).astype("float32")


def interpret(name, frames, tensor=None):
    """Frames one by one through a graph: its output, or an inner tensor."""
    from ai_edge_litert import interpreter

    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    graph = interpreter.Interpreter(
        str(pathlib.Path(FOLDER) / name),
        experimental_op_resolver_type=plain,
        experimental_preserve_all_tensors=True,
    )
    graph.allocate_tensors()
    (source,) = graph.get_input_details()
    (target,) = graph.get_output_details()
    index = target["index"] if tensor is None else tensor(graph)
    made = []
    for frame in frames:
        graph.set_tensor(source["index"], frame.reshape(source["shape"]))
        graph.invoke()
        made.append(graph.get_tensor(index).copy())
    return np.stack(made)


def before_quantizing(graph):
    """The last tensor of the encoder that is not rounded to 8 bits."""
    for operation in graph._get_ops_details():
        if operation["op_name"] == "QUANTIZE":
            return operation["inputs"][0]


def ratio(real, made):
    """Signal to noise, in decibels."""
    real, made = real.ravel(), made.ravel()
    return 10 * np.log10(np.sum(real**2) / np.sum((real - made) ** 2))


@golden
def test_encoder_equals_lyras_up_to_its_8_bits(codec, frames):
    layers = codec.encoder.layers

    def shallow(x):
        """To the first product of the last stage, where 8 bits begin."""
        stage = [i for i, x in enumerate(layers) if hasattr(x, "mix")][6]
        for layer in layers[:stage]:
            x = layer(x)
        unit = layers[stage]
        return unit.mix(unit.wide(unit.activate(x)))

    expected = interpret(lyra.ENCODER, frames, before_quantizing)
    made = CompiledFunction(codec, shallow)(frames.reshape(1, -1, 1))
    np.testing.assert_allclose(
        to_numpy(made).reshape(expected.shape),
        expected,
        atol=1e-5 * np.abs(expected).max(),
    )


@golden
def test_embeddings_and_audio_are_lyras_but_for_rounding(codec, frames):
    embeddings = interpret(lyra.ENCODER, frames).reshape(1, -1, 64)
    embed = CompiledFunction(codec, lambda x: codec.embed(x))
    assert ratio(embeddings, to_numpy(embed(frames.reshape(1, -1)))) > 20
    render = CompiledFunction(codec, lambda x: codec.render(x))
    audio = interpret(lyra.DECODER, embeddings[0])
    assert ratio(audio, to_numpy(render(embeddings))) > 20


@golden
def test_codes_are_lyras(codec, frames):
    from ai_edge_litert.interpreter import Interpreter

    quantizer = Interpreter(str(pathlib.Path(FOLDER) / lyra.QUANTIZER))
    encode = quantizer.get_signature_runner("encode")
    embeddings = interpret(lyra.ENCODER, frames).reshape(-1, 64)
    expected = []
    for embedding in embeddings:
        outputs = encode(
            input_frames=embedding.reshape(1, 1, 64),
            num_quantizers=np.array(46, "int32"),
        )
        (codes,) = (x for x in outputs.values() if x.shape == (46, 1, 1))
        expected.append(codes.ravel())
    codes = to_numpy(codec.quantizer.encode(embeddings[None]))[0]
    np.testing.assert_array_equal(codes, np.stack(expected))


@golden
def test_grouped_levels_stand_for_the_same_sums(codec, frames):
    pairs = lyra.read_codec(FOLDER, levels=16, group=2)
    assert (pairs.num_quantizers, pairs.codebook_size) == (8, 256)
    audio = frames.reshape(1, -1)
    codes = pairs.encode(audio)
    apart = np.stack([codes // 16, codes % 16], axis=-1)
    apart = apart.reshape(*codes.shape[:2], 16)
    np.testing.assert_allclose(
        pairs.decode(codes), codec.decode(apart), atol=1e-5
    )


@golden
@pytest.mark.parametrize("levels", [0, 47])
def test_levels_that_are_not_there_are_refused(levels):
    with pytest.raises(ValueError, match=f"46 levels.*levels={levels}"):
        lyra.read_codec(FOLDER, levels=levels)


class MadeGraph:
    """The weights of a `CausalStack` as TFLite keeps them."""

    path = "made.tflite"

    def __init__(self, stack):
        self.constants, self.uses = [], []
        for layer in lyra.leaves(stack):
            kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
            if isinstance(layer, CausalConv1DTranspose):
                # (time, filters / groups, channels): one for each group
                for k, b in zip(
                    np.split(kernel, layer.groups, axis=-1),
                    np.split(bias, layer.groups),
                    strict=True,
                ):
                    k = k.transpose(1, 0, 2)[:, :, None]
                    self._use("TRANSPOSE_CONV", 99, k, 98, b)
            elif kernel.shape[1] == 1 and layer.groups > 1:
                k = kernel.transpose(1, 0, 2)[:, :, None]
                self._use("DEPTHWISE_CONV_2D", 99, k, b=bias)
            else:
                k = kernel.transpose(2, 0, 1)[:, :, None]
                self._use("CONV_2D", 99, k, b=bias)
            self.uses.append(("LEAKY_RELU", [97]))

    def _use(self, name, x, kernel, *rest, b=None):
        inputs = [x, kernel, *rest] if b is None else [x, kernel, b]
        indices = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                self.constants.append(value)
                value = len(self.constants) - 1
            indices.append(value)
        self.uses.append((name, indices))

    def operations(self):
        return iter(self.uses)

    def constant(self, index):
        return self.constants[index]


def light_codec():
    codec = SoundStream(
        **{**lyra.CONFIG, "channels": 8, "embedding_dim": 8},
        num_quantizers=1,
        codebook_size=4,
    )
    codec.build()
    return codec


def test_layers_are_read_in_their_order_and_layout():
    keras.utils.set_random_seed(0)
    source, target = light_codec(), light_codec()
    rng = np.random.default_rng(0)
    for weight in source.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    for side in ("encoder", "decoder"):
        stack = getattr(target, side)
        lyra.set_layers(stack, MadeGraph(getattr(source, side)))
    for a, b in zip(
        source.trainable_weights, target.trainable_weights, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    with pytest.raises(ValueError, match="made.tflite is not.*encoder"):
        lyra.set_layers(target.encoder, MadeGraph(source.decoder))


def test_grouped_codebooks_are_sums():
    books = np.random.default_rng(0).normal(size=(4, 3, 2))
    pairs = lyra.grouped(books, 2)
    assert pairs.shape == (2, 9, 2)
    for level in range(2):
        for code in range(9):
            first, second = books[2 * level], books[2 * level + 1]
            np.testing.assert_allclose(
                pairs[level, code], first[code // 3] + second[code % 3]
            )
    np.testing.assert_array_equal(lyra.grouped(books, 1), books)
    with pytest.raises(ValueError, match="group=3"):
        lyra.grouped(books, 3)


@pytest.mark.parametrize("broken", ["missing", "empty", "text"])
def test_broken_files_are_named(tmp_path, broken):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / lyra.QUANTIZER
    if broken != "missing":
        path.write_bytes(b"" if broken == "empty" else b"not a graph" * 100)
    with pytest.raises(ValueError, match=lyra.QUANTIZER):
        lyra.read_codec(tmp_path)
