import json
import pickle
import resource

import numpy as np
import pytest
import soundfile

from keras_audiolm.data import store, tokens
from keras_audiolm.data.spooled import SpooledAudio
from keras_audiolm.data.tokens import (
    TokenCorpus,
    TokenCrops,
    tokenize_corpus,
)

RATE = 8000
HOP = 80  # samples of a semantic frame, and of two acoustic ones
LEVELS = 3


# === Crops ===


def codes_of(file, frames, levels=None):
    """Codes that tell their file and their frame (and their level)."""
    codes = 10_000 * file + np.arange(frames)
    if levels:
        codes = codes[:, None] + 1_000_000 * np.arange(levels)
    return codes.astype("int32")


class MemoryCorpus:
    """What `TokenCrops` needs of a `TokenCorpus`, from lists of arrays."""

    def __init__(self, semantic, acoustic, voices, unit):
        self.semantic, self.acoustic = semantic, acoustic
        self.voices, self.unit = np.array(voices), unit
        self.semantic_lengths = np.array([len(x) for x in semantic])
        self.acoustic_lengths = np.array([len(x) for x in acoustic])

    def read(self, file, start, count):
        s, a = self.unit
        return (
            self.semantic[file][start * s : (start + count) * s],
            self.acoustic[file][start * a : (start + count) * a],
        )


def corpus_of(
    unit=(1, 2), sizes=(5, 1, 9, 0, 20, 2), voices=(0, 0, 1, 0, 1, 1)
):
    """Files of `sizes` units, some of them with a frame or two to spare."""
    s, a = unit
    return MemoryCorpus(
        [codes_of(f, n * s + f % 2) for f, n in enumerate(sizes)],
        [codes_of(f, n * a + f % a, LEVELS) for f, n in enumerate(sizes)],
        voices,
        unit,
    )


def crops_of(units=12, unit=(1, 2), **kwargs):
    kwargs = {"batch_size": 6, "steps_per_epoch": 3, "seed": 1, **kwargs}
    corpus = kwargs.pop("corpus", None) or corpus_of(unit)
    return TokenCrops(corpus, units, lambda *both: both, **kwargs)


def batches_of(crops):
    return [crops[i] for i in range(len(crops))]


@pytest.mark.parametrize("unit", [(1, 2), (1, 1), (2, 3)])
@pytest.mark.parametrize("units", [1, 7, 30])
def test_crops_are_aligned_whole_and_of_one_voice(unit, units):
    crops = crops_of(units, unit)
    corpus = crops.corpus
    s, a = unit
    for semantic, acoustic, last in batches_of(crops):
        assert semantic.shape == (6, units * s)
        assert last.shape == (6, units)
        assert acoustic.shape == (6, units * a, LEVELS)
        assert semantic.dtype == acoustic.dtype == np.int32
        assert semantic.min() >= 0 and acoustic.min() >= 0
        levels = acoustic // 1_000_000
        np.testing.assert_array_equal(
            levels, np.broadcast_to(np.arange(LEVELS), levels.shape)
        )
        # Every level is of the same moment.
        moment = acoustic % 1_000_000
        assert np.all(moment == moment[..., :1])
        for row in range(6):
            check_row(semantic[row], moment[row, :, 0], last[row], unit, corpus)


def check_row(semantic, acoustic, last, unit, corpus):
    s, a = unit
    semantic, acoustic = semantic.reshape(-1, s), acoustic.reshape(-1, a)
    files, places = semantic[:, 0] // 10_000, semantic[:, 0] % 10_000 // s
    # Whole units that start at the same place of the same file.
    expected = 10_000 * files[:, None] + s * places[:, None] + np.arange(s)
    np.testing.assert_array_equal(semantic, expected)
    expected = 10_000 * files[:, None] + a * places[:, None] + np.arange(a)
    np.testing.assert_array_equal(acoustic, expected)
    assert len({corpus.voices[f] for f in files}) == 1
    for file, place, is_last in zip(files, places, last, strict=True):
        lengths = (
            len(corpus.semantic[file]) // s,
            len(corpus.acoustic[file]) // a,
        )
        assert is_last == (place == min(lengths) - 1)
    for i in range(1, len(files)):
        if places[i] == 0:  # another file, after the end of the last
            f = files[i - 1]
            whole = min(
                len(corpus.semantic[f]) // s, len(corpus.acoustic[f]) // a
            )
            assert places[i - 1] == whole - 1
        else:
            assert files[i] == files[i - 1]
            assert places[i] == places[i - 1] + 1


