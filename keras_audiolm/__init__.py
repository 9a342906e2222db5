"""AudioLM in Keras 3: learns to generate audio by listening to audio only."""

import importlib

from keras_audiolm._backend import choose_backend
from keras_audiolm.version import __version__

choose_backend()

# Public names and where they live: nothing is imported before it is used, so
# that the command line answers at once.
_PUBLIC = {
    "AudioClassifier": "evaluation.classifier",
    "AudioCodec": "codec.audio_codec",
    "AudioCrops": "data.crops",
    "AudioLMPipeline": "pipeline",
    "DAC": "codec.dac",
    "Discriminators": "codec.discriminators",
    "EnCodec": "codec.encodec",
    "Hubert": "semantic.hubert",
    "KMeans": "semantic.kmeans",
    "MelSpectralLoss": "codec.losses",
    "Mimi": "codec.mimi",
    "NoisyCrops": "data.noise",
    "ParallelDecoder": "language_model.parallel_decoder",
    "PerceptualLoss": "codec.losses",
    "ResidualVectorQuantizer": "codec.quantizer",
    "SemanticTokenizer": "semantic.tokenizer",
    "SoundStream": "codec.soundstream",
    "SoundStreamTrainer": "codec.training",
    "StageBackbone": "language_model.backbone",
    "StageLM": "language_model.stage_lm",
    "TokenLayout": "language_model.layout",
    "W2vBert": "semantic.w2v_bert",
    "W2vBert2": "semantic.w2v_bert_2",
    "WindowedEnCodec": "codec.windowed_encodec",
    "codec_from": "convert.sources",
    "load_audio": "data.audio",
    "save_audio": "data.audio",
    "show_audio": "evaluation.display",
    "show_figure": "evaluation.display",
    "show_tokens": "evaluation.display",
    "tokenizer_from": "convert.sources",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
    return getattr(module, name)


def __dir__():
    return sorted(__all__)
