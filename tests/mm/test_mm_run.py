"""mm recipes as tasks: what is refused before any work, and what the parent does with its processes. Nothing trains."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from selfpatch_bench.benchmarks import environment
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.ls import listing
from selfpatch_bench.benchmarks.mm import launch, ops, processes
from selfpatch_bench.benchmarks.mm import task as mm_task
from selfpatch_bench.benchmarks.mm.training import Training, read_json, read_result, write_json
from selfpatch_bench.benchmarks.run.runner import Options, launched, plan
from selfpatch_bench.benchmarks.synthetic.small_sets import make_ade20k, make_coco
from selfpatch_bench.benchmarks.tasks import Crash, TaskConfig
from selfpatch_bench.benchmarks.tasks._registry import RECIPES, get_task, tasks
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.weights import save_weights

with_mm = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="the extra `mm` is not installed")
DONE = SimpleNamespace(stdout="c0ffee\n")
CARD = Card("vit", 16, 24, 6, 2, False, False, pos="learned 4x4", readout="mean", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny network and tiny sets in both layouts."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    save_weights(folder / "net.safetensors", Encoder(CARD).vit.state_dict(), CARD)
    make_coco(folder / "coco", (2, 2), (64, 64), same=True)
    make_ade20k(folder / "ade20k", (2, 2), (64, 64), same=True)
    return folder


def options(place, *values, **more) -> Options:
    data = [f"coco={place / 'coco'}", f"ade20k={place / 'ade20k'}"]
    given = {"data": data, "out": place / "out", "device": "cpu", "overrides": list(values)}
    return Options(**(given | more))


def test_recipes_are_tasks_and_listed_without_mm():
    """`ls tasks` and the tables' declarations know the recipes, their metrics and published pairs; mm is not loaded."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from selfpatch_bench.benchmarks.commands.ls import listing\n"
        "from selfpatch_bench.benchmarks.results.layout import _declarations\n"
        "print(listing('tasks', Path()))\n"
        "task = _declarations(['coco_maskrcnn_1x'])['coco_maskrcnn_1x']\n"
        "print([m.name for m in task.metrics], task.published)\n"
        "heavy = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'torch'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    *lines, declared = done.stdout.splitlines()
    assert done.stderr.strip() == "", "imported for a list"
    for name in RECIPES.scan():
        (line,) = [x for x in lines if x.split()[:1] == [name]]
        assert line.endswith("built in")
        assert ("mIoU" if name.startswith("ade20k") else "AP_bb, AP_bb_50, AP_bb_75") in line
    assert "('coco_det', 'mask_rcnn_vit_fpn_1x'), ('coco_seg', 'mask_rcnn_vit_fpn_1x')" in declared


def test_a_users_recipe_is_a_task_and_a_broken_one_is_listed(tmp_path, monkeypatch):
    (tmp_path / "mm_configs").mkdir()
    text = 'harness = dict(version=3, family="vit", metrics=("mIoU",), published=())\n'
    (tmp_path / "mm_configs/mine.py").write_text("# My own recipe.\nraise RuntimeError\n" + text)
    (tmp_path / "mm_configs/bad.py").write_text("# Not yet.\nharness = 3\n")
    (tmp_path / "tasks").mkdir()
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path))
    task = get_task("mine")
    assert (task.version, task.dataset, [m.name for m in task.metrics]) == (3, "ade20k", ["mIoU"])
    rows = {line.split()[0]: line for line in listing("tasks", Path()).splitlines() if line}
    assert "My own recipe." in rows["mine"]
    assert "broken: " in rows["bad"]
    (tmp_path / "tasks/mine.py").write_text("")
    with pytest.raises(UserError, match="two tasks are called mine"):
        tasks()


