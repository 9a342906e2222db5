"""Converted checkpoints of full size beside `transformers`, and their memory.

    pip install "keras-audiolm[convert,test]" torch
    python benchmarks/checkpoint_parity.py            # all families
    python benchmarks/checkpoint_parity.py encodec

Weights are random (norms, biases and codebooks too): what is compared does
not depend on them. Prints the largest differences as Markdown, the part of
codes that are equal, and the highest memory of a process that converts, as a
multiple of the size of the weights in float32.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SECONDS = 2.0
# Blocks kept of an encoder, of those whose depth is no question of parity.
LAYERS = {"hubert": 9, "hubert_large": 18, "w2v_bert_2": 17}
CODECS = ("encodec", "encodec_48khz", "dac", "dac_24khz", "dac_44khz", "mimi")
FAMILIES = (*CODECS, *LAYERS)


def make_model(family):
    """A `transformers` model of the public checkpoint's configuration."""
    import torch
    import transformers

    large = dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
    )
    makers = {
        "encodec": lambda: transformers.EncodecModel(
            transformers.EncodecConfig()
        ),
        "encodec_48khz": lambda: transformers.EncodecModel(
            transformers.EncodecConfig(
                sampling_rate=48000,
                target_bandwidths=[3.0, 6.0, 12.0, 24.0],
                audio_channels=2,
                normalize=True,
                norm_type="time_group_norm",
                use_causal_conv=False,
                chunk_length_s=1.0,
                overlap=0.01,
            )
        ),
        "dac": lambda: transformers.DacModel(
            transformers.DacConfig(
                downsampling_ratios=[2, 4, 5, 8], n_codebooks=12
            )
        ),
        "dac_24khz": lambda: transformers.DacModel(
            transformers.DacConfig(
                downsampling_ratios=[2, 4, 5, 8],
                n_codebooks=32,
                sampling_rate=24000,
            )
        ),
        "dac_44khz": lambda: transformers.DacModel(
            transformers.DacConfig(
                downsampling_ratios=[2, 4, 8, 8], sampling_rate=44100
            )
        ),
        "mimi": lambda: transformers.MimiModel(transformers.MimiConfig()),
        "hubert": lambda: transformers.HubertModel(transformers.HubertConfig()),
        "hubert_large": lambda: transformers.HubertModel(
            transformers.HubertConfig(**large)
        ),
        "w2v_bert_2": lambda: transformers.Wav2Vec2BertModel(
            transformers.Wav2Vec2BertConfig()
        ),
    }
    torch.manual_seed(0)
    return randomized(makers[family]())


def randomized(model):
    """With what it saves random, no buffer that is computed anew."""
    import torch

    with torch.no_grad():
        for name, x in model.state_dict().items():
            if not x.is_floating_point() or name.endswith("ited"):
                continue  # codebooks that say they are initialized
            if x.ndim <= 2:
                x.add_(0.05 * torch.randn_like(x))
            if "codebook" in name:
                x.copy_(torch.randn_like(x))
            if name.endswith("cluster_usage"):
                x.abs_().add_(0.5)
    return model.eval()


def noise(samples):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (1, samples)).astype("float32")


