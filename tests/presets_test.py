import json
import shutil

import h5py
import numpy as np
import pytest

from keras_audiolm import AudioLMPipeline, presets
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    pipeline.save_to_preset(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    return folder


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_saved_and_loaded_gives_the_same_sound(pipeline, saved):
    loaded = AudioLMPipeline.from_preset(saved)
    assert loaded.trained_parts == pipeline.trained_parts
    a, b = (p.generate(duration=0.4, seed=0) for p in (pipeline, loaded))
    np.testing.assert_array_equal(a, b)


def test_half_precision_is_half_the_size(pipeline, saved, tmp_path):
    pipeline.save_to_preset(tmp_path / "half", dtype="float16")
    weights = "codec/model.weights.h5"

    def float_bytes(folder):
        sizes = []
        with h5py.File(folder / weights) as file:
            file.visititems(
                lambda _, x: (
                    sizes.append(x.nbytes)
                    if isinstance(x, h5py.Dataset) and x.shape
                    else None
                )
            )
        return sum(sizes)

    assert float_bytes(tmp_path / "half") < 0.6 * float_bytes(saved)
    loaded = AudioLMPipeline.from_preset(tmp_path / "half")
    for a, b in zip(
        pipeline.codec.get_weights(), loaded.codec.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=4e-3, atol=1e-4)


def test_the_card_stays_with_the_weights(copy, tmp_path):
    (copy / "README.md").write_text("A card")
    for load_weights in (True, False):
        loaded = AudioLMPipeline.from_preset(copy, load_weights)
        again = tmp_path / str(load_weights)
        loaded.save_to_preset(again)
        assert (again / "README.md").is_file() == load_weights


def test_without_weights_nothing_is_trained(saved):
    loaded = AudioLMPipeline.from_preset(saved, load_weights=False)
    assert loaded.trained_parts == []
    assert loaded.codec.num_quantizers == 3


def test_parts_are_built_when_first_touched(saved):
    loaded = AudioLMPipeline.from_preset(saved)
    assert not any(loaded._parts.values())
    assert loaded.sample_rate == 16000
    assert not any(loaded._parts.values())
    assert loaded.codec is loaded.codec


@pytest.mark.parametrize("name", ["librilight", "piano"])
def test_paper_sizes_return_at_once_and_say_what_is_untrained(name):
    pipeline = AudioLMPipeline.from_preset(name)
    assert not any(pipeline._parts.values())
    assert pipeline.trained_parts == []
    assert ("fine_lm" in pipeline.part_names) == (name == "librilight")
    with pytest.raises(ValueError, match="codec.*untrained"):
        pipeline.generate(duration=1)
    configs = {n: c["config"] for n, c in pipeline._configs.items()}
    encoder = configs["semantic_tokenizer"]["encoder"]["config"]
    assert encoder["num_contrastive_layers"] == 12
    assert encoder["num_masked_layers"] == 12
    assert encoder["hidden_dim"] == 1024
    assert configs["semantic_tokenizer"]["num_clusters"] == 1024
    assert configs["semantic_tokenizer"]["layer"] == 7
    for stage, crop in (("semantic_lm", 30), ("coarse_lm", 10), ("fine_lm", 3)):
        if stage in configs:
            backbone = configs[stage]["backbone"]["config"]
            assert backbone["num_layers"] == 12
            assert backbone["hidden_dim"] == 1024
            assert configs[stage]["crop_duration"] == crop
    levels = 12 if name == "librilight" else 3
    assert configs["codec"]["num_quantizers"] == levels


def test_untrained_preset_round_trip(tmp_path):
    pipeline = AudioLMPipeline.from_preset("piano")
    pipeline.save_to_preset(tmp_path / "piano")
    again = AudioLMPipeline.from_preset(tmp_path / "piano")
    assert again._configs == pipeline._configs


# === What bad presets get ===


@pytest.mark.parametrize(
    "name, message",
    [
        ("voices_smal", "voices_smal"),
        ("no/such/folder", "no/such/folder"),
        ("s3://bucket/preset", "kaggle:// and hf://"),
    ],
)
def test_unknown_presets(name, message):
    with pytest.raises(ValueError, match=message):
        AudioLMPipeline.from_preset(name)


def test_folder_that_is_no_preset(tmp_path):
    with pytest.raises(ValueError, match="metadata.json"):
        AudioLMPipeline.from_preset(tmp_path)


@pytest.mark.parametrize(
    "file",
    ["coarse_lm/config.json", "coarse_lm/model.weights.h5"],
)
def test_missing_file_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(ValueError, match=file.split("/")[1]):
        AudioLMPipeline.from_preset(copy)


def test_truncated_weights(copy):
    path = copy / "codec/model.weights.h5"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="codec/model.weights.h5"):
        _ = AudioLMPipeline.from_preset(copy).codec


