"""Measures codecs, tokens and what is generated, as the paper does."""

# Of a report: what `keras_audiolm.evaluation.preset` measures, in order.
SECTIONS = (
    "codec",
    "tokenizer",
    "language",
    "continuation",
    "music",
    "resynthesis",
    "detector",
)
