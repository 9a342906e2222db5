import itertools

import numpy as np
import pytest
import soundfile

from keras_audiolm import AudioClassifier, AudioLMPipeline, cli, training
from keras_audiolm.evaluation import detector as detectors
from keras_audiolm.evaluation.detector import (
    DEGRADATIONS,
    DetectorCrops,
    detection_by_degradation,
    detection_figures,
    detector_crops,
    make_detector,
    make_examples,
    synthetic_probability,
)
from tests.tiny import SAMPLE_RATE, tiny_pipeline

RATE = 8000


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 4.0), ("b", 1.5), ("short", 0.5)):
        audio = rng.normal(0, 0.1, int(seconds * SAMPLE_RATE))
        soundfile.write(folder / f"{name}.wav", audio, SAMPLE_RATE)
    return folder


@pytest.fixture
def few_examples(monkeypatch):
    monkeypatch.setattr(detectors, "PROMPT_DURATION", 0.5)
    monkeypatch.setattr(detectors, "NEW_DURATION", 1.5)
    monkeypatch.setattr(detectors, "EXAMPLE_BATCH", 2)


# === Figures ===


def test_figures_by_hand():
    real, synthetic = [0.1, 0.2, 0.6, 0.3], [0.9, 0.4]
    found = detection_figures(np.array(real), np.array(synthetic))
    # One of four real ones and one of two synthetic ones are wrong.
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    wins = [s > r for r, s in itertools.product(real, synthetic)]
    assert found["area_under_roc"] == pytest.approx(np.mean(wins))
    assert (found["real"], found["synthetic"]) == (4, 2)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_figures_of_two_normal_distributions(shift):
    """Their equal error rate and area are known."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(0, 1, (2, 20000))
    found = detection_figures(real, synthetic + shift)
    assert found["equal_error_rate"] == pytest.approx(
        norm.cdf(-shift / 2), abs=0.01
    )
    assert found["area_under_roc"] == pytest.approx(
        norm.cdf(shift / np.sqrt(2)), abs=0.01
    )


def test_figures_need_both_kinds():
    with pytest.raises(ValueError, match="0 real and 3 synthetic"):
        detection_figures(np.zeros(0), np.ones(3))


class Loud:
    """Takes what is loud for synthetic."""

    labels = detectors.LABELS
    sample_rate = RATE
    window_duration = 1.0
    hop_duration = 0.5

    def classify_windows(self, clip):
        starts = range(0, len(clip) - RATE + 1, RATE // 2)
        loud = np.array([np.abs(clip[i : i + RATE]).mean() for i in starts])
        return np.stack([1 - loud, loud], axis=-1)


def test_degradations_keep_the_length_and_the_sound():
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    clip = (0.5 * np.sin(2 * np.pi * 440 * time)).astype("float32")
    for name, degrade in DEGRADATIONS.items():
        made = degrade(clip, SAMPLE_RATE)
        assert made.shape == clip.shape and made.dtype == "float32", name
        power = np.abs(np.fft.rfft(made))
        assert np.argmax(power) == 880, name
        assert (name == "nothing") == np.array_equal(made, clip)


def test_every_degradation_is_measured():
    quiet, loud = (np.full(2 * RATE, x, "float32") for x in (0.1, 0.9))
    found = detection_by_degradation(
        Loud(), [quiet, quiet[:100]], [loud, loud[:RATE]]
    )
    assert list(found) == list(DEGRADATIONS)
    for figures in (found["nothing"], found["noise at 20 dB"]):
        assert figures["balanced_accuracy"] == 1.0
        assert figures["equal_error_rate"] == 0.0
        assert (figures["real"], figures["synthetic"]) == (1, 2)
        windows = figures["windows"]
        assert (windows["real"], windows["synthetic"]) == (3, 4)
        assert figures["skipped"] == 1
    with pytest.raises(ValueError, match="1 real and 0 synthetic"):
        detection_by_degradation(Loud(), [quiet], [loud[:100]])


def test_a_clip_is_what_most_of_it_sounds_like():
    """The mean of its windows decides, not each of them."""
    quiet, loud = np.full(4 * RATE, 0.1, "float32"), np.full(RATE, 0.9)
    mostly_quiet = np.concatenate([quiet, loud]).astype("float32")
    mostly_loud = 1.0 - mostly_quiet
    found = detection_by_degradation(Loud(), [mostly_quiet], [mostly_loud])
    found = found["nothing"]
    assert found["balanced_accuracy"] == 1.0
    assert 0.5 < found["windows"]["balanced_accuracy"] < 1.0


def test_other_classifiers_are_no_detectors():
    other = AudioClassifier(["ann", "bob"], RATE, (2, 4))
    with pytest.raises(ValueError, match="ann, bob"):
        synthetic_probability(other, np.zeros(RATE, "float32"))


# === What it learns from ===


def test_crops_are_windows_of_clips():
    """Balanced, whole, every place as likely, and the same for a seed."""
    clips = {
        "real": [np.full(12, 1.0), np.full(10, 2.0)],
        "synthetic": [np.full(40, -1.0)],
    }
    crops = DetectorCrops(clips, 10, crops_per_class=50, steps_per_epoch=3)
    audio, labels = crops[0]
    assert audio.shape == (100, 10) and labels.tolist() == [0] * 50 + [1] * 50
    assert np.isfinite(audio).all()
    np.testing.assert_array_equal(audio, crops[0][0])
    assert not np.array_equal(audio, crops[1][0])
    crops.on_epoch_end()
    assert not np.array_equal(audio, crops[0][0])

    rng = np.random.default_rng(0)
    drawn = np.array([crops._window(rng, 0) for _ in range(400)])
    assert (drawn == drawn[:, :1]).all(), "a window over two clips"
    # The first clip has three places, the second one.
    assert np.mean(drawn[:, 0] == 1.0) == pytest.approx(0.75, abs=0.06)


def test_examples_are_made_once(recordings, tmp_path, few_examples):
    pipeline = tiny_pipeline()
    files = sorted(recordings.glob("*.wav"))
    made = make_examples(pipeline, files, tmp_path, seconds=3.0)
    # The one shorter than a window is left out, and of the others no more is
    # taken at once than a continuation lasts.
    assert {p.stem.split("-")[0] for p in made["real"]} == {"0", "1"}
    for path in made["real"]:
        sound, rate = soundfile.read(path)
        assert len(sound) == 1.5 * SAMPLE_RATE
    assert len(made["synthetic"]) == 2
    sound, rate = soundfile.read(made["synthetic"][0])
    assert (len(sound), rate) == (1.5 * SAMPLE_RATE, SAMPLE_RATE)

    pipeline.generate = None  # nothing is made again
    assert make_examples(pipeline, files, tmp_path, seconds=3.0) == made
    crops = detector_crops(make_detector(SAMPLE_RATE, (2, 4)), made)
    assert crops[0][0].shape == (32, SAMPLE_RATE)
    with pytest.raises(ValueError, match="none among the 1 files"):
        make_examples(
            pipeline, [recordings / "short.wav"], tmp_path, seconds=3.0
        )


def test_what_is_real_has_the_levels_that_are_generated(
    recordings, tmp_path, few_examples, monkeypatch
):
    pipeline = tiny_pipeline()
    asked = []

    def reconstruct(codec, clips, levels):
        asked.append(levels)
        return clips

    monkeypatch.setattr(detectors, "reconstruct", reconstruct)
    files = sorted(recordings.glob("*.wav"))
    for decoder in ("cascade", "coarse"):
        pipeline.sampling = {"acoustic_decoder": decoder}
        make_examples(pipeline, files, tmp_path / decoder, seconds=3.0)
    coarse = pipeline.coarse_lm.layout.predicted.levels
    assert asked == [pipeline.codec.num_quantizers, coarse]


# === As a part of a pipeline ===


def test_fit_adds_one(recordings, monkeypatch):
    asked = []
    monkeypatch.setattr(
        training, "fit_parts", lambda pipeline, parts, plan: asked.append(parts)
    )
    pipeline = tiny_pipeline()
    pipeline.fit(recordings)
    assert "detector" not in pipeline.part_names
    pipeline.fit(recordings, parts="detector")
    assert pipeline.detector.labels == detectors.LABELS
    # Where it is not asked for, it is left alone.
    pipeline.fit(recordings)
    models = ["semantic_lm", "coarse_lm", "fine_lm"]
    assert asked == [models, ["detector"], models]
    # And sound is made without it.
    assert pipeline.generate(duration=0.2).shape == (3200,)


def test_it_is_trained_and_kept(
    recordings, tmp_path, few_examples, monkeypatch, capsys
):
    monkeypatch.setattr(detectors, "EXAMPLE_SECONDS", 3.0)
    pipeline = tiny_pipeline()
    pipeline.add_part("detector", make_detector(SAMPLE_RATE, (2, 4)))
    history = pipeline.fit(
        recordings,
        parts="detector",
        steps_per_epoch=2,
        batch_size=4,
        token_dir=tmp_path / "tokens",
        verbose=0,
    )
    assert np.isfinite(history["detector"]["loss"]).all()
    assert "detector" in pipeline.trained_parts
    pipeline.save_to_preset(tmp_path / "preset")

    again = AudioLMPipeline.from_preset(tmp_path / "preset")
    alone = AudioClassifier.from_preset(tmp_path / "preset")
    clip = soundfile.read(recordings / "a.wav", dtype="float32")[0]
    expected = synthetic_probability(pipeline.detector, clip)
    for detector in (again.detector, alone):
        found = synthetic_probability(detector, clip)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    command = ["detect", str(recordings / "a.wav")]
    assert cli.main([*command, "--preset", str(tmp_path / "preset")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected[0]) + 1
    assert f"{expected[1].mean():.3f}, the mean of 7 windows" in lines[-1]

    # Other weights make other sound.
    for part in ("semantic_lm", "coarse_lm", "fine_lm", "parallel_decoder"):
        again.mark_trained("detector")
        again.mark_trained(part)
        assert "detector" not in again.trained_parts, part


def test_a_preset_without_a_detector(tiny_preset, recordings, capsys):
    command = ["detect", str(recordings / "a.wav"), "--preset"]
    assert cli.main([*command, str(tiny_preset)]) == 1
    assert "has no detector" in capsys.readouterr().err
