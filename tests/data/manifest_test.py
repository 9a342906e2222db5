import pathlib

import pytest

from keras_audiolm.data.audio import check_local
from keras_audiolm.data.manifest import find_recordings


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.flac", "b/2.flac", "b/3.wav", "b/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(folder, found):
    assert found == sorted(found)
    return [str(path.relative_to(folder)) for path in found]


def test_a_folder_and_patterns(folder):
    every = ["a/1.flac", "b/2.flac", "b/3.wav"]
    assert names(folder, find_recordings(folder)) == every
    assert names(folder, find_recordings(folder / "**/*.flac")) == every[:2]
    assert names(folder, find_recordings(folder / "b" / "?.*")) == every[1:]


@pytest.mark.parametrize(
    "name, text",
    [
        ("list.txt", "b/2.flac\n\na/1.flac\n a/1.flac \nnone/there.wav"),
        ("list.csv", 'path,hours\nb/2.flac,1\n"a/1.flac",2\nnone/there.wav,3'),
        (
            "list.tsv",
            "hours\tpath\n1\tb/2.flac\n2\ta/1.flac\n3\tnone/there.wav",
        ),
    ],
)
def test_a_manifest_is_relative_to_its_folder(folder, name, text, monkeypatch):
    (folder / name).write_text(text)
    expected = ["a/1.flac", "b/2.flac", "none/there.wav"]
    assert names(folder, find_recordings(folder / name)) == expected
    monkeypatch.chdir(folder / "a")
    found = find_recordings(pathlib.Path("..") / name)
    assert all(path.is_absolute() for path in found)
    assert [path.resolve() for path in found] == [folder / n for n in expected]


def test_absolute_paths_of_a_manifest_stay(folder):
    (folder / "list.txt").write_text("/data/x.wav")
    assert find_recordings(folder / "list.txt") == [pathlib.Path("/data/x.wav")]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("none.csv", None, "none.csv does not exist"),
        ("bad.csv", "file,hours\na.wav,1", "needs a column path.*file, hours"),
        ("empty.txt", "\n", "empty.txt stands for no recordings"),
        ("far.txt", "a/1.flac\ns3://b/2.flac", "s3://b/2.flac is an address"),
        ("*.ogg", None, "stands for no recordings"),
        ("c", None, "c does not exist"),
    ],
)
def test_what_stands_for_nothing_is_refused(folder, name, text, message):
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        find_recordings(folder / name)


def test_one_recording_is_a_list_of_one(folder):
    assert names(folder, find_recordings(folder / "b/3.wav")) == ["b/3.wav"]
    with pytest.raises(ValueError, match="notes.md is a file"):
        find_recordings(folder / "b/notes.md")


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_addresses_are_refused_with_what_to_do(kind):
    with pytest.raises(ValueError, match="is an address.*Mount the bucket"):
        find_recordings(kind("gs://bucket/audio"))
    check_local("C:/audio")
    check_local("/audio:/x")
