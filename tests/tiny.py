"""A whole pipeline small enough to train and to sample in seconds."""

import keras
import numpy as np

from keras_audiolm import (
    AudioLMPipeline,
    SemanticTokenizer,
    SoundStream,
    StageLM,
    TokenLayout,
    W2vBert,
)

SAMPLE_RATE = 16000
CODEBOOK_SIZE = 16
NUM_CLUSTERS = 12
COARSE_LEVELS, FINE_LEVELS = 2, 1


def tiny_pipeline(trained=True, fine_levels=FINE_LEVELS):
    """Five tiny models with random weights.

    Args:
        trained: bool. Whether they count as trained.
        fine_levels: int. At zero there is no fine stage.

    Returns:
        `AudioLMPipeline` at 16 kHz: 25 semantic frames a second and 50
        acoustic ones, of `COARSE_LEVELS` and the fine ones.
    """
    keras.utils.set_random_seed(0)
    parts = {
        "codec": tiny_codec(COARSE_LEVELS + fine_levels),
        "semantic_tokenizer": tiny_semantic_tokenizer(),
        "semantic_lm": tiny_lm(TokenLayout.semantic(NUM_CLUSTERS, 25.0)),
        "coarse_lm": tiny_lm(
            TokenLayout.coarse(
                NUM_CLUSTERS, COARSE_LEVELS, CODEBOOK_SIZE, 25.0, 50.0
            )
        ),
    }
    if fine_levels:
        layout = TokenLayout.fine(
            COARSE_LEVELS, fine_levels, CODEBOOK_SIZE, 50.0
        )
        parts["fine_lm"] = tiny_lm(layout)
    if not trained:
        return AudioLMPipeline(parts)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (4, SAMPLE_RATE)).astype("float32")
    # In order: the weights are drawn one after the other.
    for name in parts:
        if name != "semantic_tokenizer":
            parts[name].build()
    parts["codec"].initialize_codebooks([noise])
    parts["semantic_tokenizer"].fit_kmeans(lambda: iter([noise]))
    return AudioLMPipeline(parts, trained=parts)


def tiny_codec(num_quantizers=COARSE_LEVELS + FINE_LEVELS):
    return SoundStream(
        sample_rate=SAMPLE_RATE,
        channels=2,
        strides=(4, 8, 10),
        embedding_dim=8,
        num_quantizers=num_quantizers,
        codebook_size=CODEBOOK_SIZE,
    )


def tiny_semantic_tokenizer():
    encoder = W2vBert(
        sample_rate=SAMPLE_RATE,
        num_mels=16,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=16,
        num_contrastive_layers=1,
        num_masked_layers=1,
        kernel_size=3,
        codebook_size=16,
        codebook_dim=4,
        num_negatives=4,
    )
    return SemanticTokenizer(encoder, NUM_CLUSTERS, layer=1)


def tiny_lm(layout):
    backbone = {
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "dropout": 0.1,
        "intermediate_dim": 16,
    }
    return StageLM(layout, backbone, crop_duration=1.0)
