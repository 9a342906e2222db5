"""HuBERT's public weights, in the layout of `transformers`."""

import numpy as np

from keras_audiolm.convert.checkpoint import (
    check_fixed,
    check_layers,
    put,
    put_conv,
    put_dense,
    put_norm,
)
from keras_audiolm.semantic.hubert import Hubert

FIXED = {
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "feat_proj_layer_norm": True,
    "layer_norm_eps": 1e-5,
    "adapter_attn_dim": None,
}


def read_encoder(checkpoint, num_layers=None):
    """A `Hubert` of a `Checkpoint` whose `model_type` is `hubert`.

    Args:
        checkpoint: `Checkpoint`.
        num_layers: int, optional. How many of its blocks to keep: those after
            the layer of interest cost memory alone.

    Raises:
        ValueError: on configurations that are not of this family, and tensors
            that are missing, too many, or of other shapes.
    """
    config = checkpoint.config
    check_fixed(config, FIXED, "HuBERT")
    there = config["num_hidden_layers"]
    encoder = make_encoder(config, check_layers(num_layers, there))
    encoder.build()
    prefix = "hubert." if "hubert.encoder.layer_norm.bias" in checkpoint else ""
    put_front(encoder, checkpoint, prefix)
    for i, block in enumerate(encoder.blocks):
        put_block(block, checkpoint, f"{prefix}encoder.layers.{i}")
    checkpoint.ignore(f"{prefix}masked_spec_embed")
    for i in range(encoder.num_layers, there):
        checkpoint.ignore_all(f"{prefix}encoder.layers.{i}.")
    checkpoint.check_all_taken()
    return encoder


def make_encoder(config, num_layers):
    return Hubert(
        filters=config["conv_dim"],
        kernel_sizes=config["conv_kernel"],
        strides=config["conv_stride"],
        use_conv_bias=config["conv_bias"],
        conv_norm=config["feat_extract_norm"],
        hidden_dim=config["hidden_size"],
        num_layers=num_layers,
        num_heads=config["num_attention_heads"],
        intermediate_dim=config["intermediate_size"],
        position_kernel_size=config["num_conv_pos_embeddings"],
        position_groups=config["num_conv_pos_embedding_groups"],
        scale_positions=config.get("conv_pos_batch_norm", False),
        norm_first=config["do_stable_layer_norm"],
        # Models whose convolutions are layer-normalized were trained so.
        normalize_audio=config["feat_extract_norm"] == "layer",
    )


def put_front(encoder, checkpoint, prefix):
    """All that stands before the blocks."""
    for i, layer in enumerate(encoder.convolutions):
        name = f"{prefix}feature_extractor.conv_layers.{i}"
        kernel = checkpoint.take(f"{name}.conv.weight").transpose(2, 1, 0)
        put(layer.kernel, kernel, f"{name}.conv.weight")
        if layer.use_bias:
            put(layer.bias, checkpoint.take(f"{name}.conv.bias"), name)
        if i < len(encoder.conv_norms):
            put_norm(encoder.conv_norms[i], checkpoint, f"{name}.layer_norm")
    name = f"{prefix}feature_projection"
    put_norm(encoder.feature_norm, checkpoint, f"{name}.layer_norm")
    put_dense(encoder.projection, checkpoint, f"{name}.projection")
    put_norm(encoder.norm, checkpoint, f"{prefix}encoder.layer_norm")
    name = f"{prefix}encoder.pos_conv_embed"
    # Of this one each step of the kernel has a size, not each filter.
    put_conv(encoder.positions, checkpoint, f"{name}.conv", kept_axis=2)
    if encoder.scale_positions:
        put_batch_norm(encoder.position_scale, checkpoint, f"{name}.batch_norm")


def put_block(block, checkpoint, prefix):
    for layer, name in (
        (block.query_dense, "attention.q_proj"),
        (block.key_dense, "attention.k_proj"),
        (block.value_dense, "attention.v_proj"),
        (block.output_dense, "attention.out_proj"),
        (block.wide, "feed_forward.intermediate_dense"),
        (block.narrow, "feed_forward.output_dense"),
    ):
        put_dense(layer, checkpoint, f"{prefix}.{name}")
    put_norm(block.attention_norm, checkpoint, f"{prefix}.layer_norm")
    put_norm(block.final_norm, checkpoint, f"{prefix}.final_layer_norm")


def put_batch_norm(layer, checkpoint, prefix):
    """What it has learnt, as one scale and shift."""
    weight, bias, mean, variance = (
        checkpoint.take(f"{prefix}.{name}")
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    checkpoint.ignore(f"{prefix}.num_batches_tracked")
    scale = weight / np.sqrt(variance + 1e-5)
    put(layer.scale, scale, prefix)
    put(layer.shift, bias - mean * scale, prefix)
