import numpy as np
import pytest
import soundfile
from keras import ops

from keras_audiolm.evaluation.classifier import (
    AudioClassifier,
    LabelledCrops,
    equalise,
)

RATE = 8000
SMALL = {"sample_rate": RATE, "channels": (4, 8, 8), "num_mels": 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two voices: low and high tones, in noise."""
    folder = tmp_path_factory.mktemp("voices")
    rng = np.random.default_rng(0)
    files = {}
    for label, frequency in (("low", 300), ("high", 2000)):
        (folder / label).mkdir()
        for i in range(3):
            time = np.arange(2 * RATE) / RATE
            pitch = frequency * rng.uniform(0.9, 1.1)
            audio = 0.3 * np.sin(2 * np.pi * pitch * time)
            audio += rng.normal(0, 0.01, len(time))
            path = folder / label / f"{i}.wav"
            soundfile.write(path, audio, RATE)
            files.setdefault(label, []).append(path)
    return files


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def test_learns_to_tell_two_voices_apart(files):
    crops = LabelledCrops(
        files, RATE, crops_per_class=4, steps_per_epoch=15, noise_db=(20, 40)
    )
    classifier = AudioClassifier(crops.labels, **SMALL)
    classifier.compile("adam")
    classifier.optimizer.learning_rate = 1e-2
    history = classifier.fit(crops, epochs=2, verbose=0).history
    assert history["loss"][-1] < 0.3
    assert history["accuracy"][-1] > 0.9
    for label, paths in files.items():
        # Half as loud, as neither the crops nor a codec keep the level.
        probabilities = classifier.classify(0.5 * read(paths[0]))
        assert classifier.labels[int(np.argmax(probabilities))] == label


def test_paper_sizes():
    """Six blocks, three poolings, 291 speakers: counted by hand."""
    classifier = AudioClassifier([str(i) for i in range(291)])
    widths = (1, 64, 128, 256, 256, 512, 512)
    expected = 512 * 291 + 291
    for before, width in zip(widths, widths[1:], strict=False):
        # 3x1, 1x3, and scale, shift, mean and variance.
        expected += 3 * before * width + 3 * width * width + 6 * width
    assert classifier.count_params() == expected
    pools = [x for x in classifier.network.layers if "pooling" in x.name]
    assert len(pools) == 3 + 1  # and the mean at the end


def test_classify_averages_windows():
    """Windows of 1 s every 250 ms, none padded."""
    classifier = AudioClassifier("ab", **SMALL)
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, (2, round(1.6 * RATE))).astype("float32")
    windows = [audio[:, i : i + RATE] for i in (0, RATE // 4, RATE // 2)]
    expected = np.mean(
        [ops.convert_to_numpy(ops.softmax(classifier(w))) for w in windows],
        axis=0,
    )
    found = classifier.classify(audio)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(
        classifier.classify(audio[1]), expected[1], atol=1e-5
    )


def test_many_windows_equal_few():
    """More windows than go through at once, and the order of rows is kept."""
    classifier = AudioClassifier("ab", **SMALL)
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, (3, 5 * RATE)).astype("float32")
    audio *= np.array([[1.0], [0.1], [0.01]], "float32")
    rows = np.stack([classifier.classify(row) for row in audio])
    np.testing.assert_allclose(classifier.classify(audio), rows, atol=1e-5)


def test_short_audio_is_repeated():
    classifier = AudioClassifier("ab", **SMALL)
    rng = np.random.default_rng(0)
    short = rng.normal(0, 0.1, RATE // 3).astype("float32")
    np.testing.assert_allclose(
        classifier.classify(short),
        classifier.classify(np.tile(short, 4)[:RATE]),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros((1, 2, 3)), r"\(1, 2, 3\)"),
        (np.zeros(0), r"\(0,\)"),
        (np.array([0.0, np.nan]), "1 samples that are not finite"),
    ],
)
def test_classify_refuses(audio, message):
    with pytest.raises(ValueError, match=message):
        AudioClassifier("ab", **SMALL).classify(audio)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"labels": ["a"]}, "two or more"),
        ({"labels": ["a", "a"]}, "different names"),
        ({"labels": "ab", "hop_duration": 0}, "hop_duration=0"),
        ({"labels": "ab", "window_duration": -1}, "window_duration=-1"),
    ],
)
def test_constructor_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        AudioClassifier(**settings)


def test_config_and_weights_round_trip(tmp_path):
    classifier = AudioClassifier("ab", **SMALL, hop_duration=0.5, seed=1)
    # Not what a new one would start with.
    for variable in classifier.weights:
        variable.assign(variable * 1.5 + 0.01)
    path = tmp_path / "classifier.weights.h5"
    classifier.save_weights(path)
    copy = AudioClassifier.from_config(classifier.get_config())
    assert copy.get_config() == classifier.get_config()
    copy.load_weights(path)
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, 2 * RATE).astype("float32")
    np.testing.assert_allclose(
        copy.classify(audio), classifier.classify(audio), atol=1e-6
    )


# === LabelledCrops ===


def test_batches_hold_as_many_crops_of_each_class(files):
    crops = LabelledCrops(files, RATE, crops_per_class=3, steps_per_epoch=2)
    audio, labels = crops[1]
    assert audio.shape == (6, RATE) and audio.dtype == "float32"
    assert crops.labels == ("low", "high")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    power = np.abs(np.fft.rfft(audio)) ** 2
    low = power[:, :1000].sum(axis=1) / power.sum(axis=1)  # below 1 kHz
    assert (low[:3] > 0.5).all() and (low[3:] < 0.5).all()
    assert len(crops) == 2


def test_batches_depend_on_seed_epoch_and_index(files):
    def batch(seed, epochs, index):
        crops = LabelledCrops(files, RATE, crops_per_class=1, seed=seed)
        for _ in range(epochs):
            crops.on_epoch_end()
        return crops[index][0]

    np.testing.assert_array_equal(batch(0, 1, 2), batch(0, 1, 2))
    for other in ((1, 1, 2), (0, 0, 2), (0, 1, 3)):
        assert np.abs(batch(0, 1, 2) - batch(*other)).max() > 1e-3


def test_without_augmentation_crops_are_pieces_of_files(files):
    crops = LabelledCrops(
        {"low": files["low"][:1]},
        RATE,
        duration=0.1,
        crops_per_class=1,
        gain_db=None,
        equaliser_db=0.0,
        noise_db=None,
    )
    crop = crops[0][0][0]
    whole = read(files["low"][0])
    views = np.lib.stride_tricks.sliding_window_view(whole, len(crop))
    assert np.abs(views - crop).max(axis=1).min() < 1e-4


def test_equaliser_moves_the_spectrum_within_its_bounds():
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, (4, RATE))
    before = np.abs(np.fft.rfft(audio))
    after = np.abs(np.fft.rfft(equalise(rng, audio, 6.0)))
    change = 20 * np.log10(after[:, 1:-1] / before[:, 1:-1])
    assert np.abs(change).max() <= 6.01
    assert change.std(axis=1).min() > 0.5  # a curve, not a gain
    assert np.abs(np.diff(change)).max() < 0.1  # a smooth one
