"""How `voices_small` is made, part by part.

    python examples/corpora/debian_voices.py corpora/debian_voices
    train="python training/voices_small.py --out runs/voices_small
        --validation corpora/debian_voices/held_out"
    $train corpora/debian_voices/train --parts semantic_tokenizer
    perturb="python examples/corpora/perturb_voices.py
        corpora/debian_voices/train"
    $perturb corpora/many_voices/train --formants 1 --pitches 1 --copies 3 \\
        --speeds 0.79 0.86 0.93 1 1.08 1.17 1.27
    $train corpora/many_voices/train --parts semantic_lm
    $train corpora/debian_voices/train --polish 250 --parts semantic_lm
    $perturb corpora/other_voices/train --copies 3
    $perturb corpora/other_voices/train --formants 1 --pitches 1
    $train corpora/other_voices/train --polish 500 --parts semantic_lm
    $perturb corpora/two_voices/train --copies 1
    $perturb corpora/two_voices/train --formants 1 --pitches 1
    python training/pair_tokens.py corpora/debian_voices/train \\
        corpora/two_voices/train --preset runs/voices_small --out runs/paired
    $train runs/paired --parts coarse_lm parallel_decoder
    $train corpora/debian_voices/train --polish 1000 --parts coarse_lm
    KERAS_BACKEND=torch $train corpora/debian_voices/train --polish 1000 \\
        --dtype mixed_bfloat16 --parts coarse_lm
    $train corpora/debian_voices/train --polish 2000 --parts parallel_decoder
    near="--formants 1 --pitches 1 --copies 2 --speeds"
    $perturb corpora/near_2/train --formants 1 --pitches 1
    $perturb corpora/near_2/train $near 0.97 0.985 1.015 1.03
    cp -r corpora/near_2 corpora/near_4
    $perturb corpora/near_4/train $near 0.96 0.98 1.02 1.04
    export KERAS_BACKEND=torch
    $train corpora/near_2/train --polish 1750 \\
        --dtype mixed_bfloat16 --parts coarse_lm
    $train corpora/near_2/train --polish 1500 \\
        --dtype mixed_bfloat16 --parts semantic_lm
    $train corpora/near_4/train --polish 2000 \\
        --dtype mixed_bfloat16 --parts coarse_lm
    $train corpora/near_4/train --polish 1500 \\
        --dtype mixed_bfloat16 --parts semantic_lm
    cp -r corpora/near_4 corpora/all_voices
    $perturb corpora/all_voices/train $near 0.965 0.99 1.01 1.035
    $perturb corpora/all_voices/train --copies 2
    python training/pair_tokens.py corpora/debian_voices/train \\
        corpora/all_voices/train --preset runs/voices_small --out runs/all
    $train runs/all --polish 2500 \\
        --dtype mixed_bfloat16 --parts coarse_lm
    $train runs/all --dtype mixed_bfloat16 --parts fine_lm
    unset KERAS_BACKEND
    $train corpora/debian_voices/train --parts detector

The codec is `soundstream_voices`. Every command writes the preset with some
parts more, half precision, and goes on where it was stopped. To train the
preset of the package on, copy it to `runs/voices_small` and polish it.
`docs/training_voices_small.md` tells what came of it.
"""

import keras_audiolm  # chooses the backend  # isort: skip

import recipe

CLUSTERS, LAYER = 128, 3
LEVELS, COARSE_LEVELS, CODES = 8, 4, 1024
# Of semantic and acoustic frames, hertz.
RATES = 25.0, 50.0
STEPS = {
    "semantic_tokenizer": 3000,
    "semantic_lm": 1000,
    "coarse_lm": 1000,
    "fine_lm": 2000,
    "parallel_decoder": 1000,
    "detector": 3000,
}
BATCH_SIZES = {
    "semantic_tokenizer": 6,
    "semantic_lm": 8,
    "coarse_lm": 4,
    "fine_lm": 4,
    "parallel_decoder": 4,
}
# How it sounds best, by held-out prompts.
SAMPLING = {
    "acoustic_decoder": "coarse",
    "temperature": {"semantic": 0.95, "coarse": 0.6, "parallel": 0.6},
}


def make_pipeline():
    """A pipeline of the codec, and of parts that are untrained."""
    layout = keras_audiolm.TokenLayout

    def acoustic(levels):
        return layout.coarse(CLUSTERS, levels, CODES, *RATES)

    semantic = layout.semantic(CLUSTERS, RATES[0])
    fine = layout.fine(COARSE_LEVELS, LEVELS - COARSE_LEVELS, CODES, RATES[1])
    coarse = acoustic(COARSE_LEVELS)
    pipeline = keras_audiolm.AudioLMPipeline(
        {
            "codec": keras_audiolm.SoundStream.from_preset(
                "soundstream_voices"
            ),
            "semantic_tokenizer": recipe.make_tokenizer(
                CLUSTERS, LAYER, codebook_size=256, perturbation=0.7
            ),
            "semantic_lm": recipe.make_stage(semantic, 4, 256, 20.0, 0.2),
            "coarse_lm": recipe.make_stage(coarse, 4, 192, 8.0, 0.1),
            "fine_lm": recipe.make_stage(fine, 3, 192, 3.0),
            "parallel_decoder": recipe.make_decoder(
                acoustic(LEVELS), 5, 224, 10.0
            ),
        },
        trained=["codec"],
    )
    pipeline.sampling = SAMPLING
    return pipeline


if __name__ == "__main__":
    recipe.run(make_pipeline, STEPS, BATCH_SIZES, (0.75, 1.33))
