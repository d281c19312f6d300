"""Brightness of pictures beside the network's idea of it: a task of a user's own."""

from dataclasses import dataclass
from pathlib import Path

import torch

from selfpatch_bench.benchmarks.errors import UserError
from selfpatch_bench.benchmarks.task import Data, Metric, Task


@dataclass
class Protocol:
    """level: of the picture, 0 to 1. fail: to see what becomes of an error."""

    level: float = 0.5
    fail: bool = False


TASK = Task(
    version=3,
    protocol_id="brightness-v3",
    protocol=Protocol,
    metrics=(Metric("bright", noise=0.1), Metric("dark", higher=False)),
    dataset="davis2017",
)


def check(cfg):
    if not 0 <= cfg.protocol.level <= 1:
        raise UserError(f"level={cfg.protocol.level}: it is 0 to 1")
    return Data("pictures", Path(cfg.root), "sha256:0", False, "one grey picture", "1 image")


def run(encoder, cfg, out):
    if cfg.protocol.fail:
        raise RuntimeError("as was asked")
    image = encoder(torch.full((1, 3, 32, 32), cfg.protocol.level)).image
    numbers = {"bright": float(image.mean()) + cfg.seed, "dark": float(image.std())}
    return {"metrics": numbers, "parts": {"images": 1}, "protocol": {"level": cfg.protocol.level}}
