"""A preset's name, folder or address -> its parts, and back.

A preset is a folder of ordinary files:

    metadata.json            which parts there are and which are trained
    README.md                the model card
    <part>/config.json       the part's class and constructor arguments
    <part>/model.weights.h5  its weights, for the trained parts

Nothing in it is executed: configurations are JSON whose class names are
checked against this package's before anything is built.
"""

import datetime
import importlib
import json
import os
import pathlib
import shutil
import tempfile

from keras_audiolm._bundled import (
    bundled_preset_names,
    bundled_presets_dir,
    suggest,
)
from keras_audiolm.version import __version__

FORMAT = 1
PARTS = (
    "codec",
    "semantic_tokenizer",
    "semantic_lm",
    "coarse_lm",
    "fine_lm",
    "parallel_decoder",
    "detector",
)
# A pipeline may do without these.
OPTIONAL_PARTS = ("fine_lm", "parallel_decoder", "detector")
# The parts that learn what a part makes.
DEPENDENTS = {
    "codec": ("coarse_lm", "fine_lm", "parallel_decoder", "detector"),
    "semantic_tokenizer": (
        "semantic_lm",
        "coarse_lm",
        "parallel_decoder",
        "detector",
    ),
    "semantic_lm": ("detector",),
    "coarse_lm": ("detector",),
    "fine_lm": ("detector",),
    "parallel_decoder": ("detector",),
}
# What each part may be. Nothing else is ever built from a preset.
PART_CLASSES = {
    "codec": ("SoundStream", "EnCodec", "WindowedEnCodec", "DAC", "Mimi"),
    "semantic_tokenizer": ("SemanticTokenizer",),
    "semantic_lm": ("StageLM",),
    "coarse_lm": ("StageLM",),
    "fine_lm": ("StageLM",),
    "parallel_decoder": ("ParallelDecoder",),
    "detector": ("AudioClassifier",),
}
NESTED_CLASSES = {"Hubert", "StageBackbone", "W2vBert", "W2vBert2"}
KERAS_CLASSES = {"DTypePolicy"}
# Where each part's class, and what it nests, are defined: importing them
# registers them, before they are asked for by name.
MODULES = {
    "SoundStream": ("keras_audiolm.codec.soundstream",),
    "EnCodec": ("keras_audiolm.codec.encodec",),
    "WindowedEnCodec": ("keras_audiolm.codec.windowed_encodec",),
    "DAC": ("keras_audiolm.codec.dac",),
    "Mimi": ("keras_audiolm.codec.mimi",),
    "SemanticTokenizer": (
        "keras_audiolm.semantic.tokenizer",
        "keras_audiolm.semantic.hubert",
        "keras_audiolm.semantic.w2v_bert",
        "keras_audiolm.semantic.w2v_bert_2",
    ),
    "StageLM": ("keras_audiolm.language_model.stage_lm",),
    "ParallelDecoder": ("keras_audiolm.language_model.parallel_decoder",),
    "AudioClassifier": ("keras_audiolm.evaluation.classifier",),
}


def find_preset(preset):
    """A preset's local folder, downloaded where it is not local.

    Args:
        preset: the name of a bundled preset, a folder,
            `kaggle://owner/model/framework/variation` or `hf://owner/name`.

    Returns:
        `pathlib.Path`.

    Raises:
        ValueError: if there is no such preset; it names what there is.
    """
    text = str(preset)
    if "://" in text:
        return download(text)
    folder = pathlib.Path(preset).expanduser()
    if folder.is_dir() and (folder / "metadata.json").exists():
        return folder
    if text in bundled_preset_names():
        return bundled_presets_dir() / text
    if folder.is_dir():
        raise ValueError(f"{folder} is not a preset: it has no metadata.json.")
    raise ValueError(
        f"There is no preset {text!r}: it is not the name of a bundled preset "
        "nor a folder. An address starts with kaggle:// or hf://."
        + suggest(text, bundled_preset_names())
    )


