"""`--slurm partition=...,nodes=...`: work as a Slurm job, which is queued again when its time is up.

Needs submitit (extra `slurm`). Shortly before its time is up the job gets a signal. A pretraining run then finishes the
step and saves (loop.Stop); the job that is queued again finds the run's folder and resumes.
"""

import contextlib
import importlib.util
import shlex
import sys
from pathlib import Path

from .checkpoint import JOB_FOLDER, Run
from .common.errors import UserError
from .common.keyvalue import key_value
from .common.processes import safe_path
from .config import Config, from_dict, to_dict
from .train import Hooks, run

# submitit's own names; others are Slurm's and get its prefix, as in partition -> slurm_partition.
GENERAL = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min", "name")
TIMEOUTS = 1000  # times that a job is queued again


class SlurmJob:
    """What Slurm starts in every process of a job, each time that the job is queued: `work() -> exit status`."""

    def work(self) -> int:
        raise NotImplementedError

    def __call__(self) -> int:
        from submitit.helpers import TorchDistributedEnvironment

        # The variables that torchrun would set. The processes of a node see all of its GPUs and take one each.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        return self.work()

    def again(self) -> "SlurmJob":
        """What is to be started when the job is queued again."""
        return self

    def checkpoint(self):
        """Called by submitit before it queues the job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self.again())


def queue(job: SlurmJob, folder: Path, options: str, name: str):
    """Hand a job to Slurm; -> submitit's Job. folder: for submitit's files. options: `key=value,...`, submitit's or
    Slurm's names; cluster=local runs the job here. Raises UserError."""
    parameters = parse(options)
    import submitit

    cluster = parameters.pop("cluster", "slurm")
    python = f"{shlex.quote(sys.executable)} -P"  # no module comes from the folder that the job starts in
    try:
        if cluster == "local":  # directly: it then takes fractions of a minute
            executor = submitit.LocalExecutor(folder, max_num_timeout=TIMEOUTS, python=python)
        else:
            executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=TIMEOUTS, slurm_python=python)
            parameters = {k if k in GENERAL else f"slurm_{k}": v for k, v in parameters.items()}
            parameters.setdefault("name", name)
        executor.update_parameters(**parameters)
        with safe_path():
            return executor.submit(job)
    except (AssertionError, NameError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"--slurm {options}: {error}") from error


def processes(options: str) -> int:
    """Of all nodes together. Raises UserError."""
    parameters = parse(options)
    return parameters["tasks_per_node"] * parameters.get("nodes", 1)


def parse(options: str) -> dict:
    """`partition=gpu,nodes=2` -> {"partition": "gpu", "nodes": 2, "tasks_per_node": 1}: a process for each GPU, unless
    the user says another number. Raises UserError, also where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--slurm needs submitit: pip install 'selfpatch-bench[slurm]'")
    found = {}
    for part in options.split(","):
        key, value = key_value(part, f"--slurm {options}", "partition=gpu,nodes=2")
        for number in (int, float, str):
            with contextlib.suppress(ValueError):
                found[key] = number(value)
                break
    processes = "tasks_per_node" if "tasks_per_node" in found else "gpus_per_node"
    for key in ("nodes", processes):
        if not isinstance(found.get(key, 1), int) or found.get(key, 1) < 1:
            raise UserError(f"--slurm {key}={found[key]}: it is a whole number of at least 1")
    return found | {"tasks_per_node": found.get(processes, 1)}


class Job(SlurmJob):
    """A pretraining run in a folder."""

    def __init__(self, config: dict, folder: str, resume: bool, hooks: Hooks):
        self.config, self.folder, self.resume, self.hooks = config, folder, resume, hooks

    def work(self) -> int:
        return run(from_dict(self.config), Path(self.folder), self.resume, self.hooks)

    def again(self) -> "Job":
        """A resumed run, if the first start came as far as making the folder."""
        begun = Run(Path(self.folder)).config_file.exists()
        return Job(self.config, self.folder, self.resume or begun, self.hooks)


def submit(cfg: Config, run: Run, options: str, resume: bool, hooks: Hooks):
    """Hand a pretraining run to Slurm; -> submitit's Job. options: as in `queue`. Raises UserError."""
    parse(options)
    if not resume:
        run.check_empty()
    folder = run.folder.absolute()
    job = queue(Job(to_dict(cfg), str(folder), resume, hooks), folder / JOB_FOLDER, options, f"pretrain-{cfg.recipe}")
    print(f"job {job.job_id}: {run.folder}; its output is in {job.paths.folder}")
    return job