def test_wrong_shape(copy):
    edit(
        copy / "codec/config.json",
        lambda c: c["config"].update(codebook_size=17),
    )
    with pytest.raises(ValueError, match="codec/model.weights.h5"):
        _ = AudioLMPipeline.from_preset(copy).codec


def test_weights_of_more_layers(copy):
    edit(
        copy / "coarse_lm/config.json",
        lambda c: c["config"]["backbone"]["config"].update(num_layers=0),
    )
    with pytest.raises(ValueError, match="coarse_lm/model.weights.h5.*arrays"):
        _ = AudioLMPipeline.from_preset(copy).coarse_lm


@pytest.mark.parametrize("argument", ["colour", "dtype"])
def test_unfit_argument(copy, argument):
    edit(
        copy / "codec/config.json",
        lambda c: c["config"].update({argument: "blue"}),
    )
    pattern = f"codec/config.json.*({argument}|blue)"
    with pytest.raises(ValueError, match=pattern):
        _ = AudioLMPipeline.from_preset(copy).codec


@pytest.mark.parametrize("name", ["parts", "trained"])
def test_metadata_without_lists(copy, name):
    edit(copy / "metadata.json", lambda c: c.update({name: None}))
    with pytest.raises(ValueError, match="metadata.json does not describe"):
        AudioLMPipeline.from_preset(copy)


def test_sample_rate_may_be_left_to_the_codec(copy):
    edit(copy / "codec/config.json", lambda c: c["config"].pop("sample_rate"))
    pipeline = AudioLMPipeline.from_preset(copy)
    assert pipeline.sample_rate == pipeline.codec.sample_rate


@pytest.mark.parametrize(
    "foreign",
    [
        {"class_name": "Lambda", "registered_name": "Lambda"},
        {"class_name": "Lambda", "module": "keras.layers", "config": {}},
        {"class_name": "system", "module": "os", "registered_name": "system"},
    ],
)
def test_foreign_classes_are_refused(copy, foreign):
    edit(
        copy / "codec/config.json",
        lambda c: c["config"].update(dtype=foreign),
    )
    with pytest.raises(ValueError, match="does not belong"):
        AudioLMPipeline.from_preset(copy)


def test_part_of_another_class(copy):
    shutil.copy(copy / "codec/config.json", copy / "fine_lm/config.json")
    with pytest.raises(ValueError, match="fine_lm.*SoundStream|SoundStream"):
        AudioLMPipeline.from_preset(copy)


def test_part_name_that_climbs_out(copy):
    edit(
        copy / "metadata.json",
        lambda c: c["parts"].append("../../elsewhere"),
    )
    with pytest.raises(ValueError, match="elsewhere"):
        AudioLMPipeline.from_preset(copy)


@pytest.mark.parametrize(
    "file", ["metadata.json", "README.md", "codec/config.json"]
)
def test_link_that_leads_out(copy, tmp_path, file):
    (copy / "README.md").write_text("A card")
    outside = tmp_path / "outside"
    shutil.move(copy / file, outside)
    (copy / file).symlink_to(outside)
    with pytest.raises(ValueError, match="leads out"):
        AudioLMPipeline.from_preset(copy)


