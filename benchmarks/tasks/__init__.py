"""One file = one task. The module's name is the task's name.

A task defines

    TASK = Task(version=..., protocol_id=..., protocol=Protocol, metrics=(...), dataset=..., published=(...))
        see `Task`; `Protocol` is a dataclass whose fields are the protocol's values with their defaults.
        `seeded=False` says that `run` draws nothing by cfg.seed: a list of seeds then costs one run.
    check(cfg) -> Data
        everything that can be wrong with the data is found here, before any long work, in one line each.
    run(encoder, cfg, out) -> {"metrics": {...}, "parts": {...}, "protocol": {...}}
        metrics by the published vocabulary; parts: whatever they are averages of; protocol: values that only the
        encoder decides (mean, std ...). `out` is a folder of the task's own that survives an interruption: a second
        call with the same folder goes on where the first one stopped.

and may define `example(folder) -> Path` (a tiny data set), `pictures(encoder, cfg, out)`, and

    check_data(root) -> Data
        the data alone, for `selfpatch doctor`; without it, that is `check` with the protocol's own values.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pretrain.common.errors import UserError
from ..datasets.base import Data


@dataclass(frozen=True)
class Metric:
    """A metric by its name in the published tables, in `unit`. `noise`: half width of the run-to-run band."""

    name: str
    unit: str = "%"
    higher: bool = True
    noise: float = 0.0


@dataclass(frozen=True)
class Task:
    """A task's declaration: `TASK = Task(...)` in its module.

    version: raised whenever the same checkpoint would get another number; part of the record's key.
    protocol: dataclass type of every protocol value with its default; `key=value` on the command line overrides one.
    published: the (task, protocol) pairs of published rows that this task's numbers may stand beside.
    needs: what it takes from the encoder, for messages. takes: encoder, or checkpoint: `run` then gets the opened file
    (an opened Checkpoint) and builds a network of its own. values: the keys of `key=value`, where the protocol's fields
    do not say them. seeded: whether the seed changes the number; where it does not, the task runs once, under seed 0.
    """

    version: int
    protocol_id: str
    protocol: type
    metrics: tuple[Metric, ...]
    dataset: str
    published: tuple[tuple[str, str], ...] = ()
    needs: str = "patch maps"
    takes: str = "encoder"
    values: tuple[str, ...] = ()
    seeded: bool = True


class Crash(UserError):
    """A task's processes ended without a result; `log` is the tail of what they printed."""

    def __init__(self, message: str, log: str):
        super().__init__(message, 1)
        self.log = log


@dataclass
class Config:
    """What `run(encoder, cfg, out)` gets beside the encoder and its output folder.

    progress(done, total, text): called by the task as it proceeds.
    """

    protocol: Any
    root: Path | None = None
    data: Data | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    pictures: bool = False
    masks: Path | None = None  # a folder of results to score instead of running an encoder
    list_file: Path | None = None
    gpus: int = 1  # processes to start on this machine, for tasks that train
    world: int = 1  # processes that a launcher started, of which this is number `rank`
    rank: int = 0
    eval_only: Path | None = None  # a fine-tuned model to evaluate
    progress: Callable[[float, float, str], None] = lambda done, total, text: None


def make_key(parts: Mapping) -> str:
    """Hash (16 hex digits) of everything that makes a number another number."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
