"""Speed of the codec: training, offline, and frame by frame.

    python benchmarks/codec.py                      # all cores
    taskset -c 0 python benchmarks/codec.py         # one core

Prints medians of repeated runs as Markdown. Weights are random: they do not
change the time. Where PyTorch is installed, a hand-written stack of its
convolutions of the paper's shapes runs beside (in a process of its own), and
where `transformers` is, EnCodec and DAC with random weights.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

SAMPLE_RATE = 16000
# What runs: the paper's at its width and at half of it, Lyra v2's, and the
# one that learns fastest.
CODECS = {
    "paper, C = 32": dict(channels=32),
    "paper, C = 16": dict(channels=16),
    "light": dict(
        channels=64,
        strides=(5, 2, 2),
        stem_stride=16,
        unit="separable",
        max_groups=4,
        activation="leaky_relu",
        embedding_dim=64,
    ),
    "mdct": dict(
        channels=224,
        strides=(1,),
        embedding_dim=64,
        transform="mdct",
        noise_filling=True,
    ),
    "spectrogram": dict(
        channels=224,
        strides=(1,),
        embedding_dim=64,
        transform="spectrogram",
    ),
}
# That of `soundstream_voices`.
CODECS["mdct, beam of 16"] = dict(CODECS["mdct"], beam_width=16)
TRAINED = "paper, C = 16"
TRAINING_BATCH = 4


def median_seconds(run, repeats):
    run()  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def noise(*shape):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, shape).clip(-1, 1).astype("float32")


# === keras_audiolm ===


def measure_offline(seconds, repeats):
    """Audio seconds per second of `encode` and of `decode`."""
    import keras_audiolm

    rates = {}
    audio = noise(1, seconds * SAMPLE_RATE)
    for name, config in CODECS.items():
        codec = keras_audiolm.SoundStream(num_quantizers=8, **config)
        codes = codec.encode(audio)
        encode = median_seconds(lambda c=codec: c.encode(audio), repeats)
        decode = median_seconds(lambda c=codec, y=codes: c.decode(y), repeats)
        rates[name] = {
            "parameters": codec.count_params(),
            "encode": seconds / encode,
            "decode": seconds / decode,
            "both": seconds / (encode + decode),
        }
    return rates


def measure_streaming(repeats):
    """Milliseconds of the steps of one frame."""
    import keras_audiolm

    steps = {}
    for name, config in CODECS.items():
        codec = keras_audiolm.SoundStream(num_quantizers=8, **config)
        chunk, state = noise(1, codec.hop_length), codec.init_state(1)
        codes, _ = codec.encode_step(chunk, state)
        encode = median_seconds(
            lambda c=codec, x=chunk, s=state: c.encode_step(x, s), repeats
        )
        decode = median_seconds(
            lambda c=codec, y=codes, s=state: c.decode_step(y, s), repeats
        )
        steps[name] = {"encode": 1e3 * encode, "decode": 1e3 * decode}
    return steps


def measure_training(repeats):
    """Audio seconds per second of steps with both discriminators."""
    import keras_audiolm

    codec = keras_audiolm.SoundStream(num_quantizers=8, **CODECS[TRAINED])
    trainer = keras_audiolm.SoundStreamTrainer(codec)
    audio = noise(TRAINING_BATCH, SAMPLE_RATE)
    codec.build()
    codec.quantizer.initialize(noise(2000, codec.embedding_dim), 1)
    codec.initialized.assign(1.0)
    trainer.build()
    trainer.compile(trainer.make_optimizer())
    step = median_seconds(lambda: trainer.train_on_batch(audio), repeats)
    return TRAINING_BATCH / step


# === Others ===


def measure_torch(seconds, repeats):
    """A plain stack of PyTorch's convolutions of the paper's shapes."""
    import torch

    def unit(width, dilation):
        return torch.nn.Sequential(
            torch.nn.ELU(),
            torch.nn.Conv1d(
                width, width, 7, dilation=dilation, padding=3 * dilation
            ),
            torch.nn.ELU(),
            torch.nn.Conv1d(width, width, 1),
        )

    def stack(width, dim):
        strides = (2, 4, 5, 8)
        layers = [torch.nn.Conv1d(1, width, 7, padding=3)]
        for stride in strides:
            layers += [unit(width, d) for d in (1, 3, 9)]
            layers += [
                torch.nn.ELU(),
                torch.nn.Conv1d(width, 2 * width, 2 * stride, stride),
            ]
            width *= 2
        layers += [torch.nn.Conv1d(width, dim, 3, padding=1)]
        layers += [torch.nn.Conv1d(dim, width, 7, padding=3)]
        for stride in reversed(strides):
            layers += [
                torch.nn.ELU(),
                torch.nn.ConvTranspose1d(width, width // 2, 2 * stride, stride),
            ]
            width //= 2
            layers += [unit(width, d) for d in (1, 3, 9)]
        return torch.nn.Sequential(
            *layers, torch.nn.Conv1d(width, 1, 7, padding=3)
        )

    x = torch.tensor(noise(1, 1, seconds * SAMPLE_RATE))
    rates = {}
    with torch.no_grad():
        for width in (32, 16):
            model = stack(width, 128)
            rates[f"PyTorch convolutions, C = {width}"] = (
                seconds / median_seconds(lambda m=model: m(x), repeats)
            )
    return {**rates, **measure_transformers(seconds, repeats)}


def measure_transformers(seconds, repeats):
    """EnCodec's and DAC's models at the same widths, strides and levels."""
    try:
        import torch
        import transformers
    except ImportError:
        return {}
    rates = {}
    for width in (32, 16):
        encodec = transformers.EncodecConfig(
            sampling_rate=SAMPLE_RATE,
            num_filters=width,
            upsampling_ratios=[8, 5, 4, 2],
            target_bandwidths=[4.0],  # kbps: 8 levels
        )
        dac = transformers.DacConfig(
            sampling_rate=SAMPLE_RATE,
            encoder_hidden_size=width,
            decoder_hidden_size=16 * width,
            downsampling_ratios=[2, 4, 5, 8],
            n_codebooks=8,
        )
        for name, model in (
            ("EnCodec", transformers.EncodecModel(encodec)),
            ("DAC", transformers.DacModel(dac)),
        ):
            x = torch.tensor(noise(1, 1, seconds * SAMPLE_RATE))
            model.eval()
            with torch.no_grad():
                median = median_seconds(lambda m=model, x=x: m(x), repeats)
            rates[f"{name} (transformers), C = {width}"] = seconds / median
    return rates


def beside(seconds, repeats):
    """`measure_torch` in a process of its own, or nothing without PyTorch."""
    command = [sys.executable, __file__, "--torch"]
    command += ["--seconds", str(seconds), "--repeats", str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


# === Report ===


def report(offline, others, steps, training, cores):
    lines = [
        "| audio seconds per second | parameters | encode | decode | both |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, r in offline.items():
        lines.append(
            f"| {name} | {r['parameters'] / 1e6:.1f} M | {r['encode']:.0f} | "
            f"{r['decode']:.0f} | {r['both']:.0f} |"
        )
    lines += [f"| {n} | | | | {rate:.0f} |" for n, rate in others.items()]
    lines += [
        "",
        "| one frame of 20 ms | encode_step | decode_step |",
        "|---|---:|---:|",
    ]
    for name, step in steps.items():
        lines.append(
            f"| {name} | {step['encode']:.1f} ms | {step['decode']:.1f} ms |"
        )
    lines += [
        "",
        f"Training, {TRAINED}, both discriminators at the paper's sizes, "
        f"{TRAINING_BATCH} x 1 s: {training:.2f} audio seconds per second.",
        f"{cores} core(s) of {platform.processor() or platform.machine()}.",
    ]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.torch:
        print(json.dumps(measure_torch(args.seconds, args.repeats)))
        return
    others = beside(args.seconds, args.repeats)
    print(
        report(
            measure_offline(args.seconds, args.repeats),
            others,
            measure_streaming(20 * args.repeats),
            measure_training(args.repeats),
            len(os.sched_getaffinity(0)),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
