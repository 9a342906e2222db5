"""Speed and memory of what feeds the models: crops, stores, tokenization.

    python benchmarks/data.py                 # on an idle machine, two cores
    python benchmarks/data.py --only crops --hours 10
    python benchmarks/data.py --only long     # files of 15 min, 1 h and 4 h
    python benchmarks/data.py --quick         # small, to see that it runs

Prints Markdown. The recordings are made of noise that swells and fades, as
FLAC; what decodes and resamples them does the same work for speech. Every row
of a growing corpus is measured in a process of its own, for its peak memory.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent import futures

import numpy as np

RATE = 16000
# What a training step of the codec takes, of the paper's at C = 16 on two
# cores (benchmarks/codec.py): audio seconds a second.
CODEC_STEP = 1.26
GROWTH = (1, 4, 16)
FILE_SECONDS = 600.0
BATCH = 16
SECTIONS = ("crops", "store", "tokenize", "long")


# === Made up ===


def make_recordings(folder, hours, rate=RATE, file_seconds=FILE_SECONDS):
    """FLAC files of some hours in all, in folders of ten."""
    rng = np.random.default_rng(0)
    samples = round(min(file_seconds, FILE_SECONDS) * rate)
    minutes = samples / rate / 60
    swell = np.sin(np.linspace(0, 20 * np.pi * minutes, samples)) ** 2
    sound = rng.normal(0, 0.05, samples) * (0.01 + swell)
    count = max(round(hours * 3600 / file_seconds), 1)
    for number in range(count):
        path = folder / f"voice{number // 10:03d}" / f"{number:05d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 0:
            first = path
            write_over_and_over(path, sound, rate, round(file_seconds * rate))
        else:  # other files with the same sound: as much to read
            shutil.copyfile(first, path)
    return sorted(folder.rglob("*.flac"))


def write_over_and_over(path, sound, rate, samples):
    """A file of so many samples, of which few are in memory."""
    import soundfile

    with soundfile.SoundFile(path, "w", rate, 1) as file:
        while samples:
            file.write(sound[:samples])
            samples -= min(samples, len(sound))


def make_store(folder, hours, levels=8):
    """A store of random tokens, as of recordings of ten minutes."""
    from keras_audiolm.data import store

    def model(rate, codes, **others):
        weights = {"preset": None, "weights": "0"}
        return {**weights, "frame_rate": rate, "codes": codes, **others}

    metadata = store.make_metadata(
        model(50.0, 1024, levels=levels), model(25.0, 512), RATE, (1, 2)
    )
    rng = np.random.default_rng(0)
    count = max(round(hours * 3600 / FILE_SECONDS), 1)
    names = [f"voice{n // 10:03d}/{n:05d}.flac" for n in range(count)]
    plan = store.StorePlan(names, folder, metadata)
    frames = int(25 * FILE_SECONDS)
    for number in plan.unfinished():
        path = store.shard_path(folder, number)
        with store.ShardWriter(path, metadata) as shard:
            for name in plan.shard_files(number):
                semantic = rng.integers(512, size=frames)
                acoustic = rng.integers(1024, size=(2 * frames, levels))
                shard.add(name, semantic, acoustic)
    plan.finish()


# === Measured ===


class Stopwatch:
    """Adds up the seconds spent inside some functions."""

    def __init__(self):
        self.seconds = {}

    @contextlib.contextmanager
    def around(self, owner, name, label):
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[label] = self.seconds.get(label, 0.0) + spent

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)


def crops_per_second(files, duration, threads, seconds):
    """Audio seconds a second of random crops read from files."""
    from keras_audiolm import AudioCrops

    crops = AudioCrops(files, RATE, duration, BATCH, 10**9, cache_bytes=0)
    crops[0]
    done, start = 0, time.perf_counter()
    with futures.ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() - start < seconds:
            places = range(done, done + 2 * threads)
            done += len(list(pool.map(crops.__getitem__, places)))
    spent = time.perf_counter() - start
    return done * BATCH * duration / spent


def crops_profile(files, duration, seconds):
    """Shares of one thread's time in libsndfile and in libsoxr."""
    import soundfile
    import soxr

    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for name in ("__init__", "seek", "read", "close"):
            stack.enter_context(
                watch.around(soundfile.SoundFile, name, "libsndfile")
            )
        stack.enter_context(watch.around(soxr, "resample", "libsoxr"))
        start = time.perf_counter()
        crops_per_second(files, duration, 1, seconds)
        whole = time.perf_counter() - start
    return {name: spent / whole for name, spent in watch.seconds.items()}


def measure_crops(hours, duration, seconds, threads):
    """Rates by the recordings' sample rate, and where the time goes."""
    rows = {}
    for rate in (RATE, 44100):
        with tempfile.TemporaryDirectory() as folder:
            files = make_recordings(pathlib.Path(folder), hours, rate)
            rows[rate] = {
                "one": crops_per_second(files, duration, 1, seconds),
                "all": crops_per_second(files, duration, threads, seconds),
                "profile": crops_profile(files, duration, seconds),
            }
    return rows


