"""What the recipes of the presets share: models of a size, and the command."""

import argparse
import pathlib
import shutil

import keras_audiolm  # chooses the backend  # isort: skip
import keras
import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from keras_audiolm.presets import PARTS

# Steps between two looks at the held-out loss.
STEPS_PER_EPOCH = 250
# What predicts acoustic tokens.
ACOUSTIC = "coarse_lm", "fine_lm", "parallel_decoder"
# Standard deviation of token embeddings that start from a codec's centroids.
EMBEDDING_SCALE = 0.3


def make_tokenizer(clusters, layer, **config):
    """A small encoder, trained as long as a laptop has patience."""
    encoder = keras_audiolm.W2vBert(
        hidden_dim=192,
        num_heads=4,
        intermediate_dim=768,
        num_contrastive_layers=2,
        num_masked_layers=4,
        kernel_size=15,
        codebook_dim=64,
        mask_probability=0.1,
        mask_length=5,
        unmasked_weight=0.5,
        codebook_decay=0.98,
        dropout=0.0,
        **config,
    )
    return keras_audiolm.SemanticTokenizer(encoder, clusters, layer=layer)


def make_stage(layout, num_layers, hidden_dim, crop_duration, dropout=0.0):
    backbone = {
        "num_layers": num_layers,
        "num_heads": 4,
        "hidden_dim": hidden_dim,
        # Gated: two of these stand for one of four times the width.
        "intermediate_dim": 8 * hidden_dim // 3 // 16 * 16,
        "dropout": dropout,
        "position": "rotary",
    }
    return keras_audiolm.StageLM(layout, backbone, crop_duration)


def make_decoder(layout, num_layers, hidden_dim, crop_duration, dropout=0.0):
    return keras_audiolm.ParallelDecoder(
        layout,
        num_layers=num_layers,
        num_heads=4,
        hidden_dim=hidden_dim,
        intermediate_dim=4 * hidden_dim,
        dropout=dropout,
        crop_duration=crop_duration,
    )


def start_from_codec(model, codec, seed=0):
    """Lets codes that sound alike begin with embeddings that are alike.

    Embeddings and heads of an untrained model that predicts acoustic tokens
    become the centroids of the codec's levels, turned to the model's width.
    """
    model.build()
    codes = centroids(codec)  # (levels, codes, codec's dim)
    dim = model.head.shape[-1]
    square = np.random.default_rng(seed).normal(size=(dim, dim))
    turn = np.linalg.qr(square)[0][: codes.shape[-1]]
    codes = codes @ turn * (dim / codes.shape[-1]) ** 0.5
    scale = codes.std(axis=(1, 2), keepdims=True)
    alike = codes / scale  # every level as loud
    if isinstance(model, keras_audiolm.ParallelDecoder):
        # Levels are summed up, as in the codec.
        table = to_numpy(model.code_embedding).copy()
        table[:, :-1] = codes / scale[0]
        model.code_embedding.assign(table)
        places = range(len(codes))
    else:
        embedding = model.backbone.token_embedding.embeddings
        table = to_numpy(embedding).copy()
        table *= EMBEDDING_SCALE / table.std()
        places = [
            model.layout.offset(segment.name, level)
            for segment in model.layout.segments
            if segment.name != "semantic"
            for level in range(segment.levels)
        ]
        for place, like in zip(places, alike, strict=False):
            own = table[place : place + len(like)]
            own[:] = 0.45 * own + 0.9 * EMBEDDING_SCALE * like
        embedding.assign(table)
    predicted = alike[: len(places)][-model.head.shape[0] :]
    model.head.assign(predicted * dim**-0.5)


def centroids(codec):
    """Of every level, around their mean: `(levels, codes, dim)`."""
    quantizer = codec.quantizer
    codes = np.stack(
        [
            to_numpy(quantizer.codebook(level))
            for level in range(codec.num_quantizers)
        ]
    )
    return codes - codes.mean(axis=1, keepdims=True)


def make_schedule(steps, peak):
    """A learning rate that rises for a tenth of the steps, then falls."""
    warmup = steps // 10
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, 0.02, warmup_target=peak, warmup_steps=warmup
    )


def make_optimizer(part, steps, scale=1.0):
    """Muon for what predicts acoustic tokens, with AdamW at half the rate for
    embeddings and heads; AdamW for the others, which gain nothing by it.

    Learning rates are multiplied by `scale`.
    """
    if part not in ACOUSTIC:
        schedule = make_schedule(steps, 1e-3 * scale)
        return keras.optimizers.AdamW(schedule, beta_2=0.98, clipnorm=1.0)
    return keras.optimizers.Muon(
        make_schedule(steps, 4e-3 * scale),
        adam_beta_2=0.98,
        adam_lr_ratio=0.5,
        clipnorm=1.0,
    )


def make_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "data", type=pathlib.Path, help="recordings, or a store of tokens"
    )
    parser.add_argument("--validation", required=True, help="held-out ones")
    parser.add_argument("--parts", nargs="+", choices=PARTS, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--polish",
        type=int,
        metavar="STEPS",
        help="train finished language models on, at half the learning rate",
    )
    parser.add_argument(
        "--dtype",
        help="a policy to train by: mixed_bfloat16 saves time with "
        "PyTorch, on a CPU that has it",
    )
    return parser


def run(make_pipeline, steps, batch_sizes, speed_range):
    """The command line of a recipe.

    Args:
        make_pipeline: callable that gives an untrained pipeline.
        steps, batch_sizes: dictionaries of ints by part.
        speed_range: of the audio that codec and encoder hear.
    """
    options = make_parser().parse_args()
    data = options.data.resolve()
    checkpoints = f"{options.out}-checkpoints"
    if options.polish:
        checkpoints += "-polish"
        steps = dict.fromkeys(options.parts, options.polish)
    epochs = {
        part: -(-steps[part] // STEPS_PER_EPOCH) for part in options.parts
    }
    if not (options.out / "metadata.json").is_file():
        make_pipeline().save_to_preset(options.out, dtype="float16")
    from_preset = keras_audiolm.AudioLMPipeline.from_preset
    pipeline = from_preset(options.out, dtype=options.dtype)
    if "codec" in pipeline.trained_parts:
        for part in ACOUSTIC:
            if part in options.parts and part not in pipeline.trained_parts:
                start_from_codec(pipeline.part(part), pipeline.codec)
    pipeline.compile(
        **{
            part: make_optimizer(
                part,
                epochs[part] * STEPS_PER_EPOCH,
                0.5 if options.polish else 1.0,
            )
            for part in options.parts
            if part != "detector"  # has its own
        }
    )
    pipeline.fit(
        data,
        parts=options.parts,
        epochs=epochs,
        steps_per_epoch=STEPS_PER_EPOCH,
        batch_size=batch_sizes,
        validation_data=options.validation,
        # One for each data set: a part may learn from several in turn.
        token_dir=f"{options.out}-tokens/{data.parent.name}-{data.name}",
        checkpoint_dir=checkpoints,
        speed_range=speed_range,
        verbose=2,
    )
    pipeline.save_to_preset(options.out, dtype="float16")
    if options.dtype:
        # Language models are not to be loaded in the policy of their training.
        pipeline = from_preset(options.out, dtype="float32")
        pipeline.save_to_preset(options.out, dtype="float16")
    if options.polish:
        # The next time, with other data, is not to be taken for done.
        shutil.rmtree(checkpoints)
