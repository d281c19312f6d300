"""What the parent tells the processes that train, and where both leave things in the result's folder. No mm here."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ...pretrain.common.atomic import write_atomic

# Names in the result's folder (`Training.out`).
EXPORT = "backbone.safetensors"  # the checkpoint's weights and card, as every process reads them
LOG = "log.txt"  # everything that the processes print, of all attempts
PROGRESS = "progress.json"  # {"done", "total", "text"}, rewritten about once a second
LAST = "last.pth"  # the latest checkpoint of the fine-tuning, replaced as a whole
COLLECTED = ".predictions"  # of each process, for the first one, which removes them
RESULT = "result.json"
PARTS = {"metrics", "parts", "protocol", "accounting", "environment", "peak_memory_bytes"}  # of a result
ERROR = "error.json"  # {"error", "status"} of the first process that failed
LOCK = ".processes"  # every process holds a shared lock on it while it lives


@dataclass
class Training:
    """One fine-tuning and its evaluation, or an evaluation alone.

    recipe: path of mm_configs/NAME.py. export: our .safetensors, backbone and card. data: root of the data set.
    out: the result's folder. overrides: key=value. classes: names of those of a set of one's own. limit: only the first
    validation images. gpus: processes that the launcher starts (1: it was started as one of them, or is alone). device:
    cpu, cuda or cuda:N. scale_lr: the learning rate in proportion to `batch`. eval_only: a fine-tuned mm model to
    evaluate instead of training. pictures: also of the first validation images.
    """

    recipe: str
    export: str
    data: str
    out: str
    overrides: list[str] = field(default_factory=list)
    seed: int = 0
    limit: int | None = None
    gpus: int = 1
    device: str = "cpu"
    scale_lr: bool = False
    eval_only: str | None = None
    pictures: bool = False
    classes: list[str] | None = None


def write_json(path: Path, content: dict, sync: bool = False) -> None:
    """Write a JSON file as a whole. Raises ValueError for numbers that are not finite."""
    write_atomic(Path(path), json.dumps(content, allow_nan=False), sync)


def read_json(path: Path) -> dict | None:
    """A JSON file's content, or None where there is none (or, for progress, not yet a whole one)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def read_result(out: Path) -> dict | None:
    """The result in a folder; None where there is none, or one that is not whole."""
    found = read_json(Path(out) / RESULT)
    return found if isinstance(found, dict) and found.keys() >= PARTS else None
