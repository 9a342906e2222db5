"""AudioLM's Tables II and III: what generation keeps, and what it adds."""

import itertools
from collections import namedtuple

import numpy as np
from tqdm import tqdm

from keras_audiolm.data.crops import AudioCrops
from keras_audiolm.evaluation.codec import entropy
from keras_audiolm.language_model.layout import PADDING

# Rows of the corpus that were continued, once for each seed: `audio`
# `(seeds, prompts, samples)` without the prompts, and `semantic`, the new
# tokens, `[seed][prompt]` of `(frames,)`.
Continuations = namedtuple(
    "Continuations", ["rows", "prompts", "audio", "semantic"]
)


def continue_prompts(
    pipeline, pairs, prompt_duration, duration, seeds, batch_size=8
):
    """Continues the beginning of each recording, once for each seed.

    Args:
        pipeline: `AudioLMPipeline`.
        pairs: list of row and audio, of `prompt_duration` seconds or more.
        prompt_duration, duration: float. Seconds known, and new.
        seeds: int.
        batch_size: int. Prompts continued at once.

    Returns:
        `Continuations`.

    Raises:
        ValueError: if there is no recording.
    """
    if not pairs:
        raise ValueError(
            f"No held-out recording lasts {prompt_duration:g} seconds. Give a "
            "shorter prompt duration."
        )
    samples = round(prompt_duration * pipeline.sample_rate)
    prompts = np.stack([clip[:samples] for _, clip in pairs])
    batch_size = min(batch_size, len(prompts))
    starts = range(0, len(prompts), batch_size)
    audio, semantic = [], []
    with tqdm(total=seeds * len(starts), desc="Continuing prompts") as bar:
        for seed, start in itertools.product(range(seeds), starts):
            rows = np.arange(start, start + batch_size)
            made, tokens = pipeline.generate(
                # A last batch that is not full starts again from the front.
                prompts[rows % len(prompts)],
                duration=duration,
                # Else all batches would draw the same noise.
                seed=1000 * seed + start,
                return_tokens=True,
            )
            kept = int((rows < len(prompts)).sum())
            known = samples // pipeline.unit_samples * pipeline.unit[0]
            audio.append(made[:kept, samples:])
            semantic += [
                row[row != PADDING] for row in tokens.semantic[:kept, known:]
            ]
            bar.update()
    audio = np.concatenate(audio)
    count = len(prompts)
    return Continuations(
        [row for row, _ in pairs],
        prompts,
        audio.reshape(seeds, count, -1),
        [semantic[i * count : (i + 1) * count] for i in range(seeds)],
    )


def diversity(semantic):
    """How much continuations of one prompt differ from seed to seed.

    Args:
        semantic: `[seed][prompt]` of `(frames,)` int.

    Returns:
        Dictionary: `same_prompt`, the share of frames at which two seeds have
        the same token, `other_prompt`, the same of continuations of different
        prompts (what chance gives), and `pairs`, of the first. `None` where
        there is nothing to compare.
    """
    seeds, prompts = len(semantic), len(semantic[0])
    same = [
        agreement(semantic[a][p], semantic[b][p])
        for a, b in itertools.combinations(range(seeds), 2)
        for p in range(prompts)
    ]
    other = [
        agreement(semantic[s][a], semantic[s][b])
        for s in range(seeds)
        for a, b in itertools.combinations(range(prompts), 2)
    ]
    same = [value for value in same if value is not None]
    other = [value for value in other if value is not None]
    return {
        "same_prompt": float(np.mean(same)) if same else None,
        "other_prompt": float(np.mean(other)) if other else None,
        "pairs": len(same),
    }


def agreement(a, b):
    """The share of frames with the same token; `None` where there is none."""
    frames = min(len(a), len(b))
    return float(np.mean(a[:frames] == b[:frames])) if frames else None


# === Collapse ===


def sound_features(clip, tokens=None):
    """What leaves the usual where generation falls into silence or noise.

    Args:
        clip: `(samples,)` float32.
        tokens: `(frames,)` int, its semantic tokens.

    Returns:
        Dictionary: `rms_db`, `spectral_flatness` (of a whole clip's power
        spectrum: 1 of white noise, near 0 of tones) and `token_entropy`, in
        nats.
    """
    power = np.mean(np.square(clip, dtype="float64"))
    clip = np.pad(clip, (0, max(1024 - len(clip), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(clip, 1024)[::512]
    frames = frames * np.hanning(1024)
    spectrum = np.mean(np.abs(np.fft.rfft(frames)) ** 2, axis=0)[1:] + 1e-12
    flatness = np.exp(np.mean(np.log(spectrum))) / np.mean(spectrum)
    return {
        "rms_db": float(10 * np.log10(power + 1e-12)),
        "spectral_flatness": float(flatness),
        "token_entropy": entropy(np.bincount(tokens)) if len(tokens) else 0.0,
    }


def real_range(pipeline, files, duration, count, seed=0):
    """The least and the most of each feature in random real crops.

    Args:
        pipeline: `AudioLMPipeline`.
        files: list of paths.
        duration: float. Seconds of a crop.
        count: int. Crops, rounded up to whole batches.
        seed: int.
    """
    crops = AudioCrops(
        files,
        sample_rate=pipeline.sample_rate,
        duration=duration,
        batch_size=8,
        steps_per_epoch=-(-count // 8),
        seed=seed,
    )
    features = []
    for index in tqdm(range(len(crops)), "Hearing real crops", leave=False):
        batch = crops[index]
        tokens = pipeline.tokenize(batch).semantic
        features += map(sound_features, batch, tokens)
    return {
        name: [
            min(feature[name] for feature in features),
            max(feature[name] for feature in features),
        ]
        for name in features[0]
    }


def collapsed(features, usual):
    """How many clips leave the range of real ones, in all and by feature.

    Args:
        features: list of dictionaries of `sound_features`.
        usual: dictionary of `real_range`.
    """
    outside = {
        name: [not low <= f[name] <= high for f in features]
        for name, (low, high) in usual.items()
    }
    anywhere = np.any(list(outside.values()), axis=0)
    return {
        "clips": len(features),
        "outside": int(anywhere.sum()),
        "share": float(anywhere.mean()),
        "by_feature": {k: int(sum(v)) for k, v in outside.items()},
        "real_range": usual,
    }


# === Resynthesis ===


def resynthesize_all(pipeline, clips, seed=0, batch_size=8):
    """Clips said anew, in batches of like lengths.

    Args:
        pipeline: `AudioLMPipeline`.
        clips: list of `(samples,)`.
        seed: int.
        batch_size: int.

    Returns:
        Pairs of the real clips and of what was made of them, in order. Those
        of a batch are cut to the shortest of it.
    """
    order = np.argsort([len(clip) for clip in clips], kind="stable")
    pairs = [None] * len(clips)
    starts = range(0, len(clips), batch_size)
    for start in tqdm(starts, "Resynthesizing"):
        chosen = order[start : start + batch_size]
        samples = len(clips[chosen[0]])
        real = np.stack([clips[i][:samples] for i in chosen])
        made = pipeline.resynthesize(real, seed=seed + start)
        for i, pair in zip(chosen, zip(real, made, strict=True), strict=True):
            pairs[i] = pair
    return pairs
