"""Can people tell continuations from recordings? A test to hand out.

A test is a folder for the raters (one page and its clips) and, beside it, a
key that says which clips are real. Keras is imported by what makes clips
alone: the command line checks the rest before.
"""

import hashlib
import json
import math
import os
import pathlib
import secrets
import shutil
import tempfile

import numpy as np

from keras_audiolm.data.audio import SILENCE, save_audio

# Clips that the models make at once.
BATCH = 8
# Of the clips, in LUFS: what broadcasts have (EBU R 128).
LOUDNESS = -23.0
# The shortest stretch that has a loudness, in seconds (ITU-R BS.1770).
LOUDNESS_BLOCK = 0.4


def import_package(name):
    """One of the packages of `keras-audiolm[evaluate]`.

    Raises:
        ImportError: if it is not installed; says how to.
    """
    try:
        return __import__(name, fromlist=["*"])
    except ImportError as error:
        raise ImportError(
            f"Listening tests need the package {name.split('.')[0]}: pip "
            "install 'keras-audiolm[evaluate]'"
        ) from error


def require_packages():
    """Imports what making a test needs, before the time is spent."""
    for name in ("jinja2", "pyloudnorm"):
        import_package(name)


def make_listening_test(
    pipeline,
    files,
    folder,
    num=20,
    duration=10.0,
    prompt_duration=3.0,
    seed=None,
    **generation,
):
    """Makes the paper's listening test: which clips are real?

    `num` clips are stretches of recordings, and `num` continue the first
    seconds of others. All are decoded from the codec's tokens from beginning
    to end, prompts too, so that the codec's own sound tells nothing; they are
    equally long and loud, shuffled, and of equal names, sizes and dates.

    Stretches are those of `AudioCrops`: they start anywhere, and one that
    reaches the end of its file goes on with another of the same folder, which
    is taken to be one voice. Recordings that last longer than a clip are
    rarely joined, short ones often: their real clips then jump from sentence
    to sentence, as what a model was trained on did. Stretches may overlap
    where there is little to draw from.

    `folder` is for the raters: `index.html`, `clips/` and `seal.txt`. Which
    clips are real stands in `FOLDER-key.json` beside it, which stays with the
    author. Its SHA-256 checksum is the seal, on the page and in all answers:
    raters hold it before the key is opened, so that whoever sees the key
    later can check that it was not changed. The key holds random digits, so
    that it cannot be guessed from the seal, and the clips' checksums, so that
    they cannot be changed either.

    Args:
        pipeline: `AudioLMPipeline`.
        files: list of paths, or one folder to search. Recordings that the
            models have not been trained on.
        folder: path. What is not empty is left alone.
        num: int. Clips of each kind. Defaults to `20`; the paper's is 50.
        duration: float. Seconds of a clip. Defaults to `10.0`.
        prompt_duration: float. Seconds of a recording that a continuation
            begins with; whole frames are taken. Defaults to `3.0`.
        seed: int, optional. The same seed gives the same clips in the same
            order, and raters who know it could make the key. By default it
            is drawn, and stands in the key.
        **generation: of `AudioLMPipeline.generate`, such as `temperature`.

    Returns:
        `pathlib.Path` of the key.

    Raises:
        ImportError: without the packages of `keras-audiolm[evaluate]`.
        ValueError: on numbers that leave nothing to hear, a folder that is
            in use, recordings or parts that cannot be used, or clips that
            are silent.

    Example:

    ```python
    pipeline = keras_audiolm.AudioLMPipeline.from_preset("voices_small")
    make_listening_test(pipeline, "held_out/", "my_test")
    # Open my_test/index.html, rate, export. Then:
    score_listening_test("my_test", ["answers.json"])["all"]["accuracy"]
    ```

    Reference:
     - [AudioLM, section IV-F](https://arxiv.org/abs/2209.03143)
    """
    require_packages()
    folder = check_new_test(folder)
    _check_numbers(num, duration, prompt_duration)
    if seed is None:
        seed = secrets.randbits(32)
    clips = decode_clips(
        pipeline, files, num, duration, prompt_duration, seed, generation
    )
    order = np.random.default_rng(seed).permutation(2 * num)
    return write_listening_test(
        folder,
        match_loudness(clips, pipeline.sample_rate)[order],
        (np.arange(2 * num) < num)[order],
        pipeline.sample_rate,
        prompt_duration,
        seed,
    )


def _check_numbers(num, duration, prompt_duration):
    if num < 1:
        raise ValueError(f"`num` must be 1 or more. Received: num={num}")
    if not LOUDNESS_BLOCK <= duration < math.inf:
        raise ValueError(
            f"`duration` must be {LOUDNESS_BLOCK} seconds or more, as less "
            f"has no loudness. Received: duration={duration}"
        )
    if not 0 < prompt_duration < duration:
        raise ValueError(
            "`prompt_duration` must be above zero and below `duration`. "
            f"Received: prompt_duration={prompt_duration}, "
            f"duration={duration}"
        )


def check_new_test(folder):
    """The absolute path of a folder that a test may be written to.

    Raises:
        ValueError: if something stands there, or where its key would.
    """
    folder = pathlib.Path(folder).expanduser().absolute()
    in_use = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if in_use or key_path(folder).exists():
        taken = folder if in_use else key_path(folder)
        raise ValueError(
            f"{taken} exists; it is left alone. Give another folder."
        )
    return folder


def key_path(folder):
    """Where the key of the test in `folder` lies: beside it."""
    folder = pathlib.Path(folder).expanduser().absolute()
    return folder.with_name(f"{folder.name}-key.json")


