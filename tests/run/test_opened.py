"""Seeds that change nothing cost nothing, and a checkpoint is opened once a command."""

import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

import warm
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run import opened, runner
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.tasks import make_key
from selfpatch_bench.benchmarks.tasks._registry import get_task
from selfpatch_bench.benchmarks.tasks._registry import tasks as all_tasks
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.progress import line_console
from selfpatch_bench.pretrain.common.weights import save_weights

CARD = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
# A task whose number depends on the seed, and which leaves its network in ruins; another whose number does not.
TASK = '''
"""Mean of the image vector."""
from dataclasses import dataclass
from pathlib import Path
import torch
from selfpatch_bench.benchmarks.tasks import Data, Metric, Task

@dataclass
class Protocol:
    value: float = 0.0

TASK = Task(1, "toy-v1", Protocol, (Metric("toy"),), "toy"SEEDED)

def check(cfg):
    return Data("toy", Path(cfg.root), "sha256:0", False, "a toy", "1 image")

def run(encoder, cfg, out):
    with open(Path(cfg.root) / "log", "a") as f:
        f.write(f"{cfg.seed}\\n")
    mean = float(encoder(torch.full((1, 3, 32, 32), 0.5)).image.mean())
    for parameter in encoder.parameters():
        parameter.zero_()
    return {"metrics": {"toy": mean}, "parts": {}, "protocol": {}}
'''


