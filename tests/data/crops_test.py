import warnings

import keras
import numpy as np
import pytest
import soundfile
from keras import ops

from keras_audiolm.data.crops import AudioCrops, scan_audio_files

RATE = 8000
ON_DISK = {"cache_bytes": 0}
BOTH = pytest.mark.parametrize("where", [{}, ON_DISK], ids=["memory", "disk"])


def write(path, samples, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(samples), rate, subtype)
    return path


def noise(seconds, seed=0, rate=RATE):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, round(seconds * rate))


def tone(seconds, frequency, rate=RATE):
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * frequency * time)


def crops_of(files, duration=0.1, batch_size=4, steps_per_epoch=3, **kwargs):
    return AudioCrops(
        files, RATE, duration, batch_size, steps_per_epoch, **kwargs
    )


@pytest.fixture
def folder(tmp_path):
    """Two voices whose files are constants, so that a sample tells its file.

    File `k` holds `(k + 1) / 64`; voice a has files 0 to 4, voice b 5 and 6.
    """
    seconds = [0.05, 0.1, 0.3, 0.5, 0.05, 0.6, 0.4]
    for k, length in enumerate(seconds):
        voice = "a" if k < 5 else "b"
        values = np.full(round(length * RATE), (k + 1) / 64)
        write(tmp_path / voice / f"{k}.wav", values)
    return tmp_path


def files_of(crop):
    """The file of each sample of a crop from `folder`."""
    files = crop * 64 - 1
    np.testing.assert_array_equal(files, np.round(files))
    return files.astype(int)


@BOTH
@pytest.mark.parametrize(
    "options",
    [{}, {"speed_range": (0.8, 1.25)}, {"gain_db": (-6.0, 20.0)}],
    ids=["plain", "speed", "gain"],
)
@pytest.mark.parametrize("duration", [0.02, 0.1, 1.7])
def test_batches_have_the_promised_form(folder, where, options, duration):
    crops = crops_of(folder, duration, 3, 5, **options, **where)
    assert len(crops) == 5
    batches = list(crops)
    assert len(batches) == 5
    for batch in batches:
        assert batch.shape == (3, round(duration * RATE))
        assert batch.dtype == np.float32
        assert np.abs(batch).max() <= 1.0
        # Never padded: the files hold no zero.
        assert np.abs(batch).min() > 0.0 or options


@BOTH
def test_a_crop_stays_in_one_voice(folder, where):
    crops = crops_of(folder, 1.7, 8, 5, **where)
    for crop in np.concatenate(list(crops)):
        files = files_of(crop)
        assert files.max() < 5 or files.min() >= 5
        pieces = files[np.r_[True, np.diff(files) != 0]]
        assert len(pieces) > 1


def test_what_follows_a_file_is_another_file_from_its_start(tmp_path):
    # Ramps: a sample tells its file (sign) and its place.
    ramp = np.linspace(0.1, 0.9, 400)
    write(tmp_path / "up.wav", ramp)
    write(tmp_path / "down.wav", -ramp)
    crops = crops_of(tmp_path, 900 / RATE, 16, 2)
    for crop in np.concatenate(list(crops)):
        cuts = np.flatnonzero(np.diff(np.sign(crop))) + 1
        assert np.all(np.diff(cuts) == 400)
        np.testing.assert_allclose(np.abs(crop[cuts]), 0.1, atol=1e-3)
        np.testing.assert_allclose(np.abs(crop[cuts - 1]), 0.9, atol=1e-3)


def test_a_voice_of_one_file_repeats_it(tmp_path):
    ramp = np.linspace(0.1, 0.9, 400)
    write(tmp_path / "only.wav", ramp)
    crop = crops_of(tmp_path, 1000 / RATE, 1, 1)[0][0]
    start = int(np.argmin(np.abs(ramp - crop[0])))
    expected = np.resize(np.roll(ramp, -start), 1000)
    np.testing.assert_allclose(crop, expected, atol=1e-4)


