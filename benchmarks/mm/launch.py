"""The process that trains and evaluates: `python -m selfpatch_bench.benchmarks.mm.launch JOB.json`.

The parent (task.py) writes the job and starts this in a process group of its own; with several GPUs this becomes
torchrun, whose processes run it again. `--check IN OUT` only builds the configuration. mm is imported here and below,
after ops.install(). What fails is left in OUT/error.json as one line.
"""

import contextlib
import math
import os
import platform
import signal
import sys
import threading
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.locks import take
from .job import ERROR, LAST, LOCK, RESULT, Job, read_json, write_json

MODULE = f"{__package__}.launch"


def main(arguments: list[str]) -> int:
    """-> exit status."""
    if arguments[0] == "--check":
        return check(Path(arguments[1]), Path(arguments[2]))
    path = Path(arguments[0])
    job = Job.from_json(path)
    end_with_parent()
    if job.gpus > 1 and "RANK" not in os.environ:
        return torchrun(job.gpus, path)
    try:
        work(job)
    except UserError as error:
        _fail(job, str(error), error.status)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.status
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        _fail(job, f"{type(error).__name__}: {lines[0]}", 1)
        raise
    return 0


def _fail(job: Job, text: str, status: int) -> None:
    """Keep the first process's error: the others' are mostly about the loss of that one."""
    path = Path(job.out) / ERROR
    if not path.exists():
        write_json(path, {"error": text, "status": status})


def end_with_parent() -> None:
    """End this process group when stdin ends: the parent holds its other end, so this happens however it dies."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.killpg(0, signal.SIGKILL)  # checkpoints are replaced as a whole: nothing can be half-written

    threading.Thread(target=wait, daemon=True).start()


def torchrun(count: int, path: Path) -> int:
    """Run this module in `count` processes of this machine."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    with contextlib.suppress(ChildFailedError):
        run(["--standalone", f"--nproc-per-node={count}", "--module", MODULE, str(path)])
        return 0
    return 1


def check(path: Path, answer: Path) -> int:
    """Build the configuration of {"job", "card", "world"} and write {"effective"} or {"error"} to `answer`."""
    question = read_json(path)
    try:
        _, effective = configure(Job(**question["job"]), question["card"], question["world"])
        write_json(answer, {"effective": effective})
    except UserError as error:
        write_json(answer, {"error": str(error)})
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        write_json(answer, {"error": f"the configuration cannot be built: {type(error).__name__}: {text}"})
        raise
    return 0


def configure(job: Job, card, world: int):
    """The job's mmengine Config and the values that its record shows. The first import of mm, and so the first moment
    at which its absence is noticed."""
    from . import ops, quiet

    ops.install()
    with quiet.imports():
        from . import (
            backbones,  # noqa: F401 (the classes that configurations name)
            build,
            metrics,  # noqa: F401 (the classes that configurations name)
        )
        from .backbones.base import card_of
    return build.config(job, card_of(card), world, job.device)


def work(job: Job) -> None:
    """Train (or go on with it), evaluate, and write the result, as one of the processes."""
    import torch

    from ...pretrain.distributed import leave

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = job.device.startswith("cuda")
    if cuda:
        _, _, index = job.device.partition(":")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if world > 1 else int(index or 0))
    if world > 1:
        join(Path(job.out).name, cuda)
    # Held until this process ends. Not before the others are there: then the first parent has seen that all was quiet.
    lock = (Path(job.out) / LOCK).open("a")
    take(lock.fileno(), math.inf, shared=True)
    train_and_test(job, rank, world, cuda)
    if world > 1:
        leave()


def train_and_test(job: Job, rank: int, world: int, cuda: bool) -> None:
    """The work itself, by a process that has joined the others; the first writes the result."""
    from ..checkpoints.open import open_file

    began = time.monotonic()
    cfg, effective = configure(job, open_file(job.export, format="selfpatch_bench").card, world)
    from mmengine.runner import Runner

    prepare(cfg, job, world, cuda, effective)
    runner = Runner.from_cfg(cfg)
    report = next(hook for hook in runner.hooks if type(hook).__name__ == "Report")
    report.tests = len(runner.test_loop.dataloader)
    if job.eval_only:
        accounting = load_model(runner.model, job.eval_only)
    else:
        runner.train()
        model = getattr(runner.model, "module", runner.model)
        accounting = model.backbone.accounting
    metrics = runner.test()
    peaks = gather(peak(cuda))
    if rank == 0:
        metric = runner.test_evaluator.metrics[0]
        result = {
            "metrics": {k.rpartition("/")[2]: float(v) for k, v in metrics.items() if isinstance(v, int | float)},
            "parts": getattr(metric, "parts", {}),
            "protocol": effective,
            "accounting": accounting,
            "pictures": [os.path.relpath(p, job.out) for h in runner.hooks for p in getattr(h, "drawn", ())],
            "environment": environment(cuda, world),
            "peak_memory_bytes": {k: max(p[k] for p in peaks) for k in peaks[0]},
            "seconds": round(time.monotonic() - began, 3),
        }
        write_json(Path(job.out) / RESULT, result, sync=True)


