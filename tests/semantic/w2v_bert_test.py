import keras
import numpy as np
import pytest
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.semantic.w2v_bert import ConvSubsampling, W2vBert

TINY = dict(
    num_mels=20,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=32,
    num_contrastive_layers=1,
    num_masked_layers=2,
    kernel_size=3,
    codebook_size=16,
    codebook_dim=8,
    dropout=0.0,
)


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)))


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).normal(size=shape).astype("f")


def songs(count, seconds, seed=0):
    """Six tones in a fixed order, each 120 to 200 ms long, in loose time."""
    rng = np.random.default_rng(seed)
    tones = np.array([250.0, 1900.0, 600.0, 3400.0, 1100.0, 5600.0])
    audio = []
    for _ in range(count):
        first, pieces = rng.integers(6), []
        while sum(map(len, pieces)) < seconds * 16000:
            tone = tones[(first + len(pieces)) % 6]
            time = np.arange(rng.integers(1920, 3200)) / 16000
            pieces.append(np.sin(2 * np.pi * tone * time + rng.uniform(0, 6)))
        audio.append(np.concatenate(pieces)[: int(seconds * 16000)])
    return 0.1 * np.stack(audio).astype("float32")


@pytest.fixture(scope="module")
def encoder():
    return W2vBert(**TINY)


@pytest.fixture(scope="module")
def encode(encoder):
    """`encode` compiled, NumPy out."""
    functions = {}

    def run(audio, lengths=None, layer=None):
        def function(*args):
            lengths = args[1] if len(args) > 1 else None
            return encoder.encode(args[0], layer=layer, lengths=lengths)

        compiled = functions.setdefault(
            layer, CompiledFunction(encoder, function)
        )
        args = (audio,) if lengths is None else (audio, lengths)
        return to_numpy(compiled(*args))

    return run


# === Frames and activations ===


