import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm import DAC, EnCodec, Mimi, WindowedEnCodec
from keras_audiolm.codec.discriminators import Discriminators
from keras_audiolm.codec.losses import MelSpectralLoss, PerceptualLoss
from keras_audiolm.codec.soundstream import SoundStream
from keras_audiolm.codec.training import SoundStreamTrainer, audio_batches

SAMPLES = 1024
# TensorFlow would spend minutes on compiling what runs for milliseconds.
JIT = keras.backend.backend() == "jax"


def to_numpy(x):
    return np.array(ops.convert_to_numpy(x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tone(batch=4, samples=SAMPLES):
    phase = np.linspace(0, 3, batch)[:, None]
    time = np.arange(samples) / 16000
    audio = 0.3 * np.sin(2 * np.pi * 440 * time + phase)
    return audio.astype("float32")


def make_codec(**kwargs):
    config = dict(
        channels=2,
        strides=(8,),
        embedding_dim=4,
        num_quantizers=2,
        codebook_size=8,
    )
    return SoundStream(**{**config, **kwargs})


def make_jury():
    return Discriminators(4, 4, 1, scales=(2,), name="discriminators")


class SmallJudge(keras.layers.Layer):
    """A jury of one; compiles faster than the real one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Conv1D(4, 9, 4, name="inner")
        self.to_logits = keras.layers.Conv1D(1, 3, name="to_logits")

    def build(self, input_shape):
        self.inner.build((None, None, 1))
        self.to_logits.build((None, None, 4))

    def call(self, audio):
        x = ops.leaky_relu(self.inner(audio[..., None]))
        return [[x, self.to_logits(x)]]


def make_trainer(discriminators=None, **kwargs):
    keras.utils.set_random_seed(0)
    return SoundStreamTrainer(
        make_codec(),
        discriminators,
        MelSpectralLoss(16000, windows=(256,), num_mels=16),
        **kwargs,
    )


# === The GAN ===


@pytest.fixture(scope="module")
def start():
    """Weights that every trainer of the module starts from."""
    trainer = make_trainer(SmallJudge())
    trainer.build()
    trainer.codec.initialize_codebooks([tone()])
    return (
        [to_numpy(w) for w in trainer.codec.weights],
        [to_numpy(w) for w in trainer.discriminators.weights],
    )


def changes(start, discriminators=True, **weights):
    """What one plain SGD step changes in the codec and in the judges."""
    # The reconstruction is weighed down to the size of the other terms.
    trainer = make_trainer(
        SmallJudge() if discriminators else None,
        reconstruction_weight=1e-3,
        **weights,
    )
    trainer.build()
    parts = [trainer.codec]
    trainer.codec.set_weights(start[0])
    if discriminators:
        parts.append(trainer.discriminators)
        trainer.discriminators.set_weights(start[1])
    trainer.compile(keras.optimizers.SGD(1e-2), jit_compile=JIT)
    before = [[to_numpy(w) for w in part.trainable_weights] for part in parts]
    trainer.fit(tone(), batch_size=4, epochs=1, verbose=0)
    return [
        np.concatenate(
            [
                (to_numpy(w) - old).ravel()
                for w, old in zip(part.trainable_weights, olds, strict=True)
            ]
        )
        for part, olds in zip(parts, before, strict=True)
    ]


def test_each_side_of_the_gan_follows_its_own_loss(start):
    codec_full, judges_full = changes(start)
    codec_off, judges_off = changes(
        start, adversarial_weight=0.0, feature_weight=0.0
    )
    (codec_alone,) = changes(start, discriminators=False)
    size = np.abs(judges_full).max()
    assert size > 1e-5
    # The generator's terms do not reach the judges,
    np.testing.assert_allclose(judges_off, judges_full, atol=1e-4 * size)
    # nor the judges' term the codec,
    size = np.abs(codec_alone).max()
    np.testing.assert_allclose(codec_off, codec_alone, atol=1e-4 * size)
    # while the judges' favour does.
    assert np.abs(codec_full - codec_off).max() > 1e-2 * size


def test_both_optimizers_train_and_every_loss_is_logged():
    # TensorFlow traces the real judges for half a minute.
    real = keras.backend.backend() != "tensorflow"
    trainer = make_trainer(
        make_jury() if real else SmallJudge(name="discriminators")
    )
    optimizer = trainer.make_optimizer(1e-3, discriminator_rate=0.0)
    trainer.compile(optimizer, jit_compile=JIT)
    trainer.build()
    codec, judges = trainer.codec, trainer.discriminators
    before = [to_numpy(p.trainable_weights[0]) for p in (codec, judges)]
    history = trainer.fit(tone(), batch_size=4, epochs=1, verbose=0).history
    after = [to_numpy(p.trainable_weights[0]) for p in (codec, judges)]
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(before[1], after[1])  # its rate is zero
    parts = {k: v[0] for k, v in history.items() if k.endswith("_loss")}
    assert set(parts) == {
        "reconstruction_loss",
        "commitment_loss",
        "adversarial_loss",
        "feature_loss",
        "discriminator_loss",
    }
    total = sum(parts.values()) + 99 * parts["feature_loss"]
    assert history["loss"][0] == pytest.approx(total, rel=1e-3)


# === Fit ===


def test_fit_starts_the_codebooks_and_learns_a_tone():
    trainer = make_trainer()
    codec = trainer.codec
    codec.quantizer.dropout = 0.0
    trainer.compile(trainer.make_optimizer(1e-2), jit_compile=JIT)
    audio = tone()
    assert float(to_numpy(codec.initialized)) == 0
    repeated = np.tile(audio, (10, 1))
    history = trainer.fit(repeated, batch_size=4, epochs=4, verbose=0).history
    assert float(to_numpy(codec.initialized)) == 1
    losses = history["reconstruction_loss"]
    assert np.isfinite(history["loss"]).all()
    assert losses[-1] < 0.75 * losses[0]
    # Nothing that fit started starts again.
    books = to_numpy(codec.quantizer.embedding_sum)
    evaluated = trainer.evaluate(audio, verbose=0, return_dict=True)
    assert evaluated["commitment_loss"] == 0
    assert evaluated["reconstruction_loss"] < 0.75 * losses[0]
    np.testing.assert_array_equal(
        books, to_numpy(codec.quantizer.embedding_sum)
    )


def test_a_codec_without_phases_learns_loudness():
    """Of two tones, either of which is the louder one."""
    codec = make_codec(strides=(1,), transform="spectrogram", transform_hop=32)
    trainer = SoundStreamTrainer(
        codec,
        discriminators=None,
        reconstruction_loss=PerceptualLoss(
            windows=(256,),
            num_mels=(16,),
            transform_hop=32,
            transform_weight=0.0,
        ),
    )
    trainer.compile(trainer.make_optimizer(1e-3), jit_compile=JIT)
    time = np.arange(SAMPLES) / 16000
    tones = np.sin(2 * np.pi * np.array([[500.0], [2000.0]]) * time)
    loud = np.array([[0.4, 0.05], [0.05, 0.4]])
    audio = np.tile(loud @ tones, (20, 1)).astype("float32")
    trainer.build()
    trainer.initialize_codebooks(audio)
    # It starts too quiet.
    codec.synthesis.kernel.assign(0.6 * codec.synthesis.kernel)
    before = [to_numpy(w) for w in codec.trainable_weights]
    history = trainer.fit(audio, batch_size=4, epochs=3, verbose=0).history
    after = [to_numpy(w) for w in codec.trainable_weights]
    assert all(
        np.abs(a - b).max() > 0 for a, b in zip(after, before, strict=True)
    )
    losses = history["reconstruction_loss"]
    assert losses[-1] < 0.8 * losses[0]
    heard = codec.decode(codec.encode(audio[:2]))
    spectra = np.abs(np.fft.rfft(heard[:, SAMPLES // 4 :]))
    bins = np.fft.rfftfreq(SAMPLES - SAMPLES // 4, 1 / 16000)
    low = spectra[:, bins < 1200].max(axis=1)
    high = spectra[:, bins > 1200].max(axis=1)
    assert low[0] > high[0] and high[1] > low[1]


def test_codebooks_learn_in_fit_and_nowhere_else():
    trainer = make_trainer()
    trainer.compile(keras.optimizers.SGD(0.0), jit_compile=JIT)
    audio = tone()
    trainer.codec.initialize_codebooks([audio])
    quantizer = trainer.codec.quantizer
    before = to_numpy(quantizer.usage)
    trainer.evaluate(audio, verbose=0)
    trainer.predict(audio, verbose=0)
    trainer.codec.encode(audio)
    np.testing.assert_array_equal(to_numpy(quantizer.usage), before)
    trainer.fit(audio, batch_size=4, verbose=0)
    assert (to_numpy(quantizer.usage) != before).all()


def test_commitment_is_counted_once_a_call():
    codec = make_codec()
    for _ in range(2):
        codec(tone(1, 64), training=True)
        assert len(codec.losses) == 1
    codec(tone(1, 64))
    assert not codec.losses


class Crops(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tone() * (index + 1) / 3


def test_audio_batches():
    array = tone()
    assert [b is array for b in audio_batches(array)] == [True]
    crops = list(audio_batches(Crops()))
    assert len(crops) == 3
    np.testing.assert_allclose(crops[2], 3 * crops[0], rtol=1e-5)
    batches = [array, array]
    assert list(audio_batches(batches)) == batches


# === Config ===


def test_config_round_trip():
    trainer = make_trainer(make_jury(), feature_weight=7.0)
    config = trainer.get_config()
    copy = SoundStreamTrainer.from_config(config)
    assert copy.get_config() == config
    assert copy.feature_weight == 7.0
    assert copy.discriminators.scales == (2,)
    assert copy.reconstruction_loss.windows == (256,)
    alone = make_trainer(None)
    assert SoundStreamTrainer.from_config(alone.get_config()).metrics
    assert alone.discriminators is None


def test_defaults_are_the_papers():
    trainer = SoundStreamTrainer(make_codec())
    assert trainer.discriminators.scales == (1, 2, 4)
    assert trainer.reconstruction_loss.windows[-1] == 2048
    weights = trainer.adversarial_weight, trainer.feature_weight
    assert weights == (1.0, 100.0)
    assert trainer.reconstruction_weight == 1.0


@pytest.mark.parametrize("codec", [DAC, EnCodec, Mimi, WindowedEnCodec])
def test_codecs_that_come_with_weights_are_refused(codec):
    message = f"Only a SoundStream.*Received: {codec.__name__}"
    with pytest.raises(ValueError, match=message):
        SoundStreamTrainer(codec(), discriminators=None)


# === The switch ===


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_each_position_of_the_switch_learns_from_its_own_examples(side):
    keras.utils.set_random_seed(0)
    trainer = SoundStreamTrainer(
        make_codec(denoising=side),
        discriminators=None,
        reconstruction_loss=MelSpectralLoss(16000, windows=(256,), num_mels=16),
    )
    trainer.build()
    trainer.codec.initialize_codebooks([tone()])
    layers = trainer.codec.encoder.layers + trainer.codec.decoder.layers
    (film,) = [x for x in layers if type(x).__name__ == "FiLM"]
    trainer.compile(keras.optimizers.SGD(1.0), jit_compile=JIT)
    for on in (0, 1):
        before = to_numpy(film.scale), to_numpy(film.shift)
        switch = np.full(4, on, "float32")
        trainer.train_on_batch({"audio": tone(), "denoise": switch}, -tone())
        for old, new in zip(before, (film.scale, film.shift), strict=True):
            moved = (to_numpy(new) != old).any(axis=1)
            assert moved.tolist() == [on == 0, on == 1]


def test_the_target_is_what_should_come_out():
    trainer = make_trainer()
    audio = tone()
    losses = [
        float(trainer.compute_loss(audio, target, audio))
        for target in (None, audio, -0.5 * audio)
    ]
    assert losses[0] == losses[1] < 1e-3 < losses[2]


# === What the judges hear ===


def test_judges_hear_a_random_stretch_of_both():
    trainer = make_trainer(SmallJudge(), judged_samples=64, seed=3)
    real = normal(2, SAMPLES)
    starts = set()
    for _ in range(5):
        a, b = (to_numpy(x) for x in trainer._judged(real, 2 * real))
        assert a.shape == (2, 64)
        np.testing.assert_allclose(b, 2 * a, rtol=1e-6)
        (start,) = np.flatnonzero(real[0] == a[0, 0])
        np.testing.assert_array_equal(a, real[:, start : start + 64])
        starts.add(int(start))
    assert len(starts) > 1
    whole = make_trainer(SmallJudge())._judged(real, real)
    np.testing.assert_array_equal(whole[0], real)


# === The decoder alone ===


@pytest.mark.core
@pytest.mark.parametrize("transform", [None, "mdct"])
def test_with_frozen_codes_the_decoder_alone_learns(transform):
    codec = make_codec(
        transform=transform,
        strides=(1,) if transform else (8,),
        transform_hop=32,
        noise_filling=transform == "mdct",
        beam_width=2,
    )
    audio = tone()
    with pytest.raises(ValueError, match="untrained.*no codes to keep"):
        codec.freeze_codes()
    codec.initialize_codebooks([normal(4, SAMPLES)])
    assert not codec.codes_frozen
    codec.freeze_codes()
    assert codec.codes_frozen
    before, codes = codec.decode(codec.encode(audio)), codec.encode(audio)
    kept = [
        to_numpy(v) for v in codec.encoder.weights + codec.quantizer.weights
    ]
    loss = MelSpectralLoss(windows=(64, 256))
    trainer = SoundStreamTrainer(codec, None, loss)
    trainer.compile(trainer.make_optimizer(1e-2), jit_compile=JIT)
    history = trainer.fit(audio, batch_size=4, epochs=8, verbose=0).history
    assert history["commitment_loss"] == [0.0] * 8
    losses = history["reconstruction_loss"]
    assert min(losses[4:]) < losses[0]
    now = [to_numpy(v) for v in codec.encoder.weights + codec.quantizer.weights]
    # But for the state of the quantizer's random numbers.
    for old, new in zip(kept, now, strict=True):
        assert old.dtype != "float32" or np.array_equal(old, new)
    np.testing.assert_array_equal(codec.encode(audio), codes)
    assert np.abs(codec.decode(codes) - before).max() > 1e-3
