"""How `piano_small` is made, part by part.

    python examples/corpora/score_piano.py corpora/piano
    python examples/corpora/score_piano.py corpora/three_takes --takes 3
    train="python training/piano_small.py --out runs/piano_small
        --validation corpora/piano/held_out"
    $train corpora/piano/train --parts codec semantic_tokenizer
    $train corpora/three_takes/train \\
        --parts semantic_lm coarse_lm parallel_decoder
    $train corpora/three_takes/train --polish 1000 --parts semantic_lm
    $train corpora/three_takes/train --polish 500 --parts coarse_lm
    $train corpora/three_takes/train --polish 750 --parts parallel_decoder
    KERAS_BACKEND=torch $train corpora/three_takes/train --polish 2500 \\
        --dtype mixed_bfloat16 --parts parallel_decoder
    KERAS_BACKEND=torch $train corpora/three_takes/train --polish 1500 \\
        --dtype mixed_bfloat16 --parts semantic_lm
    $train corpora/piano/train --parts detector

The language models hear each piece three times, twice in another key and at
another tempo. To train the preset of the package on, copy it to
`runs/piano_small` and polish it. `docs/training_piano_small.md` tells what came
of it.
"""

import keras_audiolm  # chooses the backend  # isort: skip

import recipe

CLUSTERS, LAYER = 512, 3
LEVELS, CODES = 3, 2048
# Of semantic and acoustic frames, hertz.
RATES = 25.0, 50.0
STEPS = {
    "codec": 3000,
    "semantic_tokenizer": 3000,
    "semantic_lm": 1000,
    "coarse_lm": 1000,
    "parallel_decoder": 1500,
    "detector": 1000,
}
BATCH_SIZES = {
    "codec": 12,
    "semantic_tokenizer": 6,
    "semantic_lm": 4,
    "coarse_lm": 2,
    "parallel_decoder": 4,
}
# How it sounds best, by held-out prompts.
SAMPLING = {
    "acoustic_decoder": "parallel",
    "temperature": {"semantic": 1.0, "coarse": 0.85, "parallel": 0.85},
}


def make_pipeline():
    """A pipeline of untrained parts."""
    layout = keras_audiolm.TokenLayout
    acoustic = layout.coarse(CLUSTERS, LEVELS, CODES, *RATES)
    semantic = layout.semantic(CLUSTERS, RATES[0])
    pipeline = keras_audiolm.AudioLMPipeline(
        {
            # Frames of 80 ms every 20 ms, of which no bit goes to phases.
            "codec": keras_audiolm.SoundStream(
                channels=224,
                strides=(1,),
                embedding_dim=64,
                transform="spectrogram",
                num_quantizers=LEVELS,
                codebook_size=CODES,
                quantizer_dropout=0.1,
                name="codec",
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
            "semantic_lm": recipe.make_stage(semantic, 4, 256, 30.0, 0.2),
            "coarse_lm": recipe.make_stage(acoustic, 4, 192, 8.0),
            "parallel_decoder": recipe.make_decoder(acoustic, 5, 224, 10.0),
        },
    )
    pipeline.sampling = SAMPLING
    return pipeline


if __name__ == "__main__":
    recipe.run(make_pipeline, STEPS, BATCH_SIZES, (0.84, 1.19))
