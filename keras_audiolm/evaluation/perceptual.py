"""What listeners would say, foretold by well-known models of them.

Each comes from a package of its own, imported when it is asked for.
"""

import warnings


class MissingPackage(ImportError):
    """A measure's package is not installed."""


def make_measure(name, sample_rate):
    """The function behind a measure.

    Args:
        name: one of `MEASURES`.
        sample_rate: int. Hertz.

    Returns:
        A function of `(real, fake)`, two clips `(samples,)` float32, that
        gives a float, or `None` where there is nothing to judge.

    Raises:
        MissingPackage: if its package is not installed.
        ValueError: if the measure is not defined at that rate.
    """
    if name not in MEASURES:
        raise ValueError(
            f"Measures are {', '.join(MEASURES)}. Received: {name!r}"
        )
    if name in AT_16_KHZ and sample_rate != 16000:
        raise ValueError(
            f"{name} is defined at 16000 Hz. Received: {sample_rate} Hz"
        )
    make, package = MEASURES[name]
    try:
        return make(sample_rate)
    except ImportError as error:
        raise MissingPackage(
            f"{name} needs a package: pip install {package}"
        ) from error


def installed_measures(names, sample_rate):
    """Those of the measures that are defined at a rate, by name.

    Where a package lacks, a warning takes the measure's place.
    """
    measures = {}
    for name in names:
        if name in AT_16_KHZ and sample_rate != 16000:
            continue
        try:
            measures[name] = make_measure(name, sample_rate)
        except MissingPackage as error:
            warnings.warn(f"Left out: {error}", stacklevel=3)
    return measures


def make_pesq_wb(sample_rate):
    """PESQ's wide-band mode, 1 to 4.64.

    Reference: ITU-T P.862.2.
    """
    import pesq

    def pesq_wb(real, fake):
        try:
            return float(pesq.pesq(sample_rate, real, fake, "wb"))
        except pesq.NoUtterancesError:
            return None

    return pesq_wb


def make_stoi(sample_rate):
    """Short-time objective intelligibility, 0 to 1.

    Reference:
     - [Taal et al., 2011](https://ieeexplore.ieee.org/document/5713237)
    """
    import pystoi

    return lambda real, fake: float(pystoi.stoi(real, fake, sample_rate))


def make_visqol(sample_rate):
    """ViSQOL's speech mode with the lattice model, 1 to 5.

    Reference:
     - [Chinen et al., 2020](https://arxiv.org/abs/2004.09584)
    """
    import visqol

    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=True)

    def measure(real, fake):
        result = api.measure_from_arrays(
            real.astype("float64"), fake.astype("float64"), sample_rate
        )
        return float(result.moslqo)

    return measure


def make_speaker_similarity(sample_rate):
    """The cosine of two clips' speaker embeddings by Resemblyzer.

    Reference:
     - [Wan et al., 2018](https://arxiv.org/abs/1710.10467)
    """
    import resemblyzer

    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(clip):
        clip = resemblyzer.preprocess_wav(clip, sample_rate)
        return encoder.embed_utterance(clip)

    return lambda real, fake: float(embed(real) @ embed(fake))


MEASURES = {  # how each is made, and the package that it needs
    "pesq_wb": (make_pesq_wb, "pesq"),
    "stoi": (make_stoi, "pystoi"),
    "visqol": (make_visqol, '"visqol-python[lattice]"'),
    "speaker_similarity": (make_speaker_similarity, "resemblyzer"),
}
AT_16_KHZ = ("pesq_wb", "visqol")


class WordErrors:
    """Words that a recognizer hears otherwise than in the original.

    The recognizer's own transcript of the original is the reference, so that
    its errors do not count as the codec's.

    Args:
        model: the name of a Whisper model or the folder of one, as
            `faster_whisper.WhisperModel` takes it. Defaults to `"base"`.
        language: its language code. Defaults to `"en"`.

    Reference:
     - [Whisper](https://arxiv.org/abs/2212.04356)
    """

    def __init__(self, model="base", language="en"):
        try:
            import faster_whisper
            import jiwer
        except ImportError as error:
            raise MissingPackage(
                "Word errors need packages: pip install faster-whisper jiwer"
            ) from error
        self.recognizer = faster_whisper.WhisperModel(
            model, device="cpu", compute_type="float32"
        )
        self.language = language
        self.jiwer = jiwer

    def transcribe(self, clip):
        """The words of a clip `(samples,)` at 16 kHz, in lower case."""
        segments, _ = self.recognizer.transcribe(
            clip,
            language=self.language,
            beam_size=5,
            condition_on_previous_text=False,
            temperature=0.0,
        )
        text = " ".join(segment.text for segment in segments).lower()
        letters = "".join(c if c.isalnum() or c == "'" else " " for c in text)
        return " ".join(letters.split())

    def rate(self, reference, clips):
        """Errors for each word, and for each letter, of the reference.

        Args:
            reference: list of str, transcripts of the originals.
            clips: list of `(samples,)`, what became of them.

        Returns:
            Dictionary: `word_error_rate` and `character_error_rate`, `None`
            where no original has a word, and `files`, those that have.
        """
        heard = [self.transcribe(clip) for clip in clips]
        pairs = [(a, b) for a, b in zip(reference, heard, strict=True) if a]
        truth, heard = [a for a, _ in pairs], [b for _, b in pairs]
        return {
            "word_error_rate": self.jiwer.wer(truth, heard) if pairs else None,
            "character_error_rate": (
                self.jiwer.cer(truth, heard) if pairs else None
            ),
            "files": len(pairs),
        }