def test_semantic_frame_k_goes_with_acoustic_frame_2k():
    for semantic, acoustic, _ in batches_of(crops_of()):
        np.testing.assert_array_equal(
            2 * (semantic % 10_000), acoustic[:, ::2, 0] % 10_000
        )
        np.testing.assert_array_equal(
            semantic // 10_000, acoustic[:, 1::2, 0] // 10_000
        )


def test_every_unit_has_the_same_chance():
    ((first, _, _),) = batches_of(
        crops_of(1, batch_size=5_000, steps_per_epoch=1)
    )
    found, counts = np.unique(first, return_counts=True)
    sizes = (5, 1, 9, 0, 20, 2)
    expected = [10_000 * f + k for f, n in enumerate(sizes) for k in range(n)]
    assert found.tolist() == expected
    np.testing.assert_allclose(counts / 5_000, 1 / len(expected), atol=0.012)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_depends_on_seed_epoch_and_index_only():
    first, second = crops_of(), crops_of()
    epochs = []
    for _ in range(2):
        epochs.append(batches_of(first))
        first.on_epoch_end()
    second.on_epoch_end()
    for index in (2, 0, 1, 2):
        assert same(second[index], epochs[1][index])
    every = [*epochs[0], *epochs[1], crops_of(seed=2)[0]]
    for i, one in enumerate(every):
        assert not any(same(one, other) for other in every[:i])


def test_the_same_batches_every_epoch_if_asked_for():
    crops = crops_of(same_every_epoch=True)
    before = batches_of(crops)
    crops.on_epoch_end()
    assert all(map(same, before, batches_of(crops)))
    assert same(before[0], crops_of()[0])


def test_split_makes_the_inputs_of_a_stage():
    def split(semantic, acoustic, last):
        return {"semantic": semantic[..., None], "fine": acoustic[..., 1:]}

    plain = crops_of()[1]
    crops = crops_of()
    crops.split = split
    codes = crops[1]
    np.testing.assert_array_equal(codes["semantic"], plain[0][..., None])
    np.testing.assert_array_equal(codes["fine"], plain[1][..., 1:])


def test_batches_end():
    crops = crops_of(steps_per_epoch=3)
    assert len(crops) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"Batch {index} of 3"):
            crops[index]


def test_a_corpus_without_whole_units_is_refused():
    corpus = corpus_of(unit=(1, 2), sizes=(0, 0), voices=(0, 1))
    with pytest.raises(ValueError, match="as long as one semantic frame"):
        crops_of(corpus=corpus)


# === Corpora on disk ===


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "FILES_PER_SHARD", 2)


@pytest.fixture
def files(tmp_path):
    """Five constant files: file `k` holds `(k + 1) / 64` for `k + 1` frames."""
    paths = []
    for k in range(5):
        path = tmp_path / "audio" / "ab"[k % 2] / f"{k}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full((k + 1) * HOP, (k + 1) / 64), RATE)
        paths.append(path)
    return paths


