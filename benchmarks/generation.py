"""Speed of the language models and of the whole pipeline.

    python benchmarks/generation.py                 # all cores, JAX
    KERAS_BACKEND=torch python benchmarks/generation.py
    python benchmarks/generation.py --only semantic coarse
    KERAS_BACKEND=torch python benchmarks/generation.py --only training \\
        --dtype mixed_bfloat16
    python benchmarks/generation.py --only int8 \\
        --recordings corpora/debian_voices/held_out

Prints medians of repeated runs as Markdown, beside what bounds them on this
machine: the rate at which memory is read, and of a large product. Weights are
random but those of the preset: they do not change the time. Where
audiolm-pytorch can be imported, its stages of the same sizes run beside.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import keras_audiolm  # chooses the backend  # isort: skip
import keras
import numpy as np
from keras import ops

from keras_audiolm.data.audio import find_audio_files
from keras_audiolm.layers.compiled import CompiledFunction

PRESET = "voices_small"
PROMPT_SECONDS, NEW_SECONDS = 3, 7
INT8_SECONDS = 2
SMALL = dict(
    num_layers=6, num_heads=8, hidden_dim=512, intermediate_dim=1365, dropout=0
)
# The paper's stage.
LARGE = dict(num_layers=12, num_heads=16, hidden_dim=1024)
# Layers and width of parallel decoders of the preset's kind of size.
PARALLEL = ((6, 256), (4, 256), (4, 192), (3, 160))
LAYOUTS = {
    "semantic": keras_audiolm.TokenLayout.semantic(1024, 25.0),
    "coarse": keras_audiolm.TokenLayout.coarse(1024, 3, 1024, 25.0, 50.0),
}


def median_seconds(run, repeats):
    run()  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def stage_lm(stage, sizes, crop_duration):
    lm = keras_audiolm.StageLM(
        LAYOUTS[stage], dict(sizes), crop_duration=crop_duration
    )
    lm.build()
    return lm


def codes_of(stage, batch, frames):
    """Random codes, the last segment of which has `frames` frames."""
    rng = np.random.default_rng(0)
    layout = LAYOUTS[stage]
    rate = layout.predicted.frame_rate
    return {
        s.name: rng.integers(
            s.codebook_size,
            size=(batch, round(frames * s.frame_rate / rate), s.levels),
        ).astype("int32")
        for s in layout.segments
    }


# === What bounds it ===


def memory_rate():
    """Bytes a second of one pass over an array far larger than caches."""
    data = ops.ones((2**27,))
    add = CompiledFunction(keras.Model(), ops.sum)
    seconds = median_seconds(lambda: ops.convert_to_numpy(add(data)), 5)
    return 4 * 2**27 / seconds


def product_rate():
    """Operations a second of a large float32 product."""
    data = ops.ones((2048, 2048))
    multiply = CompiledFunction(keras.Model(), ops.matmul)
    seconds = median_seconds(
        lambda: ops.convert_to_numpy(multiply(data, data)), 5
    )
    return 2 * 2048**3 / seconds


# === Measurements: each gives rows of name, figure and what it means ===


def measure_semantic(repeats):
    return [sampling("semantic", SMALL, 250, 0, repeats)]


def measure_coarse(repeats):
    # 100 semantic tokens before 300 acoustic ones.
    return [sampling("coarse", SMALL, 100, 100, repeats)]


def measure_large(repeats):
    """The paper's stage reads all of its weights for each token."""
    lm = stage_lm("semantic", LARGE, 4.0)
    frames = 100
    seconds = median_seconds(
        lambda: lm.generate({}, frames, seed=0), min(repeats, 3)
    )
    rate = frames / seconds
    part = rate * 4 * lm.count_params() / memory_rate()
    return [
        (
            f"paper's stage, {size_of(lm)}, 100 tokens",
            f"{rate:.1f} tokens/s",
            f"{part:.0%} of the memory's rate",
        )
    ]


def sampling(stage, sizes, frames, told, repeats):
    lm = stage_lm(stage, sizes, max(frames, told) / 25.0)
    codes = codes_of(stage, 1, frames)
    codes.pop(lm.layout.predicted.name)
    seconds = median_seconds(
        lambda: lm.generate(codes, frames, seed=0), repeats
    )
    rate = frames * lm.layout.predicted.levels / seconds
    read = rate * 4 * lm.count_params() / 1e9
    tokens = frames * lm.layout.predicted.levels
    before = f"{told} + " if told else ""
    return (
        f"{stage} LM, {size_of(lm)}, {before}{tokens} tokens",
        f"{rate:.0f} tokens/s",
        f"{read:.1f} GB/s of weights",
    )


def size_of(lm):
    return f"{lm.count_params() / 1e6:.0f} M"


