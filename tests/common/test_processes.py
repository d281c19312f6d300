"""Processes that this package starts: nothing of the current folder is imported, nothing of a caller's script runs."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import warm
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.ablate import Grid, Sweep
from selfpatch_bench.benchmarks.commands.pretrain import HOOKS
from selfpatch_bench.benchmarks.mm import task as mm_task
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain import slurm
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.processes import child_environment, python
from selfpatch_bench.pretrain.common.weights import save_weights
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.train import absolute_paths
from training import DINO, difference, final, pictures
from training import environment as one_thread

STEPS = (*DINO, "loop.steps=2", "schedule.warmup_epochs=0")
PACKAGES = ("torch", "numpy", "cv2", "mmengine", "mmcv", "mmdet", "mmseg", "submitit", "selfpatch_bench", "yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Pictures to train on, a small network, and videos for it."""
    folder = tmp_path_factory.mktemp("place")
    pictures(folder / "pictures")
    torch.manual_seed(0)
    card = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_weights(folder / "net.safetensors", Encoder(card).vit.state_dict(), card)
    make_videos(folder / "videos", sequences=2, frames=4, size=(64, 96))
    return folder


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The current folder, full of modules that leave a mark when they are executed; -> the marks."""
    folder, marks = tmp_path / "trap", tmp_path / "marks"
    folder.mkdir(), marks.mkdir()
    for name in {*sys.stdlib_module_names, *PACKAGES}:
        (folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w'); raise SystemExit('not the real {name}')")
    monkeypatch.chdir(folder)
    yield lambda: sorted(p.name for p in marks.iterdir())
    if not any(marks.iterdir()):  # the trap works: a process as Python starts it walks into it
        subprocess.run([sys.executable, "-m", "selfpatch_bench.benchmarks", "ls"], capture_output=True)
        assert any(marks.iterdir())


@pytest.fixture
def selfpatch(tmp_path):
    """A command, started as the console script is: without looking into the current folder, and without telling
    Python not to."""
    entry = tmp_path / "entry/selfpatch"
    entry.parent.mkdir()
    entry.write_text("from selfpatch_bench.benchmarks.cli.app import main\nif __name__ == '__main__':\n    main()\n")

    def run(*arguments) -> subprocess.CompletedProcess:
        line = [sys.executable, entry, *map(str, arguments)]
        return subprocess.run(line, env=one_thread(), capture_output=True, text=True, timeout=300)

    return run


def test_an_evaluation(trap, selfpatch, place, tmp_path):
    done = selfpatch(
        *("run", place / "net.safetensors", "--task", "davis", "--data", place / "videos", "--out", tmp_path / "out"),
        *("--device", "cpu", "size=64", "multiple=8"),
    )
    assert (done.returncode, trap()) == (0, []), done.stderr


def test_data_workers(trap, selfpatch, place, tmp_path):
    line = ("pretrain", "dino", "--data", place / "pictures", "--out", tmp_path / "run", *STEPS, "data.workers=1")
    done = selfpatch(*line)
    assert (done.returncode, trap()) == (0, []), done.stderr


def test_a_command_under_torchrun(trap, place, tmp_path):
    """README's line, with two processes: they train as one does."""
    script = Path(sys.executable).with_name("selfpatch")
    if not script.exists():
        pytest.skip("the console script is not installed")
    torchrun = ["torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "2", script]
    options = ("loop.precision=float64", "network.drop_path=0")
    command = ["pretrain", "dino", "--data", str(place / "pictures"), *STEPS, *options]
    line = python(*torchrun, *command, "--out", tmp_path / "two")
    done = subprocess.run(line, env=one_thread(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, trap()) == (0, []), done.stderr
    elsewhere = {"cwd": tmp_path, "env": one_thread()}
    assert warm.run(*command, "--out", tmp_path / "one", **elsewhere).returncode == 0
    assert difference(final(tmp_path / "two"), final(tmp_path / "one")) < 1e-10


def test_the_runs_of_an_ablation(trap, place, tmp_path, monkeypatch, capfd):
    """In one process (any command), and in two that meet by a file and train."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = (Sweep(Grid({}, []), tmp_path, "", "", gpus=gpus) for gpus in (1, 2))
    assert (one.start(["ls", "tasks"]), trap()) == (0, []), capfd.readouterr().err
    run = ["pretrain", "dino", "--data", str(place / "pictures"), "--out", str(tmp_path / "two"), *STEPS]
    assert (two.start(run), trap()) == (0, []), capfd.readouterr().err
    assert final(tmp_path / "two")["step"] == 2


@pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="the extra `mm` is not installed")
def test_processes_of_mm(trap, place, tmp_path):
    """The process that builds a configuration imports the real mm."""
    recipe = Path(mm_task.__file__).parents[2] / "mm_configs/ade20k_semfpn_40k.py"
    training = {"recipe": str(recipe), "export": "", "data": "/data", "out": "", "overrides": ["blocks=2,5,8,11"]}
    card = Card("vit", 16, 24, 6, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3).as_dict()
    said = mm_task._ask(json.dumps({"training": training, "card": card, "world": 1}), "cpu")
    assert (said and "the network has 6 blocks" in said, trap()) == (True, []), said


def test_a_job(trap, place, tmp_path, monkeypatch):
    """submitit's controller and the process that it starts."""
    pytest.importorskip("submitit", reason="submitit (extra `slurm`) is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cfg = absolute_paths(load_recipe("dino", [*STEPS, f"data.path={place / 'pictures'}"]))
    job = slurm.submit(cfg, Run(tmp_path / "run"), "cluster=local,timeout_min=5", resume=False, hooks=HOOKS)
    assert (job.result(), trap()) == (0, [])


def test_pythonpath_still_counts(trap, tmp_path):
    (tmp_path / "mine.py").write_text("import sys, subprocess\nprint('mine', *sys.argv[1:])")
    line = python("mine", 1, Path("a b"))
    done = subprocess.run(line, env=child_environment(PYTHONPATH=str(tmp_path)), capture_output=True, text=True)
    assert (done.stdout, trap()) == ("mine 1 a b\n", [])


# ------------------------------------------------------------------------------------------- the caller's main module
CALLS = {
    "score": (
        "from selfpatch_bench.benchmarks.run.runner import Options, run_command\n"
        "values = ['size=64', 'multiple=8']\n"
        "options = Options(data=[place + '/videos'], out=Path('out'), device='cpu', overrides=values)\n"
        "status = run_command([place + '/net.safetensors'], ['davis'], options)\n"
    ),
    "train": (
        "from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command\n"
        f"options = {[*STEPS, 'data.workers=1']}\n"
        "status = pretrain_command('dino', place + '/pictures', Path('run'), overrides=options)\n"
    ),
}
HEAD = "import sys\nfrom pathlib import Path\nplace = sys.argv[1]\nopen('started', 'a').write('x')\n"


def script(call: str) -> str:
    """Without a main guard."""
    return f"{HEAD}{call}sys.exit(status)\n"


@pytest.mark.parametrize("call", CALLS)
def test_a_script_runs_once(place, tmp_path, call):
    """Without a main guard (test_data_workers has one); its pools know nothing of it."""
    path = tmp_path / "script.py"
    path.write_text(script(CALLS[call]))
    done = subprocess.run(
        [sys.executable, path, place], cwd=tmp_path, env=one_thread(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "started").read_text() == "x"
    assert list(tmp_path.glob("out/records/davis/*.json" if call == "score" else "run/checkpoints/*.pt"))


def test_ctrl_c_in_the_middle_of_a_script(place, tmp_path):
    """The run ends with it, and so do its processes."""
    path = tmp_path / "script.py"
    path.write_text(script(CALLS["train"].replace("loop.steps=2", "loop.steps=100000")))
    process = subprocess.Popen(
        [sys.executable, path, place],
        cwd=tmp_path,
        env=one_thread(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not (tmp_path / "run/log.jsonl").exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]  # ends with the last process that has it open
        assert process.returncode == 130, said
        assert said.splitlines()[-1].startswith("stopped by SIGINT after step")
        assert "Traceback" not in said
    finally:
        with contextlib.suppress(ProcessLookupError):  # a failing test leaves nothing behind either
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(("call", "method"), [("train", "spawn"), ("score", "forkserver")])
def test_a_pool_of_the_script_itself(place, tmp_path, call, method):
    """Its processes import the script, as Python has it: one that then runs a command ends with one line."""
    text = CALLS[call].replace("status =", "status = 0 if __name__ == '__main__' else")
    text += f"import multiprocessing\none = multiprocessing.get_context('{method}').Process(target=print)\n"
    text += "one.start(), one.join()\nstatus = one.exitcode\n"
    path = tmp_path / "script.py"
    path.write_text(script(text))
    done = subprocess.run(
        [sys.executable, path, place], cwd=tmp_path, env=one_thread(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: a process that a script starts runs the script again: put the call below `if __name__ == '__main__':`"
    ]