def compare_codec(model, folder):
    import torch

    import keras_audiolm

    codec = keras_audiolm.codec_from(folder)
    seconds = SECONDS
    if codec.window_step > 1:
        # Theirs do not overlap by whole frames: one window is what is equal.
        seconds = 1.0
    audio = noise(int(seconds * codec.sample_rate))
    audio = audio[:, : audio.shape[1] // codec.hop_length * codec.hop_length]
    with torch.no_grad():
        codes, made = their_codec(model, torch.tensor(audio)[:, None])
    ours = codec.encode(audio)
    given = codes
    if codec.window_step > 1:
        # Before theirs stands loudness, and that of the last code is 1.
        ours = ours[..., 1:]
        given = np.pad(
            codes,
            [(0, 0), (0, 0), (1, 0)],
            constant_values=codec.codebook_size - 1,
        )
    again = codec.decode(given)[:, : made.shape[1]]
    return codec, {
        "codes equal": float((ours == codes).mean()),
        "audio": float(np.abs(again - made).max()),
        "scale": float(np.abs(made).max()),
    }


def their_codec(model, x):
    """Codes `(batch, frames, levels)` and audio `(batch, samples)` that a
    model of `transformers` makes of a tensor `(batch, 1, samples)`."""
    if type(model).__name__ == "EncodecModel":
        x = x.repeat(1, model.config.audio_channels, 1)
        if model.config.normalize:
            x = x / (x.pow(2).mean().sqrt() + 1e-8)
        bandwidth = model.config.target_bandwidths[-1]
        codes = model.quantizer.encode(model.encoder(x), bandwidth)
        made = model.decoder(model.quantizer.decode(codes)).mean(axis=1)
        codes = codes.permute(1, 2, 0)
    else:
        codes = model.encode(x).audio_codes
        made = model.decode(audio_codes=codes).audio_values
        made = made.reshape(len(made), -1)
        codes = codes.permute(0, 2, 1)
    return codes.numpy(), made.numpy()


def compare_encoder(model, folder, layer):
    import torch
    import transformers
    from keras import ops

    import keras_audiolm
    from keras_audiolm.layers.compiled import CompiledFunction

    tokenizer = keras_audiolm.tokenizer_from(folder, layer, num_clusters=2)
    encoder = tokenizer.encoder
    audio = noise(int(SECONDS * encoder.sample_rate))
    encode = CompiledFunction(encoder, lambda x: encoder.encode(x, layer))
    ours = ops.convert_to_numpy(encode(audio))
    if hasattr(encoder, "filter_bank"):
        whole = np.pad(audio, [(0, 0), (0, 240)])
        extract = transformers.SeamlessM4TFeatureExtractor()
        x = extract(whole[0], sampling_rate=16000, return_tensors="pt")
        x = x["input_features"].float()
    else:
        if encoder.normalize_audio:
            audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
        rest = encoder.reach - encoder.hop_length
        x = torch.tensor(np.pad(audio, [(0, 0), (0, rest)]))
    with torch.no_grad():
        out = model(x, output_hidden_states=True)
    theirs = out.hidden_states[layer].numpy()
    return encoder, {
        "activations": float(np.abs(ours - theirs).max()),
        "scale": float(np.abs(theirs).max()),
    }


# Of Linux: what `resource` tells of a child has its parent's memory in it.
MEMORY = """
import pathlib, re, sys
import keras_audiolm
folder, layer = sys.argv[1:]
if layer == "0":
    model = keras_audiolm.codec_from(folder)
else:
    tokenizer = keras_audiolm.tokenizer_from(folder, int(layer), num_clusters=2)
    model = tokenizer.encoder
status = pathlib.Path("/proc/self/status").read_text()
top = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
print(model.count_params(), top * 1024)
"""


def highest_memory(folder, layer):
    """Parameters, and the highest memory of a process that converts them as a
    multiple of their size."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), str(layer)],
        capture_output=True,
        text=True,
        check=True,
    )
    count, size = map(int, done.stdout.split()[-2:])
    return count, size / (4 * count)


def measure(family):
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(family)
        model.save_pretrained(folder)
        if family in CODECS:
            _, result = compare_codec(model, folder)
            layers = 0
        else:
            _, result = compare_encoder(model, folder, LAYERS[family])
            layers = model.config.num_hidden_layers
        del model
        count, memory = highest_memory(folder, layers)
    return {"parameters": count, **result, "memory": memory}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--out", type=pathlib.Path, help="JSON to write")
    args = parser.parse_args(argv)
    results = {}
    for family in args.families:
        if family not in FAMILIES:
            parser.error(f"families are {', '.join(FAMILIES)}")
        results[family] = measure(family)
        print(f"{family}: {json.dumps(results[family])}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
