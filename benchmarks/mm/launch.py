"""The process that trains and evaluates: `python -m selfpatch_bench.benchmarks.mm.launch TRAINING.json`.

The parent (processes.py) starts this in a process group of its own; with several GPUs this starts itself again for each
of them. `--check` only builds the configuration that stdin describes. mm is imported by `builder` and after it. What
fails is left in OUT/error.json as one line.
"""

import contextlib
import json
import math
import os
import platform
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.locks import take
from ...pretrain.common.processes import python, run_together
from .processes import ended
from .training import COLLECTED, ERROR, LAST, LOCK, LOG, PROGRESS, RESULT, Training, write_json

MODULE = f"{__package__}.launch"


def main(arguments: list[str]) -> int:
    """-> exit status."""
    try:
        if arguments == ["--check"]:
            return check(json.load(sys.stdin))
        path = Path(arguments[0])
        return start(path, Training(**json.loads(path.read_text(encoding="utf-8"))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.status


def check(question: dict) -> int:
    """Build the configuration of a question {"training", "card", "world"}. Raises UserError for one that cannot be."""
    build, training = builder(), Training(**question["training"])
    try:
        cfg, _ = build.config(training, Card.from_dict(question["card"]), question["world"], training.device)
        check_checkpoints(cfg)
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"the configuration cannot be built: {type(error).__name__}: {text}") from error
    return 0


def check_checkpoints(cfg) -> None:
    """Raises UserError where checkpoints would be written from which mmengine cannot go on exactly."""
    if "max_epochs" in cfg.train_cfg and not cfg.default_hooks.checkpoint.get("by_epoch", True):
        raise UserError("default_hooks.checkpoint.by_epoch=false: a run of epochs goes on exactly from the end of one")


def start(path: Path, training: Training) -> int:
    """Be one of the processes of the training at `path`, or their launcher; -> exit status."""
    end_with_parent()
    if training.gpus > 1 and "RANK" not in os.environ:
        return several(training.gpus, path, Path(training.out))
    try:
        work(training)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
        fail(Path(training.out), text, getattr(error, "status", 1))
        raise
    return 0


def end_with_parent() -> None:
    """End this process group when stdin ends: the parent holds its other end, so this happens however it dies."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.killpg(0, signal.SIGKILL)  # checkpoints are replaced as a whole: nothing can be half-written

    threading.Thread(target=wait, daemon=True).start()


def several(count: int, path: Path, out: Path) -> int:
    """Run this module in `count` processes; -> exit status."""
    rank, status = run_together(python(MODULE, path), count)
    if status:
        fail(out, f"process {rank} of {count} {ended(status)}; log: {out / LOG}", 1)
    return int(status != 0)


def fail(out: Path, text: str, status: int) -> None:
    """Leave an error, unless there is one: those of the other processes are mostly about the loss of the first."""
    if not (out / ERROR).exists():
        write_json(out / ERROR, {"error": text, "status": status})


def builder():
    """The module `build`. The first import of mm, and so the first moment at which its absence is noticed."""
    from . import ops

    ops.install()
    from . import build

    return build


def work(training: Training) -> None:
    """Train (or go on with it), evaluate, and write the result, as one of the processes."""
    from ...pretrain.distributed import Ranks

    build = builder()  # before there is a group: mm imports functions that take it as a default, and would hold it
    out = Path(training.out)
    with (out / LOCK).open("a") as lock, Ranks(training.device, out.name) as ranks:
        # Not before the others are there: then the first parent has seen that all was quiet, and written the export.
        take(lock.fileno(), math.inf, shared=True)
        result = train_and_test(build, training, ranks)
        ranks.first(lambda: write_json(out / RESULT, result, sync=True))  # no other ends, perhaps badly, before that


def train_and_test(build, training: Training, ranks) -> dict:
    """The work itself, by one of the `ranks` that have joined; -> what the parent makes a record of."""
    from mmengine.dist import broadcast
    from mmengine.runner import Runner

    from ...pretrain.common.weights import load_card
    from ..checkpoints.finetuned import load_finetuned
    from ..environment import peak_memory
    from . import schedule
    from .evaluation import dry

    cfg, effective = build.config(training, load_card(training.export), ranks.world, training.device)
    prepare(cfg, training, ranks)
    runner = Runner.from_cfg(cfg)
    for metric in runner.test_loop.evaluator.metrics:  # else processes exchange predictions in the current folder
        metric.collect_dir = str(Path(training.out) / COLLECTED)
    if training.eval_only:
        classes = runner.test_loop.dataloader.dataset.metainfo["classes"]
        accounting = load_finetuned(runner.model, training.eval_only, classes)
        metrics = runner.test()
    else:
        schedule.fit_epochs(runner, effective)
        runner.register_hook(dry.DryEvaluation())
        runner.train()
        accounting = getattr(runner.model, "module", runner.model).backbone.accounting
        for buffer in runner.model.buffers():  # the checkpoint's: only SyncBN keeps them alike in all processes
            broadcast(buffer)
        metrics = dry.evaluate_trained(runner)
    peaks = ranks.gather(peak_memory(ranks.device.type))
    return {
        "metrics": {k.rpartition("/")[2]: float(v) for k, v in metrics.items() if isinstance(v, int | float)},
        "parts": getattr(runner.test_evaluator.metrics[0], "parts", {}),
        "protocol": effective,
        "accounting": accounting,
        "environment": environment(ranks),
        "peak_memory_bytes": {k: max(p[k] for p in peaks) for k in peaks[0]},
    }


def prepare(cfg, training: Training, ranks) -> None:
    """What a recipe does not decide: processes, exact resume, safe checkpoints, progress."""
    from . import hooks
    from .evaluation import gallery

    check_checkpoints(cfg)
    # The number is that of the last checkpoint; what a validation on the way costs, nobody would look at.
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    if ranks.world > 1:
        cfg.launcher = "pytorch"
        if ranks.device.type == "cpu":
            cfg.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    cfg.default_hooks.checkpoint.type = hooks.LatestCheckpoint.__name__
    own = [
        {"type": hooks.SeedOfIteration.__name__, "seed": training.seed},
        {
            "type": hooks.Progress.__name__,
            "path": str(Path(training.out) / PROGRESS),
            "accumulate": cfg.optim_wrapper.get("accumulative_counts", 1),
        },
    ]
    if training.pictures:
        own.append({"type": gallery.Gallery.__name__, "folder": str(Path(training.out) / "pictures")})
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), *own]
    train = cfg.train_dataloader
    train.sampler = {"type": hooks.EpochSampler.__name__, "inner": train.sampler}
    train.dataset = {"type": hooks.RepeatableDataset.__name__, "dataset": train.dataset, "seed": training.seed}
    for dataset in (train.dataset.dataset, cfg.test_dataloader.dataset):
        dataset.pipeline = _sizes(dataset.pipeline)
    last = Path(training.out) / LAST
    if last.is_file() and not training.eval_only:
        cfg.resume, cfg.load_from = True, f"{hooks.SCHEME}{last}"


def _sizes(value):
    """Lists of numbers as the tuples that mm's transforms insist on: `key=[128,96]` gives a list."""
    if isinstance(value, dict):
        return type(value)({k: _sizes(v) for k, v in value.items()})
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        return tuple(value)
    return type(value)(map(_sizes, value)) if isinstance(value, list | tuple) else value


def environment(ranks) -> dict:
    """What of the processes' surroundings the parent cannot know."""
    import torch

    from . import ops

    facts = {
        "processes": ranks.world,
        "threads": torch.get_num_threads(),
        "ops": ops.install(),
        "packages": {package: version(package) for package in ops.PACKAGES.values()},
        "host": platform.node(),
    }
    gpu = ranks.device.type == "cuda"
    return facts | ({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if gpu else {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
