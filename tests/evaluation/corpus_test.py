import numpy as np
import pytest
import soundfile

from keras_audiolm.evaluation.corpus import Corpus


def write(path, seconds=0.5, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.normal(0, level, int(8000 * seconds)), 8000)


def test_folders_say_speaker_and_split(tmp_path):
    for name in ("train/ann/1", "train/bob/1", "held_out/ann/2"):
        write(tmp_path / f"{name}.wav")
    corpus = Corpus(tmp_path, 8000)
    assert [len(corpus.split(s)) for s in ("train", "held_out")] == [2, 1]
    assert list(corpus.files_by("speaker", "train")) == [
        "train/ann",
        "train/bob",
    ]
    assert corpus.files_by("language", "train") == {}
    ((row, clip),) = corpus.held_out
    assert row["path"] == "held_out/ann/2.wav" and clip.shape == (4000,)


def test_other_folders_are_held_out(tmp_path):
    write(tmp_path / "a.wav")
    write(tmp_path / "b" / "c.wav", seconds=1.0)
    corpus = Corpus(tmp_path, 8000)
    assert len(corpus.split("held_out")) == 2 and not corpus.split("train")
    assert [len(clip) for _, clip in corpus.long_enough(0.8)] == [8000]


def test_music_has_no_speaker(tmp_path):
    write(tmp_path / "held_out" / "sonata" / "1.wav")
    (tmp_path / "manifest.csv").write_text(
        "path,piece\nheld_out/sonata/1.wav,sonata\n"
    )
    (row,) = Corpus(tmp_path, 8000).split("held_out")
    assert row["piece"] == "sonata" and row["speaker"] is None


def test_the_manifest_goes_before_the_folders(tmp_path):
    write(tmp_path / "x" / "1.wav")
    write(tmp_path / "x" / "2.wav")
    write(tmp_path / "not_in_it.wav")
    (tmp_path / "manifest.csv").write_text(
        "path,speaker,language,split\n"
        "x/1.wav,ann,en,train\nx/2.wav,,,held_out\n"
    )
    corpus = Corpus(tmp_path, 8000)
    assert corpus.files_by("language", "train") == {
        "en": [tmp_path / "x" / "1.wav"]
    }
    assert corpus.split("held_out") == [
        {
            "path": "x/2.wav",
            "speaker": "x",
            "language": None,
            "split": "held_out",
        }
    ]


def test_unusable_files_are_counted(tmp_path):
    write(tmp_path / "good.wav")
    write(tmp_path / "silent.wav", level=0.0)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    corpus = Corpus(tmp_path, 8000)
    assert len(corpus.clips) == 1
    assert len(corpus.skipped) == 2


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "a row for each"),
        ("file,split\na.wav,train\n", "column path"),
        ("path,split\na.wav,test\n", "'test'.*train and held_out"),
        ("path,split\na.wav,train\n", "No recording .* is held out"),
    ],
)
def test_bad_manifests(tmp_path, manifest, message):
    (tmp_path / "manifest.csv").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        Corpus(tmp_path, 8000)


def test_nothing_can_be_used(tmp_path):
    write(tmp_path / "silent.wav", level=0.0)
    corpus = Corpus(tmp_path, 8000)
    with pytest.raises(ValueError, match="silent.wav is silent"):
        corpus.long_enough(0.1)
