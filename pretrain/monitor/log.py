"""What a run says: a line of JSON every few steps, progress on the screen, TensorBoard where asked for."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import Run
from ..common.atomic import write_atomic
from ..common.errors import UserError
from ..common.machine import process_peak
from ..common.progress import Reporter, line_console
from .collapse import Signs


class Log:
    """Numbers of a run's steps; a context manager. Only the first process has one.

    log.jsonl has one object a line: step, epoch, loss, losses and the objectives' numbers by name (OBJECTIVE.TERM;
    teacher entropy and KL in nats), the numbers of collapse.py (rank, OBJECTIVE.centre_norm, OBJECTIVE.entropy_share),
    grad_norm, lr, weight_decay, ema, images_per_s and data_wait (share of the time spent waiting for views) since the
    last line, memory_gb (peak: of the GPU, else of this process), mfu (share of the devices' dense peak, see mfu.py;
    null where that is unknown, as on CPUs). Losses are those of the step itself. A line may have a `warning`, a text.
    Evaluations on the way have lines of their own (see watch.py).
    """

    def __init__(self, run: Run, start: int, total: int, signs: Signs, tensorboard: bool = False, title: str = ""):
        """start: steps done already; lines of later steps are removed, so that none appears twice. total: steps of the
        run. signs: of what the lines show; they see those of before."""
        for line in drop_later(run.log_file, start):
            signs.look(line)
        self.path, self.total, self.signs = run.log_file, total, signs
        self.utilisation: Callable[[float], float | None] = lambda images_per_s: None
        self.events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What its files hold of later steps is hidden.
            self.events = SummaryWriter(os.fspath(run.folder / "tensorboard"), purge_step=start + 1)
        self.reporter = Reporter(title, line_console(stderr=True))

    def __enter__(self) -> "Log":
        self.file = open(self.path, "a", encoding="utf-8")
        self.reporter.__enter__()
        self.restart_clock()
        return self

    def __exit__(self, *error) -> None:
        self.reporter.__exit__(*error)
        self.file.close()
        if self.events:
            self.events.close()

    def restart_clock(self) -> None:
        """Start measuring speed anew."""
        self.since, self.images, self.waited = time.perf_counter(), 0, 0.0

    def leave_out(self, seconds: float) -> None:
        """Time that is none of the training's."""
        self.since += seconds

    def count(self, images: int, waited: float) -> None:
        """A step of so many images is done, for which the process waited so many seconds."""
        self.images += images
        self.waited += waited

    def line(self, values: dict) -> dict:
        """Write a step's numbers (0-dim tensors or of Python), with speed, memory and what they show; -> the line."""
        spent = max(time.perf_counter() - self.since, 1e-9)
        values = {k: json_value(v) for k, v in values.items()} | {
            "images_per_s": round(self.images / spent, 3),
            "data_wait": round(self.waited / spent, 4),
            "memory_gb": round(peak_memory() / 2**30, 3),
            "mfu": self.utilisation(self.images / spent),
        }
        self.restart_clock()
        values |= self.signs.shares(values)
        if signs := self.signs.look(values):
            values["warning"] = "; ".join(signs)
        self.write(values)
        self.reporter(values["step"], self.total, progress_text(values))
        return values

    def write(self, values: dict) -> None:
        """Write a line, of which `step` is one value; a `warning` is also said."""
        values = {k: json_value(v) for k, v in values.items()}
        if text := values.get("warning"):
            self.reporter.console.print(f"step {values['step']}: warning: {text}")
        try:
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}", status=1) from None
        if self.events:
            for name, value in values.items():
                if isinstance(value, str):
                    self.events.add_text(name, value, values["step"])
                elif name != "step" and value is not None:
                    self.events.add_scalar(name, value, values["step"])

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Show a picture, uint8 RGB [H, W, 3], in TensorBoard."""
        if self.events:
            self.events.add_image(name, image, step, dataformats="HWC")


SHOWN = {"kl": "KL {:.3g}", "entropy_share": "H/lnK {:.3f}", "alike": "alike {:.3f}"}  # of each objective


def progress_text(line: Mapping) -> str:
    """A step's line of the log in short: the loss, and beside it what tells whether the network learns."""
    parts: dict[str, list[str]] = {}
    for key, value in line.items():
        name, _, what = key.rpartition(".")
        if what in SHOWN and value is not None:
            parts.setdefault(name, []).append(SHOWN[what].format(value))
    shown = [f"{name}: {' '.join(texts)}" for name, texts in parts.items()]
    shown += [f"rank {rank:.3g}"] if (rank := line.get("rank")) is not None else []
    return "  ".join([f"loss {line['loss']:.4f}", *shown, f"{line['images_per_s']:.4g} images/s"])


def json_value(value) -> float | int | str | None:
    """A number as JSON has it; what is not finite or missing becomes null. A text stays."""
    value = value.item() if isinstance(value, torch.Tensor) else value
    if value is None:
        return None
    return value if isinstance(value, str) or math.isfinite(value) else None


def peak_memory() -> int:
    """Bytes: of the GPU if one is in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return process_peak()


def drop_later(path: Path, start: int) -> list[dict]:
    """Remove the lines of steps after `start`, and one that a kill left unfinished; -> those that stay."""
    kept = [line for line in entries(path) if line["step"] <= start]
    if path.exists():
        write_atomic(path, "".join(f"{json.dumps(line)}\n" for line in kept))
    return kept


def entries(path: Path) -> list[dict]:
    """The lines of a log, in order, without one that a kill left unfinished."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                found.append(values)
    return found


def check_tensorboard() -> None:
    """Raise UserError where it is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "log.tensorboard=true needs tensorboard: pip install 'selfpatch-bench[track]', or set it to false"
        ) from None
