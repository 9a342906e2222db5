"""Whether the three backends load a preset alike, and by how much they differ.

    python benchmarks/backend_agreement.py [--preset voices_small]

Each backend runs in a process of its own. Prints the largest differences from
JAX of what the codec decodes and of the logits of every language model, how
many tokens of a real recording are the same, and checks that each generates.
Exits with 1 where the codec differs by more than 1e-4 or logits by 1e-3.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

BACKENDS = ("jax", "tensorflow", "torch")
RECORDING = (
    pathlib.Path(__file__).parents[1] / "examples" / "recordings" / "en.flac"
)
LIMITS = {"decoded": 1e-4, "logits": 1e-3}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="voices_small")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.write:
        np.savez(args.write, **measure(args.preset))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = {b: run(b, args.preset, folder) for b in BACKENDS}
    agree = True
    for backend in BACKENDS[1:]:
        for name, value in compare(results["jax"], results[backend]).items():
            limit = LIMITS.get(name.split()[0])
            agree = agree and (limit is None or value <= limit)
            print(f"{backend:>10}  {name:<24} {value:.2e}")
    print("The backends agree." if agree else "The backends differ.")
    return 0 if agree else 1


def run(backend, preset, folder):
    """What a process with that backend measures."""
    path = os.path.join(folder, f"{backend}.npz")
    command = [sys.executable, __file__, "--preset", preset, "--write", path]
    root = str(pathlib.Path(__file__).parents[1])
    env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": root}
    subprocess.run(command, check=True, env=env)
    with np.load(path) as result:
        return dict(result)


def compare(reference, other):
    figures = {}
    for name, value in reference.items():
        if name.startswith("tokens"):
            figures[f"{name} differing"] = np.mean(value != other[name])
        elif name != "generated":
            figures[name] = np.abs(value - other[name]).max()
    return figures


def measure(preset):
    """What is compared, from fixed inputs."""
    import keras

    from keras_audiolm import AudioLMPipeline

    pipeline = AudioLMPipeline.from_preset(preset)
    rng = np.random.default_rng(0)
    codec = pipeline.codec
    codes = rng.integers(
        codec.codebook_size, size=(1, 50, codec.num_quantizers)
    )
    tokens = pipeline.tokenize(RECORDING)
    result = {
        "decoded": codec.decode(codes),
        "tokens semantic": tokens.semantic,
        "tokens acoustic": tokens.acoustic,
    }
    for name in ("semantic_lm", "coarse_lm", "fine_lm"):
        if name not in pipeline.part_names:
            continue
        lm = pipeline.part(name)
        inputs = {
            s.name: rng.integers(
                s.codebook_size, size=(1, round(s.frame_rate), s.levels)
            ).astype("int32")
            for s in lm.layout.segments
        }
        logits = keras.ops.convert_to_numpy(lm(inputs))
        result[f"logits {name}"] = logits
    result["generated"] = pipeline.generate(duration=0.2, seed=0)
    assert np.isfinite(result["generated"]).all()
    return result


if __name__ == "__main__":
    sys.exit(main())
