"""Mimi's public weights, in the layout of `transformers`."""

import numpy as np

from keras_audiolm.codec.mimi import (
    DepthwiseTranspose,
    FirstFrameConv1D,
    Mimi,
    WindowedBlock,
)
from keras_audiolm.convert.checkpoint import (
    check_fixed,
    put,
    put_norm,
)
from keras_audiolm.convert.encodec import put_layer

# What `Mimi` is, of all that its configuration could say.
FIXED = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "use_conv_shortcut": False,
    "pad_mode": "constant",
    "num_residual_layers": 1,
    "compress": 2,
    "trim_right_ratio": 1.0,
    "attention_bias": False,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
}


def read_codec(checkpoint):
    """A `Mimi` of a `Checkpoint` whose `model_type` is `mimi`.

    Raises:
        ValueError: on configurations that are not of this family, and tensors
            that are missing, too many, or of other shapes.
    """
    config = checkpoint.config
    check_fixed(config, FIXED, "Mimi")
    heads = config["num_attention_heads"]
    if config.get("num_key_value_heads", heads) != heads:
        raise ValueError("Mimi is read with as many key heads as query heads.")
    rope = config.get("rope_parameters") or config
    kernel = checkpoint.take("downsample.conv.weight")
    codec = Mimi(
        sample_rate=config["sampling_rate"],
        channels=config["num_filters"],
        strides=config["upsampling_ratios"][::-1],
        frame_stride=kernel.shape[-1] // 2,
        hidden_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        intermediate_dim=config["intermediate_size"],
        window=config["sliding_window"],
        max_wavelength=rope.get("rope_theta", 10000.0),
        num_quantizers=config["num_quantizers"],
        semantic_levels=config["num_semantic_quantizers"],
        codebook_size=config["codebook_size"],
        code_dim=config["codebook_dim"],
        kernel_size=config["kernel_size"],
        residual_kernel_size=config["residual_kernel_size"],
        last_kernel_size=config["last_kernel_size"],
    )
    codec.build()
    for side in ("encoder", "decoder"):
        put_side(getattr(codec, side), checkpoint, side)
    put_quantizer(codec.quantizer, checkpoint)
    checkpoint.check_all_taken()
    return codec


def put_side(stack, checkpoint, side):
    """Convolutions, blocks, and what stands between them and the codes."""
    blocks = convolutions = 0
    for layer in stack.layers:
        if isinstance(layer, WindowedBlock):
            prefix = f"{side}_transformer.layers.{blocks}"
            put_block(layer, checkpoint, prefix)
            blocks += 1
        elif isinstance(layer, FirstFrameConv1D):
            name = "downsample.conv.weight"
            kernel = checkpoint.take(name).transpose(2, 1, 0)
            put(layer.kernel, kernel, name)
            layer.bias.assign(np.zeros(layer.bias.shape))
        elif isinstance(layer, DepthwiseTranspose):
            name = "upsample.conv.weight"
            put(layer.kernel, checkpoint.take(name)[:, 0].T, name)
        else:
            put_layer(layer, checkpoint, f"{side}.layers.{convolutions}")
            convolutions += 1


def put_block(block, checkpoint, prefix):
    for layer, name in (
        (block.query_dense, "self_attn.q_proj"),
        (block.key_dense, "self_attn.k_proj"),
        (block.value_dense, "self_attn.v_proj"),
        (block.output_dense, "self_attn.o_proj"),
        (block.wide_dense, "mlp.fc1"),
        (block.narrow_dense, "mlp.fc2"),
    ):
        name = f"{prefix}.{name}.weight"
        put(layer.kernel, checkpoint.take(name).T, name)
    put_norm(block.attention_norm, checkpoint, f"{prefix}.input_layernorm")
    put_norm(
        block.feed_forward_norm,
        checkpoint,
        f"{prefix}.post_attention_layernorm",
    )
    for variable, name in (
        (block.attention_scale, "self_attn_layer_scale"),
        (block.feed_forward_scale, "mlp_layer_scale"),
    ):
        name = f"{prefix}.{name}.scale"
        put(variable, checkpoint.take(name), name)


def put_quantizer(quantizer, checkpoint):
    projections = {"to_code": [], "from_code": []}
    kinds = ("semantic", "acoustic")
    for kind, part in zip(kinds, quantizer.parts, strict=True):
        prefix = f"quantizer.{kind}_residual_vector_quantizer"
        for name, side in (("to_code", "input"), ("from_code", "output")):
            kernel = checkpoint.take(f"{prefix}.{side}_proj.weight")
            projections[name].append(kernel[..., 0].T)
        sums, usages = [], []
        for level in range(part.num_quantizers):
            book = f"{prefix}.layers.{level}.codebook"
            sums.append(checkpoint.take(f"{book}.embed_sum"))
            usage = checkpoint.take(f"{book}.cluster_usage")
            usages.append(np.maximum(usage, 1e-5))
            checkpoint.ignore(f"{book}.initialized")
        put(part.embedding_sum, np.stack(sums), f"{prefix} embed_sum")
        put(part.usage, np.stack(usages), f"{prefix} cluster_usage")
    for name, value in projections.items():
        put(getattr(quantizer, name), np.stack(value), f"quantizer {name}")