class Tokenizer:
    """Tells files apart; fails at the call `fail_at`."""

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.seen = []

    def __call__(self, clips):
        if len(self.seen) == self.fail_at:
            raise RuntimeError("the machine was switched off")
        firsts = [np.asarray(clip[:1]).item() for clip in clips]
        numbers = [round(64 * first) - 1 for first in firsts]
        self.seen.append(numbers)
        return [
            (
                codes_of(k, len(clip) // HOP),
                codes_of(k, 2 * len(clip) // HOP, LEVELS),
            )
            for k, clip in zip(numbers, clips, strict=True)
        ]


class Noise(Tokenizer):
    """Tokens that cannot be compressed."""

    def __call__(self, clips):
        rng = np.random.default_rng(0)
        return [
            (
                rng.integers(60_000, size=1000),
                rng.integers(4_000_000, size=(2000, LEVELS)),
            )
            for _ in clips
        ]


def metadata_of(identity="one", min_duration=0.0, trim_silence=False):
    """Of models that make a semantic frame of 10 ms and two acoustic ones."""
    return store.make_metadata(
        codec={
            "preset": identity,
            "weights": identity,
            "frame_rate": 200.0,
            "codes": 4_000_000,
            "levels": LEVELS,
        },
        semantic_tokenizer={
            "preset": None,
            "weights": "0",
            "frame_rate": 100.0,
            "codes": 60_000,
        },
        sample_rate=RATE,
        unit=(1, 2),
        min_duration=min_duration,
        trim_silence=trim_silence,
        licence="CC0-1.0",
    )


def tokenize(files, folder, tokenizer, identity="one", **others):
    metadata = metadata_of(identity, **others)
    return tokenize_corpus(files, folder, tokenizer, metadata)


def assert_holds(corpus, numbers):
    assert len(corpus) == len(corpus.semantic) == len(numbers)
    for k, semantic, acoustic in zip(
        numbers, corpus.semantic, corpus.acoustic, strict=True
    ):
        np.testing.assert_array_equal(semantic, codes_of(k, k + 1))
        expected = codes_of(k, 2 * k + 2, LEVELS)
        np.testing.assert_array_equal(acoustic, expected)
        assert semantic.dtype == acoustic.dtype == np.int32


def names(folder):
    return sorted(path.name for path in folder.iterdir())


SHARDS = [f"shard-{n:05d}.array_record" for n in range(3)]
WHOLE = ["index.npz", "metadata.json", *SHARDS, "skipped.csv"]


def test_a_corpus_is_all_files_in_order(files, tmp_path):
    folder = tmp_path / "new" / "tokens"
    tokenizer = Tokenizer()
    corpus = tokenize(files, folder, tokenizer)
    assert tokenizer.seen == [[0, 1], [2, 3], [4]]
    assert_holds(corpus, range(5))
    voices = corpus.voice_names[corpus.voices].tolist()
    assert voices == [str(path.parent) for path in files]
    assert corpus.skipped == {}
    assert names(folder) == WHOLE
    assert_holds(pickle.loads(pickle.dumps(corpus)), range(5))


def test_large_files_get_a_shard_of_their_own(files, tmp_path, monkeypatch):
    sizes = [path.stat().st_size for path in files]
    monkeypatch.setattr(store, "BYTES_PER_SHARD", sizes[0] + sizes[1])
    tokenizer = Tokenizer()
    assert_holds(tokenize(files, tmp_path / "tokens", tokenizer), range(5))
    assert tokenizer.seen == [[0, 1], [2], [3], [4]]


def test_so_much_audio_is_tokenized_at_once(files, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FILES_PER_SHARD", 5)
    monkeypatch.setattr(tokens, "SECONDS_AT_ONCE", 2.5 * HOP / RATE)
    tokenizer = Tokenizer()
    assert_holds(tokenize(files, tmp_path / "tokens", tokenizer), range(5))
    assert tokenizer.seen == [[0, 1], [2], [3], [4]]


def test_what_is_there_is_not_tokenized_again(files, tmp_path):
    tokenize(files, tmp_path / "tokens", Tokenizer())
    again = Tokenizer(fail_at=0)
    assert_holds(tokenize(files, tmp_path / "tokens", again), range(5))


def test_a_stop_leaves_whole_shards_and_the_next_run_goes_on(files, tmp_path):
    folder = tmp_path / "tokens"
    with pytest.raises(RuntimeError, match="switched off"):
        tokenize(files, folder, Tokenizer(fail_at=1))
    assert names(folder) == ["metadata.json", SHARDS[0]]
    with pytest.raises(ValueError, match="is not finished"):
        TokenCorpus(folder)
    second = Tokenizer()
    assert_holds(tokenize(files, folder, second), range(5))
    assert second.seen == [[2, 3], [4]]
    assert names(folder) == WHOLE


def test_a_stop_while_writing_leaves_no_shard(files, tmp_path, monkeypatch):
    folder = tmp_path / "tokens"

    def full(self):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.ShardWriter, "_index", full)
        with pytest.raises(OSError, match="No space left"):
            tokenize(files, folder, Tokenizer())
    assert names(folder) == ["metadata.json"]
    assert_holds(tokenize(files, folder, Tokenizer()), range(5))
    assert names(folder) == WHOLE


def test_a_damaged_shard_is_named(files, tmp_path):
    folder = tmp_path / "tokens"
    corpus = tokenize(files, folder, Tokenizer())
    shard = folder / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:100])
    assert corpus.semantic[1].tolist() == codes_of(1, 2).tolist()
    with pytest.raises(ValueError, match=f"{SHARDS[1]} is missing or damaged"):
        corpus.read(2)
    (folder / "index.npz").unlink()
    with pytest.raises(ValueError, match=f"{SHARDS[1]} is missing or damaged"):
        store.finish_store(folder)


