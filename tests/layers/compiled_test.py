import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction, padded_frames


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def make_layer():
    layer = keras.layers.Dense(2, use_bias=False)
    layer.build((None, 3))
    layer.kernel.assign(np.arange(6.0).reshape(3, 2))
    return layer


# === padded_frames ===


def test_padding_is_enough_and_little():
    frames = np.arange(1, 5000)
    padded = np.array([padded_frames(int(n)) for n in frames])
    assert (padded >= frames).all()
    assert (np.diff(padded) >= 0).all()
    assert (padded - frames < np.maximum(8, frames / 4)).all()
    # A padded length is kept as it is.
    assert [padded_frames(int(n)) for n in padded] == padded.tolist()


@pytest.mark.parametrize("octave", [32, 256, 2048, 16384])
def test_four_lengths_compile_per_octave(octave):
    lengths = {padded_frames(n) for n in range(octave + 1, 2 * octave + 1)}
    assert len(lengths) == 4


# === CompiledFunction ===


def test_runs_the_function_and_takes_numpy():
    layer = make_layer()
    compiled = CompiledFunction(layer, lambda x, y: layer(x) * y)
    x = np.eye(3, dtype="float32")
    y = np.full((3, 1), 2.0, "float32")
    expected = 2 * np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(to_numpy(compiled(x, y)), expected)


def test_new_weights_count_without_a_new_trace():
    layer = make_layer()
    compiled = CompiledFunction(layer, layer)
    x = np.ones((1, 3), "float32")
    before = to_numpy(compiled(x))
    traces = compiled.num_traces
    layer.kernel.assign(layer.kernel.value * 10)
    np.testing.assert_allclose(to_numpy(compiled(x)), 10 * before)
    if keras.backend.backend() != "torch":  # which runs it every time
        assert compiled.num_traces == traces == 1
        compiled(np.ones((2, 3), "float32"))
        assert compiled.num_traces == 2


def test_nested_arguments_and_results():
    layer = make_layer()
    compiled = CompiledFunction(
        layer, lambda x: {"out": layer(x["a"]), "rest": [x["b"][0] + 1]}
    )
    x = {"a": np.eye(3, dtype="float32"), "b": [np.int32(4)]}
    result = compiled(x)
    assert to_numpy(result["out"]).shape == (3, 2)
    assert int(to_numpy(result["rest"][0])) == 5


def test_static_arguments_are_known_and_traced_anew():
    seen = []

    def function(x, power, negative=False):
        seen.append((power, negative))
        return -(x**power) if negative else x**power

    compiled = CompiledFunction(keras.Model(), function)
    x = np.full((2,), 3.0, "float32")
    for _ in range(2):
        result = [
            compiled(x, power=2),
            compiled(x, power=3),
            compiled(x, power=2, negative=True),
        ]
    np.testing.assert_allclose(
        [to_numpy(y)[0] for y in result], [9.0, 27.0, -9.0]
    )
    assert seen[:3] == [(2, False), (3, False), (2, True)]
    if keras.backend.backend() != "torch":
        assert compiled.num_traces == 3


def test_many_shapes_and_models_warn_of_nothing(caplog):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow alone warns of retracing")
    import tensorflow as tf

    tf.get_logger().addHandler(caplog.handler)
    try:
        for _ in range(3):
            layer = make_layer()
            compiled = CompiledFunction(layer, layer)
            for rows in range(1, 8):
                x = np.ones((rows, 3), "float32")
                assert compiled(x).shape == (rows, 2)
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


def test_no_gradient_is_recorded():
    if keras.backend.backend() != "torch":
        pytest.skip("PyTorch alone records by default")
    layer = make_layer()
    result = CompiledFunction(layer, layer)(np.ones((1, 3), "float32"))
    assert not result.requires_grad
