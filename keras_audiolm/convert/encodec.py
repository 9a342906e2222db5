"""EnCodec's public weights, in the layout of `transformers`."""

import numpy as np

from keras_audiolm.codec.encodec import EnCodec, ShortcutUnit, SkipLSTM
from keras_audiolm.convert.checkpoint import check_fixed, put, put_conv
from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose

# What `EnCodec` is, of all that its configuration could say.
FIXED = {
    "audio_channels": 1,
    "normalize": False,
    "norm_type": "weight_norm",
    "use_causal_conv": True,
    "use_conv_shortcut": True,
    "num_residual_layers": 1,
    "compress": 2,
    "trim_right_ratio": 1.0,
}
PADDINGS = {"reflect": "reflect", "constant": "zeros"}


def read_codec(checkpoint, padding=None):
    """An `EnCodec` of a `Checkpoint`.

    Args:
        checkpoint: `Checkpoint` whose `model_type` is `encodec`.
        padding: `"reflect"` or `"zeros"`. The checkpoint's by default.

    Raises:
        ValueError: on configurations that are not of this family, and tensors
            that are missing, too many, or of other shapes.
    """
    config = checkpoint.config
    check_fixed(config, FIXED, "EnCodec of 24 kHz")
    codec = make_codec(config, padding)
    codec.build()
    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(codec, side).layers):
            put_layer(layer, checkpoint, f"{side}.layers.{i}")
    books = []
    for level in range(codec.num_quantizers):
        prefix = f"quantizer.layers.{level}.codebook"
        books.append(checkpoint.take(f"{prefix}.embed"))
        rest = ("inited", "cluster_size", "embed_avg")
        checkpoint.ignore(*(f"{prefix}.{name}" for name in rest))
    codec.quantizer.usage.assign(np.ones(codec.quantizer.usage.shape))
    put(codec.quantizer.embedding_sum, np.stack(books), "codebook.embed")
    checkpoint.check_all_taken()
    return codec


def make_codec(config, padding):
    sample_rate = config["sampling_rate"]
    strides = config["upsampling_ratios"][::-1]
    frame_rate = -(-sample_rate // int(np.prod(strides)))
    bits = np.log2(config["codebook_size"])
    bandwidth = 1000 * config["target_bandwidths"][-1]
    return EnCodec(
        sample_rate=sample_rate,
        channels=config["num_filters"],
        strides=strides,
        embedding_dim=config["hidden_size"],
        num_quantizers=int(bandwidth // (frame_rate * bits)),
        codebook_size=config["codebook_size"],
        num_lstm_layers=config["num_lstm_layers"],
        kernel_size=config["kernel_size"],
        residual_kernel_size=config["residual_kernel_size"],
        padding=padding or PADDINGS[config["pad_mode"]],
    )


def put_layer(layer, checkpoint, prefix):
    if isinstance(layer, (CausalConv1D, CausalConv1DTranspose)):
        put_conv(layer, checkpoint, f"{prefix}.conv")
    elif isinstance(layer, ShortcutUnit):
        put_conv(layer.wide, checkpoint, f"{prefix}.block.1.conv")
        put_conv(layer.narrow, checkpoint, f"{prefix}.block.3.conv")
        if layer.use_shortcut:
            put_conv(layer.shortcut, checkpoint, f"{prefix}.shortcut.conv")
    elif isinstance(layer, SkipLSTM):
        for i, lstm in enumerate(layer.lstms):
            put_lstm(lstm, checkpoint, f"{prefix}.lstm", i)


def put_lstm(lstm, checkpoint, prefix, index):
    """Gates are in the same order; PyTorch has two biases, which are added."""
    cell = lstm.cell
    for variable, name in (
        (cell.kernel, f"{prefix}.weight_ih_l{index}"),
        (cell.recurrent_kernel, f"{prefix}.weight_hh_l{index}"),
    ):
        put(variable, checkpoint.take(name).T, name)
    biases = [
        checkpoint.take(f"{prefix}.bias_{side}_l{index}")
        for side in ("ih", "hh")
    ]
    put(cell.bias, sum(biases), f"{prefix}.bias_l{index}")
