"""`selfpatch run --slurm partition=...,gpus_per_node=8`: the same command as a Slurm job, a process for each GPU.

Needs submitit (extra `slurm`). A job whose time is up is queued again and goes on from the latest checkpoint.
"""

import os
from dataclasses import replace
from pathlib import Path

from ...pretrain.common.keyvalue import split
from ...pretrain.slurm import parse, queue, require, tasks_per_node
from .runner import Options, gather, plan, run_command

JOBS = "jobs"  # submitit's files, below --out


class Job:
    """What a job does, each time that it is started."""

    def __init__(self, models: list[str], tasks: list[str], options: Options, plugins: str):
        self.models, self.tasks, self.options, self.plugins = models, tasks, options, plugins

    def __call__(self) -> int:
        from submitit.helpers import TorchDistributedEnvironment

        # The variables that torchrun would set. The processes of a node see all of its GPUs and take one each.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        os.environ["SELFPATCH_PLUGINS"] = self.plugins
        return run_command(self.models, self.tasks, self.options)

    def checkpoint(self):
        """Called by submitit before it queues the job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(models: list[Path], tasks: list[str], options: Options, slurm: str) -> int:
    """Hand a run to Slurm; -> exit status 0 once it is queued. slurm: `key=value,...`, submitit's or Slurm's names;
    cluster=local runs it here. Everything is checked here first. Raises UserError."""
    job = start(models, tasks, options, slurm)
    print(f"job {job.job_id}: its output is in {job.paths.folder}")
    return 0


def start(models: list[Path], tasks: list[str], options: Options, slurm: str):
    """`submit`, -> submitit's Job."""
    require()
    parameters = parse(slurm)
    options = _absolute(options)
    models = [str(Path(m).absolute()) if Path(m).exists() else str(m) for m in models]  # addresses as they are
    world = tasks_per_node(parameters) * int(parameters.get("nodes", 1))
    plan(gather(models, options), tasks, replace(options, world=world), here=False)
    job = Job(models, tasks, options, os.environ.get("SELFPATCH_PLUGINS", ""))
    return queue(job, options.out / JOBS, parameters, f"run-{tasks[0]}", slurm)


def _absolute(options: Options) -> Options:
    """Every path from the root, since the job may start in another folder."""
    where = [name + str(Path(root).expanduser().absolute()) for name, root in map(_root, options.data)]
    names = ("out", "masks", "list_file", "eval_only", "models")
    paths = {n: Path(getattr(options, n)).expanduser().absolute() for n in names if getattr(options, n) is not None}
    return replace(options, data=where, **paths)


def _root(item: str) -> tuple[str, str]:
    """`NAME=ROOT` -> ("NAME=", ROOT); ROOT -> ("", ROOT), as datasets.roots.split_roots tells them apart."""
    pair = None if Path(item).exists() else split(item)
    return (f"{pair[0]}=", pair[1]) if pair else ("", item)