def make(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_weights(path, Encoder(CARD).vit.state_dict(), CARD)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Tasks drawn (by the seed) and fixed, data for them, and the networks a, b and c."""
    (tmp_path / "plug/tasks").mkdir(parents=True)
    (tmp_path / "plug/tasks/drawn.py").write_text(TASK.replace("SEEDED", ""))
    (tmp_path / "plug/tasks/fixed.py").write_text(TASK.replace("SEEDED", ", seeded=False"))
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    for seed, name in enumerate("abc"):
        make(tmp_path / f"{name}.safetensors", seed)
    return tmp_path


def go(place, names="a", tasks=("drawn",), console=None, **more):
    options = Options(data=[str(place / "data")], out=place / "out", device="cpu", **more)
    jobs = plan([place / f"{n}.safetensors" for n in names], list(tasks), options)
    assert run(jobs, options, console or Console(quiet=True)) == 0
    return jobs


def worked(place) -> list[str]:
    log = place / "data/log"
    return log.read_text().split() if log.exists() else []


def metrics(place, jobs) -> dict[tuple, float]:
    found = [record.read(record.done(place / "out", j.task.name, j.key)[-1]) for j in jobs]
    return {(r.model.name, r.task, r.seed): r.metrics["toy"] for r in found}


# --- seeds


def test_only_what_depends_on_the_seed_runs_for_each(place, capsys):
    jobs = go(place, "ab", ("drawn", "fixed"), console=line_console(), seeds=[0, 1, 2])
    assert sorted(worked(place)) == sorted("012" * 2 + "00")
    assert [(j.task.name, j.cfg.seed) for j in jobs].count(("fixed", 0)) == 2
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert said == ["note: fixed: runs once, under seed 0; --seed 0,1,2 does not change its number"]
    go(place, "ab", ("fixed",), console=line_console(), seeds=[5])  # done already
    assert len(worked(place)) == 8
    assert "note: fixed: runs once, under seed 0; --seed 5 " in capsys.readouterr().out
    go(place, "ab", ("drawn", "fixed"), console=line_console())
    assert "note:" not in capsys.readouterr().out


def test_the_key_is_that_of_seed_0(place):
    """What an older version recorded under it is found."""
    for task in ("drawn", "fixed"):
        [job] = go(place, tasks=(task,), seeds=[0])
        parts = {
            "fingerprint": job.model.fingerprint, "card": job.model.card, "task": task, "version": 1,
            "protocol": {"value": 0.0}, "limit": None, "data": "sha256:0", "seed": 0,
        }  # fmt: skip
        assert job.key == make_key(parts)
        again = go(place, tasks=(task,), seeds=[0, 3])
        assert [j.key for j in again] == [job.key, *[make_key(parts | {"seed": 3})] * (task == "drawn")]


def test_the_tasks_say_whether_they_draw(place, tmp_path):
    """What only looks does not; what is trained or drawn from does; scoring masks does not, whatever the task."""
    seeded = {name: p.task.seeded for name, p in all_tasks().items() if p.file.ours}
    assert {name for name, value in seeded.items() if not value} == {
        "davis",
        "knn",
        "copydays",
        "roxford5k",
        "rparis6k",
    }
    videos = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(48, 64))
    options = Options(data=[str(videos)], out=tmp_path / "out", device="cpu", seeds=[0, 1, 2])
    assert len(plan([place / "a.safetensors"], ["davis"], options)) == 1
    task = get_task("linear")
    assert runner.seeds_of(task, Options(seeds=[0, 1])) == [0, 1]
    trained = get_task("coco_maskrcnn_1x")
    assert runner.seeds_of(trained, Options(seeds=[4, 1], own={"eval_only": tmp_path})) == [0]


# --- openings

COUNT = """
import sys
opened = []
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(("a.safetensors", "b.pth", "folder/model.safetensors")):
        opened.append(str(arguments[0]))
sys.addaudithook(hook)
from selfpatch_bench.benchmarks.cli.app import main
try:
    main()
finally:
    print("OPENED", len(opened), len(set(opened)))
"""


def count(place, *arguments) -> str:
    line = (*arguments, "--data", place / "data", "--out", place / "out", "--device", "cpu")
    done = warm.run(*line, code=COUNT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_file_is_opened_once_however_many_tasks_and_seeds(place):
    """In a process that counts: our own file, a pickle, a folder with a config; then all at once, then `compare`."""
    own_file, pickle, folder = place / "a.safetensors", place / "b.pth", place / "folder"
    folder.mkdir()
    make(folder / "model.safetensors", 4)
    torch.manual_seed(3)
    torch.save(Encoder(CARD).vit.state_dict(), pickle)
    for path in (own_file, pickle, folder):
        given = ["--format", "timm", "--heads", "2", "--card", "mean=0.5", "std=0.5"] if path == pickle else []
        assert count(place, "run", path, *given, "--task", "drawn,fixed", "--seed", "0,1,2") == "OPENED 1 1"
    assert worked(place).count("0") == 6
    entry = f"{{path: {pickle}, format: timm, heads: 2, mean: 0.5, std: 0.5}}"
    (place / "models.yaml").write_text(f"- {own_file}\n- {entry}\n- {folder}\n")
    for command in ("run", "compare"):
        last = count(place, command, "--models", place / "models.yaml", "--task", "drawn,fixed", "--seed", "3,4")
        assert last == "OPENED 3 3"


def test_a_sweep_that_does_not_fit_holds_one_more_at_a_time(place, monkeypatch):
    """The first waits, the others are opened again, once, however many tasks and seeds; the numbers are the same."""
    whole = metrics(place, go(place, "abc", ("drawn", "fixed"), seeds=[0, 1]))
    monkeypatch.setattr(opened, "KEEP", 0)
    counts, alive, take, opening = {}, [], opened.Opened.take, opened.Opened._open
    monkeypatch.setattr(
        opened.Opened,
        "_open",
        lambda s: counts.update({s.asked.path.stem: counts.get(s.asked.path.stem, 0) + 1}) or opening(s),
    )
    seen: list[opened.Opened] = []

    def watched(self, last):
        seen.append(self)
        found = take(self, last)
        alive.append(len({id(o) for o in seen if o.checkpoint is not None}))
        return found

    monkeypatch.setattr(opened.Opened, "take", watched)
    jobs = go(place, "abc", ("drawn", "fixed"), seeds=[0, 1], rerun=True)
    assert counts == {"a": 1, "b": 2, "c": 2}
    assert max(alive) == 1
    assert metrics(place, jobs) == whole
    assert [Path(j.model.file).stem for j in jobs] == list("aaabbbccc")


def test_a_job_never_sees_what_another_did_to_the_network(place):
    """The task zeroes all parameters; every seed starts from the file's."""
    found = metrics(place, go(place, "a", ("drawn", "fixed"), seeds=[0, 1, 2]))
    assert len(set(found.values())) == 1
    assert 0.0 not in found.values()


def test_a_file_that_changes_meanwhile(place):
    """Other weights under the name are refused, the same ones written anew are not; nor is a file that is gone run."""
    options = Options(data=[str(place / "data")], out=place / "out", device="cpu")
    path = place / "a.safetensors"
    for change, status in (
        (lambda: make(path, 0), 0),
        (lambda: make(path, 7), 1),
        (lambda: os.replace(place / "b.safetensors", path), 1),
        (path.unlink, 1),
    ):
        make(path, 0)
        jobs = plan([path], ["drawn"], options)
        change()
        assert run(jobs, options.__class__(**vars(options) | {"rerun": True}), Console(quiet=True)) == status
        failed = sorted((place / "out/records/drawn").glob("*.failed-*.json"), key=lambda p: p.stat().st_mtime_ns)
        if status and path.exists():
            assert "a.safetensors changed while this was running" in record.read(failed[-1]).error
    assert len(record.done(place / "out", "drawn", jobs[0].key)) == 1


def test_any_file_of_a_folder_is_watched(tmp_path):
    for name in ("model.safetensors.index.json", "model-1.safetensors"):
        (tmp_path / name).write_text("{}")
    before = [opened.stamp(tmp_path), opened.stamp(tmp_path / "model.safetensors.index.json")]
    assert before[0] == before[1] != ()
    (tmp_path / "model-1.safetensors").write_text("{ }")
    assert opened.stamp(tmp_path) != before[0]
    assert opened.stamp(Path("timm:vit_tiny_patch16_224")) == ()
