"""A pretraining run as a Slurm job that goes on by itself.

Shortly before its time is up the job gets a signal; the loop finishes the step and saves (loop.Stop), then submitit
queues the job again, which finds the run's folder and resumes.
"""

from pathlib import Path

from .checkpoint import JOBS, Run
from .common import slurm
from .config import Config, from_dict, to_dict
from .train import Hooks, run


class Job(slurm.Job):
    """A run in a folder."""

    def __init__(self, config: dict, folder: str, resume: bool, hooks: Hooks):
        self.config, self.folder, self.resume, self.hooks = config, folder, resume, hooks

    def work(self) -> int:
        return run(from_dict(self.config), Path(self.folder), self.resume, self.hooks)

    def again(self) -> "Job":
        """A resumed run, if the first start came as far as making the folder."""
        begun = Run(Path(self.folder)).config_file.exists()
        return Job(self.config, self.folder, self.resume or begun, self.hooks)


def submit(cfg: Config, run: Run, options: str, resume: bool, hooks: Hooks) -> int:
    """Hand a run to Slurm; -> exit status 0 once it is queued. options: as in `slurm.queue`. Raises UserError."""
    job = start(cfg, run, options, resume, hooks)
    print(f"job {job.job_id}: {run.folder}; its output is in {job.paths.folder}")
    return 0


def start(cfg: Config, run: Run, options: str, resume: bool, hooks: Hooks):
    """`submit`, -> submitit's Job."""
    slurm.parse(options)
    if not resume:
        run.check_empty()
    folder = run.folder.absolute()
    return slurm.queue(Job(to_dict(cfg), str(folder), resume, hooks), folder / JOBS, options, f"pretrain-{cfg.recipe}")
