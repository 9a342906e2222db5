import json
import os
import subprocess
import sys

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


# === Programs that are kept ===

COMPILES = """
import json, jax, keras, numpy
from keras_audiolm.layers.compiled import CompiledFunction
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
layer = keras.layers.Dense(3)
layer.build((None, 2))
CompiledFunction(layer, layer.call)(numpy.ones((1, 2), "float32"))
print(json.dumps({
    "hits": events.count("/jax/compilation_cache/cache_hits"),
    "misses": events.count("/jax/compilation_cache/cache_misses"),
    "folder": jax.config.jax_compilation_cache_dir,
    "seconds": jax.config.jax_persistent_cache_min_compile_time_secs,
}))
"""
ON_JAX = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX keeps programs"
)


def compile_in_a_new_process(home, **settings):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    # Keras imports matplotlib where it is installed, which keeps its fonts.
    kept["MPLCONFIGDIR"] = str(home.parent / "matplotlib")
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env={**kept, "XDG_CACHE_HOME": str(home), **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cache" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@ON_JAX
def test_the_second_process_compiles_nothing(tmp_path):
    first, second = (compile_in_a_new_process(tmp_path) for _ in range(2))
    assert first["folder"].startswith(str(tmp_path / "keras_audiolm" / "jax"))
    assert first["hits"] == 0 < first["misses"]
    assert second["misses"] == 0 and second["hits"] == first["misses"]


@ON_JAX
def test_what_the_user_chose_for_jax_stays(tmp_path):
    own = tmp_path / "own"
    result = compile_in_a_new_process(
        tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(own)
    )
    assert (result["folder"], result["seconds"]) == (str(own), 1.0)
    result = compile_in_a_new_process(
        tmp_path / "home", JAX_ENABLE_COMPILATION_CACHE="0"
    )
    assert result["folder"] is None
    assert not (tmp_path / "home").exists()


@ON_JAX
def test_without_a_folder_to_write_to_nothing_is_kept(tmp_path):
    home = tmp_path / "file"
    home.write_text("")
    result = compile_in_a_new_process(home)
    assert result["folder"] is None and result["misses"] == 0
