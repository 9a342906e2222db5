"""Makes a store of tokens: acoustic ones of copies in other voices, semantic
ones of their originals.

    python training/pair_tokens.py corpora/debian_voices/train \\
        corpora/many_voices/train --preset runs/voices_small --out runs/paired

What `examples/corpora/perturb_voices.py` makes of a recording is said at the
same moments by somebody else. A semantic token of the copy would tell a little
of who speaks, and a model that can hear that from what it is told never learns
to listen to the prompt. Recordings and copies in the first folder's place, this
is the store that `keras-audiolm tokenize` makes. Stopped, it goes on.
"""

import argparse
import pathlib
import sys

import keras_audiolm  # chooses the backend  # isort: skip
import numpy as np
import tqdm

from keras_audiolm.data import store
from keras_audiolm.data.audio import find_audio_files, load_audio
from keras_audiolm.training import token_metadata

sys.path.insert(
    0, str(pathlib.Path(__file__).parents[1] / "examples" / "corpora")
)

from perturb_voices import original_path  # noqa: E402

BATCH_SIZE = 8


def encode_all(files, sample_rate, hop, encode):
    """Tokens of recordings, near lengths batched.

    Args:
        files: list of paths.
        sample_rate, hop: int. Of the tokens.
        encode: callable from `(batch, samples)` and `(batch,)` lengths to
            `(batch, frames, ...)`.

    Returns:
        List of NumPy arrays `(frames, ...)`.
    """
    clips = [load_audio(file, sample_rate) for file in files]
    order = sorted(range(len(files)), key=lambda i: len(clips[i]))
    tokens = [None] * len(files)
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        # Whole seconds, so that few programs are compiled.
        longest = -(-len(clips[chosen[-1]]) // sample_rate) * sample_rate
        audio = np.zeros((BATCH_SIZE, longest), "float32")
        lengths = np.full(BATCH_SIZE, longest, "int32")
        for row, clip in enumerate(chosen):
            lengths[row] = len(clips[clip])
            audio[row, : lengths[row]] = clips[clip]
        made = np.asarray(encode(audio, lengths))
        for row, clip in enumerate(chosen):
            tokens[clip] = made[row, : -(-lengths[row] // hop)]
    return tokens


def pair(pipeline, folder, copies, out):
    """Writes the store.

    Args:
        pipeline: `AudioLMPipeline` with tokenizers.
        folder: of the recordings.
        copies: folder of copies, of the same lengths.
        out: folder to write to.
    """
    folder, copies = pathlib.Path(folder), pathlib.Path(copies)
    tokenizer, codec = pipeline.semantic_tokenizer, pipeline.codec
    rate = pipeline.sample_rate
    plan = store.StorePlan(
        find_audio_files(copies), out, token_metadata(pipeline)
    )
    for number in tqdm.tqdm(plan.unfinished(), unit="shard"):
        files = [pathlib.Path(file) for file in plan.shard_files(number)]
        originals = [original_path(file, folder, copies) for file in files]
        semantic = encode_all(
            originals, rate, pipeline.semantic_hop, tokenizer.encode
        )
        acoustic = encode_all(
            files, rate, codec.hop_length, lambda audio, _: codec.encode(audio)
        )
        path = store.shard_path(plan.folder, number)
        with store.ShardWriter(path, plan.metadata) as shard:
            for row in zip(files, semantic, acoustic, strict=True):
                shard.add(*row)
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
