"""How much of a recording a codec keeps."""

import functools
import math

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from keras_audiolm.evaluation.perceptual import installed_measures

# Clips of one padded length that go through the codec together.
CODEC_BATCH = 8
# PESQ and STOI mean little on less.
MIN_PERCEPTUAL_DURATION = 1.0


def reconstruct(codec, clips, levels=None):
    """Clips through the codec and back.

    Args:
        codec: `SoundStream`.
        clips: list of `(samples,)` float32.
        levels: int, optional. Levels of the quantizer to keep.

    Returns:
        List of float32 arrays of the same lengths.
    """
    padded = [padded_length(len(clip), codec.sample_rate) for clip in clips]
    results = [None] * len(clips)
    for length in tqdm(sorted(set(padded)), "Codec", leave=False):
        indices = [i for i, size in enumerate(padded) if size == length]
        for start in range(0, len(indices), CODEC_BATCH):
            chosen = indices[start : start + CODEC_BATCH]
            # One shape for each length: what is padded on changes nothing.
            audio = np.zeros((CODEC_BATCH, length), "float32")
            for row, i in enumerate(chosen):
                audio[row, : len(clips[i])] = clips[i]
            made = codec.decode(codec.encode(audio)[..., :levels])
            for row, i in enumerate(chosen):
                results[i] = np.array(made[row, : len(clips[i])])
    return results


def padded_length(samples, sample_rate):
    """The next of 1, 2, 4, 8, ... seconds, in samples."""
    octaves = math.ceil(math.log2(samples / sample_rate))
    return sample_rate * 2 ** max(octaves, 0)


def compare(real, fake, sample_rate, measures=("pesq_wb", "stoi")):
    """Mean distances of pairs of clips.

    Args:
        real, fake: lists of `(samples,)` float32, pairs of equal length.
        sample_rate: int. Hertz.
        measures: names of `evaluation.perceptual.MEASURES`.

    Returns:
        Dictionary: `log_mel_distance`, `multi_log_mel_distance`, `si_sdr_db`
        and `files`; over clips of
        a second or more the measures, each with the number of files that it
        is the mean of. A warning names those whose package lacks, and
        `pesq_wb` and `visqol` are left out where the rate is not 16 kHz.
    """
    pairs = list(zip(real, fake, strict=True))
    long = [
        pair
        for pair in pairs
        if len(pair[0]) >= MIN_PERCEPTUAL_DURATION * sample_rate
    ]
    result = {
        "files": len(pairs),
        "log_mel_distance": mean(
            log_mel_distance(a, b, sample_rate) for a, b in pairs
        ),
        "multi_log_mel_distance": mean(
            multi_log_mel_distance(a, b, sample_rate) for a, b in pairs
        ),
        "si_sdr_db": mean(si_sdr(a, b) for a, b in pairs),
    }
    for name, measure in installed_measures(measures, sample_rate).items():
        values = [measure(a, b) for a, b in tqdm(long, name, leave=False)]
        values = [v for v in values if v is not None]
        result[name] = mean(values)
        result[f"{name}_files"] = len(values)
    return result


def mean(values):
    values = list(values)
    return float(np.mean(values)) if values else None


def si_sdr(real, fake):
    """Scale-invariant signal-to-distortion ratio, in decibels.

    Reference:
     - [Le Roux et al., 2018](https://arxiv.org/abs/1811.02508)
    """
    real = real.astype("float64") - real.mean()
    fake = fake.astype("float64") - fake.mean()
    target = real * (fake @ real) / (real @ real + 1e-12)
    noise = fake - target
    ratio = (target @ target + 1e-12) / (noise @ noise + 1e-12)
    return float(10.0 * np.log10(ratio))


def log_mel_distance(real, fake, sample_rate, size=1024, num_mels=80):
    """Mean absolute difference of natural log-mel amplitudes.

    80 bands, Hann windows of 1024 samples every 256, amplitudes below 1e-5
    count as 1e-5: the usual figure of vocoders.
    """
    real, fake = (
        log_mel(audio, sample_rate, size, num_mels) for audio in (real, fake)
    )
    return float(np.mean(np.abs(real - fake)))


def multi_log_mel_distance(real, fake, sample_rate):
    """The mean of `log_mel_distance` over windows of 256 to 2048 samples.

    A band for each 16 samples of a window, so that none is empty, and at
    most 80.
    """
    return float(
        np.mean(
            [
                log_mel_distance(real, fake, sample_rate, n, min(n // 16, 80))
                for n in (256, 512, 1024, 2048)
            ]
        )
    )


def log_mel(audio, sample_rate, size=1024, num_mels=80):
    """`(frames, num_mels)`, of Hann windows every quarter of their size."""
    audio = np.pad(audio, (0, max(size - len(audio), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)
    spectrum = np.abs(np.fft.rfft(frames[:: size // 4] * np.hanning(size)))
    matrix = mel_matrix(sample_rate, size, num_mels)
    return np.log(np.maximum(spectrum @ matrix, 1e-5))


@functools.lru_cache
def mel_matrix(sample_rate, fft_length, num_mels):
    matrix = keras.layers.MelSpectrogram(
        fft_length=fft_length
    ).linear_to_mel_weight_matrix(
        num_mel_bins=num_mels,
        num_spectrogram_bins=fft_length // 2 + 1,
        sampling_rate=sample_rate,
        lower_edge_hertz=0.0,
        upper_edge_hertz=sample_rate / 2,
    )
    return np.asarray(ops.convert_to_numpy(matrix), "float64")


def codebook_use(codes, size):
    """How many codes of each level are used, and how evenly.

    Args:
        codes: `(frames, levels)` int.
        size: int. Codes of a level.

    Returns:
        Dictionary; perplexity is the number of codes which, used evenly,
        would be as hard to guess.
    """
    counts = [np.bincount(level, minlength=size) for level in codes.T]
    return {
        "frames": len(codes),
        "size": size,
        "used": [int((c > 0).sum()) for c in counts],
        "perplexity": [float(np.exp(entropy(c))) for c in counts],
    }


def entropy(counts):
    """Of a distribution given by counts, in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)))
