"""Distributed tokenization on Apache Beam: recordings to a token store.

Each shard is one element: a worker decodes, resamples and tokenizes its files
and renames the finished shard into the store. What is there already is left
alone, so that a second run goes on where the first was stopped.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import signal
import threading

from keras_audiolm.data.store import StorePlan, check_metadata, shard_path
from keras_audiolm.data.tokens import TokenCorpus, write_shard

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared
except ImportError as error:
    raise ValueError(
        "Distributed tokenization needs Apache Beam, in an environment of its "
        "own: pip install 'keras-audiolm[jax,scale]'"
    ) from error

SKIPPED = "skipped"
# In the store: a line a shard, the list of its files. Elements of a pipeline
# are small: they only say where to read.
LISTS = "files.jsonl"


def load_preset(preset, trim_silence=False, licence=None):
    """Loads what tokenizes, once a worker.

    Returns:
        A tuple of a callable and a dictionary, the `tokenize` and `metadata`
        of `tokenize_corpus`.
    """
    from keras_audiolm import AudioLMPipeline
    from keras_audiolm.training import token_metadata

    pipeline = AudioLMPipeline.from_preset(preset)
    metadata = token_metadata(pipeline, trim_silence, licence)
    return pipeline.tokenize_many, metadata


class Tokenizer:
    """What a worker shares between its threads."""

    def __init__(self, load):
        self.tokenize, self.metadata = load()


class TokenizeShard(beam.DoFn):
    """Writes one shard; puts out its number and, tagged, its bad files.

    Args:
        load: picklable callable without arguments, as `load_preset`.
        folder: path of the store, the same for all workers.
        metadata: dictionary, that of the store.
    """

    def __init__(self, load, folder, metadata):
        self.load = load
        self.folder = folder
        self.metadata = metadata
        self._shared = Shared()
        counter = functools.partial(beam.metrics.Metrics.counter, "tokenize")
        self._finished, self._files = counter("shards"), counter("files")
        self._skipped = counter("skipped")

    def setup(self):
        self._tokenizer = self._shared.acquire(lambda: Tokenizer(self.load))
        found = self._tokenizer.metadata
        check_metadata(self.folder, self.metadata, found, sorted(found))

    def process(self, shard):
        number, offset = shard
        path = shard_path(self.folder, number)
        if not path.is_file():  # else another attempt has finished it
            files = read_list(self.folder, offset)
            skipped = write_shard(
                path, files, self._tokenizer.tokenize, self.metadata
            )
            self._finished.inc()
            self._files.inc(len(files))
            self._skipped.inc(len(skipped))
            for file in skipped:
                yield beam.pvalue.TaggedOutput(SKIPPED, file)
        yield number


class TokenizeShards(beam.PTransform):
    """Tokenizes shards, given as pairs of `write_lists`.

    Args: as of `TokenizeShard`.

    Returns:
        `shards`, the numbers of those that are finished, and `skipped`, pairs
        of the path and the reason of each file that gave no tokens.
    """

    def __init__(self, load, folder, metadata):
        super().__init__()
        self.shard = TokenizeShard(load, folder, metadata)

    def expand(self, shards):
        return (
            shards
            # So that each shard may go to another worker.
            | beam.Reshuffle()
            | beam.ParDo(self.shard).with_outputs(SKIPPED, main="shards")
        )


def tokenize_files(files, folder, load, options=()):
    """Tokenizes recordings on a Beam runner.

    Args:
        files: sorted list of paths that all workers can read.
        folder: where the store goes; all workers must be able to write there.
        load: picklable callable without arguments that a worker calls once:
            `functools.partial(load_preset, "voices_small")`, or another that
            returns such a pair.
        options: list of str, Beam's own options, like
            `["--runner=FlinkRunner", "--flink_master=host:8081"]`.

    Returns:
        `TokenCorpus`.

    Raises:
        ValueError: if `folder` holds the tokens of other tokenizers or files,
            or Beam knows no such runner.
        RuntimeError: if a worker process of the DirectRunner dies. Other
            runners start another.

    Example:

    ```python
    load = functools.partial(load_preset, "voices_small")
    files = find_recordings("librilight")
    tokenize_files(files, "tokens", load, direct_options(num_workers=8))
    ```
    """
    # First, as it knows whether there is such a runner.
    pipeline = beam.Pipeline(options=PipelineOptions([*options]))
    plan = StorePlan(files, folder, load()[1])
    shards = write_lists(plan)
    if shards:
        done = (
            pipeline
            | "Shards" >> beam.Create(shards)
            | TokenizeShards(load, str(plan.folder.absolute()), plan.metadata)
        )
        done[SKIPPED] | beam.Map(log_skipped)
        with until_a_worker_dies():
            pipeline.run().wait_until_finish()
    plan.finish()
    return TokenCorpus(folder)


def write_lists(plan):
    """Writes which files each shard is of.

    Returns:
        List of pairs: the number of each unfinished shard, and where its line
        begins.
    """
    path = plan.folder / LISTS
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    offsets = []
    with open(temporary, "wb") as file:
        for number in range(len(plan.starts)):
            offsets.append(file.tell())
            line = json.dumps(plan.shard_files(number)) + "\n"
            file.write(line.encode())
    os.replace(temporary, path)
    return [(number, offsets[number]) for number in plan.unfinished()]


def read_list(folder, offset):
    with open(pathlib.Path(folder) / LISTS, "rb") as file:
        file.seek(offset)
        return json.loads(file.readline())


@contextlib.contextmanager
def until_a_worker_dies():
    """Ends a run whose worker was killed.

    The DirectRunner notes the death in a thread of its own, and waits for what
    the worker would have sent.
    """
    deaths, usual = [], threading.excepthook

    def hook(failure):
        if "Worker subprocess exited" in str(failure.exc_value):
            deaths.append(str(failure.exc_value))
            # A real signal: the main thread waits in a lock.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        elif not deaths:  # all connections break with it
            usual(failure)

    threading.excepthook = hook
    try:
        yield
    except KeyboardInterrupt:
        if not deaths:
            raise
        raise RuntimeError(
            f"{deaths[0]}: it was killed, perhaps for lack of memory. The "
            "shards that are finished are kept: run the same command again."
        ) from None
    finally:
        threading.excepthook = usual


def log_skipped(file):
    logging.getLogger(__name__).warning("%s %s", *file)


def direct_options(num_workers):
    """Beam's options for so many processes on this machine."""
    return [
        "--runner=DirectRunner",
        f"--direct_num_workers={num_workers}",
        "--direct_running_mode=multi_processing",
        "--default_sdk_harness_log_level=WARNING",
    ]