@with_mm
def test_plan_makes_one_job_and_its_key_says_what_the_number_depends_on(place, monkeypatch):
    monkeypatch.setattr(mm_task, "_ask", lambda *_: None)

    def key(*values, task="coco_maskrcnn_1x", **more):
        (job,) = plan([place / "net.safetensors"], [task], options(place, "classes=3", *values, **more))
        return job.key

    first = key()
    assert key() == first
    assert key("workers=3") == first  # the machine's matter
    assert key("with_cp=true") == first
    assert key("per_gpu=2", own={"gpus": 4}) == key(
        own={"gpus": 8}
    )  # eight images at once on all processes: batch norm sees the same
    different = [
        first, key("epochs=3"), key("lr=0.1"), key(seeds=[1]), key(limit=1), key("batch=16", own={"scale_lr": True}),
        key("batch=16"), key("per_gpu=2"), key(task="coco_maskrcnn_1x_heads8"), key("model.backbone.drop_path=0.3"),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


@with_mm
def test_an_evaluation_is_one_job_whatever_the_seeds(place, tmp_path, monkeypatch):
    """A model that was fine-tuned elsewhere gives one number; training draws by the seed."""
    monkeypatch.setattr(mm_task, "_ask", lambda *_: None)
    torch.save({"state_dict": {"backbone.x": torch.ones(1)}}, tmp_path / "last.pth")

    def seeds(**more):
        chosen = options(place, "classes=3", seeds=[0, 1, 2], **more)
        return [j.cfg.seed for j in plan([place / "net.safetensors"], ["coco_maskrcnn_1x"], chosen)]

    assert seeds() == [0, 1, 2]
    assert seeds(own={"eval_only": tmp_path / "last.pth"}) == [0]


@with_mm
def test_a_job_for_a_machine_with_gpus_is_submitted_from_one_without(place, monkeypatch):
    """What the submission checks comes to the data (a wrong number of classes), not to the GPUs that are not here."""
    pytest.importorskip("submitit", reason="submitit (extra `slurm`) is not installed")
    from selfpatch_bench.benchmarks.run.slurm import submit

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    chosen = options(place, "classes=7", device="auto", own={"gpus": 2})
    with pytest.raises(UserError, match="classes=7"):
        submit([place / "net.safetensors"], ["coco_maskrcnn_1x"], chosen, "cluster=local")
    with pytest.raises(UserError, match="cannot be shared by 5 GPUs"):
        submit([place / "net.safetensors"], ["coco_maskrcnn_1x"], replace(chosen, own={"gpus": 5}), "cluster=local")
    with pytest.raises(UserError, match=r"--gpus: is for .*coco_maskrcnn_1x.*; davis has no such flag"):
        submit([place / "net.safetensors"], ["davis"], chosen, "cluster=local")
    with pytest.raises(UserError, match="--gpus 2: there is no GPU here"):
        plan([place / "net.safetensors"], ["coco_maskrcnn_1x"], chosen)


@with_mm
@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        ("coco_maskrcnn_1x", ["batch=none"], "batch=none"),
        ("coco_maskrcnn_1x", ["batch=6", "--gpus=4"], "cannot be shared by 4 GPUs"),
        ("coco_maskrcnn_1x", ["frames=3"], "coco_maskrcnn_1x has no frames; there are: .*dotted keys"),
        ("coco_maskrcnn_1x", ["classes=7"], "classes=7"),
        ("coco_maskrcnn_swin_1x", ["classes=3"], "takes a swin, .* coco_maskrcnn_1x"),
        ("ade20k_semfpn_r50_40k", ["classes=9"], "takes a resnet, .* ade20k_semfpn_40k"),
        ("davis", ["--gpus=4"], "--gpus: is for .*coco_maskrcnn_1x.*; davis has no such flag"),
        ("davis", ["--scale-lr=1"], "--scale-lr"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else None,
)
def test_mistakes_are_refused_at_once(place, task, values, words):
    flags = {"gpus": 4} if "--gpus=4" in values else {"scale_lr": True} if "--scale-lr=1" in values else {}
    with pytest.raises(UserError, match=words):
        plan([place / "net.safetensors"], [task], options(place, *[v for v in values if v[0] != "-"], own=flags))
    assert not list((place / "out").glob("records/*/*.json"))


@with_mm
def test_an_unknown_key_of_the_configuration_is_refused_with_the_nearest(place):
    """In a real process that imports mm and builds the configuration."""
    chosen = options(place, "classes=9", "model.neck.out_chanels=64")
    with pytest.raises(UserError, match=r"no model\.neck\.out_chanels; did you mean model\.neck\.out_channels"):
        plan([place / "net.safetensors"], ["ade20k_semfpn_40k"], chosen)


def test_without_the_extra_the_line_says_what_to_install(place, monkeypatch):
    def absent(*_):
        raise UserError("COCO and ADE20K need the extra `mm`: pip install 'selfpatch-bench[mm]'")

    monkeypatch.setattr(ops, "require", absent)
    with pytest.raises(UserError, match="pip install"):
        plan([place / "net.safetensors"], ["coco_maskrcnn_1x"], options(place, "classes=3"))


def test_what_a_launcher_started_is_known(monkeypatch):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # of the allocation: this is its batch script, alone
    assert launched() == (0, 1)
    step = {"PROCID": "5", "STEP_NUM_TASKS": "8", "LOCALID": "1", "LAUNCH_NODE_IPADDR": "10.0.0.7", "JOB_ID": "123456"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    of_one = ({"NNODES": "1"}, {"NNODES": "2", "STEP_NUM_NODES": "1"})  # the job's machines, and those of the step
    for machines in ({"NNODES": "2"}, *of_one):
        with monkeypatch.context() as inside:
            for name in names:
                inside.setenv(name, "")  # so that they are taken back afterwards
                os.environ.pop(name)
            for name, value in machines.items():
                inside.setenv(f"SLURM_{name}", value)
            assert launched() == (5, 8)
            assert {k: os.environ[k] for k in ("LOCAL_RANK", "MASTER_ADDR")} == {
                "LOCAL_RANK": "1",
                "MASTER_ADDR": "10.0.0.7",
            }
            assert os.environ.get("LOCAL_WORLD_SIZE") == ("8" if machines in of_one else None)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched() == (2, 4)


def test_checkpoints_within_an_epoch_are_refused():
    """mmengine would begin the epoch anew, with images that the network has seen."""
    hook = {"interval": 5}
    cfg = SimpleNamespace(train_cfg={"max_epochs": 2}, default_hooks=SimpleNamespace(checkpoint=hook))
    launch.check_checkpoints(cfg)
    hook["by_epoch"] = False
    with pytest.raises(UserError, match="by_epoch=false"):
        launch.check_checkpoints(cfg)
    cfg.train_cfg = {"max_iters": 2}
    launch.check_checkpoints(cfg)


def test_the_look_at_git_takes_no_lock(monkeypatch):
    """`git status` would write the index anew where a file's time has changed."""
    asked = []
    monkeypatch.setattr(environment.Path, "exists", lambda _: True)
    monkeypatch.setattr(environment.subprocess, "run", lambda line, env, **_: asked.append((line[3], env)) or DONE)
    assert environment.commit() == "c0ffee+"
    assert [(name, env["GIT_OPTIONAL_LOCKS"]) for name, env in asked] == [("rev-parse", "0"), ("status", "0")]


@pytest.mark.parametrize("text", ['{"metrics": {', "[]", '{"metrics": {}}'])
def test_half_a_result_is_none(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert read_result(tmp_path) is None


def test_a_file_says_what_it_said(tmp_path):
    training = Training("a.py", "x.safetensors", "/data", "/out", ["a=1"], 3, 7, 2, "cuda", True, "m.pth", True, ["a"])
    write_json(tmp_path / "job.json", asdict(training))
    assert Training(**read_json(tmp_path / "job.json")) == training
    (tmp_path / "half.json").write_text('{"done": 1')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "absent.json") is None
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", {"AP": float("nan")})
    assert not (tmp_path / "nan.json").exists()


# A stand-in for launch.py: the parent's side is the same whatever the processes do.
CHILD = """
import json, os, signal, sys, time
path = sys.argv[1]
out = json.load(open(path))["out"]
what = json.load(open(path))["overrides"][0]
print("line", os.getpid(), flush=True)
if what == "crash":
    sys.exit("RuntimeError: something broke")
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "error":
    open(out + "/error.json", "w").write(json.dumps({"error": "one clear line", "status": 2}))
    sys.exit(2)
for i in range(3):
    open(out + "/p", "w").write(json.dumps({"done": i + 1, "total": 3, "text": f"step {i + 1}"}))
    os.replace(out + "/p", out + "/progress.json")
    time.sleep(0.7)
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (open(out + "/told", "w"), sys.exit(0)))
    open(out + "/ready", "w")
    time.sleep(60)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """work(what) runs the stand-in to its end and returns the progress that came."""
    (tmp_path / "stand_in.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "MODULE", "stand_in")

    def work(what: str) -> list:
        write_json(tmp_path / "job.json", {"out": str(tmp_path), "overrides": [what]})
        seen = []
        cfg = TaskConfig(None, progress=lambda *facts: seen.append(facts))
        processes.work(tmp_path / "job.json", tmp_path, cfg)
        return seen

    return work


def test_progress_of_the_processes_is_passed_on(child):
    seen = child("fine")
    assert seen[-1] == (3, 3, "step 3")
    assert len(seen) == len(set(seen)) >= 2  # each once


@pytest.mark.parametrize(
    ("what", "words"),
    [("crash", "ended with status 1"), ("killed", "ended by SIGKILL .out of memory"), ("error", "^one clear line$")],
)
def test_a_crash_says_why_and_keeps_the_tail_of_the_log(child, what, words):
    with pytest.raises(Crash, match=words) as caught:
        child(what)
    assert "line " in caught.value.log
    assert ("something broke" in caught.value.log) == (what == "crash")


PARENT = """
import sys
from pathlib import Path
from selfpatch_bench.benchmarks.mm import processes
from selfpatch_bench.benchmarks.tasks import TaskConfig
processes.MODULE = "stand_in"
processes.work(Path(sys.argv[1]), Path(sys.argv[1]).parent, TaskConfig(None))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_end_the_parent_too(tmp_path, number):
    (tmp_path / "stand_in.py").write_text(CHILD.replace("signal.signal(signal.SIGTERM", f"signal.signal({int(number)}"))
    write_json(tmp_path / "job.json", {"out": str(tmp_path), "overrides": ["wait"]})
    line = [sys.executable, "-c", PARENT, str(tmp_path / "job.json")]
    parent = subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.05)
    parent.send_signal(number)
    parent.communicate(timeout=60)
    assert (tmp_path / "told").exists()
    assert parent.returncode in (-number, 128 + number, 130 if number == signal.SIGINT else -number)


@with_mm
def test_a_record_that_was_not_written_any_more_is_made_of_the_result(place, monkeypatch, tmp_path):
    """The processes had finished, the parent was killed before it wrote: nothing is computed again."""
    monkeypatch.setattr(mm_task, "_ask", lambda *_: None)
    (job,) = plan([place / "net.safetensors"], ["ade20k_semfpn_40k"], options(place, "classes=9"))
    result = {"metrics": {"mIoU": 1.5}, "parts": {}, "protocol": {"id": "x"}, "accounting": "3/3", "environment": {}}
    (tmp_path / "result.json").write_text(json.dumps(result | {"peak_memory_bytes": {"process": 1}}))
    found = job.task.run(None, replace(job.cfg), tmp_path)
    assert found["metrics"] == {"mIoU": 1.5}
    assert found["protocol"]["accounting"] == "3/3"


def test_a_run_as_a_slurm_job(place, tmp_path, monkeypatch):
    """By submitit's local executor, with relative paths; what is wrong is said before it queues."""
    pytest.importorskip("submitit", reason="submitit (extra `slurm`) is not installed")
    from selfpatch_bench.benchmarks.run.slurm import submit

    (tmp_path / "plug/tasks").mkdir(parents=True)
    (tmp_path / "plug/tasks/toy.py").write_text(
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "from selfpatch_bench.benchmarks.tasks import Data, Metric, Task\n"
        "@dataclass\nclass Protocol:\n    value: float = 1.0\n"
        'TASK = Task(1, "toy-v1", Protocol, (Metric("toy"),), "toy")\n'
        'check = lambda cfg: Data("toy", Path("."), "sha256:0", False, "a toy", "nothing")\n'
        'run = lambda encoder, cfg, out: {"metrics": {"toy": cfg.protocol.value}, "parts": {}, "protocol": {}}\n'
    )
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    monkeypatch.chdir(place)
    chosen = Options(data=["."], out=Path("queued"), device="cpu", overrides=["value=2"])
    with pytest.raises(UserError, match="written as key=value"):
        submit([Path("net.safetensors")], ["toy"], chosen, "gpu")
    with pytest.raises(UserError, match="toy has no radius"):
        submit([Path("net.safetensors")], ["toy"], replace(chosen, overrides=["radius=2"]), "cluster=local")
    job = submit([Path("net.safetensors")], ["toy"], chosen, "cluster=local,timeout_min=5")
    assert job.result() == 0
    (path,) = (place / "queued/records/toy").glob("*.json")
    assert json.loads(path.read_text())["metrics"] == {"toy": 2.0}