def one_store(hours, preset, seconds):
    """Of a store: seconds to open it, crops a second, peak memory."""
    from keras_audiolm.data.tokens import TokenCorpus, TokenCrops

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        # In another process, whose memory does not count.
        measure_elsewhere("made", hours, preset, seconds, folder)
        made = time.perf_counter() - start
        start = time.perf_counter()
        corpus = TokenCorpus(folder)
        crops = TokenCrops(corpus, 250, lambda *both: both, BATCH, 10**9)
        opened = time.perf_counter() - start
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            crops[done]
            done += 1
        spent = time.perf_counter() - start
    return {
        "write_seconds": made,
        "open_seconds": opened,
        "audio_seconds_per_second": done * BATCH * 10.0 / spent,
        "peak_mb": peak_mb(),
    }


def one_long(hours, preset, seconds):
    """`one_tokenize` of a single file."""
    return one_tokenize(hours, preset, seconds, file_seconds=hours * 3600)


def one_tokenize(hours, preset, seconds, file_seconds=30.0):
    """Of tokenizing a folder: seconds, the share in the models, memory."""
    from keras_audiolm import AudioLMPipeline, training
    from keras_audiolm.data.tokens import tokenize_corpus

    pipeline = AudioLMPipeline.from_preset(preset)
    metadata = training.token_metadata(pipeline)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        length = min(file_seconds, hours * 3600)
        files = make_recordings(folder / "audio", hours, RATE, length)
        start = time.perf_counter()
        with watch.around(pipeline, "tokenize_many", "models"):
            tokenize_corpus(
                files, folder / "tokens", pipeline.tokenize_many, metadata
            )
        spent = time.perf_counter() - start
    return {
        "seconds": spent,
        "audio_seconds_per_second": len(files) * length / spent,
        "in_models": watch.seconds["models"] / spent,
        "peak_mb": peak_mb(),
    }


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_elsewhere(what, hours, preset, seconds, folder=""):
    """Runs `one_...` in a process of its own; returns what it says."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", what, "--preset", preset]
        + ["--hours", str(hours), "--seconds", str(seconds)]
        + ["--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_growth(what, hours, preset, seconds):
    return {
        hours * times: measure_elsewhere(what, hours * times, preset, seconds)
        for times in GROWTH
    }


# === Reported ===


def report_crops(rows, hours, duration, threads):
    lines = [
        f"Random crops of {duration:g} s from {hours:g} hours of FLAC, audio "
        "seconds a second:",
        "",
        f"| recordings | 1 thread | {threads} threads | times the codec's "
        "step | in libsndfile | in libsoxr |",
        "|---|---|---|---|---|---|",
    ]
    for rate, row in rows.items():
        shares = [
            f"{100 * row['profile'].get(name, 0):.0f} %"
            for name in ("libsndfile", "libsoxr")
        ]
        lines.append(
            f"| {rate} Hz | {row['one']:.0f} | {row['all']:.0f} | "
            f"{row['all'] / CODEC_STEP:.0f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def report_growth(title, rows):
    names = list(next(iter(rows.values())))
    lines = [
        title,
        "",
        f"| hours | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for hours, row in rows.items():
        cells = [f"{row[name]:.3g}" for name in names]
        lines.append(f"| {hours:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", default="voices_small")
    parser.add_argument("--hours", type=float, help="of the first row")
    parser.add_argument("--duration", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    if args.one:
        if args.one == "made":
            result = make_store(args.folder, args.hours)
        else:
            one = {
                "store": one_store,
                "tokenize": one_tokenize,
                "long": one_long,
            }[args.one]
            result = one(args.hours, args.preset, args.seconds)
        print(json.dumps(result))
        return
    quick = {"crops": 0.2, "store": 0.2, "tokenize": 0.001, "long": 0.001}
    usual = {"crops": 10.0, "store": 10.0, "tokenize": 0.05, "long": 0.25}
    seconds = 0.2 if args.quick else args.seconds
    print(f"{os.cpu_count()} cores of {platform.machine()}\n")
    for section in [args.only] if args.only else SECTIONS:
        hours = args.hours or (quick if args.quick else usual)[section]
        if section == "crops":
            rows = measure_crops(hours, args.duration, seconds, args.threads)
            text = report_crops(rows, hours, args.duration, args.threads)
        else:
            rows = measure_growth(section, hours, args.preset, seconds)
            what = {
                "store": "Crops of 10 s of a store of tokens:",
                "tokenize": f"Tokenizing by {args.preset}:",
                "long": f"Tokenizing one file by {args.preset}:",
            }
            text = report_growth(what[section], rows)
        print(text + "\n", flush=True)


if __name__ == "__main__":
    main()
