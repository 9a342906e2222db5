"""How `voices_small` is made, part by part.

    python examples/corpora/debian_voices.py corpora/debian_voices
    python examples/corpora/perturb_voices.py corpora/debian_voices/train \\
        corpora/many_voices/train
    train="python training/voices_small.py --out runs/voices_small
        --validation corpora/debian_voices/held_out"
    $train --parts semantic_tokenizer corpora/debian_voices/train
    $train --parts semantic_lm corpora/many_voices/train
    $train --parts coarse_lm corpora/many_voices/train
    $train --parts fine_lm corpora/many_voices/train
    $train --parts parallel_decoder corpora/many_voices/train
    $train --parts detector corpora/debian_voices/train

The codec is `soundstream_voices`; parts that are finished stand in the folder
`voices_small` beside this file, and are taken from there unless they are to be
trained. So far that is the semantic tokenizer: the sizes and steps of what
comes after it are a plan, and no figure is known of it. Every command writes
the preset with one part more, half precision, and goes on where it was stopped.
Parts that have nothing to do with each other (the last four language models)
can be trained at once, each with an `--out` of its own that starts as a copy.
"""

import argparse
import pathlib

import keras_audiolm  # chooses the backend  # isort: skip
import keras

from keras_audiolm.presets import PARTS, load_part

FINISHED = pathlib.Path(__file__).with_suffix("")
CLUSTERS = 128
LEVELS = 8
COARSE_LEVELS = 4
# Optimizer steps, and crops in a batch.
STEPS = {
    "semantic_tokenizer": 3000,
    "semantic_lm": 4000,
    "coarse_lm": 12000,
    "fine_lm": 6000,
    "parallel_decoder": 12000,
    "detector": 500,
}
BATCH_SIZE = {
    "semantic_tokenizer": 6,
    "semantic_lm": 16,
    "coarse_lm": 4,
    "fine_lm": 8,
    "parallel_decoder": 8,
}
# Steps between two looks at the held-out loss.
STEPS_PER_EPOCH = 250
SPEED_RANGE = (0.75, 1.33)


def make_tokenizer():
    encoder = keras_audiolm.W2vBert(
        hidden_dim=192,
        num_heads=4,
        intermediate_dim=768,
        num_contrastive_layers=2,
        num_masked_layers=4,
        kernel_size=15,
        codebook_size=256,
        codebook_dim=64,
        mask_probability=0.1,
        mask_length=5,
        unmasked_weight=0.5,
        perturbation=0.7,
        codebook_decay=0.98,
        dropout=0.0,
    )
    return keras_audiolm.SemanticTokenizer(encoder, CLUSTERS, layer=3)


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


def make_pipeline(anew):
    """A pipeline of the codec and the finished parts but those `anew`, which
    like the others are untrained."""
    codec = keras_audiolm.SoundStream.from_preset("soundstream_voices")
    layout = keras_audiolm.TokenLayout
    told = CLUSTERS, 1024, 25.0, 50.0

    def acoustic(levels):
        return layout.coarse(told[0], levels, *told[1:])

    fine = layout.fine(COARSE_LEVELS, LEVELS - COARSE_LEVELS, 1024, 50.0)
    parts = {
        "codec": codec,
        "semantic_tokenizer": make_tokenizer(),
        "semantic_lm": make_stage(
            layout.semantic(CLUSTERS, 25.0), 4, 192, 20.0, dropout=0.1
        ),
        "coarse_lm": make_stage(acoustic(COARSE_LEVELS), 4, 192, 8.0),
        "fine_lm": make_stage(fine, 3, 160, 3.0),
        "parallel_decoder": keras_audiolm.ParallelDecoder(
            acoustic(LEVELS),
            num_layers=3,
            num_heads=4,
            hidden_dim=160,
            intermediate_dim=640,
            dropout=0.0,
            crop_duration=10.0,
        ),
    }
    finished = [
        name
        for name in PARTS
        if (FINISHED / name).is_dir() and name not in anew
    ]
    parts |= {name: load_part(FINISHED, name) for name in finished}
    return keras_audiolm.AudioLMPipeline(parts, ("codec", *finished))


def optimizer_of_encoder(steps):
    warmup = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, 0.02, warmup_target=1e-3, warmup_steps=warmup
    )
    return keras.optimizers.AdamW(schedule, beta_2=0.98, clipnorm=1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", help="recordings to train on")
    parser.add_argument("--validation", required=True, help="held-out ones")
    parser.add_argument("--parts", nargs="+", choices=PARTS, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    if (options.out / "metadata.json").is_file():
        pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.out)
    else:
        pipeline = make_pipeline(options.parts)
    if "semantic_tokenizer" in options.parts:
        steps = STEPS["semantic_tokenizer"]
        pipeline.compile(semantic_tokenizer=optimizer_of_encoder(steps))
    pipeline.fit(
        options.folder,
        parts=options.parts,
        epochs={part: n // STEPS_PER_EPOCH for part, n in STEPS.items()},
        steps_per_epoch=STEPS_PER_EPOCH,
        batch_size=BATCH_SIZE,
        validation_data=options.validation,
        token_dir=f"{options.out}-tokens",
        checkpoint_dir=f"{options.out}-checkpoints",
        speed_range=SPEED_RANGE,
        verbose=2,
    )
    pipeline.save_to_preset(options.out, dtype="float16")


if __name__ == "__main__":
    main()
