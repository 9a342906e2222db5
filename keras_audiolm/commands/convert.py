"""keras-audiolm convert."""

import pathlib

from keras_audiolm.commands.options import (
    add_command,
    positive_count,
    running_options,
)
from keras_audiolm.commands.running import choose_backend
from keras_audiolm.version import __version__


def add_convert(commands):
    parser = add_command(
        commands,
        "convert",
        run_convert,
        [running_options()],
        "Make a preset of somebody's public checkpoint: a codec (EnCodec, DAC, "
        "Mimi, Lyra v2), or with --layer an encoder (HuBERT, w2v-BERT 2.0) as "
        "a semantic tokenizer.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, or an address like hf://facebook/encodec_24khz",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=pathlib.Path,
        required=True,
        help="preset to write",
    )
    parser.add_argument(
        "--padding",
        choices=("reflect", "zeros"),
        help="EnCodec of 24 kHz: what stands before the first sample; only "
        "with zeros can it stream (default: the checkpoint's)",
    )
    parser.add_argument(
        "--levels", type=positive_count, help="Lyra: how many of its 46 levels"
    )
    parser.add_argument(
        "--group", type=positive_count, help="Lyra: levels that become one"
    )
    parser.add_argument(
        "--layer",
        type=positive_count,
        help="of an encoder: the block whose activations become tokens",
    )
    parser.add_argument(
        "--centroids",
        metavar="FILE",
        help="of these activations: .npy, or scikit-learn's k-means",
    )


def run_convert(args):
    names = ("padding", "levels", "group")
    if args.layer is not None:
        names = ("layer", "centroids")
    options = {name: getattr(args, name) for name in names}
    options = {k: v for k, v in options.items() if v is not None}
    choose_backend(args)
    import keras_audiolm

    if args.layer is None:
        model = keras_audiolm.codec_from(args.source, **options)
        kind = type(model).__name__
        size = f"{model.num_quantizers} levels of {model.codebook_size} codes"
        hint = "keras-audiolm encode speech.wav -o speech.ska --preset"
    else:
        model = keras_audiolm.tokenizer_from(args.source, **options)
        kind = f"SemanticTokenizer on {type(model.encoder).__name__}"
        size = f"layer {model.layer}, {model.num_clusters} clusters"
        hint = "keras_audiolm.SemanticTokenizer.from_preset:"
    rate = model.sample_rate / model.hop_length
    card = (
        f"# {args.out.name}\n\n{args.source}, converted by keras_audiolm "
        f"{__version__}: {kind}, {model.sample_rate} Hz, {rate:g} frames a "
        f"second, {size}. Its licence is that of its source.\n"
    )
    model.save_to_preset(args.out, card=card)
    print(
        f"{args.out}: {kind} of {model.count_params():,} parameters. Use it "
        f"with: {hint} {args.out}"
    )
