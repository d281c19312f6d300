"""`--slurm partition=...,nodes=...`: a run as a Slurm job that is requeued on time-out and goes on by itself.

Needs submitit (extra `slurm`). Shortly before its time is up the job gets a signal; the loop finishes the step and
saves (train.Stop), then submitit requeues the job, which finds the run's folder and resumes.
"""

import importlib.util
import shlex
import sys
from pathlib import Path

from .checkpoint import JOBS, Run
from .common.errors import UserError
from .common.keyvalue import key_value
from .common.processes import safe_path
from .config import Config, from_dict, to_dict
from .train import Hooks, run

# submitit's own names; others are Slurm's and get its prefix, as in partition -> slurm_partition.
GENERAL = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min", "name")
TIMEOUTS = 1000  # requeues


class Job:
    """What a job does, each time that it is started."""

    def __init__(self, config: dict, folder: str, resume: bool, hooks: Hooks):
        self.config, self.folder, self.resume, self.hooks = config, folder, resume, hooks

    def __call__(self) -> int:
        from submitit.helpers import TorchDistributedEnvironment

        # The variables that torchrun would set. The processes of a node see all of its GPUs and take one each.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        return run(from_dict(self.config), Path(self.folder), self.resume, self.hooks)

    def checkpoint(self):
        """Called by submitit before it requeues: what to start then. The first start has made the folder, if it came
        that far."""
        from submitit.helpers import DelayedSubmission

        begun = Run(Path(self.folder)).config_file.exists()
        return DelayedSubmission(Job(self.config, self.folder, self.resume or begun, self.hooks))


def submit(cfg: Config, run: Run, options: str, resume: bool, hooks: Hooks) -> int:
    """Hand a run to Slurm; -> exit status 0 once it is queued. options: `key=value,...`, submitit's or Slurm's names;
    cluster=local runs it here. Raises UserError."""
    job = start(cfg, run, options, resume, hooks)
    print(f"job {job.job_id}: {run.folder}; its output is in {job.paths.folder}")
    return 0


def start(cfg: Config, run: Run, options: str, resume: bool, hooks: Hooks):
    """`submit`, -> submitit's Job."""
    require()
    parameters = parse(options)
    if not resume:
        run.check_empty()
    folder = run.folder.absolute()
    job = Job(to_dict(cfg), str(folder), resume, hooks)
    return queue(job, folder / JOBS, parameters, f"pretrain-{cfg.recipe}", options)


def require() -> None:
    """Raise UserError where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--slurm needs submitit: pip install 'selfpatch-bench[slurm]'")


def tasks_per_node(parameters: dict) -> int:
    """A process for each GPU, unless told otherwise. Raises UserError."""
    key = "tasks_per_node" if "tasks_per_node" in parameters else "gpus_per_node"
    value = parameters.get(key, 1)
    if not isinstance(value, int):
        raise UserError(f"--slurm {key}={value}: it is a whole number")
    return value


def queue(job, folder: Path, parameters: dict, name: str, options: str):
    """Hand a job to Slurm; -> submitit's Job. folder: for submitit's files. parameters: of `parse`, from `options`.
    Raises UserError."""
    import submitit

    parameters = parameters | {"tasks_per_node": tasks_per_node(parameters)}
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


def parse(options: str) -> dict:
    """`partition=gpu,nodes=2` -> {"partition": "gpu", "nodes": 2}"""
    found = {}
    for part in options.split(","):
        key, value = key_value(part, f"--slurm {options}", "partition=gpu,nodes=2")
        for kind in (int, float, str):
            try:
                found[key] = kind(value)
                break
            except ValueError:
                continue
    return found
