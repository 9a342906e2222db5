"""What a language model of acoustic tokens should start from, and by which
optimizer it should be trained: the held-out loss after a few minutes.

    python benchmarks/language_model_start.py \\
        runs/voices_small-tokens/many_voices-train \\
        --part coarse_lm --start codec --optimizer muon --rate 6e-3

The folder holds the stores `training` and `validation` that
`training/voices_small.py` makes of `corpora/many_voices/train`. Crops are
shorter than the recipe's, so that two starts can be compared in minutes; all
see the same crops.
"""

import argparse
import pathlib
import sys

import keras_audiolm  # noqa: F401  # chooses the backend  # isort: skip
import keras

from keras_audiolm.data.tokens import TokenCorpus, TokenCrops
from keras_audiolm.training import stage_inputs

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))

import recipe  # noqa: E402
import voices_small  # noqa: E402

# Steps, crops a step, and their seconds.
TRAINING = {"coarse_lm": (240, 2, 4.0), "parallel_decoder": (160, 4, 6.0)}


def make_optimizer(name, steps, rate, adam_ratio):
    schedule = recipe.make_schedule(steps, rate)
    if name == "adamw":
        return keras.optimizers.AdamW(schedule, beta_2=0.98, clipnorm=1.0)
    return keras.optimizers.Muon(
        schedule, adam_beta_2=0.98, adam_lr_ratio=adam_ratio, clipnorm=1.0
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tokens", type=pathlib.Path)
    parser.add_argument("--part", choices=TRAINING, required=True)
    parser.add_argument("--start", choices=["random", "codec"], required=True)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--adam-ratio", type=float, default=0.5)
    options = parser.parse_args()
    steps, batch_size, seconds = TRAINING[options.part]

    pipeline = voices_small.make_pipeline()
    model = pipeline.part(options.part)
    model.build()
    if options.start == "codec":
        recipe.start_from_codec(model, pipeline.codec)
    model.compile(
        make_optimizer(
            options.optimizer, steps, options.rate, options.adam_ratio
        )
    )

    def crops(split, batch_size, steps):
        return TokenCrops(
            TokenCorpus(options.tokens / split),
            round(seconds * pipeline.sample_rate / pipeline.unit_samples),
            stage_inputs(model.layout, model.layout.predicted.levels),
            batch_size,
            steps,
        )

    model.fit(crops("training", batch_size, steps), shuffle=False, verbose=2)
    print(model.evaluate(crops("validation", 8, 4), return_dict=True))


if __name__ == "__main__":
    main()
