"""A run as a job of submitit's: its local executor, real time-outs."""

import importlib
import pickle
import re

import pytest

from selfpatch_bench.benchmarks.commands.pretrain import HOOKS
from selfpatch_bench.pretrain import slurm, train
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.train import absolute_paths
from training import DINO, final, lines, pictures, same
from training import one_thread as one_thread


def test_options(tmp_path):
    pytest.importorskip("submitit", reason="submitit (extra `slurm`) is not installed")
    expected = {"partition": "gpu", "nodes": 2, "mem_gb": 1.5, "tasks_per_node": 1}
    assert slurm.parse("partition=gpu, nodes=2,mem_gb=1.5") == expected
    assert [
        slurm.processes(x) for x in ("partition=gpu", "nodes=2,gpus_per_node=8", "gpus_per_node=8,tasks_per_node=1")
    ] == [
        *(1, 16, 1),
    ]
    with pytest.raises(UserError, match="written as key=value"):
        slurm.parse("gpu")
    with pytest.raises(UserError, match="gpus_per_node=a100:8: it is a whole number"):
        slurm.processes("gpus_per_node=a100:8")
    for options in ("nodes=two", "nodes=0", "tasks_per_node=1.5", "gpus_per_node=-1"):
        with pytest.raises(UserError, match=f"--slurm {options}: it is a whole number of at least 1"):
            slurm.processes(options)
        with pytest.raises(UserError, match=f"--slurm {options}: it is a whole number of at least 1"):
            slurm.queue(None, tmp_path / "slurm", options, "name")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "state"),
    [
        ("pretrain.slurm", {"config": {}, "folder": "run", "resume": False, "hooks": HOOKS}),
        ("benchmarks.run.slurm", {"models": [], "tasks": ["davis"], "options": None, "plugins": ""}),
    ],
)
def test_a_job_that_was_queued_before_an_update(module, state):
    """Its pickle names these classes and holds these attributes."""
    found = importlib.import_module(f"selfpatch_bench.{module}").Job
    job = found.__new__(found)
    job.__dict__ |= state
    assert vars(pickle.loads(pickle.dumps(job))) == vars(type(job)(**state)) == state


# An objective that learns nothing. As a job of submitit's it gets, in the third and the sixth step, the signal that the
# time is up.
ALARM = """
import os, signal
from dataclasses import dataclass
from selfpatch_bench.pretrain import Objective, Spec
RAISED = []

@dataclass
class Config:
    pass

class Objective(Objective):
    @staticmethod
    def spec(cfg, net):
        return Spec({})

    def forward(self, student, teacher, groups, step):
        limits = [os.environ.get(f"SUBMITIT_LOCAL_{name}_S") for name in ("TIMEOUT", "SIGNAL_DELAY")]
        assert limits in ([None, None], ["240", "12"]), limits
        if limits[0] and step.index in (2, 5) and not RAISED:
            RAISED.append(step.index)
            os.kill(os.getpid(), signal.SIGUSR2)
        return {}, {}
"""


def test_time_out(tmp_path, monkeypatch):
    """The time is up twice before the run ends; each time it is saved, requeued, and goes on: the same to the last bit
    as a run without time-outs."""
    pytest.importorskip("submitit", reason="submitit (extra `slurm`) is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "plugins/objectives").mkdir(parents=True)
    (tmp_path / "plugins/objectives/alarm.py").write_text(ALARM)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plugins"))
    options = ["objectives=[{name: dino}, {name: alarm}]", *DINO, f"data.path={pictures(tmp_path / 'pictures')}"]
    cfg = absolute_paths(load_recipe("dino", options))
    run, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    job = slurm.submit(cfg, run, "cluster=local,timeout_min=4,signal_delay_s=12", resume=False, hooks=HOOKS)
    assert job.result() == 0
    assert job.stderr().count("this job is timed-out") == 2
    assert re.findall(f"{run.folder}: from step (\\d+)", job.stderr()) == ["3", "6"]
    assert train.run(cfg, whole.folder, False) == 0
    assert same(final(run.folder), final(whole.folder))
    assert lines(run.folder) == lines(whole.folder)
    with pytest.raises(UserError, match="is not empty: go on with --resume"):
        slurm.submit(cfg, run, "cluster=local", resume=False, hooks=HOOKS)
