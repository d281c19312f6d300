"""`selfpatch run --slurm partition=...,gpus_per_node=8`: the same command as a Slurm job, a process for each GPU.

A job whose time is up is queued again and goes on from the latest checkpoint.
"""

import os
from dataclasses import replace
from pathlib import Path

from ...pretrain import slurm
from ..datasets.roots import split_roots
from .options import Options
from .plan import gather, plan
from .runner import run_command

JOBS = "jobs"  # submitit's files, below --out


class Job(slurm.SlurmJob):
    """The command, with the plug-ins of whoever submits it."""

    def __init__(self, models: list[str], tasks: list[str], options: Options, plugins: str):
        self.models, self.tasks, self.options, self.plugins = models, tasks, options, plugins

    def work(self) -> int:
        os.environ["SELFPATCH_PLUGINS"] = self.plugins
        return run_command(self.models, self.tasks, self.options)


def submit(models: list[Path], tasks: list[str], options: Options, given: str):
    """Hand a run to Slurm; -> submitit's Job. given: as the options of `slurm.queue`. Everything is checked here first.
    Raises UserError."""
    world = slurm.processes(given)
    options = _absolute(options)
    models = [str(Path(m).absolute()) if Path(m).exists() else str(m) for m in models]  # addresses as they are
    plan(gather(models, options), tasks, replace(options, world=world), here=False)
    work = Job(models, tasks, options, os.environ.get("SELFPATCH_PLUGINS", ""))
    job = slurm.queue(work, options.out / JOBS, given, f"run-{tasks[0]}")
    print(f"job {job.job_id}: its output is in {job.paths.folder}")
    return job


def _absolute(options: Options) -> Options:
    """Every path from the root, since the job may start in another folder."""
    unnamed, named = split_roots(options.data)
    roots = {f"{name}=": root for name, root in named.items()} | ({"": unnamed} if unnamed else {})
    where = [name + str(Path(root).expanduser().absolute()) for name, root in roots.items()]
    paths, own = (
        {name: value.expanduser().absolute() for name, value in values.items() if isinstance(value, Path)}
        for values in (vars(options), options.own)
    )
    return replace(options, data=where, own=options.own | own, **paths)
