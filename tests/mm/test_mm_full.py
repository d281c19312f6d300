"""The real loops of mmdet and mmseg, from a checkpoint to a record, at reduced size on drawn sets.

Networks are random and tiny: what is shown is that every loop learns, goes on exactly after a kill, shares its work
among processes, and that a crash hurts nobody.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console

import own_network
import warm
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.demo_full import SMALL_ADE, SMALL_COCO, SMALL_FPN
from selfpatch_bench.benchmarks.mm import processes, training
from selfpatch_bench.benchmarks.mm import task as mm_task
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.models import Entry
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.small_sets import make_ade20k, make_coco
from selfpatch_bench.benchmarks.tasks._registry import RECIPES
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.weights import save_weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="the extra `mm` is not installed")
COCO, ADE = "coco_maskrcnn_1x", "ade20k_semfpn_40k"
PIPELINE = (  # without the flip: the few pictures as they are
    "train_dataloader.dataset.pipeline=[{type: LoadImageFromFile},{type: LoadAnnotations,with_bbox: true,"
    "with_mask: true},{type: Resize,scale: [128,128],keep_ratio: true},{type: PackDetInputs}]"
)
RARELY = "default_hooks.checkpoint.interval=100"  # only at the end
FIT = (*SMALL_COCO, "batch=3", "per_gpu=3", "lr=0.002", PIPELINE, RARELY)
SEGMENTS = (
    "train_dataloader.dataset.pipeline=[{type: LoadImageFromFile},{type: LoadAnnotations},"
    "{type: Resize,scale: [128,96],keep_ratio: true},{type: PackSegInputs}]"
)
CROPS = ("train_dataloader.dataset.pipeline", "model.data_preprocessor.size")
FIT_ADE = (
    *(value for value in (*SMALL_ADE, *SMALL_FPN) if not value.startswith(CROPS)),
    *("batch=3", "per_gpu=3", "lr=0.003", "model.data_preprocessor.size=[96,128]", SEGMENTS),
    "model.decode_head.dropout_ratio=0.0",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random network, three pictures of each set (to train on and to evaluate on), and a task without mm."""
    folder = tmp_path_factory.mktemp("mm")
    card = Card("vit", 16, 96, 6, 3, False, False, pos="learned 8x8", readout="mean", mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.manual_seed(0)
    save_weights(folder / "net.safetensors", Encoder(card).vit.state_dict(), card)
    make_coco(folder / "coco", (3, 3), (96, 128), same=True)
    make_ade20k(folder / "ade20k", (3, 3), (96, 128), same=True)
    (folder / "plugins/tasks").mkdir(parents=True)
    (folder / "plugins/tasks/toy.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPATCH_PLUGINS", str(folder / "plugins"))
        patch.setenv("OMP_NUM_THREADS", "1")  # two that wait for each other are slower where cores are busy
        patch.setattr(processes, "subprocess", types.SimpleNamespace(**vars(subprocess) | {"Popen": Training}))
        patch.setattr(
            mm_task, "_ask", lambda *_: None
        )  # test_mm_run.py has what it refuses; here it would only take time
        yield folder


TOY = '''
"""Nothing, for the tests."""
from dataclasses import dataclass
from pathlib import Path
from selfpatch_bench.benchmarks.tasks import Data, Metric, Task

@dataclass
class Protocol:
    value: float = 1.0

TASK = Task(1, "toy-v1", Protocol, (Metric("toy"),), "toy")

def check(cfg):
    return Data("toy", Path("."), "sha256:0", False, "a toy", "nothing")

def run(encoder, cfg, out):
    return {"metrics": {"toy": cfg.protocol.value}, "parts": {}, "protocol": {}}
'''


def go(place, tasks, values=(), out="out", model=None, **more) -> tuple[int, list]:
    """-> exit status, and the jobs."""
    data = [f"coco={place / 'coco'}", f"ade20k={place / 'ade20k'}", f"toy={place}"]
    options = Options(data=data, out=place / out, device="cpu", overrides=list(values), **more)
    jobs = plan([model or place / "net.safetensors"], tasks, options)
    return run(jobs, options, Console(quiet=True)), jobs


def result(place, job, out="out") -> record.Record:
    """The newest record of a job."""
    return record.read(record.done(place / out, job.task.name, job.key)[-1])


def folder_of(place, job, out="out") -> Path:
    return place / out / "artifacts" / job.task.name / job.key


@pytest.fixture(scope="module")
def fitted(place):
    """Mask R-CNN after 50 steps on three pictures: (job, record)."""
    status, (job,) = go(place, [COCO], [*FIT, "epochs=50"], own={"pictures": True})
    assert status == 0, record_errors(place)
    return job, result(place, job)


def record_errors(place, out="out") -> list[str]:
    return [json.loads(p.read_text())["error"] for p in (place / out).glob("records/*/*.failed-*.json")]


def test_detection_learns(place, fitted):
    job, found = fitted
    assert found.metrics["AP_bb_50"] >= 80
    assert found.metrics["AP_mk_50"] >= 80
    assert found.metrics.keys() <= {m.name for m in job.task.metrics}
    assert set(found.parts["classes"]) == {"round", "polygon", "star"}


def test_what_the_record_and_the_folder_hold(place, fitted):
    job, found = fitted
    effective = found.protocol.effective
    assert found.protocol.id == job.task.protocol_id
    assert found.protocol.overridden["epochs"] == "50"
    assert {k: effective[k] for k in ("batch", "accumulate", "gpus", "amp", "norm")} == {
        "batch": 3, "accumulate": 1, "gpus": 1, "amp": "off (fp16 needs a GPU)", "norm": "BN",
    }  # fmt: skip
    n = int(re.match(r"(\d+)/", effective["accounting"])[1])
    assert effective["accounting"].startswith(f"{n}/{n} tensors loaded")
    assert effective["mean"] == [0.5] * 3
    assert found.published == (("coco_det", "mask_rcnn_vit_fpn_1x"), ("coco_seg", "mask_rcnn_vit_fpn_1x"))
    assert not found.data.official
    assert found.environment["training"]["packages"]["onedl-mmdetection"]
    assert found.peak_memory_bytes["process"] > 2e8  # of the process that trained, which had mm in it
    folder = folder_of(place, job)
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    assert "Epoch(train)" in (folder / "log.txt").read_text()
    assert torch.load(folder / "last.pth", weights_only=True)["meta"]["epoch"] == 50


def test_finished_is_skipped(place, fitted, started):
    job, _ = fitted
    assert go(place, [COCO], [*FIT, "epochs=50"], own={"pictures": True})[0] == 0
    assert not started
    assert len(record.done(place / "out", COCO, job.key)) == 1


def test_eval_only_gives_the_same_numbers(place, fitted):
    """A fine-tuned model in mmdet 2's names, which is the checkpoint too; its training set is not needed."""
    job, found = fitted
    tuned = torch.load(folder_of(place, job) / "last.pth", weights_only=True)
    config = "img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[63.75, 63.75, 63.75], to_rgb=True), num_heads=3"
    meta = {"CLASSES": list(found.parts["classes"]), "config": config, "mmdet_version": "2.11.0"}
    state = {k.replace("backbone.encoder.vit.", "backbone."): v for k, v in tuned["state_dict"].items()}
    model = place / "published.pth"
    torch.save({"meta": meta, "state_dict": state}, model)
    status, (again,) = go(place, [COCO], [*FIT, "epochs=50"], own={"eval_only": model}, model=model)
    assert status == 0, record_errors(place)
    assert again.key != job.key
    seen = result(place, again)
    assert seen.metrics == found.metrics
    assert "eval_only" in seen.protocol.overridden
    assert "fine-tuned" in seen.protocol.effective["accounting"]
    with pytest.raises(UserError, match=r"one checkpoint .* and one task"):
        go(place, [COCO, ADE], FIT, own={"eval_only": model})


# The launch module, whose processes say which names they look up, and which threads of the group are left when their
# work is done; one of them is aborted then.
LEFT = """
import os, pathlib, signal, sys, time
from selfpatch_bench.benchmarks.mm import launch
LOOKS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
sys.addaudithook(lambda event, what: os.write(1, f"looks up: {what}\\n".encode()) if event in LOOKS else None)
launch.MODULE = __spec__.name
if __name__ == "__main__":
    status = launch.main(sys.argv[1:])
    if "RANK" in os.environ and os.path.isdir("/proc/self/task"):
        threads = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
        left = ["left:", *sorted(name for name in threads if "gloo" in name), "-\\n"]
        os.write(1, " ".join(left).encode())  # in one piece: two processes share the file
    looked = pathlib.Path(__file__).with_name("looked")
    if os.environ.get("RANK") == "0":
        looked.touch()
    if os.environ.get("RANK") == "1":
        while not looked.exists():  # the other is killed as soon as this one is aborted
            time.sleep(0.05)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.abort()
    sys.exit(status)
"""


def test_two_processes_and_where_the_numbers_began(place, monkeypatch, tmp_path):
    """Two gloo processes with BN in SyncBN's place: one step at a rate of nothing leaves an untrained network.

    They look up no name, and write nothing into the current folder and the user's. No thread of their group is left:
    one that waits for messages while Python ends aborts a process after its work. Should one be aborted all the same,
    the result stands.
    """
    values = [*FIT, "batch=4", "per_gpu=1", "epochs=1", "lr=1e-12"]
    (place / "launch_and_look.py").write_text(LEFT)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setattr(processes, "MODULE", "launch_and_look")
    monkeypatch.setattr(processes, "subprocess", subprocess)  # really started
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("home", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, (job,) = go(place, [COCO], values, own={"gpus": 2})
    assert status == 0, record_errors(place)
    assert [*(tmp_path / "home").rglob("*"), *(tmp_path / "here").rglob("*")] == []
    found = result(place, job)
    effective = found.protocol.effective
    assert {k: effective[k] for k in ("batch", "per_gpu", "gpus", "accumulate", "norm")} == {
        "batch": 4, "per_gpu": 1, "gpus": 2, "accumulate": 2, "norm": "BN",
    }  # fmt: skip
    assert found.environment["training"]["processes"] == 2
    assert found.metrics["AP_bb_50"] < 5
    assert found.metrics["AP_mk_50"] < 5
    log = (folder_of(place, job) / "log.txt").read_text()
    assert re.findall("left:.*", log) == ["left: -"] * (2 * os.path.isdir("/proc/self/task"))
    assert "looks up" not in log
    assert json.loads((folder_of(place, job) / "error.json").read_text())["error"].startswith(
        "process 1 of 2 was ended by SIGABRT"
    )


# One of the processes of a training, which dies just before its n-th checkpoint is there, and leaves the statistics of
# batch norm by which it evaluates.
DIES = """
import os, signal, sys
from selfpatch_bench.benchmarks.mm.evaluation import dry
def tell(runner, evaluate=dry.evaluate_trained):
    with open(f"{runner.work_dir}/statistics.{runner.rank}", "w") as file:
        file.write(repr({k: v.tolist() for k, v in runner.model.named_buffers() if "running" in k}))
    return evaluate(runner)
dry.evaluate_trained = tell
left = int(sys.argv.pop())
def look(event, arguments):
    global left
    if event == "os.rename" and str(arguments[1]).endswith("last.pth"):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
"""


def test_two_processes_go_on_amid_a_step(place, tmp_path):
    """Both have micro-batches of their own behind them, whose gradients no one has added up yet. The first process is
    killed while the second checkpoint is written, then while the last one is."""
    values = [value for value in FIT if value != RARELY]
    values += ["batch=6", "per_gpu=1", "epochs=3"]  # each takes two at a time of an epoch, and three of a step

    def train(name: str, dies: int = 0) -> dict | None:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        where = (str(p) for p in (RECIPES.scan()[COCO].path, place / "net.safetensors", place / "coco", out))
        job = training.Training(*where, values, classes=["round", "polygon", "star"])
        training.write_json(out / "job.json", dataclasses.asdict(job))
        with tempfile.TemporaryDirectory() as folder:
            known = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "SELFPATCH_STORE": f"{folder}/store"}
            first, second = (
                warm.Process(
                    *(out / "job.json", dies), code=DIES + LAUNCH, given=None, imports=MM, session=True,
                    env=known | {"RANK": rank, "LOCAL_RANK": rank},
                )
                for rank in "01"
            )  # fmt: skip
            status = first.wait()
            second.send_signal(signal.SIGKILL if dies else 0)
            assert (status, second.wait()) == ((-signal.SIGKILL,) * 2 if dies else (0, 0)), first.err
        return weights_of(out)

    assert train("broken", dies=2)["done"] == 2
    assert train("broken", dies=2)["done"] == 4
    assert_same(train("broken"), train("whole"))
    broken, whole = (training.read_result(tmp_path / name) for name in ("broken", "whole"))
    assert [broken[k] for k in ("metrics", "parts")] == [whole[k] for k in ("metrics", "parts")]
    mine, other = ((tmp_path / f"whole/statistics.{rank}").read_text() for rank in "01")
    assert "running_var" in mine
    assert mine == other  # although each saw pictures of its own: those that the checkpoint holds


def test_segmentation_learns(place):
    status, (job,) = go(place, [ADE], [*FIT_ADE, "iterations=120"])
    assert status == 0, record_errors(place)
    found = result(place, job)
    assert found.metrics["mIoU"] >= 60
    assert found.protocol.effective["pos_rule"] == "size"
    assert len(found.parts["classes"]) == 9


STARTED = []
# What the processes of a training import, once for all of them.
MM = """
from selfpatch_bench.benchmarks.mm import ops
ops.install()
from selfpatch_bench.benchmarks.mm import build, hooks, launch
import mmdet.models, mmdet.datasets, mmdet.evaluation, mmseg.models, mmseg.datasets, mmseg.evaluation, mmengine.runner
"""
LAUNCH = "import sys\nfrom selfpatch_bench.benchmarks.mm import launch\nsys.exit(launch.main(sys.argv[1:]))"


class Training(warm.Process):
    """A process that trains, as subprocess.Popen: a fork of one that has mm imported."""

    def __init__(self, line, stdin, stdout, stderr, env, start_new_session):
        assert line[3:5] == [processes.MODULE, line[-1]]
        super().__init__(
            line[-1], code=LAUNCH, given=None, log=stdout.name, imports=MM, env=env, session=start_new_session
        )
        STARTED.append(self)


@pytest.fixture
def started():
    """Processes that were started for training."""
    STARTED.clear()
    return STARTED


@contextlib.contextmanager
def at_next_checkpoint(path: Path, act):
    """`act()` as soon as the file at `path` is a new one."""

    def watch() -> None:
        before, end = stamp(path), time.monotonic() + 300
        while stamp(path) == before and time.monotonic() < end:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join()


def weights_of(folder: Path) -> dict:
    """Of the checkpoint that a training left: the model's tensors and the optimiser's, and its micro-batches."""
    last = torch.load(folder / "last.pth", weights_only=True)
    return {"model": last["state_dict"], "optimizer": last["optimizer"]["state"], "done": last["meta"]["iter"]}


def assert_same(one: dict, other: dict) -> None:
    """Two of `weights_of`, bit by bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def test_killed_and_interrupted_it_goes_on_to_the_same_numbers(place, started):
    """The process group is killed (as by the kernel, out of memory), then Ctrl-C comes; the third start ends with the
    record and the weights of a run that was never stopped, to the last digit: drop path and flips are drawn anew the
    same. Three pictures, one at a time, in steps of two: every other epoch ends amid a step, and so does the run."""
    values = [*SMALL_COCO, "batch=2", "per_gpu=1", "epochs=7", "model.backbone.drop_path=0.2"]
    status, (job,) = go(place, [COCO], values, out="whole")
    assert status == 0, record_errors(place, "whole")
    whole, weights = result(place, job, "whole"), weights_of(folder_of(place, job, "whole"))
    last = folder_of(place, job, "broken") / "last.pth"

    with at_next_checkpoint(last, lambda: os.killpg(started[-1].pid, signal.SIGKILL)):
        status, jobs = go(place, [COCO, "toy"], values, out="broken")
    assert status == 1
    (failed,) = (place / "broken/records" / COCO).glob("*.failed-1.json")
    failed = record.read(failed)
    assert "SIGKILL" in failed.error
    assert "Epoch(train)" in failed.log
    assert not record.done(place / "broken", COCO, job.key)
    assert result(place, jobs[1], "broken").metrics == {"toy": 1.0}  # the sweep went on

    with at_next_checkpoint(last, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        go(place, [COCO], values, out="broken")
    assert started[-1].poll() is not None
    assert len(list((place / "broken/records" / COCO).glob("*.json"))) == 1  # an interruption is no failure

    status, (job,) = go(place, [COCO], values, out="broken")
    assert status == 0, record_errors(place, "broken")
    found = result(place, job, "broken")
    epochs = re.findall(r"resumed epoch: (\d+)", (last.parent / "log.txt").read_text())
    assert len(epochs) == 2
    assert 0 < int(epochs[0]) < int(epochs[1]) < 7
    assert_same(weights_of(last.parent), weights)
    assert found.metrics == whole.metrics
    assert found.parts == whole.parts
    assert found.key == whole.key


def test_a_network_of_a_users_own_is_trained_by_its_plug_in(place):
    """The README's, in a recipe made for a ResNet: built in the training's process, all of its weights learn but those
    after the last map."""
    module = own_network.trained(own_network.plug_in(place / "plugins"))
    file = own_network.save(module, place / "own.pth")
    values = [v for v in FIT_ADE if not v.startswith(("warmup=", "model.backbone."))]
    entry = Entry(file, name="own", format=own_network.NAME)
    status, (job,) = go(place, ["ade20k_semfpn_r50_40k"], [*values, "iterations=2"], model=entry)
    assert status == 0, record_errors(place)
    effective = result(place, job).protocol.effective
    assert effective["accounting"] == "34/34 tensors loaded, 2 not used by the maps and not trained"
    assert (effective["blocks"], effective["norm"]) == ([0, 1, 2, 3], "BN")
    assert effective["config"]["model"]["neck"]["in_channels"] == [16, 32, 64, 128]
    found = weights_of(folder_of(place, job))["model"]
    own = {k.removeprefix("backbone.module."): v for k, v in found.items() if k.startswith("backbone.module.")}
    same = [k for k, v in module.state_dict().items() if torch.equal(v, own[k])]
    assert same == ["norm.weight", "norm.bias"]