def download(address):
    """The local folder of a `kaggle://` or `hf://` address, in their caches.

    Raises:
        ValueError: on another address.
    """
    if address.startswith("kaggle://"):
        return _from_kaggle(address.removeprefix("kaggle://"))
    if address.startswith("hf://"):
        return _from_hugging_face(address.removeprefix("hf://"))
    raise ValueError(
        f"Addresses are of kaggle:// and hf://. Received: {address}"
    )


def _from_kaggle(handle):
    try:
        import kagglehub
    except ImportError as error:
        raise ValueError(
            "kaggle:// presets need kagglehub: pip install 'keras-audiolm[hub]'"
        ) from error
    return pathlib.Path(kagglehub.model_download(handle))


def _from_hugging_face(repository):
    hub = import_hugging_face()
    return pathlib.Path(hub.snapshot_download(repository))


def import_hugging_face():
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            "hf:// addresses need huggingface_hub: pip install "
            "'keras-audiolm[hub]'"
        ) from error
    return huggingface_hub


# === Reading ===


def read_json(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"The preset is incomplete: {path} is missing."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def read_metadata(folder):
    """`metadata.json`, checked.

    Raises:
        ValueError: on a missing or foreign file, or parts that do not exist.
    """
    path = _inside(folder, folder / "metadata.json")
    metadata = read_json(path)
    names = ("parts", "trained")
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(name), list) for name in names
    ):
        raise ValueError(f"{path} does not describe a keras_audiolm preset.")
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}; this version of "
            f"keras_audiolm reads format {FORMAT}."
        )
    for name in (*metadata["parts"], *metadata["trained"]):
        if name not in PARTS:
            raise ValueError(
                f"{path} names a part {name!r}. Parts are {', '.join(PARTS)}."
            )
    return metadata


def read_card(folder):
    """The text of the model card, or `None` where there is none."""
    path = _inside(folder, folder / "README.md")
    return path.read_text(errors="replace") if path.is_file() else None


def read_config(folder, part):
    """A part's `config.json`, its class names checked.

    Raises:
        ValueError: on a file that is missing, leads out of the preset, or
            names another class than the part's.
    """
    path = _inside(folder, folder / part / "config.json")
    config = read_json(path)
    expected = [f"keras_audiolm>{name}" for name in PART_CLASSES[part]]
    if _class_name(config) not in expected:
        raise ValueError(
            f"{path} describes a {_class_name(config)!r}, which a {part} "
            f"cannot be. Expected: {', '.join(map(repr, expected))}"
        )
    _check_classes(config["config"], path)
    return config


def _class_name(config):
    if not isinstance(config, dict) or not isinstance(
        config.get("config"), dict
    ):
        return None
    return config.get("registered_name")


def _check_classes(value, path):
    """Refuses every class that is not on the list, however deep it stands."""
    if isinstance(value, list):
        for item in value:
            _check_classes(item, path)
    if not isinstance(value, dict):
        return
    if "class_name" in value or "registered_name" in value:
        name = value.get("registered_name") or value.get("class_name")
        ours = {f"keras_audiolm>{n}" for n in NESTED_CLASSES}
        keras_own = (
            value.get("module") == "keras"
            and name in KERAS_CLASSES
            and value.get("class_name") == name
        )
        if name not in ours and not keras_own:
            raise ValueError(
                f"{path} names the class {name!r}, which does not belong in a "
                "preset. Nothing was loaded."
            )
    for item in value.values():
        _check_classes(item, path)


