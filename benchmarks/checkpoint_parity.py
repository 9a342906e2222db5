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
CODECS = ("encodec", "dac")
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
        "dac": lambda: transformers.DacModel(
            transformers.DacConfig(
                downsampling_ratios=[2, 4, 5, 8], n_codebooks=12
            )
        ),
        "hubert": lambda: transformers.HubertModel(transformers.HubertConfig()),
        "hubert_large": lambda: transformers.HubertModel(
            transformers.HubertConfig(**large)
        ),
        "w2v_bert_2": lambda: transformers.Wav2Vec2BertModel(
            transformers.Wav2Vec2BertConfig()
        ),
    }
    torch.manual_seed(0)
    model = makers[family]()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point() and x.ndim <= 2 and "inited" not in name:
                x.add_(0.05 * torch.randn_like(x))
            if "codebook" in name and "inited" not in name:
                x.copy_(torch.randn_like(x))
    return model.eval()


def noise(samples):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (1, samples)).astype("float32")


def compare_codec(model, folder):
    import torch

    import keras_audiolm

    codec = keras_audiolm.codec_from(folder)
    audio = noise(int(SECONDS * codec.sample_rate))
    audio = audio[:, : audio.shape[1] // codec.hop_length * codec.hop_length]
    with torch.no_grad():
        x = torch.tensor(audio)[:, None]
        if type(model).__name__ == "EncodecModel":
            bandwidth = model.config.target_bandwidths[-1]
            codes = model.quantizer.encode(model.encoder(x), bandwidth)
            made = model.decoder(model.quantizer.decode(codes))[:, 0]
            codes = codes.permute(1, 2, 0)
        else:
            codes = model.encode(x).audio_codes
            made = model.decode(audio_codes=codes).audio_values
            codes = codes.permute(0, 2, 1)
    codes, made = codes.numpy(), made.numpy()
    ours = codec.encode(audio)
    again = codec.decode(codes)[:, : made.shape[1]]
    return codec, {
        "codes equal": float((ours == codes).mean()),
        "audio": float(np.abs(again - made).max()),
        "scale": float(np.abs(made).max()),
    }


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
        else:
            _, result = compare_encoder(model, folder, LAYERS[family])
        layers = model.config.to_dict().get("num_hidden_layers", 0)
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