def test_links_of_a_hub_cache_are_followed(saved, tmp_path):
    root = tmp_path / "models--owner--name"
    shutil.copytree(saved, root / "blobs")
    snapshot = root / "snapshots" / "abc"
    for path in (root / "blobs").rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(root / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    assert AudioLMPipeline.from_preset(snapshot).codec.built


def test_foreign_format(copy):
    edit(copy / "metadata.json", lambda c: c.update(format=99))
    with pytest.raises(ValueError, match="99"):
        AudioLMPipeline.from_preset(copy)


# === Nothing is lost or left half written ===


def test_other_folders_are_left_alone(pipeline, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match="left alone"):
        pipeline.save_to_preset(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


def test_failed_save_keeps_the_old_preset(copy, pipeline, monkeypatch):
    before = sorted(p.relative_to(copy) for p in copy.rglob("*"))

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(presets, "write_metadata", fail)
    with pytest.raises(OSError, match="disk full"):
        pipeline.save_to_preset(copy)
    assert sorted(p.relative_to(copy) for p in copy.rglob("*")) == before
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_saving_over_a_preset_replaces_it(copy, pipeline):
    (copy / "README.md").write_text("old")
    pipeline.save_to_preset(copy)
    assert not (copy / "README.md").exists()
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


# === Addresses ===


def test_hub_addresses(saved, monkeypatch):
    import sys
    import types

    asked = []

    def download(handle):
        asked.append(handle)
        return str(saved)

    kaggle = types.SimpleNamespace(model_download=download)
    face = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "kagglehub", kaggle)
    monkeypatch.setitem(sys.modules, "huggingface_hub", face)
    for address in ("kaggle://a/b/keras/c", "hf://owner/name"):
        assert AudioLMPipeline.from_preset(address).trained_parts
    assert asked == ["a/b/keras/c", "owner/name"]


@pytest.mark.parametrize("module", ["kagglehub", "huggingface_hub"])
def test_hub_packages_are_asked_for(monkeypatch, module):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    address = {"kagglehub": "kaggle://a", "huggingface_hub": "hf://a"}[module]
    with pytest.raises(ValueError, match=rf"{module}.*\[hub\]"):
        AudioLMPipeline.from_preset(address)


def test_untrained_parts_keep_their_sizes(tmp_path):
    pipeline = tiny_pipeline(trained=False)
    pipeline.save_to_preset(tmp_path / "sizes")
    loaded = AudioLMPipeline.from_preset(tmp_path / "sizes")
    assert loaded.trained_parts == []
    assert loaded.codec.get_config() == pipeline.codec.get_config()
    assert not list(tmp_path.rglob("*.h5"))


def test_a_preset_does_not_hold_how_it_was_trained(tmp_path, monkeypatch):
    pipeline = tiny_pipeline()
    for model in (pipeline.semantic_tokenizer.encoder, pipeline.coarse_lm):
        model.compile("adamw")
        model.optimizer.build(model.trainable_variables)
    pipeline.save_to_preset(tmp_path / "compiled")
    for path in tmp_path.rglob("config.json"):
        assert "AdamW" not in path.read_text()
    monkeypatch.setattr(presets, "_of_optimizer", lambda name: False)
    for name in pipeline.part_names:
        weights = tmp_path / "compiled" / name / presets.WEIGHTS
        assert presets.count_arrays(weights) == len(pipeline.part(name).weights)
    loaded = AudioLMPipeline.from_preset(tmp_path / "compiled")
    for name in loaded.part_names:
        for a, b in zip(
            loaded.part(name).get_weights(),
            pipeline.part(name).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_a_codec_alone_is_no_pipeline(tmp_path):
    tiny_pipeline().codec.save_to_preset(tmp_path / "codec")
    with pytest.raises(ValueError, match="codec alone.*SoundStream.from_pre"):
        AudioLMPipeline.from_preset(tmp_path / "codec")