def measure_training(repeats):
    rows = []
    # 4 x 250 tokens, and 2 x (100 + 600).
    for stage, batch, frames in (("semantic", 4, 250), ("coarse", 2, 200)):
        lm = stage_lm(stage, SMALL, 10.0)
        lm.compile(keras.optimizers.Adam(1e-4))
        codes = codes_of(stage, batch, frames)
        seconds = median_seconds(
            lambda m=lm, c=codes: m.train_on_batch(c), repeats
        )
        tokens = sum(block.size for block in codes.values())
        rate = tokens / seconds
        work = 6 * lm.count_params() * rate / 1e9
        rows.append(
            (
                f"training step, {stage} LM, {size_of(lm)}, {tokens} tokens",
                f"{rate:.0f} tokens/s",
                f"{work:.0f} GFLOP/s",
            )
        )
    return rows


def measure_pipeline(repeats):
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(PRESET)
    prompt = noise(PROMPT_SECONDS * pipeline.sample_rate)
    rows = []
    kinds = [(name, None) for name in ("cascade", "coarse", "parallel")]
    for decoder, size in kinds + [("parallel", size) for size in PARALLEL]:
        name = "its own " + decoder
        if size:
            name = f"parallel decoder of {size[0]} layers of {size[1]}"
            add_parallel_decoder(pipeline, *size)
        seconds = median_seconds(
            lambda d=decoder: pipeline.generate(
                prompt, duration=NEW_SECONDS, seed=0, acoustic_decoder=d
            ),
            repeats,
        )
        rows.append(
            (
                f"{PRESET}, {name}, {PROMPT_SECONDS} s + {NEW_SECONDS} s",
                f"{seconds:.2f} s",
                f"real-time factor {seconds / NEW_SECONDS:.2f}",
            )
        )
    return rows


def add_parallel_decoder(pipeline, num_layers, hidden_dim):
    """One with random weights: they do not change the time."""
    layout = keras_audiolm.TokenLayout.coarse(
        pipeline.semantic_tokenizer.codebook_size,
        pipeline.codec.num_quantizers,
        pipeline.codec.codebook_size,
        pipeline.sample_rate / pipeline.semantic_tokenizer.hop_length,
        pipeline.sample_rate / pipeline.codec.hop_length,
    )
    decoder = keras_audiolm.ParallelDecoder(
        layout,
        num_layers=num_layers,
        num_heads=hidden_dim // 32,
        hidden_dim=hidden_dim,
        intermediate_dim=4 * hidden_dim,
        dropout=0,
    )
    pipeline.add_part("parallel_decoder", decoder)
    pipeline.mark_trained("parallel_decoder")


def noise(samples):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, samples).clip(-1, 1).astype("float32")


def measure_int8(repeats, recordings):
    """Keras's quantization, on tokens that the models have not seen."""
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(PRESET)
    samples = round(INT8_SECONDS * pipeline.sample_rate)
    clips = [
        keras_audiolm.load_audio(path, pipeline.sample_rate)
        for path in find_audio_files(recordings)
    ]
    clips = [clip[:samples] for clip in clips if len(clip) >= samples]
    semantic, acoustic = pipeline.tokenize(np.stack(clips))
    levels = pipeline.coarse_lm.layout.predicted.levels
    codes = {
        "semantic": semantic[..., None],
        "coarse": acoustic[..., :levels],
        "fine": acoustic[..., levels:],
    }
    rows = []
    for name in ("semantic_lm", "coarse_lm", "fine_lm"):
        lm = pipeline.part(name)
        told = {s.name: codes[s.name] for s in lm.layout.segments}
        before, rate = likeliest(lm, told), sampling_rate(lm, told, repeats)
        lm.quantize("int8")
        same = (likeliest(lm, told) == before).mean()
        after = sampling_rate(lm, told, repeats)
        rows.append(
            (
                f"{name} of {PRESET} as int8",
                f"{rate:.0f} to {after:.0f} tokens/s",
                f"{same:.1%} of {before.size} likeliest codes are the same",
            )
        )
    return rows


def likeliest(lm, codes):
    logits = CompiledFunction(lm, lm.call)(codes)
    return ops.convert_to_numpy(ops.argmax(logits, axis=-1))


def sampling_rate(lm, codes, repeats):
    segment = lm.layout.predicted
    frames = codes[segment.name].shape[1]
    told = {
        name: block[:1] for name, block in codes.items() if name != segment.name
    }
    seconds = median_seconds(lambda: lm.generate(told, frames, seed=0), repeats)
    return frames * segment.levels / seconds


def measure_torch_compile(repeats):
    """A step of the semantic LM by `torch.compile`, beside an eager one."""
    import torch

    lm = stage_lm("semantic", SMALL, 10.0)
    frames = 250

    def rate():
        seconds = median_seconds(
            lambda: lm.generate({}, frames, seed=0), repeats
        )
        return frames / seconds

    eager = rate()
    lm.backbone.step = torch.compile(lm.backbone.step)
    start = time.perf_counter()
    lm.generate({}, frames, seed=0)
    first = time.perf_counter() - start
    return [
        (
            f"semantic LM, {size_of(lm)}, a step by torch.compile",
            f"{eager:.0f} to {rate():.0f} tokens/s",
            f"first call {first:.0f} s",
        )
    ]


