"""w2v-BERT 2.0's public weights, in the layout of `transformers`."""

import numpy as np

from keras_audiolm.convert.checkpoint import (
    check_fixed,
    check_layers,
    put,
    put_dense,
    put_norm,
)
from keras_audiolm.semantic.w2v_bert_2 import W2vBert2

FIXED = {
    "hidden_act": "swish",
    "position_embeddings_type": "relative_key",
    "add_adapter": False,
    "layer_norm_eps": 1e-5,
}
STRIDE = 2  # frames of the filter bank in one


def read_encoder(checkpoint, num_layers=None):
    """A `W2vBert2` of a `Checkpoint` whose `model_type` is `wav2vec2-bert`.

    Args:
        checkpoint: `Checkpoint`.
        num_layers: int, optional. How many of its blocks to keep.

    Raises:
        ValueError: on configurations that are not of this family, and tensors
            that are missing, too many, or of other shapes.
    """
    config = checkpoint.config
    check_fixed(config, FIXED, "w2v-BERT 2.0")
    there = config["num_hidden_layers"]
    encoder = W2vBert2(
        num_mels=config["feature_projection_input_dim"] // STRIDE,
        stride=STRIDE,
        hidden_dim=config["hidden_size"],
        num_layers=check_layers(num_layers, there),
        num_heads=config["num_attention_heads"],
        intermediate_dim=config["intermediate_size"],
        kernel_size=config["conv_depthwise_kernel_size"],
        max_before=config["left_max_position_embeddings"],
        max_after=config["right_max_position_embeddings"],
    )
    encoder.build()
    name = "feature_projection"
    put_norm(encoder.feature_norm, checkpoint, f"{name}.layer_norm")
    put_dense(encoder.projection, checkpoint, f"{name}.projection")
    for i, block in enumerate(encoder.blocks):
        put_block(block, checkpoint, f"encoder.layers.{i}")
    checkpoint.ignore("masked_spec_embed")
    for i in range(encoder.num_layers, there):
        checkpoint.ignore_all(f"encoder.layers.{i}.")
    checkpoint.check_all_taken()
    return encoder


def put_block(block, checkpoint, prefix):
    for layer, name in (
        (block.first_wide, "ffn1.intermediate_dense"),
        (block.first_narrow, "ffn1.output_dense"),
        (block.second_wide, "ffn2.intermediate_dense"),
        (block.second_narrow, "ffn2.output_dense"),
        (block.query_dense, "self_attn.linear_q"),
        (block.key_dense, "self_attn.linear_k"),
        (block.value_dense, "self_attn.linear_v"),
        (block.output_dense, "self_attn.linear_out"),
    ):
        put_dense(layer, checkpoint, f"{prefix}.{name}")
    for layer, name in (
        (block.first_norm, "ffn1_layer_norm"),
        (block.second_norm, "ffn2_layer_norm"),
        (block.attention_norm, "self_attn_layer_norm"),
        (block.conv_norm, "conv_module.layer_norm"),
        (block.depth_norm, "conv_module.depthwise_layer_norm"),
        (block.final_norm, "final_layer_norm"),
    ):
        put_norm(layer, checkpoint, f"{prefix}.{name}")
    name = f"{prefix}.self_attn.distance_embedding.weight"
    put(block.distances, checkpoint.take(name), name)
    for layer, name in ((block.conv_gate, "1"), (block.conv_mix, "2")):
        name = f"{prefix}.conv_module.pointwise_conv{name}.weight"
        put(layer.kernel, checkpoint.take(name)[..., 0].T, name)
    name = f"{prefix}.conv_module.depthwise_conv.weight"
    kernel = checkpoint.take(name).transpose(2, 1, 0)
    put(block.depthwise.kernel, kernel, name)
    block.depthwise.bias.assign(np.zeros(block.depthwise.bias.shape))
