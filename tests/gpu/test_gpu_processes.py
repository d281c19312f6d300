"""Two processes with a GPU each, NCCL between them: the same training as one."""

import json
import subprocess
import sys

import pytest
import torch
from on_device import device as device

from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from training import MOBY, ONE, SELFPATCH, difference, environment, final, lines, pictures

EXACT = ("loop.precision=float64", "network.drop_path=0", "loop.steps=5", "schedule.warmup_epochs=0")


@pytest.mark.parametrize(("recipe", "options"), [("selfpatch", SELFPATCH), ("moby", MOBY)])
def test_two_gpus_equal_one(recipe, options, device, tmp_path):
    """Same global batch, no noise, float64, 5 steps: weights to 1e-8; MoBY's batch norm goes over both."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, there is {torch.cuda.device_count()}")
    data = pictures(tmp_path / "pictures")
    options = (*(o for o in options if not o.startswith("loop.device")), *EXACT, f"loop.device={device.type}")
    script = tmp_path / "one.py"
    script.write_text(ONE)
    arguments = {"recipe": recipe, "data": str(data), "out": str(tmp_path / "two"), "overrides": options}
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*line, json.dumps(arguments)], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert pretrain_command(recipe, data, tmp_path / "one", overrides=options) == 0
    assert difference(final(tmp_path / "two"), final(tmp_path / "one")) < 1e-8
    for a, b in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-8)
