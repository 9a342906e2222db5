import json

import keras
import numpy as np
import pytest
import soundfile
from keras import ops

from keras_audiolm import (
    AudioClassifier,
    AudioLMPipeline,
    ParallelDecoder,
    SoundStreamTrainer,
    TokenLayout,
    training,
)
from tests.tiny import (
    COARSE_LEVELS,
    CODEBOOK_SIZE,
    FINE_LEVELS,
    NUM_CLUSTERS,
    SAMPLE_RATE,
    tiny_codec,
    tiny_lm,
    tiny_pipeline,
)


def noise(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, shape).astype("float32")


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for voice in "ab":
        (folder / voice).mkdir()
        for i in range(2):
            soundfile.write(
                folder / voice / f"{i}.wav",
                noise(SAMPLE_RATE + 1000 * i, seed=i),
                SAMPLE_RATE,
            )
    return folder


# === Generation ===


@pytest.mark.parametrize("samples", [16000, 16001, 9999])
def test_continuation_is_prompt_and_exactly_the_duration(pipeline, samples):
    prompt = noise(samples)
    audio = pipeline.generate(prompt, duration=0.73, seed=0)
    assert audio.shape == (samples + round(0.73 * SAMPLE_RATE),)
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio[:samples], prompt)
    assert np.isfinite(audio).all()


def test_longer_than_every_window(pipeline):
    # The windows of the tiny stages are one second.
    audio, tokens = pipeline.generate(
        noise(2, 24000), duration=2.5, seed=0, return_tokens=True
    )
    assert audio.shape == (2, 24000 + 40000)
    assert tokens.semantic.shape == (2, 100)
    assert tokens.acoustic.shape == (2, 200, 3)


@pytest.mark.parametrize("duration", [0.3, 2.5])
@pytest.mark.parametrize("prompt", [None, noise(2, 24000)], ids=["0", "2"])
def test_a_stream_is_what_generate_gives(pipeline, prompt, duration):
    whole = pipeline.generate(prompt, duration=duration, seed=3)
    chunks = list(pipeline.stream(prompt, duration=duration, seed=3))
    assert len(chunks) == (
        1 if duration == 0.3 else 5 if prompt is not None else 4
    )
    new = whole if prompt is None else whole[:, 24000:]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=-1), new)


