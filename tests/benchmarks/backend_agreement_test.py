import importlib.util
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parents[2] / "benchmarks/backend_agreement.py"
spec = importlib.util.spec_from_file_location("backend_agreement", PATH)
backend_agreement = importlib.util.module_from_spec(spec)
spec.loader.exec_module(backend_agreement)


def test_a_difference_is_seen(monkeypatch):
    def run(backend, preset, folder):
        decoded = np.zeros(3) if backend == "jax" else np.full(3, 2e-4)
        return {"decoded": decoded, "generated": decoded}

    monkeypatch.setattr(backend_agreement, "run", run)
    assert backend_agreement.main([]) == 1
