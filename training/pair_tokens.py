"""Makes a store of tokens: acoustic ones of copies in other voices, semantic
ones of their originals.

    python training/pair_tokens.py corpora/debian_voices/train \\
        corpora/other_voices/train --preset runs/voices_small --out runs/paired

What `examples/corpora/perturb_voices.py` makes of a recording is said at the
same moments by somebody else. Semantic tokens of the copy would tell a little
of who speaks, and a model that can hear that from what it is told never learns
to listen to the prompt. A copy that is played faster or slower is said at other
moments, and has tokens of its own. Language models train on the store as on one
that `keras-audiolm tokenize` made. Stopped, it goes on.
"""

import argparse
import pathlib
import sys

import keras_audiolm  # chooses the backend  # isort: skip
import tqdm

from keras_audiolm.data import store
from keras_audiolm.data.audio import find_audio_files, load_audio
from keras_audiolm.training import token_metadata

sys.path.insert(
    0, str(pathlib.Path(__file__).parents[1] / "examples" / "corpora")
)

from perturb_voices import original_path  # noqa: E402


def source_path(path, folder, copies):
    """The recording whose semantic tokens a copy takes: it may be itself."""
    own_time = "@s" in path.parent.name
    return path if own_time else original_path(path, folder, copies)


def pair(pipeline, folder, copies, out):
    """Writes the store.

    Args:
        pipeline: `AudioLMPipeline` with tokenizers.
        folder: of the recordings.
        copies: folder of copies; those that are not played at another speed
            are each as long as their recording.
        out: folder to write to.

    Raises:
        ValueError: if a copy is not as long as its recording.
        AudioFileError: if a file cannot be read, or the recording of a copy
            is not there.
    """
    folder, copies = pathlib.Path(folder), pathlib.Path(copies)
    plan = store.StorePlan(
        find_audio_files(copies), out, token_metadata(pipeline)
    )
    semantic = {}  # by recording: it may have several copies

    def tokenize(files):
        clips = [load_audio(file, pipeline.sample_rate) for file in files]
        return pipeline.tokenize_many(clips)

    for number in tqdm.tqdm(plan.unfinished(), unit="shard"):
        files = [pathlib.Path(file) for file in plan.shard_files(number)]
        sources = [source_path(file, folder, copies) for file in files]
        new = sorted(set(sources) - set(semantic) - set(files))
        semantic.update(
            (file, tokens[0])
            for file, tokens in zip(new, tokenize(new), strict=True)
        )
        path = store.shard_path(plan.folder, number)
        with store.ShardWriter(path, plan.metadata) as shard:
            for file, source, (own, acoustic) in zip(
                files, sources, tokenize(files), strict=True
            ):
                told = own if source == file else semantic[source]
                if len(own) != len(told):
                    raise ValueError(
                        f"{file} is not as long as {source}, of which it is "
                        "a copy. Delete it, and let perturb_voices.py make it "
                        "again."
                    )
                shard.add(file, told, acoustic)
    plan.finish()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", help="recordings")
    parser.add_argument("copies", help="what perturb_voices.py made of them")
    parser.add_argument("--preset", required=True, help="with the tokenizers")
    parser.add_argument("--out", required=True, help="folder to write to")
    options = parser.parse_args()
    pipeline = keras_audiolm.AudioLMPipeline.from_preset(options.preset)
    pair(pipeline, options.folder, options.copies, options.out)


if __name__ == "__main__":
    main()
