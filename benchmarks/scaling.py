r"""What training at the paper's size takes, without training.

    XLA_FLAGS=--xla_force_host_platform_device_count=16 KERAS_BACKEND=jax \
        python benchmarks/scaling.py

lowers the train steps of the preset `librilight` for 16 simulated devices.
Weights have shapes and no values, so that a laptop can do it. Prints the
parameters, the arithmetic that XLA counts in a step, and the memory that the
state of a training takes on a device; `docs/scaling.md` has the result.
"""

import argparse
import math

import jax
import keras

from keras_audiolm import AudioLMPipeline, SoundStreamTrainer
from keras_audiolm.training import CROP_DURATION, LANGUAGE_MODELS, TOKEN_MODELS

DEVICES = 16
PARTS = ("codec", "semantic_tokenizer", "semantic_lm", "coarse_lm", "fine_lm")


class AbstractTraining:
    """A train step of a part whose weights have shapes alone.

    Args:
        pipeline: `AudioLMPipeline`.
        part: str.
        batch_size: int.
        distribution: `keras.distribution.Distribution`.

    Attributes:
        lowered: `jax.stages.Lowered`, the step of all devices together.
        parameters: int.
        tokens: int. Frames of audio, or tokens of the sequences, in a batch.
        state_bytes: int. What weights and optimizer take on one device.
    """

    def __init__(self, pipeline, part, batch_size, distribution):
        with distribution.scope():
            optimizer = make_optimizer(part)
        with (
            distribution.scope(),
            keras.StatelessScope(initialize_variables=False),
        ):
            model = model_of(pipeline, part)
            model.build(None)
            model.compile(optimizer)
            for variable in model.variables:
                layout = distribution.get_variable_layout(variable)
                variable._layout = layout
            optimizer.build(model.trainable_variables)
            batch = self._batch(part, model, batch_size, distribution)
            groups = (
                model.trainable_variables,
                model.non_trainable_variables,
                optimizer.variables,
                model.metrics_variables,
            )
            state = tuple(
                [describe(v, distribution) for v in g] for g in groups
            )
            shardings = jax.tree.map(lambda x: x.sharding, state)
            step = jax.jit(model.train_step, out_shardings=(None, shardings))
            self.lowered = step.lower(state, (batch,))
        self.parameters = sum(math.prod(v.shape) for v in groups[0])
        self.state_bytes = sum(map(device_bytes, jax.tree.leaves(state)))

    def _batch(self, part, model, batch_size, distribution):
        if part in LANGUAGE_MODELS:
            segments = model.layout.segments
            shapes = {
                s.name: (s.frames_in(model.crop_duration), s.levels)
                for s in segments
            }
            self.tokens = batch_size * sum(map(math.prod, shapes.values()))
            return {
                name: described((batch_size, *shape), "int32", distribution)
                for name, shape in shapes.items()
            }
        hears = model.codec if part == "codec" else model
        samples = round(CROP_DURATION[part] * hears.sample_rate)
        self.tokens = batch_size * (samples // hears.hop_length)
        return described((batch_size, samples), "float32", distribution)

    @property
    def flops(self):
        """Floating point operations of a step, on all devices together."""
        return self.lowered.cost_analysis()["flops"]


def make_optimizer(part):
    """Those of the codec and of its discriminators, or AdamW."""
    if part == "codec":
        adam, judges = (keras.optimizers.Adam(1e-4) for _ in range(2))
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                adam, {r".*discriminators/.*": judges}
            )
        )
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(1e-3, 1000)
    )


def model_of(pipeline, part):
    """What `fit` of a part trains."""
    model = pipeline.part(part)
    if part == "codec":
        return SoundStreamTrainer(model)
    return model.encoder if part == "semantic_tokenizer" else model


def described(shape, dtype, distribution):
    layout = distribution.get_data_layout(shape).backend_layout
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)


def describe(variable, distribution):
    """A variable's shape, type and layout."""
    layout = variable._layout or distribution.get_variable_layout(variable)
    return jax.ShapeDtypeStruct(
        variable.shape, variable.dtype, sharding=layout.backend_layout
    )


def device_bytes(array):
    """What a described array takes on one device."""
    shard = array.sharding.shard_shape(array.shape)
    return math.prod(shard) * array.dtype.itemsize


def make_distribution(devices=DEVICES, model=4):
    """`ModelParallel` of the pipeline's layout map."""
    mesh = keras.distribution.DeviceMesh(
        (devices // model, model), ("batch", "model")
    )
    return keras.distribution.ModelParallel(
        layout_map=AudioLMPipeline.get_layout_map(mesh)
    )


def tokenizing_flops(pipeline, part):
    """Floating point operations to tokenize 30 seconds of audio."""
    with keras.StatelessScope(initialize_variables=False):
        model = pipeline.part(part)
        model.build(None)

    def encode(values, audio):
        mapping = list(zip(model.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            if part == "codec":
                return model.quantizer.encode(model.embed(audio))
            return model(audio)

    values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in model.variables]
    audio = jax.ShapeDtypeStruct((1, 30 * model.sample_rate), "float32")
    return jax.jit(encode).lower(values, audio).cost_analysis()["flops"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args(argv)
    pipeline = AudioLMPipeline.from_preset("librilight")
    print("part                 parameters   tokens  flops/token  state/device")
    for part in args.parts:
        step = AbstractTraining(
            pipeline, part, args.batch_size, make_distribution()
        )
        print(
            f"{part:20} {step.parameters / 1e6:8.1f} M {step.tokens:8d} "
            f"{step.flops / step.tokens:12.3e} {step.state_bytes / 1e9:9.2f} GB"
        )
    for part in [p for p in TOKEN_MODELS if p in args.parts]:
        flops = tokenizing_flops(pipeline, part) / 30
        print(f"tokenizing a second by {part}: {flops:.3e} flops")


if __name__ == "__main__":
    main()
