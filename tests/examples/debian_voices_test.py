import csv
import importlib.util
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

av = pytest.importorskip("av", reason="decodes G.722: pip install av")
if "g722" not in av.codecs_available:
    pytest.skip("this PyAV has no G.722", allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "corpora" / "debian_voices.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("debian_voices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tone(seconds, frequency):
    time = np.arange(round(seconds * 16000)) / 16000
    return (12000 * np.sin(2 * np.pi * frequency * time)).astype("int16")


def write_g722(path, pcm):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def write_voice(script, raw, language, prompts):
    """Write an unpacked package with `prompts`: name -> int16 samples."""
    voice = next(v for v in script.VOICES if v.language == language)
    doc = raw / "usr/share/doc" / script.package_name(voice)
    doc.mkdir(parents=True)
    (doc / "copyright").write_text(f"Licence of {language}")
    sounds = raw / "usr/share/asterisk/sounds" / voice.folder
    for name, pcm in prompts.items():
        write_g722(sounds / f"{name}.g722", pcm)
    return voice


@pytest.fixture(scope="module")
def corpus(script, tmp_path_factory):
    """A corpus of two small voices: `(folder, manifest rows)`."""
    raw = tmp_path_factory.mktemp("raw")
    english = {f"word-{i:02d}": tone(0.5, 300 + 10 * i) for i in range(22)}
    english["beep"] = tone(0.5, 1500)
    english["digits/1"] = tone(0.6, 1000)
    english["a-short"] = tone(0.3, 500)
    english["silence/1"] = tone(1.0, 500)
    voices = [
        write_voice(script, raw, "en", english),
        write_voice(script, raw, "ru", {"digits/1": tone(0.75, 700)}),
    ]
    out = tmp_path_factory.mktemp("corpus") / "voices"
    return out, script.make_corpus(out, raw, voices)


def test_the_table_of_voices(script):
    assert [(v.language, v.speaker, v.licence) for v in script.VOICES] == [
        ("en", "Allison", "CC-BY-SA-3.0"),
        ("es", "Allison", "CC-BY-SA-3.0"),
        ("fr", "June", "CC-BY-SA-3.0"),
        ("it", "Carlo", "CC-BY-3.0"),
        ("ru", "IvrvoiceRU", "CC-BY-3.0"),
    ]


def test_files_and_split(corpus):
    out, _ = corpus
    found = {p.relative_to(out).as_posix() for p in out.rglob("*.flac")}
    words = [f"word-{i:02d}" for i in range(22)]
    # Sorted: beep, digits-1, word-00, ..., word-17, then word-18 has index 20.
    # The beep, which is nobody's voice, has its place and is left out.
    held_out = {"word-18"}
    expected = {
        f"{'held_out' if stem in held_out else 'train'}/en/{stem}.flac"
        for stem in ["digits-1", *words]
    }
    assert found == expected | {"held_out/ru/digits-1.flac"}
    assert not list(out.rglob("*.tmp"))


def test_manifest(corpus):
    out, rows = corpus
    with open(out / "manifest.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert len(rows) == 24
    assert rows[-1] == {
        "path": "held_out/ru/digits-1.flac",
        "speaker": "IvrvoiceRU",
        "language": "ru",
        "package": "asterisk-core-sounds-ru-g722",
        "source": "usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU/digits/1.g722",
        "licence": "CC-BY-3.0",
        "credit": "provided by Maxim Topal, ivrvoice.ru",
        "seconds": "0.750",
        "split": "held_out",
    }
    for row in rows:
        info = soundfile.info(out / row["path"])
        assert f"{info.frames / 16000:.3f}" == row["seconds"]
        assert row["path"].startswith(row["split"])
    licence = out / "licences" / "asterisk-core-sounds-en-g722.txt"
    assert licence.read_text() == "Licence of en"


def test_audio_is_the_prompt_at_16_khz(corpus):
    out, _ = corpus
    samples, rate = soundfile.read(out / "train/en/digits-1.flac")
    assert rate == 16000 and samples.shape == (9600,)
    assert soundfile.info(out / "train/en/digits-1.flac").subtype == "PCM_16"
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(9600)))
    assert spectrum.argmax() * 16000 / 9600 == pytest.approx(1000, abs=2)
    level = np.sqrt(np.mean(samples**2)) * np.sqrt(2) * 32768
    assert level == pytest.approx(12000, rel=0.05)


def test_two_prompts_of_one_name(script, tmp_path):
    prompts = {"digits/1": tone(0.5, 300), "digits-1": tone(0.5, 400)}
    voice = write_voice(script, tmp_path, "en", prompts)
    with pytest.raises(ValueError, match="would be one file"):
        script.list_prompts(tmp_path, voice)


def test_missing_packages(script, tmp_path):
    (tmp_path / "debs").mkdir()
    arguments = [str(tmp_path / "out"), "--packages", str(tmp_path / "debs")]
    with pytest.raises(SystemExit, match="No asterisk-core-sounds-en-g722_"):
        script.main(arguments)
    with pytest.raises(SystemExit, match="copyright is missing"):
        script.main([str(tmp_path / "out"), "--raw", str(tmp_path)])
    voice = script.VOICES[0]
    with pytest.raises(ValueError, match="No .g722 files in .*Allison"):
        script.list_prompts(tmp_path, voice)


def test_missing_tool(script):
    with pytest.raises(ValueError, match="no-such-tool.*--raw"):
        script.run(["no-such-tool"])


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="builds a package")
def test_main_unpacks_packages(script, tmp_path, monkeypatch, capsys):
    tree, debs = tmp_path / "tree", tmp_path / "debs"
    voice = write_voice(script, tree, "it", {"ciao": tone(0.5, 300)})
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {script.package_name(voice)}\nVersion: 1\n"
        "Architecture: all\nMaintainer: Nobody <n@example.org>\n"
        "Description: a test\n"
    )
    debs.mkdir()
    subprocess.run(
        ["dpkg-deb", "--build", str(tree), str(debs)],
        check=True,
        capture_output=True,
    )
    monkeypatch.setattr(script, "VOICES", (voice,))
    # `make_corpus` has the five voices as its default.
    monkeypatch.setattr(script.make_corpus, "__defaults__", ((voice,),))
    out = tmp_path / "out"
    script.main([str(out), "--packages", str(debs)])
    assert (out / "held_out/it/ciao.flac").is_file()
    assert "held_out  it:     1 files" in capsys.readouterr().out
