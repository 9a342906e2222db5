"""How well the stages foretell held-out tokens, beside simpler models."""

import functools
import math

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from keras_audiolm import training
from keras_audiolm.data.tokens import TokenCrops
from keras_audiolm.language_model.layout import PADDING, without_repeats
from keras_audiolm.layers.compiled import CompiledFunction


def stage_loss(pipeline, name, held_out, known):
    """Cross entropy of a stage in nats a token, as `fit` validates it.

    Args:
        pipeline: `AudioLMPipeline`.
        name: str. A language model, `"semantic_lm"` or another.
        held_out, known: `TokenCorpus` of held-out files, and of training
            files or `None`.

    Returns:
        Dictionary: `loss`, `perplexity`, `uniform_loss`, `unigram_loss` (of
        the training tokens' frequencies), the same by level, and `tokens`.
    """
    lm = pipeline.part(name)
    lm.build()
    segment = lm.layout.predicted
    crops = stage_crops(pipeline, name, held_out)
    run = CompiledFunction(lm, functools.partial(level_losses, lm))
    losses, targets = [], []
    for index in tqdm(range(len(crops)), f"Evaluating {name}", leave=False):
        batch = crops[index]
        losses.append(ops.convert_to_numpy(run(batch)))
        targets.append(batch[segment.name].reshape(-1, segment.levels))
    targets = np.concatenate(targets)
    # Where repeats are left out, the ends of crops are not there.
    targets = targets[(targets != PADDING).all(axis=1)]
    losses = np.mean(losses, axis=0)
    result = {
        "loss": float(losses.mean()),
        "perplexity": float(np.exp(losses.mean())),
        "uniform_loss": math.log(segment.num_codes),
        "level_loss": losses.tolist(),
        "tokens": targets.size,
        "crop_seconds": lm.crop_duration,
    }
    if known is not None:
        tokens = predicted_tokens(pipeline, name, known)
        unigram = unigram_losses(tokens, targets, segment.num_codes)
        result["unigram_loss"] = float(unigram.mean())
        result["level_unigram_loss"] = unigram.tolist()
    return result


def stage_crops(pipeline, name, corpus):
    """The crops that `AudioLMPipeline.fit` validates a stage on."""
    batch_size = training.BATCH_SIZE[name]
    seconds = pipeline.unit_samples / pipeline.sample_rate
    units = max(round(pipeline.part(name).crop_duration / seconds), 1)
    crops = TokenCrops(
        corpus,
        units,
        training.stage_inputs(
            pipeline.part(name).layout,
            pipeline.coarse_lm.layout.predicted.levels,
        ),
        batch_size,
        1,
        same_every_epoch=True,
    )
    crops.steps_per_epoch = max(round(crops.ends[-1] / units / batch_size), 1)
    return crops


def level_losses(lm, codes):
    """Mean cross entropy of each level: `(levels,)`."""
    target = codes[lm.layout.predicted.name]  # (batch, frames, levels)
    there = ops.cast(target != PADDING, "float32")
    losses = keras.losses.sparse_categorical_crossentropy(
        ops.maximum(target, 0), lm(codes, training=False), from_logits=True
    )
    count = ops.maximum(ops.sum(there, axis=(0, 1)), 1.0)
    return ops.sum(losses * there, axis=(0, 1)) / count


def predicted_tokens(pipeline, name, corpus):
    """Yields, file by file, the tokens `(frames, levels)` of a corpus that a
    stage predicts."""
    segment = pipeline.part(name).layout.predicted
    if segment.name == "semantic":
        for tokens in corpus.semantic:
            tokens = tokens[None, :, None]
            if segment.deduplicated:
                tokens = without_repeats(tokens)
            yield tokens[0]
        return
    levels = pipeline.coarse_lm.layout.predicted.levels
    coarse = segment.name == "coarse"
    for tokens in corpus.acoustic:
        yield tokens[:, :levels] if coarse else tokens[:, levels:]


def unigram_losses(known, targets, size):
    """Cross entropy of tokens under the frequencies of others, add-one.

    Args:
        known: iterable of `(frames, levels)` int.
        targets: `(frames, levels)` int.
        size: int. Codes of a level.

    Returns:
        `(levels,)` nats a token.
    """
    counts = np.ones((targets.shape[1], size))
    for tokens in known:
        for level, codes in zip(counts, tokens.T, strict=True):
            level += np.bincount(codes, minlength=size)
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))
    return np.array(
        [
            -np.mean(level[target])
            for level, target in zip(logs, targets.T, strict=True)
        ]
    )
