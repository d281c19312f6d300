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
        build, job = builder(), Job(**question["job"])
        _, effective = build.config(job, build.card_of(question["card"]), question["world"], job.device)
        write_json(answer, {"effective": effective})
    except UserError as error:
        write_json(answer, {"error": str(error)})
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        write_json(answer, {"error": f"the configuration cannot be built: {type(error).__name__}: {text}"})
        raise
    return 0


def builder():
    """The module `build`. The first import of mm, and so the first moment at which its absence is noticed."""
    from . import ops, quiet

    ops.install()
    with quiet.imports():
        from . import build

        return build


def work(job: Job) -> None:
    """Train (or go on with it), evaluate, and write the result, as one of the processes."""
    from ...pretrain.distributed import Ranks

    build = builder()  # before there is a group: mm imports functions that take it as a default, and would hold it
    out = Path(job.out)
    with (out / LOCK).open("a") as lock, Ranks(job.device, out.name) as ranks:
        # Not before the others are there: then the first parent has seen that all was quiet.
        take(lock.fileno(), math.inf, shared=True)
        train_and_test(build, job, ranks)


def train_and_test(build, job: Job, ranks) -> None:
    """The work itself, by one of the `ranks` that have joined; the first writes the result."""
    from mmengine.runner import Runner

    from ..checkpoints.open import open_file
    from ..environment import peak_memory

    began = time.monotonic()
    cfg, effective = build.config(job, open_file(job.export, format="selfpatch_bench").card, ranks.world, job.device)

    prepare(cfg, job, ranks)
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
    peaks = ranks.gather(peak_memory(ranks.device.type))
    if ranks.main:
        metric = runner.test_evaluator.metrics[0]
        result = {
            "metrics": {k.rpartition("/")[2]: float(v) for k, v in metrics.items() if isinstance(v, int | float)},
            "parts": getattr(metric, "parts", {}),
            "protocol": effective,
            "accounting": accounting,
            "pictures": [os.path.relpath(p, job.out) for h in runner.hooks for p in getattr(h, "drawn", ())],
            "environment": environment(ranks),
            "peak_memory_bytes": {k: max(p[k] for p in peaks) for k in peaks[0]},
            "seconds": round(time.monotonic() - began, 3),
        }
        write_json(Path(job.out) / RESULT, result, sync=True)


def prepare(cfg, job: Job, ranks) -> None:
    """What a recipe does not decide: processes, exact resume, safe checkpoints, progress."""
    from . import gallery, hooks

    # The number is that of the last checkpoint; what a validation on the way costs, nobody would look at.
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.launcher = "pytorch" if ranks.world > 1 else "none"
    if ranks.world > 1 and ranks.device.type == "cpu":
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
