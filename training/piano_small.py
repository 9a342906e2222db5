"""How `piano_small` is made, part by part.

    python examples/corpora/score_piano.py corpora/piano
    python examples/corpora/perturb_voices.py corpora/piano/train \\
        corpora/many_pianos/train \\
        --speeds 0.944 1 1.059 --formants 1 --pitches 1
    train="python training/piano_small.py --out runs/piano_small
        --validation corpora/piano/held_out"
    $train corpora/piano/train --parts codec semantic_tokenizer
    $train corpora/many_pianos/train \\
        --parts semantic_lm coarse_lm parallel_decoder
    $train corpora/piano/train --parts detector

The language models hear each piece in three keys, a semitone apart. Sizes and
steps are a plan, and no figure is known.
"""

import keras_audiolm  # chooses the backend  # isort: skip

import recipe

CLUSTERS, LAYER = 256, 3
LEVELS, CODES = 3, 2048
# Of semantic and acoustic frames, hertz.
RATES = 25.0, 50.0
STEPS = {
    "codec": 5000,
    "semantic_tokenizer": 3000,
    "semantic_lm": 1000,
    "coarse_lm": 1500,
    "parallel_decoder": 2500,
    "detector": 500,
}
BATCH_SIZES = {
    "codec": 12,
    "semantic_tokenizer": 6,
    "semantic_lm": 8,
    "coarse_lm": 4,
    "parallel_decoder": 4,
}


def make_pipeline():
    """A pipeline of untrained parts."""
    layout = keras_audiolm.TokenLayout
    acoustic = layout.coarse(CLUSTERS, LEVELS, CODES, *RATES)
    semantic = layout.semantic(CLUSTERS, RATES[0])
    return keras_audiolm.AudioLMPipeline(
        {
            "codec": recipe.make_codec(
                num_quantizers=LEVELS,
                codebook_size=CODES,
                quantizer_dropout=0.1,
            ),
            # Hears semitones, and has to tell them apart.
            "semantic_tokenizer": recipe.make_tokenizer(
                CLUSTERS,
                LAYER,
                codebook_size=512,
                num_mels=128,
                window_duration=0.064,
                mels_per_target=1,
            ),
            "semantic_lm": recipe.make_stage(semantic, 5, 256, 30.0, 0.2),
            "coarse_lm": recipe.make_stage(acoustic, 5, 256, 8.0, 0.1),
            "parallel_decoder": recipe.make_decoder(
                acoustic, 5, 224, 10.0, 0.1
            ),
        },
    )


if __name__ == "__main__":
    recipe.run(make_pipeline, STEPS, BATCH_SIZES, (0.84, 1.19))
