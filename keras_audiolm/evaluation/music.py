"""Whether continued music stays in the key and the pace of its prompt."""

import numpy as np

# Hertz that pitch classes are heard in: below, semitones are nearer to each
# other than the spectrum can tell; above, there are hardly any notes.
PITCH_RANGE = (80.0, 2100.0)
PITCH_WINDOW = 0.25  # seconds
ONSET_WINDOW = 0.032
ONSET_HOP = 0.01
# Two onsets are one if they are nearer than that, as in MIREX's evaluation.
ONSET_DISTANCE = 0.05
# How far decibels must rise, on average over bands, to be an onset.
ONSET_THRESHOLD = 2.0
ONSET_BANDS = 40
# What listeners find the twelve degrees of a key to weigh.
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def spectra(audio, window, hop, finer=1):
    """Amplitudes `(frames, bins)` of audio `(samples,)`.

    Args:
        finer: int. How many times as many bins there are as the window has
            itself, to see between two.
    """
    audio = np.pad(audio, (0, max(window - len(audio), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
    frames = frames * np.hanning(window)
    return np.abs(np.fft.rfft(frames, finer * window, axis=-1))


def pitch_classes(audio, sample_rate):
    """How much of a sound is C, C sharp, ... B.

    The peaks of the spectrum count by their amplitude; overtones count as
    what they are.

    Args:
        audio: `(samples,)` float.
        sample_rate: int. Hertz.

    Returns:
        `(12,)`, at least zero, of sum one; all the same in silence.
    """
    window = round(PITCH_WINDOW * sample_rate)
    amplitude = spectra(audio, window, window // 2, finer=4)
    frequencies = np.fft.rfftfreq(4 * window, 1 / sample_rate)
    inside = (frequencies > PITCH_RANGE[0]) & (frequencies < PITCH_RANGE[1])
    middle = amplitude[:, 1:-1]
    peak = (middle > amplitude[:, :-2]) & (middle >= amplitude[:, 2:])
    # Not the ripples beside a note.
    peak &= middle > 0.1 * middle.max(axis=-1, keepdims=True)
    weight = np.sum(np.where(peak, middle, 0.0), axis=0)[inside[1:-1]]
    note = np.round(12 * np.log2(frequencies[inside] / 440.0)) + 9  # C is 0
    histogram = np.bincount(note.astype(int) % 12, weight, minlength=12)
    total = histogram.sum()
    return histogram / total if total > 0 else np.full(12, 1 / 12)


def key_profile(histogram):
    """How well pitch classes fit each of the 24 keys.

    Args:
        histogram: `(12,)`, as of `pitch_classes`.

    Returns:
        `(24,)` correlations from -1 to 1: C major to B major, then C minor to
        B minor.

    Reference:
     - Krumhansl and Kessler, 1982: Tracing the dynamic changes in perceived
       tonal organization in a spatial representation of musical keys
    """
    keys = [
        np.roll(profile, tonic)
        for profile in (MAJOR, MINOR)
        for tonic in range(12)
    ]
    if np.ptp(histogram) == 0:
        return np.zeros(24)
    return np.array([np.corrcoef(histogram, key)[0, 1] for key in keys])


def onset_density(audio, sample_rate):
    """Notes begun a second: how often the spectrum suddenly rises.

    Args:
        audio: `(samples,)` float.
        sample_rate: int. Hertz.
    """
    window = round(ONSET_WINDOW * sample_rate)
    hop = round(ONSET_HOP * sample_rate)
    # What sounds at the start begins there.
    audio = np.concatenate([np.zeros(window), audio])
    power = spectra(audio, window, hop) ** 2
    edges = np.geomspace(1, power.shape[1], ONSET_BANDS + 1).astype(int)
    bands = np.add.reduceat(power, np.unique(edges[:-1]), axis=1)
    # Nothing is heard 60 decibels below the loudest.
    level = 10 * np.log10(bands + 1e-6 * bands.max() + 1e-12)
    # Over three hops: an attack lasts longer than one.
    rise = np.maximum(level[3:] - level[:-3], 0.0).mean(axis=1)
    apart = max(round(ONSET_DISTANCE / ONSET_HOP), 1)
    padded = np.pad(rise, apart)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * apart + 1)
    onset = (rise >= ONSET_THRESHOLD) & (rise == around.max(axis=1))
    # A plateau is one onset.
    onset[1:] &= ~onset[:-1]
    return onset.sum() / (len(audio) - window) * sample_rate


def profile(audio, sample_rate):
    """The three of a clip, as a dictionary."""
    classes = pitch_classes(audio, sample_rate)
    return {
        "pitch_classes": classes,
        "key": key_profile(classes),
        "onset_density": onset_density(audio, sample_rate),
    }


def histogram_distance(a, b):
    """The share of one histogram that would have to move to make the other."""
    return 0.5 * float(np.abs(a - b).sum())


def windows(recording, samples):
    """Stretches of a recording, each half in the one before."""
    starts = range(0, max(len(recording) - samples, 0) + 1, samples // 2)
    return [recording[start : start + samples] for start in starts]


class Variability:
    """How far the stretches of a recording are from its beginning.

    Args:
        recording: `(samples,)` float.
        prompt: dictionary of `profile`, of its beginning.
        samples: int. Of a stretch.
        sample_rate: int. Hertz.
    """

    def __init__(self, recording, prompt, samples, sample_rate):
        self.prompt = prompt
        profiles = [
            profile(stretch, sample_rate)
            for stretch in windows(recording, samples)
        ]
        densities = [p["onset_density"] for p in profiles]
        self.slowest, self.fastest = min(densities), max(densities)
        self.farthest = max(self.key_distance(p) for p in profiles)

    def key_distance(self, profile):
        return float(np.abs(profile["key"] - self.prompt["key"]).mean())

    def keeps_pace(self, profile):
        return self.slowest <= profile["onset_density"] <= self.fastest

    def keeps_key(self, profile):
        return self.key_distance(profile) <= self.farthest


def compare_music(recordings, pieces, prompts, made, sample_rate):
    """Pace and key of continuations beside those of what they continue.

    Args:
        recordings: list of `(samples,)` float.
        pieces: list of the name of each one's piece.
        prompts: list of `(samples,)`: the beginning of each.
        made: `(seeds, recordings, samples)` float, without the prompts.
        sample_rate: int. Hertz.

    Returns:
        Dictionary. `within`, shares of continuations: `pace`, whose notes a
        second are as many as in some stretch of their recording of the same
        length, or between; `key`, whose key profile is no farther from the
        prompt's than that of some stretch; and `both`. `other`, the same of
        stretches of other pieces, what chance gives. `closer`, the share whose
        pitch classes are nearer to their prompt's than to that of another
        piece, over all others, and `real_closer`, of what really follows.

    Raises:
        ValueError: where all recordings are of one piece.
    """
    if len(set(pieces)) < 2:
        raise ValueError(
            "Music is compared with that of other pieces, and all recordings "
            f"are of {pieces[0]!r}."
        )
    samples = made.shape[-1]
    heard = [profile(prompt, sample_rate) for prompt in prompts]
    usual = [
        Variability(recording, prompt, samples, sample_rate)
        for recording, prompt in zip(recordings, heard, strict=True)
    ]
    real = [
        profile(recording[len(prompt) :][:samples], sample_rate)
        for recording, prompt in zip(recordings, prompts, strict=True)
    ]
    new = [[profile(clip, sample_rate) for clip in seed] for seed in made]
    count = range(len(pieces))
    others = [(i, j) for i in count for j in count if pieces[i] != pieces[j]]
    return {
        "continuations": len(new) * len(pieces),
        "within": within([(usual[i], seed[i]) for seed in new for i in count]),
        "other": within([(usual[i], real[j]) for i, j in others]),
        "closer": closer(new, heard, others),
        "real_closer": closer([real], heard, others),
    }


def within(pairs):
    """Shares of profiles within a `Variability`."""
    pace = np.array([usual.keeps_pace(profile) for usual, profile in pairs])
    key = np.array([usual.keeps_key(profile) for usual, profile in pairs])
    return {
        "pace": float(pace.mean()),
        "key": float(key.mean()),
        "both": float((pace & key).mean()),
    }


def closer(new, heard, others):
    """How often `new[seed][i]` is nearer to `heard[i]` than to `heard[j]`."""

    def distance(seed, i, j):
        return histogram_distance(
            seed[i]["pitch_classes"], heard[j]["pitch_classes"]
        )

    return float(
        np.mean(
            [
                distance(s, i, i) < distance(s, i, j)
                for s in new
                for i, j in others
            ]
        )
    )