@pytest.mark.parametrize("samples", [1, 640, 641, 3000])
def test_frames_are_hops_rounded_up(encoder, encode, samples):
    y = encode(noise(1, samples))
    assert encoder.hop_length == 640
    assert y.shape == (1, -(-samples // 640), 16)
    assert np.isfinite(y).all()


def test_hop_follows_the_sample_rate():
    assert W2vBert(**{**TINY, "sample_rate": 24000}).hop_length == 960


def test_a_padded_row_gives_what_it_gives_alone(encode):
    audio = noise(4, 3000)
    lengths = np.array([3000, 1281, 640, 1], "int32")
    padded = np.pad(audio, [(0, 0), (0, 900)], constant_values=0.3)
    y = encode(padded, lengths)
    for row, length in enumerate(lengths):
        alone = encode(audio[row : row + 1, :length])[0]
        np.testing.assert_allclose(y[row, : len(alone)], alone, atol=1e-4)
        assert not y[row, len(alone) :].any()


def test_an_empty_row_stays_finite(encode):
    y = encode(noise(4, 3900), np.array([0, 0, 3900, 5], "int32"))
    assert np.isfinite(y).all()


def test_layer_counts_masked_blocks_from_one(encoder, encode):
    audio = noise(1, 3000)
    x = encoder.projection(encoder._features(audio))
    for block in encoder.blocks[:2]:
        x = block(x)
    np.testing.assert_allclose(encode(audio, layer=1), to_numpy(x), atol=1e-4)
    last = encode(audio, layer=2)
    np.testing.assert_allclose(last, encode(audio), atol=1e-6)
    assert np.abs(last - to_numpy(x)).max() > 1e-3


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_layer_out_of_range(encoder, layer):
    with pytest.raises(ValueError, match=f"1 to 2.*layer={layer}"):
        encoder.encode(noise(1, 640), layer=layer)


def test_bad_arguments(encoder):
    with pytest.raises(ValueError, match=r"\(640,\)"):
        encoder.encode(noise(640))
    with pytest.raises(ValueError, match="num_mels=30"):
        W2vBert(**{**TINY, "num_mels": 30})
    with pytest.raises(ValueError, match="num_masked_layers=0"):
        W2vBert(**{**TINY, "num_masked_layers": 0})


def test_wide_targets_are_means_of_narrow_ones():
    audio = noise(2, 3200)
    targets = []
    for mels in (1, 4):
        encoder = W2vBert(**TINY, window_duration=0.064, mels_per_target=mels)
        x = to_numpy(encoder._target_features(encoder.log_mel(audio)))
        targets.append(x.reshape(2, 5, 4, 20 // mels))
    narrow, wide = targets
    np.testing.assert_allclose(
        narrow.reshape(2, 5, 4, 5, 4).mean(axis=-1), wide, atol=1e-5
    )


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8])
def test_subsampling_is_aligned_for_every_length(frames):
    layer = ConvSubsampling(4, seed=0)
    x = noise(1, 9, 3)
    layer.build(x.shape)
    y = to_numpy(layer(x[:, :frames]))
    assert y.shape == (1, -(-frames // 4), 4)
    # All but the last frame do not see where the input ends.
    longer = to_numpy(layer(x))[:, : frames // 4]
    np.testing.assert_allclose(
        y[:, : frames // 4 - 1], longer[:, :-1], atol=1e-6
    )


# === Masks and losses ===


def test_masks_are_spans(encoder):
    mask = to_numpy(encoder._draw_mask(200, 60, training=True))
    assert mask.any(axis=1).all()
    padded = np.pad(mask, [(0, 0), (1, 1)]).astype(int)
    starts = np.argwhere(np.diff(padded, axis=1) == 1)
    ends = np.argwhere(np.diff(padded, axis=1) == -1)
    length = (ends - starts)[:, 1]
    assert (length[ends[:, 1] < 60] >= 10).all()  # whole, unless cut at the end
    # 1 - (1 - 0.065)^10 = 0.49, a little less at the start, one more span.
    assert 0.4 < mask.mean() < 0.65
    again = to_numpy(encoder._draw_mask(200, 60, training=True))
    assert (again != mask).any()


def test_evaluation_masks_stay_the_same(encoder):
    masks = [to_numpy(encoder._draw_mask(4, 30, False)) for _ in range(2)]
    np.testing.assert_array_equal(*masks)


def test_masked_frames_do_not_see_their_audio():
    encoder = W2vBert(**{**TINY, "mask_probability": 1.0})
    run = CompiledFunction(encoder, encoder)
    a, b = run(noise(1, 3200)), run(songs(1, 0.2))
    assert to_numpy(a["mask"]).all()
    for name in ("context", "logits"):
        np.testing.assert_allclose(
            to_numpy(a[name]), to_numpy(b[name]), atol=1e-6
        )
    assert np.abs(to_numpy(a["targets"]) - to_numpy(b["targets"])).max() > 0.1


def made_up_outputs(frames=6):
    rng = np.random.default_rng(0)
    context, codebook = rng.normal(size=(2, 2, frames, 8)).astype("float32")
    codes = np.array([[0, 1, 2, 3, 1, 5], [0, 0, 0, 0, 0, 0]], "int32")
    return {
        "context": context / np.linalg.norm(context, axis=-1, keepdims=True),
        "targets": codebook[0][codes],
        "logits": rng.normal(size=(2, frames, 16)).astype("float32"),
        "codes": codes,
        "mask": np.array([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]], "bool"),
    }


def test_contrastive_loss_matches_numpy(encoder):
    out = made_up_outputs()
    mask = out["mask"].astype("float32")
    tensors = (out["context"], out["targets"], out["codes"], mask)
    loss = encoder._contrastive_loss(*map(ops.convert_to_tensor, tensors))
    # Row 1 has masked frames of one code only: no negatives, no loss.
    terms, right = [], []
    for i in (1, 2, 3, 4):
        others = [
            j for j in (1, 2, 3, 4) if out["codes"][0, j] != out["codes"][0, i]
        ]
        logits = out["targets"][0, [i, *others]] @ out["context"][0, i] / 0.1
        terms.append(np.log(np.exp(logits - logits[0]).sum()))
        right.append(logits.argmax() == 0)
    np.testing.assert_allclose(float(loss), np.mean(terms), rtol=1e-4)
    tracker = encoder._trackers["contrastive_accuracy"]
    np.testing.assert_allclose(float(tracker.result()), np.mean(right))
    tracker.reset_state()


def test_mlm_loss_matches_numpy(encoder):
    out = made_up_outputs()
    log = out["logits"] - np.log(np.exp(out["logits"]).sum(-1, keepdims=True))
    log = np.take_along_axis(log, out["codes"][..., None], axis=-1)[..., 0]
    mask = ops.convert_to_tensor(out["mask"].astype("float32"))
    masked, unmasked = encoder._mlm_losses(out["logits"], out["codes"], mask)
    np.testing.assert_allclose(
        float(masked), -log[out["mask"]].mean(), rtol=1e-4
    )
    np.testing.assert_allclose(
        float(unmasked), -log[~out["mask"]].mean(), rtol=1e-4
    )


def test_number_of_negatives():
    encoder = W2vBert(**{**TINY, "num_negatives": 5})
    mask = np.ones((8, 41), "float32")
    kept = to_numpy(encoder._thin_negatives(ops.convert_to_tensor(mask)))
    assert 4.0 < kept.sum(axis=-1).mean() < 6.2  # 5 of 40, and chance itself
    few = np.ones((8, 5), "float32")
    assert encoder._thin_negatives(ops.convert_to_tensor(few)) == 1.0


# === Training ===


def train(epochs, **kwargs):
    config = dict(
        TINY,
        hidden_dim=32,
        intermediate_dim=64,
        num_masked_layers=1,
        kernel_size=7,
        codebook_size=8,
        mask_probability=0.03,
        mask_length=4,
    )
    encoder = W2vBert(**{**config, **kwargs})
    encoder.compile(keras.optimizers.Adam(3e-3))
    history = encoder.fit(
        songs(32, 2.0), batch_size=8, epochs=epochs, verbose=0, shuffle=False
    )
    return encoder, history.history


def test_learns_to_predict_without_collapse():
    encoder, history = train(14)
    first, last = ({k: v[i] for k, v in history.items()} for i in (0, -1))
    assert last["contrastive_loss"] < 0.6 * first["contrastive_loss"]
    assert last["mlm_loss"] < 0.6 * first["mlm_loss"]
    held = songs(8, 2.0, seed=9)
    result = encoder.evaluate(held, verbose=0, return_dict=True)
    codes = to_numpy(encoder(held)["codes"])
    chance = np.bincount(codes.ravel()).max() / codes.size
    assert result["mlm_accuracy"] > 2 * chance
    assert result["contrastive_accuracy"] > 0.4
    assert result["code_perplexity"] > 5  # there are six tones


@pytest.mark.large  # compiles training twice
def test_seed_decides_the_run():
    options = dict(
        num_contrastive_layers=0,
        perturbation=0.5,
        unmasked_weight=0.5,
        num_negatives=10,
        dropout=0.1,
    )
    first, same = (train(1, **options)[1] for _ in range(2))
    for name, values in first.items():
        assert values == pytest.approx(same[name], rel=1e-5), name


def test_another_seed_is_another_model(encoder):
    other = W2vBert(**TINY, seed=1)
    difference = to_numpy(other.code_head.kernel) - to_numpy(
        encoder.code_head.kernel
    )
    assert np.abs(difference).max() > 1e-2
    masks = [to_numpy(e._draw_mask(4, 30, False)) for e in (encoder, other)]
    assert (masks[0] != masks[1]).any()


def test_round_trip(encoder, tmp_path):
    path = tmp_path / "model.weights.h5"
    encoder.save_weights(path)
    config = keras.saving.serialize_keras_object(encoder)
    config["config"]["seed"] = 5  # other weights, until they are loaded
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == {**encoder.get_config(), "seed": 5}
    audio = noise(1, 3000)
    expected = to_numpy(encoder.encode(audio))
    assert np.abs(to_numpy(again.encode(audio)) - expected).max() > 1e-2
    again.load_weights(path)
    np.testing.assert_allclose(
        to_numpy(again.encode(audio)), expected, atol=1e-6
    )