def test_an_overlap_changes_what_follows_the_first_window(pipeline):
    def tokens_of(overlap):
        return pipeline.generate(
            duration=2.5,
            temperature=0,
            overlap=overlap,
            return_tokens=True,
        )[1]

    usual, none = tokens_of(None), tokens_of(0)
    # Half a window of a second, as the stages have one.
    for one, other in zip(usual, tokens_of({"coarse": 0.5}), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(usual.acoustic[:50], none.acoustic[:50])
    assert (usual.semantic[25:] != none.semantic[25:]).any()
    assert (usual.acoustic[50:] != none.acoustic[50:]).any()
    # The fine stage hears its own past, and nobody hears it.
    fine = tokens_of({"fine": 0.4})
    np.testing.assert_array_equal(fine.semantic, usual.semantic)
    np.testing.assert_array_equal(
        fine.acoustic[..., :2], usual.acoustic[..., :2]
    )
    assert (fine.acoustic[..., 2] != usual.acoustic[..., 2]).any()


def test_a_stream_with_an_overlap_is_what_generate_gives(pipeline):
    settings = dict(
        duration=2.5,
        seed=3,
        overlap={"semantic": 0.2, "coarse": 0, "fine": 0.3},
    )
    prompts = [noise(6400), noise(3200, seed=1)]
    whole = pipeline.generate(prompts, **settings)
    chunks = list(pipeline.stream(prompts, **settings))
    assert len(chunks) == 3
    np.testing.assert_array_equal(
        np.concatenate(chunks, axis=1), [audio[-40000:] for audio in whole]
    )


@pytest.fixture(scope="module")
def ending_pipeline(pipeline):
    """Its semantic stage ends after a dozen frames, on average."""
    keras.utils.set_random_seed(0)
    semantic_lm = tiny_lm(TokenLayout.semantic(NUM_CLUSTERS, 25.0, ends=True))
    semantic_lm.build()
    parts = {**pipeline._parts, "semantic_lm": semantic_lm}
    return AudioLMPipeline(parts, trained=parts)


def test_each_row_ends_where_the_semantic_stage_says_so(ending_pipeline):
    prompts = [noise(6400), noise(3200, seed=1), noise(6400, seed=2)]
    settings = dict(duration=2.5, seed=5, stop="eos", temperature=1)
    audio, tokens = ending_pipeline.generate(
        prompts, return_tokens=True, **settings
    )
    frames = (tokens.semantic[:, 10:] >= 0).sum(axis=1)
    # Less than the duration, and more than a window.
    assert len(set(frames)) == 3 and 25 < max(frames) < 60
    for row, prompt in enumerate(prompts):
        known = len(prompt) // 640
        assert len(audio[row]) == len(prompt) + 640 * frames[row]
        np.testing.assert_array_equal(audio[row][: len(prompt)], prompt)
        codes = tokens.acoustic[row, 20 - 2 * known :]
        there = codes[: 2 * (known + frames[row])]
        assert (there >= 0).all()
        assert (codes[len(there) :] == -1).all()
        # What sounds after the end is not heard before it.
        decoded = ending_pipeline.codec.decode(there[None])[0]
        middle = slice(len(prompt), len(decoded) - 640)
        np.testing.assert_allclose(
            audio[row][middle], decoded[middle], atol=1e-5
        )
    chunks = list(ending_pipeline.stream(prompts, **settings))
    whole = np.concatenate(chunks, axis=1)
    assert whole.shape == (3, 640 * max(frames))
    for row, prompt in enumerate(prompts):
        new = audio[row][len(prompt) :]
        np.testing.assert_array_equal(whole[row, : len(new)], new)
        assert not whole[row, len(new) :].any()


@pytest.mark.parametrize("seed", range(4))
def test_one_row_may_end_anywhere(ending_pipeline, seed):
    settings = dict(seed=seed, stop="eos", temperature=1)
    audio, tokens = ending_pipeline.generate(
        duration=20.0, return_tokens=True, **settings
    )
    assert (tokens.semantic >= 0).all()
    assert audio.shape == (640 * len(tokens.semantic),)
    assert tokens.acoustic.shape == (2 * len(tokens.semantic), 3)
    decoded = ending_pipeline.codec.decode(tokens.acoustic[None])[0]
    np.testing.assert_allclose(audio, decoded, atol=1e-5)
    # An endless stream ends there, too; where the duration is over, nothing
    # ends sooner.
    chunks = list(ending_pipeline.stream(**settings))
    assert sum(map(len, chunks)) == len(audio)
    short = ending_pipeline.generate(duration=0.08, **settings)
    assert len(short) == min(len(audio), 1280)


def test_an_end_needs_a_stage_that_knows_it(pipeline, ending_pipeline):
    settings = dict(duration=0.2, stop="eos")
    with pytest.raises(ValueError, match="taught where.*ends=True"):
        pipeline.generate(**settings)
    with pytest.raises(ValueError, match="'duration' or 'eos'.*'never'"):
        ending_pipeline.generate(duration=0.2, stop="never")
    with pytest.raises(ValueError, match="likelihood.*scorer"):
        ending_pipeline.generate(num_candidates=2, **settings)
    rows = ending_pipeline.generate(
        num_candidates=3, batch_size=2, scorer=lambda a, _: len(a), **settings
    )
    assert isinstance(rows, list) and len(rows) == 2


def deduplicated_pipeline(pipeline, semantic=True, coarse=True):
    parts = {
        **pipeline._parts,
        "semantic_lm": tiny_lm(
            TokenLayout.semantic(NUM_CLUSTERS, 25.0, deduplicated=semantic)
        ),
        "coarse_lm": tiny_lm(
            TokenLayout.coarse(
                NUM_CLUSTERS,
                COARSE_LEVELS,
                CODEBOOK_SIZE,
                25.0,
                50.0,
                deduplicated=coarse,
            )
        ),
    }
    for name in ("semantic_lm", "coarse_lm"):
        parts[name].build()
    return AudioLMPipeline(parts, trained=parts)


def test_deduplicated_stages_meet_the_duration(pipeline):
    made = deduplicated_pipeline(pipeline)
    made.semantic_lm.frames_per_token.assign(2.5)
    prompt = noise(2, 16000)
    audio, tokens = made.generate(
        prompt, duration=2.5, seed=0, return_tokens=True
    )
    assert audio.shape == (2, 16000 + 40000)
    known = pipeline.tokenize(prompt)
    np.testing.assert_array_equal(tokens.semantic[:, :25], known.semantic)
    np.testing.assert_array_equal(tokens.acoustic[:, :50], known.acoustic)
    chunks = list(made.stream(prompt, duration=2.5, seed=0))
    np.testing.assert_array_equal(
        np.concatenate(chunks, axis=1), audio[:, 16000:]
    )
    assert made.resynthesize(noise(12345), seed=0).shape == (12345,)


def test_stages_that_do_not_go_together_are_refused(pipeline):
    aligned_coarse = deduplicated_pipeline(pipeline, coarse=False)
    with pytest.raises(ValueError, match="semantic_lm.*de-dup.*aligned"):
        aligned_coarse.generate(duration=0.2)
    # The reverse is well: a coarse stage can be told less.
    deduplicated_pipeline(pipeline, semantic=False).generate(duration=0.2)
    made = deduplicated_pipeline(pipeline)
    made.add_part("parallel_decoder", tiny_parallel_decoder())
    made.mark_trained("parallel_decoder")
    with pytest.raises(ValueError, match="parallel_decoder was made for tok"):
        made.generate(duration=0.2, acoustic_decoder="parallel")
    layout = TokenLayout.coarse(
        NUM_CLUSTERS, 3, CODEBOOK_SIZE, 25.0, 50.0, deduplicated=True
    )
    with pytest.raises(ValueError, match="aligned with frames"):
        ParallelDecoder(layout)


def test_there_is_no_seam(pipeline):
    audio, tokens = pipeline.generate(
        noise(25600), duration=2.4, seed=0, return_tokens=True
    )
    decoded = pipeline.codec.decode(tokens.acoustic[None])[0]
    np.testing.assert_allclose(audio[25600:], decoded[25600:], atol=1e-5)


def test_a_stream_that_is_left_stops_the_work(pipeline, monkeypatch):
    calls = []
    generate = pipeline.coarse_lm.generate

    def spy(*args, **kwargs):
        calls.append(1)
        return generate(*args, **kwargs)

    monkeypatch.setattr(pipeline.coarse_lm, "generate", spy)
    stream = pipeline.stream(seed=0)  # without an end
    assert next(stream).shape == (16000,)
    assert next(stream).shape == (8320,)
    stream.close()
    assert len(calls) == 2
    with pytest.raises(StopIteration):
        next(stream)
    # What is wrong is said before the first piece.
    with pytest.raises(ValueError, match="duration"):
        pipeline.stream(duration=-1)


def test_prompts_of_different_lengths_are_each_continued(pipeline, tmp_path):
    path = tmp_path / "third.wav"
    soundfile.write(path, noise(9600, seed=2), SAMPLE_RATE, subtype="FLOAT")
    prompts = [noise(6400), noise(3200, seed=1), path]
    settings = dict(duration=0.4, temperature=0, seed=0, return_tokens=True)
    batch, tokens = pipeline.generate(prompts, **settings)
    assert [len(audio) for audio in batch] == [12800, 9600, 16000]
    assert tokens.acoustic.shape == (3, 50, 3)
    for row, prompt in enumerate(prompts):
        audio, alone = pipeline.generate(prompt, **settings)
        np.testing.assert_allclose(batch[row], audio, atol=1e-5)
        for one, all_ in zip(alone, tokens, strict=True):
            np.testing.assert_array_equal(all_[row, -len(one) :], one)
            assert (all_[row, : -len(one)] == -1).all()
    stream = pipeline.stream(prompts, duration=0.4, temperature=0, seed=0)
    np.testing.assert_array_equal(
        np.concatenate(list(stream), axis=1),
        [audio[-6400:] for audio in batch],
    )


def test_the_best_candidate_is_the_one_that_the_scorer_likes(pipeline):
    prompts = noise(2, 8000)
    settings = dict(duration=0.2, seed=0, return_tokens=True)
    heard = []

    def scorer(audio, tokens):
        assert audio.shape == (8000 + 3200,)
        assert tokens.acoustic.shape[1:] == (3,)
        heard.append(audio)
        return np.abs(audio[8000:]).max()

    audio, tokens = pipeline.generate(
        prompts, num_candidates=3, scorer=scorer, **settings
    )
    assert len(heard) == 6
    for row in range(2):
        candidates = heard[3 * row : 3 * row + 3]
        best = max(candidates, key=lambda a: np.abs(a[8000:]).max())
        np.testing.assert_array_equal(audio[row], best)
        decoded = pipeline.codec.decode(tokens.acoustic[row][None])[0]
        np.testing.assert_allclose(best[8000:], decoded[7680:10880], atol=1e-5)
    one = pipeline.generate(prompts[0], num_candidates=3, duration=0.2)
    assert one.shape == (8000 + 3200,)
    with pytest.raises(ValueError, match="NaN"):
        pipeline.generate(
            num_candidates=2, duration=0.2, scorer=lambda *_: np.nan
        )


def test_by_default_the_likeliest_candidate_is_best(pipeline, monkeypatch):
    total, coarse = np.zeros(8), []

    def spy_on(lm):
        generate = lm.generate

        def spy(*args, **kwargs):
            made, scores = generate(*args, **kwargs)
            total[:] += scores.reshape(8, -1).sum(axis=1)
            coarse.append(made)
            return made, scores

        monkeypatch.setattr(lm, "generate", spy)

    for lm in (pipeline.semantic_lm, pipeline.coarse_lm, pipeline.fine_lm):
        spy_on(lm)
    tokens = pipeline.generate(
        duration=0.4, num_candidates=8, seed=0, return_tokens=True
    )[1]
    best = total.argmax()
    assert total.std() > 0.1
    np.testing.assert_array_equal(tokens.semantic, coarse[0][best, :, 0])
    np.testing.assert_array_equal(tokens.acoustic[:, :2], coarse[1][best])


def test_what_is_new_follows_the_prompt_at_once(pipeline):
    # 100 samples are no whole unit; they are cut off at the start.
    prompt = noise(16100)
    tokens = pipeline.generate(prompt, duration=0.2, return_tokens=True)[1]
    known = pipeline.tokenize(prompt[100:])
    np.testing.assert_array_equal(tokens.semantic[:25], known.semantic)
    np.testing.assert_array_equal(tokens.acoustic[:50], known.acoustic)


def test_prompt_keeps_its_own_tokens(pipeline):
    prompt = noise(1, 16000)
    known = pipeline.tokenize(prompt)
    tokens = pipeline.generate(
        prompt, duration=0.4, seed=0, return_tokens=True
    )[1]
    np.testing.assert_array_equal(tokens.semantic[:, :25], known.semantic)
    np.testing.assert_array_equal(tokens.acoustic[:, :50], known.acoustic)


def test_seed_decides(pipeline):
    a, b, c = (pipeline.generate(duration=0.4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


def test_shapes_follow_what_was_given(pipeline):
    prompt = noise(8000)
    assert pipeline.generate(duration=0.2).ndim == 1
    assert pipeline.generate(duration=0.2, batch_size=2).shape[0] == 2
    assert pipeline.generate(prompt, duration=0.2).ndim == 1
    assert pipeline.generate(prompt[None], duration=0.2).shape[0] == 1
    several = pipeline.generate(prompt, duration=0.2, batch_size=2, seed=0)
    assert several.shape == (2, 8000 + 3200)
    assert np.abs(several[0, 8000:] - several[1, 8000:]).max() > 0
    one = pipeline.generate(prompt, duration=0.2, seed=0)
    np.testing.assert_allclose(several[0], one, atol=1e-5)


def test_prompt_may_be_a_file(pipeline, tmp_path):
    path = tmp_path / "stereo.flac"
    sound = np.stack([noise(22050), noise(22050)], axis=1)
    soundfile.write(path, sound, 22050)
    audio = pipeline.generate(path, duration=0.2, seed=0)
    assert audio.shape == (16000 + 3200,)


def test_temperature_by_stage(pipeline):
    greedy = [
        pipeline.generate(duration=0.2, temperature=0, seed=s) for s in (0, 1)
    ]
    np.testing.assert_array_equal(*greedy)
    partly = [
        pipeline.generate(
            duration=0.2,
            temperature={"semantic": 0},
            seed=s,
            return_tokens=True,
        )[1]
        for s in (0, 1)
    ]
    np.testing.assert_array_equal(partly[0].semantic, partly[1].semantic)
    assert (partly[0].acoustic != partly[1].acoustic).any()


@pytest.mark.parametrize("samples", [16000, 12345])
def test_resynthesis_keeps_the_length_and_what_is_said(pipeline, samples):
    audio = noise(samples)
    a, b = (pipeline.resynthesize(audio, seed=s) for s in (0, 1))
    assert a.shape == b.shape == audio.shape
    assert np.abs(a - b).max() > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"duration": 0}, "duration=0"),
        ({"duration": -1.0}, "duration=-1"),
        ({"duration": 1e-6}, "duration=1e-06"),
        ({"duration": float("nan")}, "duration"),
        ({"duration": float("inf")}, "duration=inf.*memory.*stream"),
        ({"duration": 1e18}, "duration=1e\\+18.*memory.*stream"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": [noise(16000), noise(1, 16000)]}, r"\(1, 16000\) at 1"),
        ({"prompt": [noise(16000), noise(9)]}, "prompt 1"),
        ({"repetition_penalty": -1}, "`repetition_penalty`.*-1"),
        ({"overlap": -1}, "`overlap`.*-1"),
        ({"overlap": {"coarse": 2}}, "2 seconds leaves no room.*coarse"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": {"corse": 1.0}}, "corse"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed.*-1$"),
        ({"prompt": np.zeros(16000, "float32")}, "silent"),
        ({"prompt": np.full(16000, np.nan, "float32")}, "finite"),
        ({"prompt": noise(100)}, "short|second"),
        ({"prompt": noise(1, 2, 16000)}, "shape"),
        ({"prompt": noise(0, 16000)}, "prompt. is empty.*0, 16000"),
        ({"duration": 1e12}, "duration=1000000000000.0.*memory.*stream"),
        ({"prompt": np.zeros(0, "float32")}, "empty|no samples|short"),
        ({"prompt": "no_such_file.wav"}, "no_such_file"),
        ({"prompt": noise(2, 16000), "batch_size": 3}, "batch_size"),
        ({"prompt": np.tile(noise(16000), 3600)}, "3600 seconds"),
    ],
)
def test_bad_calls_say_what_is_wrong(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(**{"duration": 0.2, **arguments})


@pytest.mark.parametrize(
    "part", ["semantic_lm", "coarse_lm", "fine_lm", "codec"]
)
def test_broken_weights_are_named(pipeline, part):
    model = pipeline.part(part)
    name = "codec" if part == "codec" else model.name
    variables = [
        v for v in model.weights if "head" in v.path or part == "codec"
    ]
    before = [keras.ops.convert_to_numpy(v) for v in variables]
    try:
        for variable in variables:
            variable.assign(np.full(variable.shape, np.nan))
        with pytest.raises(ValueError, match=f"{name}.*not finite.*broken"):
            pipeline.generate(duration=0.2, seed=0)
        with pytest.raises(ValueError, match=f"{name}.*not finite.*broken"):
            list(pipeline.stream(duration=0.2, seed=0))
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    assert np.isfinite(pipeline.generate(duration=0.2, seed=0)).all()


@pytest.mark.parametrize("seconds", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("settings", [{}, {"overlap": {"fine": 0.5}}], ids=str)
def test_a_prompt_may_be_longer_than_the_windows(pipeline, seconds, settings):
    # Which are one second.
    prompt = noise(round(seconds * SAMPLE_RATE))
    made, tokens = pipeline.generate(
        prompt, duration=0.2, seed=0, return_tokens=True, **settings
    )
    assert len(made) == len(prompt) + 3200
    assert len(tokens.semantic) == round(25 * (seconds + 0.2))


def test_untrained_parts_are_named():
    pipeline = tiny_pipeline(trained=False)
    with pytest.raises(ValueError, match="codec.*untrained.*fit"):
        pipeline.generate(duration=1)
    with pytest.raises(ValueError, match="semantic_tokenizer"):
        pipeline.tokenize(noise(16000))


def test_a_language_model_of_other_tokens_is_named():
    parts = dict(tiny_pipeline()._parts)
    parts["semantic_lm"] = tiny_lm(TokenLayout.semantic(99, 25.0))
    pipeline = AudioLMPipeline(parts, trained=parts)
    with pytest.raises(ValueError, match="semantic_lm was made for 99.*has 12"):
        pipeline.generate(duration=0.2)


# === Tokens ===


def test_tokenize(pipeline):
    audio = noise(2, 16000)
    both = pipeline.tokenize(audio)
    assert both.semantic.shape == (2, 25)
    assert both.acoustic.shape == (2, 50, 3)
    one = pipeline.tokenize(audio[1])
    np.testing.assert_array_equal(one.semantic, both.semantic[1])
    np.testing.assert_array_equal(one.acoustic, both.acoustic[1])


def test_long_audio_gives_the_codes_of_the_whole(pipeline):
    audio = noise(1, 33 * SAMPLE_RATE)
    codes = pipeline.tokenize(audio).acoustic
    whole = pipeline.codec.encode(audio)
    assert codes.shape == whole.shape
    assert (codes == whole).mean() > 0.999  # ties may fall either way


def test_clips_of_different_lengths_get_their_own_tokens(pipeline):
    clips = [noise(n, seed=n) for n in (9000, 16000, 700, 20001)]
    tokens = pipeline.tokenize_many(clips, batch_size=3)
    for clip, (semantic, acoustic) in zip(clips, tokens, strict=True):
        alone = pipeline.tokenize(clip)
        assert semantic.shape == alone.semantic.shape
        assert acoustic.shape == alone.acoustic.shape
        assert (semantic == alone.semantic).mean() > 0.9
        assert (acoustic == alone.acoustic).mean() > 0.99


# === The parallel decoder ===


def tiny_parallel_decoder(levels=COARSE_LEVELS + FINE_LEVELS):
    layout = TokenLayout.coarse(NUM_CLUSTERS, levels, CODEBOOK_SIZE, 25.0, 50.0)
    return ParallelDecoder(
        layout,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        kernel_size=3,
        crop_duration=1.0,
    )


def test_the_parallel_decoder_trains_generates_and_is_kept(
    recordings, tmp_path
):
    pipeline = tiny_pipeline()
    settings = dict(duration=0.4, acoustic_decoder="parallel", seed=0)
    with pytest.raises(ValueError, match="no parallel decoder.*add_part"):
        pipeline.generate(**settings)
    pipeline.add_part("parallel_decoder", tiny_parallel_decoder())
    with pytest.raises(ValueError, match="parallel_decoder is untrained"):
        pipeline.generate(**settings)
    pipeline.generate(duration=0.2)  # which does not need it
    history = pipeline.fit(
        recordings, steps_per_epoch=2, batch_size=2, verbose=0
    )
    assert list(history) == ["parallel_decoder"]
    assert np.isfinite(history["parallel_decoder"]["loss"]).all()

    # Neither of the stages that it stands in for is asked.
    pipeline.coarse_lm.generate = pipeline.fine_lm.generate = None
    audio, tokens = pipeline.generate(
        noise(16000), return_tokens=True, **settings
    )
    assert audio.shape == (16000 + 6400,)
    assert tokens.acoustic.shape == (70, 3)
    long = list(pipeline.stream(**{**settings, "duration": 2.5}))
    assert sum(map(len, long)) == 40000 and len(long) > 2
    # It is a stage with settings of its own.
    cold = {"semantic": 0, "parallel": 0}
    alike = pipeline.generate(**settings, temperature=cold)
    pipeline.sampling = {"acoustic_decoder": "parallel", "temperature": cold}
    np.testing.assert_array_equal(pipeline.generate(duration=0.4), alike)
    with pytest.raises(ValueError, match="'coarse'.*semantic, parallel"):
        pipeline.generate(duration=0.4, temperature={"coarse": 0.5})
    with pytest.raises(ValueError, match="'parallel'.*semantic, coarse, fine"):
        pipeline.generate(
            duration=0.4, acoustic_decoder="cascade", overlap={"parallel": 0.1}
        )
    pipeline.sampling = {"acoustic_decoder": "parallel"}
    made = pipeline.resynthesize(noise(12345), seed=0)
    assert made.shape == (12345,)

    pipeline.save_to_preset(tmp_path / "preset")
    again = AudioLMPipeline.from_preset(tmp_path / "preset")
    assert again.trained_parts == pipeline.part_names
    np.testing.assert_allclose(
        again.generate(noise(16000), **settings), audio, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("parallel", tiny_parallel_decoder, "no part 'parallel'"),
        ("parallel_decoder", tiny_codec, "must be a ParallelDecoder.*Sound"),
        (
            "parallel_decoder",
            lambda: tiny_parallel_decoder(2),
            "for 2 levels.*codec has 3",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_not_added(pipeline, name, model, message):
    before = pipeline.part_names
    with pytest.raises(ValueError, match=message):
        pipeline.add_part(name, model())
    assert pipeline.part_names == before


def test_another_codec_leaves_no_stage_trained():
    pipeline = tiny_pipeline()
    pipeline.add_part("codec", tiny_codec())
    assert pipeline.trained_parts == ["semantic_tokenizer", "semantic_lm"]


def test_the_coarse_stage_alone():
    """Its levels are all that is made, of the same tokens as in the cascade."""
    pipeline = tiny_pipeline()
    settings = dict(duration=0.4, seed=0, return_tokens=True)
    _, both = pipeline.generate(noise(16000), **settings)
    pipeline.sampling = {"acoustic_decoder": "coarse"}
    assert pipeline.generated_levels == 2
    pipeline.fine_lm.generate = None  # is not asked
    audio, alone = pipeline.generate(noise(16000), **settings)
    np.testing.assert_array_equal(alone.acoustic, both.acoustic[..., :2])
    decoded = pipeline.codec.decode(alone.acoustic[None])
    np.testing.assert_allclose(
        audio[16000:], ops.convert_to_numpy(decoded)[0, 16000:], atol=1e-5
    )
    assert pipeline.resynthesize(noise(12345), seed=0).shape == (12345,)
    streamed = list(pipeline.stream(noise(16000), duration=0.4, seed=0))
    np.testing.assert_allclose(
        np.concatenate(streamed), audio[16000:], atol=1e-5
    )


def test_the_way_to_acoustic_tokens_is_one_of_three(pipeline):
    with pytest.raises(
        ValueError, match="'cascade', 'coarse', 'parallel'.*'both'"
    ):
        pipeline.generate(duration=0.2, acoustic_decoder="both")
    with pytest.raises(
        ValueError, match="'cascade', 'coarse', 'parallel'.*'both'"
    ):
        pipeline.sampling = {"acoustic_decoder": "both"}


def test_a_preset_keeps_how_it_sounds_best(tmp_path):
    pipeline = tiny_pipeline()
    told = pipeline.generate(duration=0.2, seed=0, temperature=0)
    pipeline.sampling = {"temperature": 0}
    pipeline.save_to_preset(tmp_path / "preset")
    loaded = AudioLMPipeline.from_preset(tmp_path / "preset")
    np.testing.assert_array_equal(loaded.generate(duration=0.2, seed=1), told)
    hotter = {"coarse": 5.0}  # the others are the preset's still
    semantic = [
        loaded.generate(
            duration=0.2, seed=seed, temperature=hotter, return_tokens=True
        )[1].semantic
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*semantic)


@pytest.mark.parametrize("sampling", [{"temprature": 1}, {"top_k": -1}, [1]])
def test_a_preset_that_samples_as_nothing_can_is_refused(sampling, tmp_path):
    tiny_pipeline().save_to_preset(tmp_path / "preset")
    path = tmp_path / "preset" / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "sampling": sampling}))
    with pytest.raises(ValueError, match="metadata.json"):
        AudioLMPipeline.from_preset(tmp_path / "preset")


# === Training ===


def test_stages_learn_ends_and_runs():
    semantic = np.array([[4, 4, 7, 7, 7, 1, 1, 4], [2, 2, 2, 2, 2, 2, 2, 2]])
    acoustic = np.arange(48).reshape(2, 8, 3)
    last = np.array([[0, 1, 0, 1], [0, 0, 0, 1]], "bool")

    def inputs_of(layout):
        return training.stage_inputs(layout, 2)(
            semantic.astype("int32"), acoustic, last
        )

    def semantic_of(**kwargs):
        layout = TokenLayout.semantic(9, 25.0, **kwargs)
        return inputs_of(layout)["semantic"][..., 0].tolist()

    assert semantic_of() == semantic.tolist()
    # The code 9 stands after the units that are the last of a recording;
    # what has no room is cut off.
    assert semantic_of(ends=True) == [[4, 4, 7, 7, 9, 7, 1, 1], [2] * 8]
    assert semantic_of(deduplicated=True) == [
        [4, 7, 1, 4, -1, -1, -1, -1],
        [2, -1, -1, -1, -1, -1, -1, -1],
    ]
    assert semantic_of(ends=True, deduplicated=True)[0][:5] == [4, 7, 9, 7, 1]
    layout = TokenLayout.coarse(9, 2, 99, 25.0, 25.0, deduplicated=True)
    inputs = inputs_of(layout)
    assert inputs["semantic"][0, :, 0].tolist() == [4, 7, 1, 4, -1, -1, -1, -1]
    np.testing.assert_array_equal(inputs["coarse"], acoustic[..., :2])
    inputs = inputs_of(TokenLayout.fine(2, 1, 99, 25.0))
    np.testing.assert_array_equal(inputs["coarse"], acoustic[..., :2])
    np.testing.assert_array_equal(inputs["fine"], acoustic[..., 2:])


def test_a_stage_learns_where_recordings_end(recordings, tmp_path):
    pipeline = deduplicated_pipeline(tiny_pipeline())
    layout = TokenLayout.semantic(
        NUM_CLUSTERS, 25.0, ends=True, deduplicated=True
    )
    # Tokens that a recording of a second says, and nothing after them.
    corpus = training.tokenize_corpus(
        training.list_files(recordings),
        tmp_path / "training",
        lambda clips: [
            (
                np.repeat([3, 1, 4, 1, 5], 5).astype("int32"),
                np.zeros((50, 3), "int32"),
            )
            for _ in clips
        ],
        training.token_metadata(pipeline),
    )
    assert len(corpus) == 4
    pipeline.add_part("semantic_lm", tiny_lm(layout))
    pipeline.compile(semantic_lm=keras.optimizers.Adam(0.03))
    history = pipeline.fit(
        recordings,
        parts="semantic_lm",
        steps_per_epoch=80,
        token_dir=tmp_path,
        verbose=0,
    )
    assert history["semantic_lm"]["loss"][-1] < 1.5
    assert float(pipeline.semantic_lm.frames_per_token) == 5.0
    made = pipeline.semantic_lm.generate(
        {"semantic": np.array([[[3], [1], [4]]])},
        8,
        temperature=0,
        may_end=True,
    )
    assert made[0, :, 0].tolist() == [3, 1, 4, 1, 5, -1, -1, -1]


def fit(pipeline, recordings, folder, **kwargs):
    settings = {
        "steps_per_epoch": 1,
        "batch_size": 2,
        "verbose": 0,
        "token_dir": folder / "tokens",
        **kwargs,
    }
    return pipeline.fit(recordings, **settings)


@pytest.mark.large
def test_fit_trains_every_part_and_the_result_generates(recordings, tmp_path):
    pipeline = tiny_pipeline(trained=False)
    trainer = SoundStreamTrainer(pipeline.codec, discriminators=None)
    trainer.compile(trainer.make_optimizer())
    pipeline.compile(codec=trainer)
    history = fit(pipeline, recordings, tmp_path, validation_data=recordings)
    assert list(history) == pipeline.part_names == pipeline.trained_parts
    for part in history.values():
        assert np.isfinite(part["loss"]).all()
        assert np.isfinite(part["val_loss"]).all()
    assert pipeline.generate(duration=0.2, seed=0).shape == (3200,)


def test_a_store_of_tokens_trains_the_language_models(recordings, tmp_path):
    pipeline = tiny_pipeline()
    store = tmp_path / "tokens" / "training"
    settings = {"parts": "semantic_lm", "epochs": 2, "steps_per_epoch": 2}
    expected = fit(pipeline, recordings, tmp_path, **settings)
    found = fit(tiny_pipeline(), store, tmp_path / "none", **settings)
    assert found["semantic_lm"]["loss"] == expected["semantic_lm"]["loss"]
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="'codec' is trained on audio.*holds"):
        fit(pipeline, store, tmp_path, parts="codec")