def decode_clips(
    pipeline, files, num, duration, prompt_duration, seed, generation
):
    """`num` real clips, then `num` continuations: `(2 * num, samples)`."""
    rate, unit = pipeline.sample_rate, pipeline.unit_samples
    samples = round(duration * rate)
    # Whole units, as `generate` would leave out what is over.
    known = max(round(prompt_duration * rate / unit), 1) * unit
    if known >= samples:
        raise ValueError(
            f"`prompt_duration` of {prompt_duration} seconds leaves nothing "
            f"of {duration} to continue it."
        )
    crops = draw_stretches(files, rate, duration, 2 * num, known, seed)
    clips = []
    for start in range(0, num, BATCH):
        real = crops[start : min(start + BATCH, num)]
        codes = pipeline.codec.encode(real)
        clips.append(pipeline.codec.decode(codes, samples))
    for start in range(num, 2 * num, BATCH):
        _, tokens = pipeline.generate(
            crops[start : start + BATCH, :known],
            duration=(samples - known) / rate,
            seed=seed + start,
            return_tokens=True,
            **generation,
        )
        clips.append(pipeline.codec.decode(tokens.acoustic, samples))
    return np.concatenate(clips)


def draw_stretches(files, sample_rate, duration, count, known, seed):
    """Random stretches whose first `known` samples are not silent.

    That holds for real clips too, as it would tell them apart.

    Returns:
        Float32 array `(count, samples)`.
    """
    from keras_audiolm.data.crops import MAX_DRAWS, AudioCrops

    crops = AudioCrops(
        files, sample_rate, duration, count, MAX_DRAWS, seed=seed
    )
    found = []
    for batch in crops:
        found += [c for c in batch if np.abs(c[:known]).max() >= SILENCE]
        if len(found) >= count:
            return np.stack(found[:count])
    raise ValueError(
        f"Only {len(found)} of {MAX_DRAWS * count} random stretches do not "
        f"begin with {known / sample_rate:g} silent seconds. Is there sound "
        "in these recordings?"
    )


def match_loudness(clips, sample_rate):
    """Clips of one loudness, none of which clips.

    Loudness is that of ITU-R BS.1770, whose gates leave pauses out. All get
    `LOUDNESS`, or what the clip with the highest peaks can have.

    Args:
        clips: `(batch, samples)` float32.
        sample_rate: int. Hertz.

    Returns:
        Float32 array of the same shape.

    Raises:
        ValueError: on silent clips.
    """
    meter = import_package("pyloudnorm").Meter(sample_rate)
    peaks = np.abs(clips).max(axis=1, keepdims=True)
    # At full scale, so that the gates see no quiet clips.
    full = clips / np.maximum(peaks, SILENCE)  # (batch, samples)
    loudness = np.array(
        [meter.integrated_loudness(clip.astype("float64")) for clip in full]
    )
    silent = (peaks[:, 0] < SILENCE) | ~np.isfinite(loudness)
    if silent.any():
        raise ValueError(
            f"{silent.sum()} of {len(clips)} clips are silent, and loudness "
            "cannot be matched. Try another seed, or train the models longer."
        )
    target = min(LOUDNESS, loudness.min())
    gains = 10.0 ** ((target - loudness[:, None]) / 20.0)
    return (full * gains).astype("float32")


def write_listening_test(
    folder, clips, real, sample_rate, prompt_duration, seed
):
    """Writes the folder of a test and its key, or nothing.

    Args:
        folder: path that `check_new_test` accepts.
        clips: `(batch, samples)` float32, in the order of the page.
        real: `(batch,)` bool.
        sample_rate: int. Hertz.
        prompt_duration: float. Seconds; the page tells the raters.
        seed: int, for the key.

    Returns:
        `pathlib.Path` of the key.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(
        tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    )
    try:
        test = temporary / "test"
        names = write_clips(test / "clips", clips, sample_rate)
        sums = [checksum(test / "clips" / name) for name in names]
        key = {
            "salt": secrets.token_hex(32),
            "seed": seed,
            "clips": {
                name: {"real": bool(one), "sha256": sha256}
                for name, one, sha256 in zip(names, real, sums, strict=True)
            },
        }
        (temporary / "key").write_text(json.dumps(key, indent=2) + "\n")
        seal = checksum(temporary / "key")
        (test / "seal.txt").write_text(f"{seal}\n")
        duration = clips.shape[1] / sample_rate
        page = render_page(seal, names, duration, prompt_duration)
        (test / "index.html").write_text(page, encoding="utf-8")
        os.replace(test, folder)
        os.replace(temporary / "key", key_path(folder))
    finally:
        shutil.rmtree(temporary)
    return key_path(folder)


def write_clips(folder, clips, sample_rate):
    """Writes `01.wav`, `02.wav`, ...; returns these names.

    As WAV, whose size tells nothing; a FLAC file is the smaller the more
    pauses there are. All get the date of the first.
    """
    digits = max(len(str(len(clips))), 2)
    names = [f"{i:0{digits}}.wav" for i in range(1, len(clips) + 1)]
    for name, clip in zip(names, clips, strict=True):
        save_audio(folder / name, clip, sample_rate)
    date = (folder / names[0]).stat().st_mtime_ns
    for name in names:
        os.utime(folder / name, ns=(date, date))
    return names


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def render_page(seal, names, duration, prompt_duration):
    """The page as a string of HTML."""
    jinja2 = import_package("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_audiolm.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("listening_test.html").render(
        seal=seal,
        names=names,
        duration=f"{duration:g}",
        prompt_duration=f"{prompt_duration:g}",
    )
