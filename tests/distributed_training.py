"""Trains parts of a tiny pipeline on one device and on more.

    python -m tests.distributed_training LAYOUT PRESET RECORDINGS FOLDER PARTS

compares both, where the layout is `data_parallel` or `model_parallel`, with
`XLA_FLAGS=--xla_force_host_platform_device_count=8`. With `ADDRESS:NUMBER` it
is that one of two processes, and the first leaves `weights.npz` in the folder.
"""

import pathlib
import sys

import keras
import numpy as np

from keras_audiolm import (
    AudioLMPipeline,
    ParallelDecoder,
    TokenLayout,
    training,
)
from tests.killed_training import make_trainer
from tests.tiny import CODEBOOK_SIZE, NUM_CLUSTERS

STEPS = 3
BATCH_SIZE = 8


def adam(**kwargs):
    # Not the sign of a gradient that is nothing but rounding.
    return keras.optimizers.Adam(1e-2, epsilon=1e-3, **kwargs)


def make_pipeline(preset, parts):
    keras.utils.set_random_seed(0)
    # A codec without weights starts its codebooks itself.
    pipeline = AudioLMPipeline.from_preset(
        preset, load_weights="codec" not in parts
    )
    if "parallel_decoder" in parts:
        layout = TokenLayout.coarse(NUM_CLUSTERS, 3, CODEBOOK_SIZE, 25.0, 50.0)
        decoder = ParallelDecoder(
            layout,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            crop_duration=1.0,
        )
        pipeline.add_part("parallel_decoder", decoder)
    pipeline.compile(**{part: adam() for part in parts})
    if "codec" in parts:
        pipeline.compile(codec=make_trainer(pipeline.codec, adam))
    return pipeline


def train(preset, parts, recordings, folder):
    """Trains parts for some steps.

    Returns:
        Dictionary of lists of arrays: weights, codebooks and losses.
    """
    result = {}
    # A tokenizer that was trained would give the others other tokens.
    tokenizers = [[p] for p in parts if p in ("codec", "semantic_tokenizer")]
    rest = [part for part in parts if [part] not in tokenizers]
    for group in [*tokenizers, rest]:
        pipeline = make_pipeline(preset, group)
        history = pipeline.fit(
            recordings,
            parts=group,
            steps_per_epoch=STEPS,
            batch_size=BATCH_SIZE,
            token_dir=folder / "tokens",
            verbose=0,
        )
        for part in group:
            model = pipeline.part(part)
            if part == "codec":
                model = pipeline.optimizer("codec")
            if part == "semantic_tokenizer":
                model = model.encoder
            result[part] = model.get_weights()
            losses = history[part].values()
            result[f"{part} losses"] = [np.array(v) for v in losses]
    return result


def make_distribution(kind):
    if kind == "data_parallel":
        return keras.distribution.DataParallel()
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    return keras.distribution.ModelParallel(
        layout_map=AudioLMPipeline.get_layout_map(mesh)
    )


def compare(kind, preset, parts, recordings, folder):
    expected = train(preset, parts, recordings, folder)
    with make_distribution(kind).scope():
        found = train(preset, parts, recordings, folder)
    for name, arrays in expected.items():
        for a, b in zip(arrays, found[name], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=2e-5, err_msg=name)


def run_process(address, number, preset, parts, recordings, folder):
    keras.distribution.initialize(address, 2, number)
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    with distribution.scope():
        found = train(preset, parts, recordings, folder)
    if number == 0:
        arrays = {
            f"{k}/{i}": a for k, v in found.items() for i, a in enumerate(v)
        }
        np.savez(folder / "weights.npz", **arrays)


if __name__ == "__main__":
    # Less audio for the encoder and k-means.
    training.CROP_DURATION["semantic_tokenizer"] = 1.0
    training.KMEANS_BATCHES = 2
    kind, preset, recordings, folder, *parts = sys.argv[1:]
    rest = preset, parts, recordings, pathlib.Path(folder)
    if kind.endswith("parallel"):
        compare(kind, *rest)
    else:
        address, number = kind.rsplit(":", 1)
        run_process(address, int(number), *rest)
