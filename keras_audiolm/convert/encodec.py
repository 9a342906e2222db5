"""EnCodec's public weights, in the layout of `transformers`."""

import numpy as np

from keras_audiolm.codec.encodec import EnCodec, ShortcutUnit, SkipLSTM
from keras_audiolm.codec.windowed_encodec import WindowedEnCodec
from keras_audiolm.convert.checkpoint import (
    check_fixed,
    put,
    put_conv,
    put_norm,
)
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
    "chunk_length_s": None,
}
# And `WindowedEnCodec`.
WINDOWED = {
    **FIXED,
    "audio_channels": 2,
    "normalize": True,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "chunk_length_s": 1.0,
}
PADDINGS = {"reflect": "reflect", "constant": "zeros"}


def read_codec(checkpoint, padding=None):
    """An `EnCodec` or `WindowedEnCodec` of a `Checkpoint`.

    Args:
        checkpoint: `Checkpoint` whose `model_type` is `encodec`.
        padding: `"reflect"` or `"zeros"`, of an `EnCodec`. The checkpoint's
            by default.

    Returns:
        A `WindowedEnCodec` where the checkpoint has group norms, as that of
        48 kHz.

    Raises:
        ValueError: on configurations that are not of this family, and tensors
            that are missing, too many, or of other shapes.
    """
    codec = make_codec(checkpoint.config, padding)
    codec.build()
    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(codec, side).layers):
            put_layer(layer, checkpoint, f"{side}.layers.{i}")
    books = []
    for level in range(codec.quantizer.num_quantizers):
        prefix = f"quantizer.layers.{level}.codebook"
        books.append(checkpoint.take(f"{prefix}.embed"))
        rest = ("inited", "cluster_size", "embed_avg")
        checkpoint.ignore(*(f"{prefix}.{name}" for name in rest))
    codec.quantizer.usage.assign(np.ones(codec.quantizer.usage.shape))
    put(codec.quantizer.embedding_sum, np.stack(books), "codebook.embed")
    checkpoint.check_all_taken()
    return codec


def make_codec(config, padding):
    if config.get("norm_type") != "time_group_norm":
        check_fixed(config, FIXED, "EnCodec of 24 kHz")
        return EnCodec(
            num_quantizers=num_levels(config),
            padding=padding or PADDINGS[config["pad_mode"]],
            **sizes(config),
        )
    check_fixed(config, WINDOWED, "EnCodec of 48 kHz")
    if padding:
        raise ValueError(
            "`padding` is of EnCodec of 24 kHz, which can stream: a window of "
            f"that of 48 kHz is padded on both sides. Received: {padding!r}"
        )
    sample_rate = config["sampling_rate"]
    shared = sample_rate - int((1.0 - config["overlap"]) * sample_rate)
    return WindowedEnCodec(
        num_quantizers=1 + num_levels(config),
        overlap_frames=-(-shared // hop_length(config)),
        padding=PADDINGS[config["pad_mode"]],
        **sizes(config),
    )


def sizes(config):
    return dict(
        sample_rate=config["sampling_rate"],
        channels=config["num_filters"],
        strides=config["upsampling_ratios"][::-1],
        embedding_dim=config["hidden_size"],
        codebook_size=config["codebook_size"],
        num_lstm_layers=config["num_lstm_layers"],
        kernel_size=config["kernel_size"],
        residual_kernel_size=config["residual_kernel_size"],
    )


def hop_length(config):
    return int(np.prod(config["upsampling_ratios"]))


def num_levels(config):
    """How many the highest bandwidth takes; the files have no more."""
    frame_rate = -(-config["sampling_rate"] // hop_length(config))
    bits = np.log2(config["codebook_size"])
    return int(1000 * config["target_bandwidths"][-1] // (frame_rate * bits))


def put_layer(layer, checkpoint, prefix):
    if isinstance(layer, (CausalConv1D, CausalConv1DTranspose)):
        put_conv(layer, checkpoint, f"{prefix}.conv")
        if hasattr(layer, "norm"):
            put_norm(layer.norm, checkpoint, f"{prefix}.norm")
    elif isinstance(layer, ShortcutUnit):
        put_layer(layer.wide, checkpoint, f"{prefix}.block.1")
        put_layer(layer.narrow, checkpoint, f"{prefix}.block.3")
        if layer.use_shortcut:
            put_layer(layer.shortcut, checkpoint, f"{prefix}.shortcut")
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