def join(name: str, cuda: bool) -> None:
    """Join the other processes, before mmengine would: it wants a GPU for it. `name` keeps the runs of a sweep, which
    may share a store, apart."""
    import torch
    import torch.distributed as dist

    store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(minutes=30)))
    backend, limit = ("nccl", 30) if cuda else ("gloo", 120)
    on = {"device_id": torch.device("cuda", torch.cuda.current_device())} if cuda else {}
    store, limit = dist.PrefixStore(name, store), timedelta(minutes=limit)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit, **on)


def gather(value) -> list:
    """A small object of every process."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def prepare(cfg, job: Job, world: int, cuda: bool, effective: dict) -> None:
    """What a recipe does not decide: processes, exact resume, safe checkpoints, progress."""
    from . import gallery, hooks

    # The number is that of the last checkpoint; what a validation on the way costs, nobody would look at.
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.launcher = "pytorch" if world > 1 else "none"
    if world > 1 and not cuda:
        cfg.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    cfg.work_dir = job.out
    cfg.default_hooks.checkpoint.type = hooks.PlainCheckpoint.__name__
    accumulate = cfg.optim_wrapper.get("accumulative_counts", 1)
    report = {"type": hooks.Report.__name__, "out": job.out, "seed": job.seed, "accumulate": accumulate}
    drawing = {"type": gallery.Gallery.__name__, "folder": str(Path(job.out) / "pictures")}
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), report, *([drawing] if job.pictures else [])]
    train = cfg.train_dataloader
    train.sampler = {"type": hooks.NumberedSampler.__name__, "inner": train.sampler}
    train.dataset = {"type": hooks.RepeatableDataset.__name__, "dataset": train.dataset, "seed": job.seed}
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        dataset = loader.dataset.get("dataset", loader.dataset)
        dataset.pipeline = _sizes(dataset.pipeline)
    last = Path(job.out) / LAST
    if last.is_file() and not job.eval_only:
        cfg.resume, cfg.load_from = True, f"{hooks.SCHEME}{last}"


def _sizes(value):
    """Lists of numbers as the tuples that mm's transforms insist on: `key=[128,96]` gives a list."""
    if isinstance(value, dict):
        return type(value)({k: _sizes(v) for k, v in value.items()})
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        return tuple(value)
    return type(value)(map(_sizes, value)) if isinstance(value, list | tuple) else value


def load_model(model, path: str) -> str:
    """The weights of a fine-tuned model, strictly; -> accounting. Nothing in the file is executed."""
    from ...pretrain.common.weights import names
    from ..checkpoints.open import read_file

    model = getattr(model, "module", model)
    state, _ = read_file(Path(path))
    prefix = "state_dict." if any(k.startswith("state_dict.") for k in state) else ""
    found = state.below(prefix) if prefix else {k: k for k in state}
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    missing, surplus = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    wrong = [k for k, shape in wanted.items() if k in found and state.shapes[found[k]] != shape]
    problems = [
        f"{len(keys)} {what}: {names(keys, 4)}"
        for keys, what in ((missing, "missing"), (surplus, "unexpected"), (wrong, "of another shape"))
        if keys
    ]
    if problems:
        raise UserError(f"--eval-only {path}: does not fit this recipe and checkpoint: {'; '.join(problems)}")
    model.load_state_dict({k: state[found[k]] for k in wanted}, strict=True)
    return f"{len(wanted)}/{len(wanted)} tensors of the fine-tuned model loaded"


def peak(cuda: bool) -> dict[str, int]:
    from ..environment import peak_memory

    return peak_memory("cuda" if cuda else "cpu")


def environment(cuda: bool, world: int) -> dict:
    """What of the processes' surroundings the parent cannot know."""
    import torch

    from . import ops

    facts = {
        "processes": world,
        "threads": torch.get_num_threads(),
        "ops": ops.install(),
        "packages": {package: version(package) for package in ops.PACKAGES.values()},
        "host": platform.node(),
    }
    return facts | ({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if cuda else {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
