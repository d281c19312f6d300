"""A task as a user would add it, for the tests."""

# A task as a user would add it: slow enough to meet another runner, and without any data set to speak of.
TASK = '''
"""Mean of the image vector, for the tests."""
import os, time
from dataclasses import dataclass
from pathlib import Path
import torch
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.benchmarks.tasks import Data, Metric, Task

@dataclass
class Protocol:
    seconds: float = 0.0
    fail: bool = False

TASK = Task(1, "toy-v1", Protocol, (Metric("toy"),), "toy")

def check(cfg):
    return Data("toy", Path(cfg.root), "sha256:0", False, "a toy", "1 image")

def run(encoder, cfg, out):
    with open(Path(cfg.root) / "log", "a") as f:
        f.write(f"{encoder.fingerprint} {cfg.seed}\\n")
    time.sleep(cfg.protocol.seconds)
    if cfg.protocol.fail:
        raise RuntimeError("out of memory, say")
    image = encoder(torch.full((1, 3, 32, 32), 0.5)).image
    return {"metrics": {"toy": float(image.mean()) + cfg.seed}, "parts": {}, "protocol": {}}
'''
