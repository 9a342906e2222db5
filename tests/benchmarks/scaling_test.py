import os
import pathlib
import subprocess
import sys

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks/scaling.py"
# Weights and AdamW's two averages, of four bytes each.
BYTES_PER_PARAMETER = 12


@pytest.mark.large
@pytest.mark.parametrize(
    "parts", [["semantic_tokenizer"], ["semantic_lm", "coarse_lm", "fine_lm"]]
)
def test_the_papers_size_compiles_for_sixteen_devices(parts):
    flags = "--xla_force_host_platform_device_count=16"
    text = subprocess.run(
        [sys.executable, PATH, "--parts", *parts],
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    rows = [line.split() for line in text.splitlines()[1:]]
    assert [row[0] for row in rows] == parts
    for name, millions, _, _, flops, gigabytes, _ in rows:
        parameters = float(millions) * 1e6
        large = name == "semantic_tokenizer"
        assert (5e8 if large else 2e8) < parameters < (7e8 if large else 3e8)
        # A weight that the layout map forgot would stand on every device.
        fair = BYTES_PER_PARAMETER * parameters / 16
        assert fair < float(gigabytes) * 1e9 * 1.01 < 1.4 * fair
        # At least a forward and a backward pass over the weights.
        assert float(flops) > 6 * 0.9 * parameters
