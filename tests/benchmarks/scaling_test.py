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
    "parts",
    [["codec", "semantic_tokenizer"], ["semantic_lm", "coarse_lm", "fine_lm"]],
)
def test_the_papers_size_compiles_for_sixteen_devices(parts):
    flags = "--xla_force_host_platform_device_count=16"
    text = subprocess.run(
        [sys.executable, PATH, "--parts", *parts],
        env={**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    lines = text.splitlines()[1:]
    rows = [line.split() for line in lines[: len(parts)]]
    assert [row[0] for row in rows] == parts
    sizes = {"codec": 3e7, "semantic_tokenizer": 6e8}
    for name, millions, _, _, flops, gigabytes, _ in rows:
        parameters = float(millions) * 1e6
        assert parameters == pytest.approx(sizes.get(name, 2e8), rel=0.2)
        # A weight that the layout map forgot would stand on every device, as
        # those of the codec do.
        devices = 1 if name == "codec" else 16
        fair = BYTES_PER_PARAMETER * parameters / devices
        assert fair < float(gigabytes) * 1e9 * 1.01 < 1.4 * fair
        # At least a forward and a backward pass over the weights.
        assert float(flops) > 6 * 0.9 * parameters
    check_tokenizing(lines[len(parts) :], rows)


def check_tokenizing(lines, rows):
    """Tokenizing is a part of the forward pass of training."""
    frames = {"codec": 50, "semantic_tokenizer": 25}
    training = {row[0]: float(row[4]) * frames.get(row[0], 0) for row in rows}
    assert len(lines) == sum(name in frames for name in training)
    for line in lines:
        name, flops, _ = line.removeprefix("tokenizing a second by ").split()
        whole = training[name.removesuffix(":")]
        assert whole / 40 < float(flops) < whole / 3