def test_bad_files_are_skipped_and_stay_known(files, tmp_path):
    files[0].write_bytes(b"")
    files[2].write_text("no audio at all")
    files.append(files[0].with_name("none.wav"))
    folder = tmp_path / "tokens"
    for tokenizer in (Tokenizer(), Tokenizer(fail_at=0)):
        with pytest.warns(UserWarning, match=r"3 file\(s\) .*0.wav is empty"):
            corpus = tokenize(files, folder, tokenizer)
        assert_holds(corpus, [1, 3, 4])
        assert set(corpus.skipped) == {files[0], files[2], files[5]}
        assert "does not exist" in corpus.skipped[files[5]]
        assert "is empty" in corpus.skipped[files[0]]
        assert "cannot be read" in corpus.skipped[files[2]]


def test_silent_and_too_short_files_are_skipped(files, tmp_path):
    soundfile.write(files[1], np.zeros(RATE), RATE)
    soundfile.write(files[3], np.full(7, 0.1), RATE)
    with pytest.warns(UserWarning, match=r"2 file\(s\) "):
        corpus = tokenize(
            files, tmp_path / "tokens", Tokenizer(), min_duration=0.001
        )
    assert_holds(corpus, [0, 2, 4])
    assert corpus.skipped[files[1]] == "is silent"
    assert "too short" in corpus.skipped[files[3]]


def test_a_shard_of_bad_files_only(files, tmp_path):
    for path in files[2:4]:
        path.write_bytes(b"")
    for tokenizer in (Tokenizer(), Tokenizer(fail_at=0)):
        with pytest.warns(UserWarning, match=r"2 file\(s\) .*2.wav is empty"):
            corpus = tokenize(files, tmp_path / "tokens", tokenizer)
        assert_holds(corpus, [0, 1, 4])


def test_no_good_file_at_all(files, tmp_path):
    for path in files:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="No file .*0.wav is empty"):
        tokenize(files, tmp_path / "tokens", Tokenizer())


@pytest.mark.parametrize("change", ["identity", "list", "content"])
def test_tokens_of_something_else_are_refused(files, tmp_path, change):
    folder = tmp_path / "tokens"
    tokenize(files, folder, Tokenizer())
    identity = "one"
    if change == "identity":
        identity = "two"
    elif change == "list":
        files = files[:-1]
    else:
        soundfile.write(files[0], np.full(5 * HOP, 0.5), RATE)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match="other files or of other") as refused:
        tokenize(files, folder, Tokenizer(), identity)
    assert "token_dir" in str(refused.value)
    assert ("found one" in str(refused.value)) == (change == "identity")
    assert ("expected two" in str(refused.value)) == (change == "identity")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_metadata_says_whose_tokens_they_are(files, tmp_path):
    files[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="gave no tokens"):
        tokenize(files, tmp_path / "tokens", Tokenizer(), "my_preset")
    found = json.loads((tmp_path / "tokens" / "metadata.json").read_text())
    assert found["codec"]["preset"] == "my_preset"
    assert found["licence"] == "CC0-1.0" and found["version"] == 1
    assert found["files"].startswith("5 files, ")
    assert found["counts"] == {
        "recordings": 4,
        "voices": 2,
        "skipped": 1,
        "hours": pytest.approx(14 * HOP / RATE / 3600),
        "semantic_tokens": 14,
        "acoustic_tokens": 14 * 2 * LEVELS,
    }


def test_a_store_of_another_version_is_refused(tmp_path):
    text = json.dumps({**metadata_of(), "version": 2})
    (tmp_path / "metadata.json").write_text(text)
    assert not store.is_store(tmp_path)
    with pytest.raises(ValueError, match="version 2, .* version 1"):
        TokenCorpus(tmp_path)


def test_a_disk_that_is_full_leaves_no_shard(files, tmp_path):
    folder = tmp_path / "tokens"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file of this process can grow beyond what the metadata needs.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            tokenize(files, folder, Noise())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert names(folder) == ["metadata.json"]
    assert_holds(tokenize(files, folder, Tokenizer()), range(5))