def _inside(folder, path):
    """`path`, if it does not lead out of the preset.

    A hub's cache keeps its files beside the snapshot's links to them.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if not path.resolve().is_relative_to(root):
        raise ValueError(
            f"{path} leads out of the preset, to {path.resolve()}. Nothing "
            "was loaded."
        )
    return path


def load_part(folder, part, load_weights=True, dtype=None):
    """Builds one part of a preset.

    Args:
        folder: `pathlib.Path` of the preset.
        part: str.
        load_weights: bool.
        dtype: str, optional. A policy in the place of the preset's. The
            codec and a trained tokenizer keep theirs: another would make
            other tokens than those that the language models know.

    Raises:
        ValueError: on files that are missing or do not fit each other.
    """
    config = read_config(folder, part)
    makes_tokens = part == "codec" or (
        part == "semantic_tokenizer" and load_weights
    )
    if dtype and not makes_tokens:
        config = with_policy(config, dtype)
    class_name = _class_name(config).removeprefix("keras_audiolm>")
    modules = [importlib.import_module(name) for name in MODULES[class_name]]
    cls = getattr(modules[0], class_name)
    try:
        model = cls.from_config(config["config"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / part / 'config.json'} does not fit {class_name}: "
            f"{error}"
        ) from error
    if not model.built:
        model.build()
    if load_weights:
        _load_weights(model, _inside(folder, folder / part / WEIGHTS))
    return model


def with_policy(config, dtype):
    """A model's configuration with another dtype policy throughout."""
    if isinstance(config, list):
        return [with_policy(item, dtype) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": dtype}}
    return {name: with_policy(item, dtype) for name, item in config.items()}


WEIGHTS = "model.weights.h5"


def _load_weights(model, path):
    if not path.is_file():
        raise ValueError(f"The preset is incomplete: {path} is missing.")
    try:
        model.load_weights(path)
        # Keras leaves alone what a file holds beyond the model's weights.
        found, expected = count_arrays(path), len(model.weights)
        if found != expected:
            raise ValueError(f"it has {found} arrays, not {expected}")
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{path} does not hold the weights that its config.json "
            f"describes: {error}"
        ) from error


def count_arrays(path):
    """How many arrays a weights file holds, an optimizer's left out."""
    import h5py

    names = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                names.append(name)
                if isinstance(item, h5py.Dataset) and not _of_optimizer(name)
                else None
            )
        )
    return len(names)


def _of_optimizer(name):
    return "optimizer" in name.split("/")


class PresetPart:
    """What loads one part of a preset, and keeps it as a preset of its own.

    A mix-in for models; `part` is the part's name.
    """

    part = None

    @classmethod
    def from_preset(cls, preset, load_weights=True):
        """The model of a preset.

        Args:
            preset: the name of a bundled preset, a folder,
                `kaggle://owner/model/framework/variation` or
                `hf://owner/name`: of this part alone, or of a whole pipeline.
            load_weights: bool. Otherwise it has the preset's sizes only.

        Raises:
            ValueError: if there is no such preset, its files do not fit, its
                model is of another class, or it is untrained and the weights
                were asked for.
        """
        folder = find_preset(preset)
        metadata = read_metadata(folder)
        if cls.part not in metadata["parts"]:
            raise ValueError(
                f"{preset} has no {cls.part}. It has "
                f"{', '.join(metadata['parts'])}."
            )
        if load_weights and cls.part not in metadata["trained"]:
            raise ValueError(
                f"The {cls.part} of {preset} is untrained. Pass "
                "load_weights=False for its sizes."
            )
        model = load_part(folder, cls.part, load_weights)
        if not isinstance(model, cls):
            raise ValueError(
                f"The {cls.part} of {preset} is of class "
                f"{type(model).__name__}, not {cls.__name__}."
            )
        return model

    def save_to_preset(self, folder, card=None, dtype="float32"):
        """Writes the model as a preset of its own, or nothing at all.

        Args:
            folder: path. A preset that stands there is replaced.
            card: str, optional. The text of README.md.
            dtype: `"float32"` or `"float16"`: of the weights on disk.

        Raises:
            ValueError: if `folder` holds something else.
        """
        save_preset(
            folder, {self.part: self}, (self.part,), {}, card=card, dtype=dtype
        )


# === Writing ===


def save_part(model, folder, dtype="float32"):
    """Writes a part's `config.json` and `model.weights.h5`."""
    write_config(part_config(model), folder)
    model.save_weights(folder / WEIGHTS)
    cast_weights(folder / WEIGHTS, dtype)