def test_a_store_of_other_weights_is_refused_by_name(
    recordings, tmp_path, tiny_preset
):
    pipeline = AudioLMPipeline.from_preset(tiny_preset)
    fit(pipeline, recordings, tmp_path, parts="semantic_lm")
    store = tmp_path / "tokens" / "training"
    fit(tiny_pipeline(), store, tmp_path, parts="semantic_lm")
    other = tiny_pipeline()
    kernel = other.codec.encoder.weights[0]
    kernel.assign(kernel + 1)
    weights = training.token_metadata(pipeline)["codec"]["weights"]
    message = f"codec: found {tiny_preset}.*{weights}.*expected a model"
    for data in (store, recordings):
        with pytest.raises(ValueError, match=message) as refused:
            fit(other, data, tmp_path, parts="semantic_lm")
        assert "semantic_tokenizer:" not in str(refused.value)


def test_finished_parts_are_not_trained_again(recordings, tmp_path):
    settings = {
        "parts": ["semantic_lm"],
        "checkpoint_dir": tmp_path / "checkpoints",
    }
    first = tiny_pipeline()
    fit(first, recordings, tmp_path, **settings)
    second = tiny_pipeline()
    history = fit(second, recordings, tmp_path, **settings)
    assert history == {"semantic_lm": {}}
    for a, b in zip(
        first.semantic_lm.get_weights(),
        second.semantic_lm.get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_parts_that_are_trained_by_default(recordings, monkeypatch):
    def parts_of(pipeline, **kwargs):
        return pipeline.fit(recordings, **kwargs)

    monkeypatch.setattr(training, "fit_parts", lambda _, parts, plan: parts)
    pipeline = tiny_pipeline()
    assert parts_of(pipeline) == ["semantic_lm", "coarse_lm", "fine_lm"]
    assert parts_of(pipeline, parts="codec") == ["codec"]
    pipeline.mark_trained("codec")
    assert parts_of(pipeline) == ["coarse_lm", "fine_lm"]


def test_compile_sets_the_optimizer_and_other_epochs_train_anew(
    recordings, tmp_path
):
    pipeline = tiny_pipeline()
    before = pipeline.semantic_lm.get_weights()
    settings = {
        "parts": ["semantic_lm"],
        "checkpoint_dir": tmp_path / "checkpoints",
    }
    pipeline.compile(semantic_lm=keras.optimizers.SGD(0.0))
    fit(pipeline, recordings, tmp_path, **settings)
    for a, b in zip(before, pipeline.semantic_lm.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    pipeline.compile(semantic_lm=keras.optimizers.SGD(0.1))
    history = fit(pipeline, recordings, tmp_path, epochs=2, **settings)
    assert len(history["semantic_lm"]["loss"]) == 2
    after = pipeline.semantic_lm.get_weights()
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_audio_that_is_heard_is_perturbed_but_not_for_the_clusters(
    pipeline, recordings
):
    plan = dict.fromkeys(
        ("validation_files", "steps_per_epoch", "batch_size", "token_dir")
    )
    plan = training.Plan(
        files=recordings,
        epochs=1,
        checkpoint_dir=None,
        backup_every=None,
        speed_range=(0.8, 1.25),
        callbacks=None,
        verbose=0,
        seed=3,
        **plan,
    )
    for part in ("codec", "semantic_tokenizer"):
        crops = training.audio_crops(pipeline, part, plan)[0]
        assert (crops.speed_range, crops.seed) == ((0.8, 1.25), 3)
    clean = training.audio_crops(pipeline, part, plan, for_clusters=True)[0]
    assert clean.speed_range is None


def test_new_tokenizer_makes_language_models_untrained(recordings, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.mark_trained("codec")
    assert pipeline.trained_parts == [
        "codec",
        "semantic_tokenizer",
        "semantic_lm",
    ]
    pipeline.mark_trained("semantic_tokenizer")
    assert pipeline.trained_parts == ["codec", "semantic_tokenizer"]


def test_language_models_stay_trained_where_codes_stay(recordings):
    pipeline = tiny_pipeline()
    pipeline.add_part("detector", AudioClassifier(("real", "made")))
    pipeline.mark_trained("detector")
    audio = noise(1, 16000)
    tokens = pipeline.tokenize(audio).acoustic
    store = training.token_metadata(pipeline)
    before = pipeline.codec.decode(tokens)
    pipeline.codec.freeze_codes()
    pipeline.fit(
        recordings,
        parts=["codec"],
        epochs=1,
        steps_per_epoch=2,
        batch_size=2,
        verbose=0,
    )
    np.testing.assert_array_equal(pipeline.tokenize(audio).acoustic, tokens)
    assert np.abs(pipeline.codec.decode(tokens) - before).max() > 1e-6
    assert training.token_metadata(pipeline) == store
    assert pipeline.trained_parts == [
        name for name in pipeline.part_names if name != "detector"
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"parts": ["vocoder"]}, "vocoder"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": {"codec": 0}}, "batch_size"),
        ({"epochs": {"smantic_lm": 2}}, "epochs.*smantic_lm"),
        ({"data": []}, "empty"),
    ],
)
def test_bad_training_calls_say_what_is_wrong(
    pipeline, recordings, arguments, message
):
    with pytest.raises(ValueError, match=message):
        pipeline.fit(**{"data": recordings, "verbose": 0, **arguments})


def test_folder_without_audio(pipeline, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        pipeline.fit(tmp_path)


def test_compile_names_a_part_that_is_not_there(pipeline):
    with pytest.raises(ValueError, match="vocoder"):
        pipeline.compile(vocoder="adam")


def test_missing_part_is_named():
    parts = tiny_pipeline(trained=False)._parts
    with pytest.raises(ValueError, match="coarse_lm"):
        AudioLMPipeline({k: v for k, v in parts.items() if k != "coarse_lm"})
