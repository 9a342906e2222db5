"""What all tests share: how they compile, and which of them are `core`.

`core` tests run on all three backends (`make test`), the others on JAX only.
Every test is core unless it stands in a file that never calls the backend, or
only through what is tested elsewhere (`BACKEND_FREE`), or is marked `large`.
"""

import os
import pathlib

TESTS = pathlib.Path(__file__).resolve().parent
CACHE = TESTS.parent / ".cache" / "jax"

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tiny models take longer to compile than to run: XLA, of JAX and TensorFlow, is
# told to hurry, and what it made is kept for the next run and sub-processes.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import keras
import pytest

BACKEND_FREE = {
    "benchmarks/codec_architectures_test.py",
    "benchmarks/word_abx_test.py",
    "bundled_test.py",
    "cli_test.py",
    "convert/centroids_test.py",
    "convert/sources_test.py",
    "data",
    "evaluation/abx_test.py",
    "evaluation/codec_test.py",
    "evaluation/corpus_test.py",
    "evaluation/detector_test.py",
    "evaluation/display_test.py",
    "evaluation/frechet_test.py",
    "evaluation/generation_test.py",
    "evaluation/labels_test.py",
    "evaluation/language_test.py",
    "evaluation/listening_page_test.py",
    "evaluation/listening_score_test.py",
    "evaluation/listening_test_test.py",
    "evaluation/memorisation_test.py",
    "evaluation/music_test.py",
    "evaluation/perceptual_test.py",
    "evaluation/zerospeech_test.py",
    "examples",
    "generation_test.py",
    "import_test.py",
    "scale",
    "tfio",
    "training_recipes_test.py",
}


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory):
    """Folder of a preset with tiny models that count as trained."""
    from tests.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("presets") / "tiny"
    tiny_pipeline().save_to_preset(folder)
    return folder


def pytest_configure(config):
    keras.config.disable_traceback_filtering()


def pytest_collection_modifyitems(items):
    for item in items:
        path = item.path.relative_to(TESTS)
        free = {path.parts[0], path.as_posix()} & BACKEND_FREE
        if not free and not item.get_closest_marker("large"):
            item.add_marker(pytest.mark.core)


def pytest_report_header():
    return f"keras {keras.__version__}, backend {keras.backend.backend()}"