def measure_peer(repeats):
    """audiolm-pytorch's stages beside those here, in the same process."""
    import torch

    rows = []
    for stage, frames, told, make in (
        ("semantic", 250, 0, peer_semantic),
        ("coarse", 100, 100, peer_coarse),
    ):
        ours = sampling(stage, SMALL, frames, told, repeats)
        transformer, run = make(frames, told)
        with torch.inference_mode():
            seconds = median_seconds(run, repeats)
        rate = frames * LAYOUTS[stage].predicted.levels / seconds
        parameters = sum(p.numel() for p in transformer.parameters()) / 1e6
        ratio = float(ours[1].split()[0]) / rate
        name = ours[0].split(",")
        rows += [
            ours,
            (
                f"audiolm-pytorch, {name[0]}, {parameters:.0f} M,{name[2]}",
                f"{rate:.0f} tokens/s",
                f"{ratio:.1f} times slower",
            ),
        ]
    return rows


def peer_module():
    from audiolm_pytorch import audiolm_pytorch as peer

    # It asks the network for the width of a text encoder that is not used.
    peer.get_encoded_dim = lambda name: SMALL["hidden_dim"]
    peer.tqdm = lambda steps, **kwargs: steps
    return peer


def peer_sizes():
    return {
        "dim": SMALL["hidden_dim"],
        "depth": SMALL["num_layers"],
        "heads": SMALL["num_heads"],
        "num_semantic_tokens": 1024,
    }


def peer_semantic(frames, told):
    peer = peer_module()
    transformer = peer.SemanticTransformer(**peer_sizes())
    wrapper = peer.SemanticTransformerWrapper(transformer=transformer)
    wrapper.eos_id = -1  # never drawn: all tokens are made
    return transformer, lambda: wrapper.generate(max_length=frames)


def peer_coarse(frames, told):
    import torch

    peer = peer_module()
    levels = LAYOUTS["coarse"].predicted.levels
    transformer = peer.CoarseTransformer(
        **peer_sizes(), codebook_size=1024, num_coarse_quantizers=levels
    )
    # Only asked for its number of groups.
    codec = peer.SoundStream(
        codebook_size=1024, rq_num_quantizers=levels, channels=2
    )
    wrapper = peer.CoarseTransformerWrapper(
        transformer=transformer, codec=codec, unique_consecutive=False
    )
    semantic = torch.randint(0, 1024, (1, told))
    return transformer, lambda: wrapper.generate(
        semantic_token_ids=semantic, max_time_steps=frames
    )


def measure_start(repeats):
    """First sound of the command line in a new process, programs cached."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-c", "import keras_audiolm.cli as c; c.main()"),
            *("sample", "--preset", PRESET, "--duration", "2"),
            *("--output", os.path.join(folder, "sample.wav")),
        ]
        seconds = median_seconds(
            lambda: subprocess.run(command, check=True, capture_output=True),
            min(repeats, 3),
        )
    return [("a new process, 2 s from nothing", f"{seconds:.1f} s", "")]


MEASUREMENTS = {
    "semantic": measure_semantic,
    "coarse": measure_coarse,
    "large": measure_large,
    "training": measure_training,
    "int8": measure_int8,
    "pipeline": measure_pipeline,
    "start": measure_start,
    "peer": measure_peer,
    "torch_compile": measure_torch_compile,
}


def report(rows, backend, cores, memory, product):
    lines = ["| work | measured | |", "|---|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"{backend}, {cores} core(s) of "
        f"{platform.processor() or platform.machine()}: memory is read at "
        f"{memory / 1e9:.0f} GB/s, a large product makes "
        f"{product / 1e9:.0f} GFLOP/s.",
    ]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS)
    parser.add_argument("--recordings", help="folder, for int8")
    parser.add_argument("--dtype", help="policy of models with random weights")
    args = parser.parse_args(argv)
    if args.dtype:
        keras.config.set_dtype_policy(args.dtype)
    left_out = ["int8", "torch_compile"]
    if not importlib.util.find_spec("audiolm_pytorch"):
        left_out.append("peer")
    names = args.only or [n for n in MEASUREMENTS if n not in left_out]
    if "int8" in names and not args.recordings:
        parser.error("int8 needs --recordings")
    rows = []
    for name in names:
        more = [args.recordings] if name == "int8" else []
        rows += MEASUREMENTS[name](args.repeats, *more)
    print(
        report(
            rows,
            keras.backend.backend(),
            len(os.sched_getaffinity(0)),
            memory_rate(),
            product_rate(),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