def write_config(config, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def part_config(model):
    """The configuration that `config.json` holds of a model."""
    import keras

    return _without_state(keras.saving.serialize_keras_object(model))


def _without_state(config):
    """A configuration without what `build` and `compile` left, at any depth."""
    if isinstance(config, list):
        return [_without_state(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {
        key: _without_state(value)
        for key, value in config.items()
        if key not in ("build_config", "compile_config")
    }


def cast_weights(path, dtype):
    """Rewrites a weights file, smaller.

    What an optimizer left there, twice the weights, is dropped. The float32
    arrays become `dtype`, and where this is another type they are packed. Of
    float16's ten bits of mantissa two are rounded away first: the eight that
    stay are one more than bfloat16 has, and the zeros pack.
    """
    import h5py

    temporary = path.with_suffix(".tmp")
    with h5py.File(path) as source, h5py.File(temporary, "w") as target:

        def copy(name, item):
            if _of_optimizer(name):
                return
            if isinstance(item, h5py.Group):
                group = target.require_group(name)
                group.attrs.update(item.attrs)
                return
            data, packing = item[()], {}
            if data.dtype == "float32" and data.shape and dtype != "float32":
                data = data.astype(dtype)
                packing = {"compression": "gzip", "shuffle": True}
                if dtype == "float16":
                    bits = data.view("uint16").astype("uint32") + 2
                    data = (bits & 0xFFFC).astype("uint16").view("float16")
            made = target.create_dataset(name, data=data, **packing)
            made.attrs.update(item.attrs)

        target.attrs.update(source.attrs)
        source.visititems(copy)
    os.replace(temporary, path)


def check_target(folder):
    """The `pathlib.Path` of a folder that a preset may be written to.

    Raises:
        ValueError: if something else than a preset stands there.
    """
    folder = pathlib.Path(folder).expanduser()
    if folder.exists() and not (folder / "metadata.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(
                f"{folder} exists and is not a preset; it is left alone. Give "
                "another folder."
            )
    return folder


def save_preset(
    folder, parts, trained, configs, sampling=(), card=None, dtype="float32"
):
    """Writes a whole preset, or nothing.

    It is written under a temporary name beside `folder` and renamed when it is
    whole; a preset that stood there is replaced then.

    Args:
        folder: path.
        parts: dictionary of part name -> model, or `None` where the part has
            never been built.
        trained: names of trained parts; the others get no weights.
        configs: dictionary of part name -> configuration, for parts that have
            never been built.
        sampling: dictionary of defaults of generation.
        card: str. The text of README.md.
        dtype: str. Of the weights on disk.
    """
    folder = check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(
        tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    )
    try:
        for name, model in parts.items():
            if name in trained:
                save_part(model, temporary / name, dtype)
            else:
                config = configs[name] if model is None else part_config(model)
                write_config(config, temporary / name)
        write_metadata(temporary, parts, trained, sampling)
        if card:
            (temporary / "README.md").write_text(card)
        os.chmod(temporary, 0o755)
        _replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_metadata(folder, parts, trained, sampling=()):
    import keras

    metadata = {
        "format": FORMAT,
        "keras_audiolm_version": __version__,
        "keras_version": keras.__version__,
        "parts": list(parts),
        "trained": [name for name in parts if name in trained],
        "parameters": {
            name: model.count_params()
            for name, model in parts.items()
            if model is not None and model.built
        },
        "sampling": dict(sampling),
        "date_saved": datetime.date.today().isoformat(),
    }
    text = json.dumps(metadata, indent=2) + "\n"
    (folder / "metadata.json").write_text(text)


def _replace_folder(new, folder):
    """Renames `new` to `folder`, whose old content goes last of all."""
    old = None
    if folder.exists():
        old = folder.with_name(f"{new.name}-old")
        os.replace(folder, old)
    os.replace(new, folder)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def check_parts(parts, trained):
    """Raises `ValueError` unless these are the parts of a pipeline."""
    for name in (*parts, *trained):
        if name not in PARTS:
            raise ValueError(
                f"There is no part {name!r}. Parts are {', '.join(PARTS)}."
            )
    required = [name for name in PARTS if name not in OPTIONAL_PARTS]
    for name in (*required, *trained):
        if name not in parts:
            raise ValueError(
                f"The part {name!r} is missing. Received: {list(parts)}"
            )


def check_weights(folder, part):
    """Raises `ValueError` unless a trained part's weights are there."""
    path = _inside(folder, folder / part / WEIGHTS)
    if not path.is_file():
        raise ValueError(f"The preset is incomplete: {path} is missing.")