@BOTH
def test_files_are_drawn_in_proportion_to_duration(folder, where):
    crops = crops_of(folder, 1 / RATE, 4000, 1, **where)
    drawn = np.bincount(files_of(crops[0][:, 0]), minlength=7) / 4000
    durations = np.array([0.05, 0.1, 0.3, 0.5, 0.05, 0.6, 0.4])
    np.testing.assert_allclose(drawn, durations / durations.sum(), atol=0.03)
    assert crops.total_duration == pytest.approx(durations.sum())


def test_every_sample_has_the_same_chance(tmp_path):
    # Also inside of long crops, whose later part comes from other files.
    # Three files of different length, whose samples count up in sum.
    ramp = np.linspace(0.1, 0.9, 2400)
    for name, piece in zip("abc", np.split(ramp, [400, 1000]), strict=True):
        write(tmp_path / f"{name}.wav", piece)
    crops = crops_of(tmp_path, 1.0, 800, 1)
    for part in (crops[0][:, :1000], crops[0][:, 3000:]):
        counts, _ = np.histogram(part, bins=8, range=(0.1, 0.9))
        np.testing.assert_allclose(counts / counts.sum(), 1 / 8, atol=0.02)


@BOTH
def test_a_batch_depends_on_seed_epoch_and_index_only(folder, where):
    def make(seed):
        return crops_of(
            folder,
            speed_range=(0.8, 1.25),
            gain_db=(-3, 3),
            seed=seed,
            **where,
        )

    first, second = make(1), make(1)
    batches = list(first)
    for index in (2, 0, 1, 2):
        np.testing.assert_array_equal(second[index], batches[index])
    assert not np.array_equal(batches[0], batches[1])
    assert not np.array_equal(make(2)[0], batches[0])
    first.on_epoch_end()
    assert not np.array_equal(first[0], batches[0])
    second.epoch = 1
    np.testing.assert_array_equal(first[0], second[0])


def test_same_every_epoch(folder):
    crops = crops_of(folder, same_every_epoch=True)
    before = list(crops)
    crops.on_epoch_end()
    np.testing.assert_array_equal(before, list(crops))
    np.testing.assert_array_equal(before, list(crops_of(folder)))


def test_index_out_of_range(folder):
    with pytest.raises(IndexError, match="Batch 3 of 3"):
        crops_of(folder)[3]


def test_disk_and_memory_give_the_same_crops(folder):
    options = {"duration": 0.5, "speed_range": (0.8, 1.25)}
    memory = crops_of(folder, **options)
    disk = crops_of(folder, **options, **ON_DISK)
    assert memory.in_memory and not disk.in_memory
    np.testing.assert_array_equal(list(memory), list(disk))


@BOTH
def test_files_of_another_rate_and_stereo(tmp_path, where):
    stereo = np.stack([tone(2.0, 500, 22050), tone(2.0, 500, 22050)], 1)
    write(tmp_path / "a.wav", stereo, rate=22050)
    crops = crops_of(tmp_path, 0.5, 8, 1, **where)
    batch = crops[0].astype("float64")
    assert batch.shape == (8, 4000)
    # Every stretch of a sine at 500 Hz and 8 kHz solves this recurrence; only
    # where a crop runs past the end of the file it does not.
    error = batch[:, 2:] + batch[:, :-2]
    error -= 2 * np.cos(2 * np.pi * 500 / RATE) * batch[:, 1:-1]
    assert np.median(np.abs(error)) < 1e-3
    assert np.abs(batch).max() == pytest.approx(0.5, abs=0.03)
    assert crops.total_duration == pytest.approx(2.0, abs=1e-3)


def test_disk_resampling_has_no_seams(tmp_path):
    # A crop in the middle of a file equals the same part of the whole file
    # resampled at once: the margins hide the cut.
    write(tmp_path / "a.wav", noise(4.0, rate=16000), rate=16000)
    memory = crops_of(tmp_path, 0.25, 16, 1, seed=3)[0]
    disk = crops_of(tmp_path, 0.25, 16, 1, seed=3, **ON_DISK)[0]
    np.testing.assert_allclose(memory, disk, atol=2e-3)


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_speed_moves_the_pitch(tmp_path, speed):
    write(tmp_path / "a.wav", tone(4.0, 1000))
    crops = crops_of(tmp_path, 0.5, 4, 1, speed_range=(speed, speed))
    spectrum = np.abs(np.fft.rfft(crops[0] * np.hanning(4000)))
    peaks = spectrum.argmax(axis=1) * RATE / 4000
    np.testing.assert_allclose(peaks, 1000 * speed, atol=2.0)


