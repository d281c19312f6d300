"""Several processes, told what torchrun tells (and once under it): the same training as one, together in starting,
stopping and failing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from training import DINO, ONE, SELFPATCH, difference, environment, final, lines, pictures, together
from training import one_thread as one_thread

# Sums over images are made in another order; nothing else may differ.
EXACT = ("loop.precision=float64", "network.drop_path=0", "loop.steps=5", "schedule.warmup_epochs=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


def torchrun(folder, count: int, **arguments) -> list[str]:
    script = folder / "one.py"
    script.write_text(ONE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return [*launcher, str(script), json.dumps(arguments, default=str)]


@pytest.mark.parametrize("more", [(), ("objectives.dino.weight=0",)])
def test_two_processes_equal_one(data, tmp_path, more):
    """Same global batch, no noise, float64, 5 steps across an epoch's end: weights to 1e-10; the log says the same.
    Without DINO's loss the student's class attention has no gradient."""
    options = (*SELFPATCH, *EXACT, *more)
    done = together(recipe="selfpatch", data=data, out=tmp_path / "two", overrides=options)
    assert done.returncode == 0, done.stderr
    assert pretrain_command("selfpatch", data, tmp_path / "one", overrides=options) == 0
    two, one = final(tmp_path / "two"), final(tmp_path / "one")
    assert two["step"] == one["step"] == 5
    assert difference(two, one) < 1e-10
    for a, b in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-10)
    assert done.stderr.count("5 steps done") == 1  # one process speaks


# Two steps at a stretch, and with a new trainer that begins with the second.
RESUMED = r"""
import copy, json, sys, torch
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.step import Trainer
if __name__ == "__main__":
    cfg = load_recipe(**json.loads(sys.argv[1]))
    with Ranks("cpu") as ranks:
        torch.manual_seed(ranks.rank)
        groups = [
            Group(torch.rand(2, 2, 3, side, side), torch.rand(2, 2, 4), torch.zeros(2, 2, dtype=torch.bool))
            for side in (32, 16)
        ]
        whole, other = Trainer(cfg, 4, ranks), Trainer(cfg, 4, ranks)
        whole.advance(groups)
        other.load(copy.deepcopy(whole.state()))
        for trainer in (whole, other):
            trainer.advance(groups)
        weights = [trainer.learner.student.state_dict().values() for trainer in (whole, other)]
        print("same:", all(map(torch.equal, *weights)), whole.module.find_unused_parameters, flush=True)
        del whole, other, trainer
"""


def test_three_processes_go_on_as_they_began():
    """The order in which three numbers are added shows in the last bits: it must be that of an unbroken run from the
    first step on."""
    options = (*SELFPATCH, "objectives.dino.weight=0", "loop.batch=6", "loop.steps=9", "schedule.warmup_epochs=0")
    done = together(3, code=RESUMED, name="selfpatch", overrides=options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["same: True False"] * 3


# What is left of a process after its run: it must be able to end, whatever the others do.
LEFT = r"""
import json, os, sys
from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
if __name__ == "__main__":
    status = pretrain_command(**json.loads(sys.argv[1]))
    tasks = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    print("left:", *sorted(name for name in tasks if "gloo" in name), flush=True)
    sys.exit(status)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="lists the threads of a process as Linux does")
def test_no_thread_of_the_group_is_left(data, tmp_path):
    """A thread that waits for messages while Python ends aborts the process, after all its work."""
    done = together(code=LEFT, recipe="dino", data=data, out=tmp_path / "run", overrides=(*DINO, *EXACT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["left:", "left:"]


def test_noise_belongs_to_the_share(data, tmp_path):
    """Two processes with stochastic depth do what one does in two micro-steps: noise goes by the share of the batch."""
    options = (
        *SELFPATCH,
        "loop.precision=float64",
        "network.drop_path=0.5",
        "loop.steps=3",
        "schedule.warmup_epochs=0",
    )
    done = together(recipe="selfpatch", data=data, out=tmp_path / "two", overrides=options)
    assert done.returncode == 0, done.stderr
    assert pretrain_command("selfpatch", data, tmp_path / "one", overrides=[*options, "loop.accumulation=2"]) == 0
    assert pretrain_command("selfpatch", data, tmp_path / "other", overrides=options) == 0
    two, one, other = (final(tmp_path / name) for name in ("two", "one", "other"))
    assert difference(two, one) < 1e-10
    assert difference(other, one) > 1e-6  # the noise does something


def test_stop_and_resume(data, tmp_path):
    """SIGTERM at torchrun: all stop after the same step, the first saves; they go on, and end as if never stopped."""
    options = (*SELFPATCH, *EXACT[:2], "loop.epochs=50", "loop.accumulation=2")
    process = subprocess.Popen(
        torchrun(tmp_path, 2, recipe="selfpatch", data=data, out=tmp_path / "run", overrides=options),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert "stopped by SIGTERM after step" in said, said
    step = final(tmp_path / "run")["step"]
    assert 3 <= step < 200
    assert lines(tmp_path / "run")[-1]["step"] == step


def test_mistakes_are_said_once(data, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = together(recipe="dino", data=data, out=tmp_path / "full", overrides=DINO)
    assert done.returncode != 0
    assert done.stderr.count("is not empty: give another --out") == 1
    done = together(3, recipe="dino", data=data, out=tmp_path / "new", overrides=DINO)
    assert "loop.batch=4: must be a multiple of the 3 processes, as 3 or 6 is" in done.stderr
    assert not (tmp_path / "new").exists()
