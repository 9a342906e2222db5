"""Where public checkpoints come from, and of which family they are."""

import importlib
import pathlib

from keras_audiolm import presets
from keras_audiolm.convert.checkpoint import PICKLED, Checkpoint

# By `model_type` of a checkpoint's config.json: what reads it as a codec.
CODECS = {
    "dac": "keras_audiolm.convert.dac",
    "encodec": "keras_audiolm.convert.encodec",
    "mimi": "keras_audiolm.convert.mimi",
}
ENCODERS = {
    "hubert": "keras_audiolm.convert.hubert",
    "wav2vec2-bert": "keras_audiolm.convert.w2v_bert_2",
}
# By a file that stands in the folder.
CODECS_BY_FILE = {
    "soundstream_encoder.tflite": "keras_audiolm.convert.lyra",
}


def codec_from(source, **options):
    """The codec of a public checkpoint, exactly, as a model of this package.

    Families are EnCodec (`hf://facebook/encodec_24khz` and
    `encodec_48khz`), DAC (`hf://descript/dac_16khz` and others) and Mimi
    (`hf://kyutai/mimi`), in the layout of `transformers`, and Lyra v2 (a
    folder with its three `.tflite` files). Nothing in a checkpoint is
    executed.

    Args:
        source: a folder, `hf://owner/name`, or
            `kaggle://owner/model/framework/variation`. What is in their caches
            is not asked for again.
        **options: of the family. EnCodec of 24 kHz: `padding="zeros"` for a
            codec that can stream. Lyra: `levels` and `group`, as of
            `convert.lyra`.

    Returns:
        An `AudioCodec`; `save_to_preset` keeps it.

    Raises:
        ImportError: without a package that reads the files: `pip install
            "keras-audiolm[convert]"`.
        ValueError: on a source that is not there, of no known family, broken
            or incomplete, and on options that the family does not have.

    Example:

    ```python
    codec = keras_audiolm.codec_from("hf://facebook/encodec_24khz")
    codec.save_to_preset("encodec_24khz")
    ```
    """
    folder = find_source(source)
    for name, module in CODECS_BY_FILE.items():
        if (folder / name).is_file():
            return read(module, folder, source, options)
    checkpoint = Checkpoint(folder)
    family = checkpoint.config.get("model_type")
    if family not in CODECS:
        raise ValueError(
            f"{source} has model_type={family!r}, which is no codec that is "
            f"known. Known: {', '.join(CODECS)}, and folders with "
            f"{', '.join(CODECS_BY_FILE)}."
        )
    return read(CODECS[family], checkpoint, source, options)


def tokenizer_from(source, layer, centroids=None, num_clusters=None):
    """A semantic tokenizer on the encoder of a public checkpoint.

    Families are HuBERT (`hf://facebook/hubert-base-ls960` and others) and
    w2v-BERT 2.0 (`hf://facebook/w2v-bert-2.0`), in the layout of
    `transformers`. Blocks after `layer` are left out. Nothing in
    the files is executed.

    Args:
        source: as of `codec_from`.
        layer: int. Block whose activations are clustered, counted from 1: that
            of which others write `hidden_states[layer]` or `output_layer`.
        centroids: path, optional. A `.npy` file `(clusters, dim)`, or
            scikit-learn's k-means as joblib or pickle keep it. Without, call
            `fit_kmeans` before tokenizing.
        num_clusters: int. Without `centroids`, how many there will be.

    Returns:
        A `SemanticTokenizer`; `save_to_preset` keeps it.

    Raises:
        ImportError: without a package that reads the files.
        ValueError: as of `codec_from`, on a layer that there is not, and on
            centroids of another dimension or none at all.

    Example:

    ```python
    tokenizer = keras_audiolm.tokenizer_from(
        "hf://facebook/hubert-base-ls960", layer=9, num_clusters=500
    )
    tokenizer.fit_kmeans(lambda: iter(crops))
    ```
    """
    from keras_audiolm.convert.centroids import read_centroids
    from keras_audiolm.semantic.tokenizer import SemanticTokenizer

    if (centroids is None) == (num_clusters is None):
        raise ValueError(
            "Give `centroids`, a file, or `num_clusters`, how many to fit. "
            f"Received: centroids={centroids}, num_clusters={num_clusters}"
        )
    checkpoint = Checkpoint(find_source(source))
    family = checkpoint.config.get("model_type")
    if family not in ENCODERS:
        raise ValueError(
            f"{source} has model_type={family!r}, which is no encoder that is "
            f"known. Known: {', '.join(ENCODERS)}."
        )
    places = None if centroids is None else read_centroids(centroids)
    encoder = importlib.import_module(ENCODERS[family]).read_encoder(
        checkpoint, num_layers=layer
    )
    if places is None:
        return SemanticTokenizer(encoder, num_clusters, layer)
    if places.shape[1] != encoder.hidden_dim:
        raise ValueError(
            f"{centroids} has centroids of {places.shape[1]} dimensions, and "
            f"the encoder has {encoder.hidden_dim}."
        )
    tokenizer = SemanticTokenizer(encoder, len(places), layer)
    tokenizer.kmeans.centroids.assign(places)
    tokenizer.kmeans.counts.assign([1.0] * len(places))
    return tokenizer


def read(module, files, source, options):
    read_codec = importlib.import_module(module).read_codec
    try:
        return read_codec(files, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"{source}: {error}") from None


def find_source(source):
    """The local folder of a source.

    Raises:
        ValueError: if there is none.
    """
    text = str(source)
    if text.startswith("hf://"):
        return from_hugging_face(text.removeprefix("hf://"))
    if "://" in text:
        return presets.download(text)
    folder = pathlib.Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"{source} is not a folder. An address begins with hf:// or "
            "kaggle://."
        )
    return folder


def from_hugging_face(repository):
    """A repository's configuration and tensors, and no more of it.

    What is in the cache is taken as it is, without a call.
    """
    huggingface_hub = presets.import_hugging_face()
    small = ["*.json", "*.safetensors"]
    try:
        cached = pathlib.Path(
            huggingface_hub.snapshot_download(repository, local_files_only=True)
        )
        if has_tensors(cached):
            return cached
    except huggingface_hub.errors.LocalEntryNotFoundError:
        pass
    folder = huggingface_hub.snapshot_download(repository, allow_patterns=small)
    if not has_tensors(pathlib.Path(folder)):
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=["*.json", PICKLED]
        )
    return pathlib.Path(folder)


def has_tensors(folder):
    return (folder / "config.json").is_file() and (
        any(folder.glob("*.safetensors")) or (folder / PICKLED).is_file()
    )