def test_speed_is_log_uniform_in_its_range(tmp_path):
    write(tmp_path / "a.wav", tone(4.0, 1000))
    crops = crops_of(tmp_path, 0.25, 300, 1, speed_range=(0.8, 1.25))
    spectrum = np.abs(np.fft.rfft(crops[0] * np.hanning(2000), 16000))
    speeds = spectrum.argmax(axis=1) * RATE / 16000 / 1000
    place = np.log(speeds / 0.8) / np.log(1.25 / 0.8)
    assert place.min() > -0.02 and place.max() < 1.02
    counts, _ = np.histogram(place, bins=4, range=(-0.02, 1.02))
    assert counts.min() > 45


def test_gain_is_in_its_range_and_stops_at_full_scale(tmp_path):
    write(tmp_path / "a.wav", np.full(RATE, 0.25))
    quiet = crops_of(tmp_path, gain_db=(-12, 6), batch_size=300)[0]
    np.testing.assert_array_equal(quiet, quiet[:, :1] * np.ones(800))
    gains = 20 * np.log10(quiet[:, 0] / 0.25)
    assert -12.1 < gains.min() < -11 and 5 < gains.max() < 6.1
    assert abs(gains.mean() + 3) < 1
    loud = crops_of(tmp_path, gain_db=(20, 30))[0]
    np.testing.assert_allclose(loud, 1.0, rtol=1e-6)


def add_bad_files(folder):
    """Bad files in every way; returns path -> part of the reason."""
    (folder / "bad").mkdir()
    (folder / "bad" / "foreign.wav").write_text("no audio" * 100)
    (folder / "bad" / "zero.flac").write_bytes(b"")
    broken = noise(0.2)
    broken[:] = np.nan
    write(folder / "bad" / "nan.wav", broken, subtype="FLOAT")
    write(folder / "bad" / "short.wav", noise(0.03))
    write(folder / "bad" / "none.wav", [])
    return {
        "foreign.wav": "cannot be read",
        "zero.flac": "is empty",
        "nan.wav": "NaN",
        "short.wav": "too short (0.030 seconds)",
        "none.wav": "too short (0.000 seconds)",
    }


def test_bad_files_are_skipped_once_with_one_warning(folder):
    bad = add_bad_files(folder)
    write(folder / "bad" / "silent.wav", np.zeros(RATE))
    bad["silent.wav"] = "is silent"
    with pytest.warns(UserWarning) as caught:
        crops = crops_of(folder)
        list(crops)
    assert [w for w in caught if "Skipped" in str(w.message)] == [caught[0]]
    assert "Skipped 6 of 13 audio files" in str(caught[0].message)
    assert {path.name for path in crops.skipped} == set(bad)
    for path, reason in crops.skipped.items():
        assert bad[path.name] in reason
    # The good files are drawn as if the bad ones were not there.
    clean = [p for p in crops.files if p.parent.name != "bad"]
    np.testing.assert_array_equal(list(crops), list(crops_of(clean)))


def test_a_missing_file_is_skipped(folder):
    files = [folder / "a" / "0.wav", folder / "a" / "gone.wav"]
    with pytest.warns(UserWarning, match="gone.wav does not exist"):
        assert len(crops_of(files).skipped) == 1


