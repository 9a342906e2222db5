"""DAC's public weights, in the layout of `transformers`."""

import numpy as np

from keras_audiolm.codec.dac import DAC, Snake, SnakeUnit
from keras_audiolm.convert.checkpoint import put, put_conv


def read_codec(checkpoint):
    """A `DAC` of a `Checkpoint` whose `model_type` is `dac`.

    Raises:
        ValueError: on tensors that are missing, too many, or of other shapes.
    """
    config = checkpoint.config
    codec = DAC(
        sample_rate=config["sampling_rate"],
        channels=config["encoder_hidden_size"],
        decoder_channels=config["decoder_hidden_size"],
        strides=config["downsampling_ratios"],
        num_quantizers=config["n_codebooks"],
        codebook_size=config["codebook_size"],
        code_dim=config["codebook_dim"],
    )
    codec.build()
    units = [f"res_unit{i}" for i in (1, 2, 3)]
    for side, names in (
        ("encoder", [*units, "snake1", "conv1"]),
        ("decoder", ["snake1", "conv_t1", *units]),
    ):
        blocks = [
            f"block.{i}.{name}"
            for i in range(len(codec.strides))
            for name in names
        ]
        names = ["conv1", *blocks, "snake1", "conv2"]
        layers = getattr(codec, side).layers
        for layer, name in zip(layers, names, strict=True):
            put_layer(layer, checkpoint, f"{side}.{name}")
    put_quantizer(codec.quantizer, checkpoint)
    checkpoint.check_all_taken()
    return codec


def put_layer(layer, checkpoint, prefix):
    if isinstance(layer, Snake):
        name = f"{prefix}.alpha"
        put(layer.alpha, checkpoint.take(name)[0, :, 0], name)
    elif isinstance(layer, SnakeUnit):
        names = ("snake1", "conv1", "snake2", "conv2")
        for part, name in zip(layer.layers, names, strict=True):
            put_layer(part, checkpoint, f"{prefix}.{name}")
    else:
        put_conv(layer, checkpoint, prefix)


def put_quantizer(quantizer, checkpoint):
    """Each level's projections, which are convolutions of one step."""
    values = {"to_code": [], "from_code": [], "embedding_sum": []}
    biases = {"to_bias": [], "from_bias": []}
    for level in range(quantizer.num_quantizers):
        prefix = f"quantizer.quantizers.{level}"
        for side, name in (("to", "in_proj"), ("from", "out_proj")):
            kernel = checkpoint.take_normalized(f"{prefix}.{name}")[..., 0]
            values[f"{side}_code"].append(kernel.T)
            bias = checkpoint.take(f"{prefix}.{name}.bias")
            biases[f"{side}_bias"].append(bias)
        book = checkpoint.take(f"{prefix}.codebook.weight")
        values["embedding_sum"].append(book)
    for name, value in {**values, **biases}.items():
        put(getattr(quantizer, name), np.stack(value), f"quantizer {name}")
    quantizer.usage.assign(np.ones(quantizer.usage.shape))
