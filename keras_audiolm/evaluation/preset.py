"""Measures a preset as the paper does: `keras-audiolm evaluate`."""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import warnings

import keras

from keras_audiolm.evaluation import SECTIONS
from keras_audiolm.evaluation.corpus import SPLITS
from keras_audiolm.evaluation.sections import Evaluation, LeftOut, Settings
from keras_audiolm.layers.checksum import weights_checksum
from keras_audiolm.version import __version__


def evaluate_preset(
    pipeline, corpus, out, name, command, only=SECTIONS, settings=None
):
    """Measures sections one after the other, and writes the report each time.

    Args:
        pipeline: `AudioLMPipeline`.
        corpus: `Corpus`.
        out: folder of the report: `report.html` and `report.json`, the
            examples in `audio`, and in `work` what the next run uses again.
        name: str. Of the preset.
        command: str. What was run, for the report.
        only: names of `SECTIONS`. The others keep their figures from an
            earlier run with the same weights.
        settings: `Settings`, optional.

    Returns:
        Dictionary by section.
    """
    from keras_audiolm.evaluation.report import write_report

    settings = settings or Settings()
    out = pathlib.Path(out)
    evaluation = Evaluation(pipeline, corpus, out / "work", settings)
    trained = [pipeline.part(part) for part in pipeline.trained_parts]
    same = {
        "weights": f"{weights_checksum(*trained):08x}",
        "data": corpus.folder.resolve().name,
        "files": {split: len(corpus.split(split)) for split in SPLITS},
    }
    results = earlier_results(out / "report.json", same)
    results["about"] = {
        **same,
        "preset": name,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": machine(),
        "skipped": len(corpus.skipped),
        "settings": dataclasses.asdict(settings),
    }
    for section in [s for s in SECTIONS if s in only]:
        print(f"Measuring {section} ...", flush=True)
        results[section] = measure(getattr(evaluation, section))
        results["about"]["skipped"] = len(corpus.skipped)
        write_report(results, out)
    return results


def measure(section):
    """A section's figures, with what it could not measure as `notes`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = section()
        except LeftOut as reason:
            return {"left_out": str(reason)}
    notes = [
        str(w.message) for w in caught if issubclass(w.category, UserWarning)
    ]
    notes = [note for note in dict.fromkeys(notes) if "Left out" in note]
    return {**result, "notes": notes} if notes else result


def earlier_results(path, same):
    """What an earlier run measured, if it was of the same weights and files.

    Args:
        path: of its JSON.
        same: dictionary of what must be the same.
    """
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())
    about = results["about"]
    return results if all(about[k] == v for k, v in same.items()) else {}


def machine():
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            models = [x.split(":")[1] for x in file if "model name" in x]
        model = models[0].strip() if models else model
    except OSError:
        pass
    try:
        used = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        used = os.cpu_count()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "cores_used": used,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "keras_audiolm": __version__,
        "backend": keras.backend.backend(),
    }