def test_bad_files_on_disk_are_found_at_first_touch(folder):
    bad = add_bad_files(folder)
    with pytest.warns(UserWarning, match="Skipped 4 of 12"):
        crops = crops_of(folder, 0.5, 8, 10, **ON_DISK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(crops)
    assert {path.name for path in crops.skipped} == set(bad)
    assert np.isfinite(batches).all()
    # What was touched before does not change a batch.
    with pytest.warns(UserWarning):
        fresh = crops_of(folder, 0.5, 8, 10, **ON_DISK)
    np.testing.assert_array_equal(fresh[9], batches[9])


def test_truncated_file_on_disk(tmp_path):
    path = write(tmp_path / "a.flac", noise(1.0))
    write(tmp_path / "b.flac", noise(1.0, seed=1))
    path.write_bytes(path.read_bytes()[:3000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crops = crops_of(tmp_path, 0.2, 8, 5, **ON_DISK)
        batches = np.array(list(crops))
    assert np.isfinite(batches).all()
    assert list(crops.skipped) in ([], [path])


@BOTH
def test_silent_places_are_not_drawn(tmp_path, where):
    write(tmp_path / "a.wav", np.r_[np.zeros(4 * RATE), noise(1.0)])
    crops = crops_of(tmp_path, 0.05, 8, 10, **where)
    peaks = np.abs(np.concatenate(list(crops))).max(axis=1)
    assert peaks.min() >= 1e-4
    assert crops.skipped == {}


def test_no_usable_file(tmp_path):
    write(tmp_path / "a.wav", np.zeros(RATE))
    with pytest.raises(ValueError, match="None of the 1 .*a.wav is silent"):
        crops_of(tmp_path)
    # From the header alone it looks fine; the first crop finds out.
    with pytest.raises(ValueError, match="all silent"):
        crops_of(tmp_path, **ON_DISK)[0]
    write(tmp_path / "a.wav", np.full(RATE, np.nan), subtype="FLOAT")
    with pytest.warns(UserWarning, match="NaN"):
        with pytest.raises(ValueError, match="could not be read.*NaN"):
            crops_of(tmp_path, **ON_DISK)[0]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match="No audio files"):
        crops_of(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"duration": 0},
        {"duration": -1.0},
        {"batch_size": 0},
        {"steps_per_epoch": 0},
        {"speed_range": (0.0, 1.0)},
        {"speed_range": (1.2, 0.8)},
        {"speed_range": (1.0, 1.1, 1.2)},
        {"gain_db": (3, -3)},
        {"gain_db": (0, float("inf"))},
    ],
)
def test_bad_arguments(folder, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        crops_of(folder, **options)


def test_scan_audio_files(folder):
    bad = add_bad_files(folder)
    files = sorted(folder.rglob("*.*"))
    durations, skipped = scan_audio_files(files, min_duration=0.1)
    names = {path.name: seconds for path, seconds in durations.items()}
    assert names == pytest.approx(
        {"1.wav": 0.1, "2.wav": 0.3, "3.wav": 0.5, "5.wav": 0.6, "6.wav": 0.4}
        | {"nan.wav": 0.2}
    )
    assert {p.name for p in skipped} == set(bad) - {"nan.wav"} | {
        "0.wav",
        "4.wav",
    }


class Probe(keras.Model):
    """A model whose loss tells which batches it saw, in which order."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        return ops.mean(ops.square(y_pred))


class BatchLosses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def fit_probe(crops, epochs, initial_epoch=0, follow=True):
    probe, losses = Probe(), BatchLosses()
    probe.compile(optimizer=keras.optimizers.SGD(0.0))
    callbacks = [losses]
    if follow:
        callbacks.append(
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: setattr(
                    crops, "epoch", epoch
                )
            )
        )
    probe.fit(
        crops,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        callbacks=callbacks,
        verbose=0,
    )
    return losses.losses


def running_means(crops, epochs):
    """What Keras reports after each batch, from the crops themselves."""
    means = []
    for crops.epoch in epochs:
        losses = [np.mean(batch**2) for batch in crops]
        means += list(np.cumsum(losses) / np.arange(1, len(losses) + 1))
    return means


@pytest.mark.core
def test_fit_sees_the_batches_of_each_epoch_also_resumed(folder):
    crops = crops_of(folder)
    expected = running_means(crops_of(folder), range(4))
    whole = fit_probe(crops, epochs=4)
    np.testing.assert_allclose(whole, expected, rtol=1e-4)
    resumed = fit_probe(crops_of(folder), epochs=4, initial_epoch=2)
    np.testing.assert_allclose(resumed, whole[6:], rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("workers", [1, 2])
def test_plain_fit_has_new_crops_each_epoch(folder, workers):
    crops = crops_of(folder, workers=workers)
    losses = fit_probe(crops, epochs=3, follow=False)
    assert len(losses) == 9
    assert len(np.unique(np.round(losses, 8))) > 6