@pytest.mark.parametrize("at_once", [600.0, 0.0], ids=["memory", "disk"])
def test_pauses_at_both_ends_are_cut_off_if_asked_for(
    files, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(tokens, "SECONDS_AT_ONCE", at_once)
    lengths_seen = []
    pause = np.zeros(10 * HOP)
    clip = np.full(100 * HOP, 1 / 64)
    soundfile.write(files[0], np.concatenate([pause, clip] + 5 * [pause]), RATE)

    def lengths(clips):
        on_disk = [isinstance(c, SpooledAudio) for c in clips]
        assert on_disk == [not at_once] * len(clips)
        lengths_seen.extend(map(len, clips))
        codes = np.zeros(2, "int32"), np.zeros((2, LEVELS), "int32")
        return [codes] * len(clips)

    tokenize(files[:2], tmp_path / "tokens", lengths, trim_silence=True)
    assert lengths_seen == [130 * HOP, 2 * HOP]


# === Stretches of recordings ===

SIZES = ((40, 80), (23, 51), (60, 80), (0, 3), (7, 14), (21, 42))


@pytest.fixture
def random_store(tmp_path):
    """A store of one shard with a record for each 20 units, and its tokens."""
    metadata = {**metadata_of(), "piece": 20}
    rng = np.random.default_rng(0)
    tokens = [
        (
            rng.integers(60_000, size=s, dtype="int32"),
            rng.integers(4_000_000, size=(a, LEVELS), dtype="int32"),
        )
        for s, a in SIZES
    ]
    plan = store.StorePlan(["voice/0.wav"], tmp_path, metadata)
    with store.ShardWriter(store.shard_path(tmp_path, 0), metadata) as shard:
        for number, pair in enumerate(tokens):
            shard.add(f"voice/{number}.wav", *pair)
    plan.finish()
    return TokenCorpus(tmp_path), tokens


@pytest.mark.parametrize("start, count", [(0, 3), (19, 2), (20, 1), (3, 17)])
def test_a_stretch_is_what_the_whole_has_there(random_store, start, count):
    corpus, tokens = random_store
    for file, (semantic, acoustic) in enumerate(tokens):
        if start + count > min(len(semantic), len(acoustic) // 2):
            continue
        found = corpus.read(file, start, count)
        stop = start + count
        np.testing.assert_array_equal(found[0], semantic[start:stop])
        np.testing.assert_array_equal(found[1], acoustic[2 * start : 2 * stop])


def test_a_whole_recording_has_its_odd_frames(random_store):
    corpus, tokens = random_store
    for file, expected in enumerate(tokens):
        for found, one in zip(corpus.read(file), expected, strict=True):
            np.testing.assert_array_equal(found, one)
            assert found.dtype == np.int32
    runs = sum(np.count_nonzero(np.diff(s)) + 1 for s, _ in tokens if len(s))
    assert corpus.mean_run == sum(len(s) for s, _ in tokens) / runs


def test_a_stretch_reads_only_its_pieces(random_store, monkeypatch):
    corpus, _ = random_store
    read, counts = corpus._readers.read, []

    def counted(shard, first, count):
        counts.append(count)
        return read(shard, first, count)

    monkeypatch.setattr(corpus._readers, "read", counted)
    for start, count in ((0, 20), (20, 20), (19, 2)):
        corpus.read(0, start, count)
    assert counts == [1, 1, 2]


def test_crops_of_a_corpus_on_disk(files, tmp_path):
    corpus = tokenize(files, tmp_path / "tokens", Tokenizer())
    crops = crops_of(8, corpus=corpus)
    for semantic, acoustic, last in batches_of(crops):
        for row in range(len(semantic)):
            moment = acoustic[row, :, 0]
            check_row(semantic[row], moment, last[row], (1, 2), corpus)


def test_crops_from_disk_equal_those_of_the_same_tokens_in_memory(
    random_store,
):
    corpus, tokens = random_store
    memory = MemoryCorpus(*zip(*tokens, strict=True), corpus.voices, (1, 2))
    for one, other in zip(
        batches_of(crops_of(30, corpus=corpus)),
        batches_of(crops_of(30, corpus=memory)),
        strict=True,
    ):
        assert same(one, other)
