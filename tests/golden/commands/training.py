"""Parts that pretrain: five steps of every recipe, and a run that was killed after its third."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from .place import DATA, STORED, Place, quiet, sha256, summary
from .runs import DAVIS, trained

KILLED = STORED / "killed" / "run"
CLOCK = ("images_per_s", "data_wait", "memory_gb", "mfu")
ROWS = (
    "views.rows=[{count: 2, size: 32, scale: [0.4, 1.0], blur_p: 0.5, solarize_p: 0.2},"
    "{count: 2, size: 16, scale: [0.1, 0.4]}]"
)
# 12 pictures: three steps an epoch.
TINY = (
    ROWS, "schedule.warmup_epochs=1", "schedule.lr=0.02", "loop.batch=4", "loop.device=cpu", "loop.precision=float32",
    "data.workers=0", "log.every=1",
)  # fmt: skip
VIT = ("network.backbone=vit_tiny_patch8", "network.overrides={embed_dim: 16, depth: 2, num_heads: 2}")
HEAD = ("outputs=16", "hidden=16", "bottleneck=8")
CONTRAST = ("outputs=16", "hidden=16", "queue=12")
# A bias before batch norm has no gradient but rounding: with the usual eps Adam makes steps of that.
STEADY = "optim.eps=0.001"
# Windows of 2 on patches of 2: grids of 16, 8, 4 and 2.
SWIN = (
    "views.rows=[{count: 2, size: 32}]", "network.backbone=swin_tiny",
    "network.overrides={embed_dim: 8, depths: [1, 2, 1, 1], num_heads: [1, 2, 2, 4], window_size: 2, patch_size: 2}",
)  # fmt: skip


def heads(values: Iterable[str], *objectives: str) -> tuple[str, ...]:
    return tuple(f"objectives.{o}.{value}" for o in objectives for value in values)


RECIPES = {
    "dino": (*VIT, *heads(HEAD, "dino")),
    "selfpatch": (*VIT, *heads(HEAD, "dino", "selfpatch")),
    "ibot": (*VIT, *heads(HEAD, "dino", "ibot")),
    "sere": (*VIT, *heads(HEAD, "dino", "ibot"), "objectives.sere.samples=5", "objectives.sere.local_samples=3"),
    "pwself": (*VIT, *heads(HEAD, "pwself"), "views.pre_resize=40"),
    "pwself_patchwise": (*VIT, *heads(HEAD, "pwself"), "views.pre_resize=40"),
    "moby": (*SWIN, *heads(CONTRAST, "moby"), STEADY),
    "moby_selfpatch": (*VIT, *heads(CONTRAST, "moby", "moby_patch"), STEADY),
}
# Smaller still, since its checkpoint is stored: two epochs, the second of which is not finished.
SMALL = (
    *TINY, *heads(("outputs=8", "hidden=8", "bottleneck=4"), "dino", "selfpatch"), "loop.epochs=2",
    "network.backbone=vit_tiny_patch8", "network.overrides={embed_dim: 8, depth: 1, num_heads: 2}",
)  # fmt: skip
PICTURES = DATA / "classes/train"


def train(place: Place, name: str, recipe: str, *values: str, kill: str | None = None) -> str:
    """Start a run in runs/NAME; -> what it printed."""
    given = ("pretrain", recipe, "--data", PICTURES, "--out", f"runs/{name}", *values)
    done = quiet(place(*given, kill=kill))
    assert done.status == (-9 if kill else 0), done
    return str(done)


def ended(place: Place, run: Path) -> str:
    """The log of a run, and a line on each part of its last checkpoint. (entropy_share is entropy over log K.)"""
    lines = []
    for line in (place.folder / run / "log.jsonl").read_text().splitlines():
        lines.append(
            json.dumps({k: v for k, v in json.loads(line).items() if k not in CLOCK and not k.endswith("_share")})
        )
    last = max((place.folder / run / "checkpoints").glob("step-*.pt"))
    state = torch.load(last, weights_only=True)
    parts = [f"{key}: {summary(state[key])}" for key in ("student", "teacher", "objectives", "optimizer")]
    return "\n".join([*lines, last.name, *parts]) + "\n"


def recipes(place: Place) -> dict[str, str]:
    """Five steps of every recipe: a file for each. And of dino with weights to start from and evaluations on the way,
    for which training asks the other half of the program."""
    there = re.findall(r"^(\w+)", place("ls", "recipes").out, re.MULTILINE)
    there = [name for name in there if not name.endswith("_small")]  # the same objectives with other values
    assert there == sorted(RECIPES), f"other recipes than those that are trained here: {there}"
    found = {}
    for name, values in RECIPES.items():
        said = train(place, name, name, *TINY, *values, "loop.steps=5")
        found[f"{name}.txt"] = said + ended(place, Path("runs", name))
    small = ("network.overrides={embed_dim: 48, depth: 4, num_heads: 3, mlp_ratio: 2}", "loop.steps=3")
    watch = (
        "watch.every=1", f"watch.knn={DATA / 'classes'}", f"watch.davis={DATA / 'davis'}", "watch.size=32",
        "watch.davis_size=64", "watch.frames=3", "watch.sequences=1", "watch.pictures=1",
    )  # fmt: skip
    init = (f"init={place.networks / 'a.safetensors'}", "network.backbone=vit_tiny_patch16", "network.image_size=64")
    said = train(place, "watched", "dino", *TINY, *RECIPES["dino"], *small, *init, *watch)
    pictures = sorted(p.name for p in (place.folder / "runs/watched/watch").rglob("*.*"))
    found["watched.txt"] = said + ended(place, Path("runs/watched")) + f"pictures: {', '.join(pictures)}\n"
    return {name: trained(text) for name, text in found.items()}


def make_killed(place: Place) -> dict[str, bytes]:
    """What is left of a run that dies while it writes the checkpoint of step 6. It goes on as an unbroken one does."""
    train(place, "killed", "selfpatch", *SMALL, kill="step-00000006.pt")
    run = place.folder / "runs/killed"
    half, *left = sorted((run / "checkpoints").iterdir())
    assert half.name.startswith(".step-00000006.pt."), half
    assert [p.name for p in left] == ["step-00000003.pt"], left
    checkpoint = run / "checkpoints/step-00000003.pt"
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["data"]["path"] = "/data/pictures"  # not this machine's
    torch.save(state, checkpoint)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(PICTURES), "/data/pictures"))
    # Names that tell of no machine.
    half.with_name(".step-00000006.pt.elsewhere.1.00000000.tmp").write_bytes(half.read_bytes()[:1000])
    half.unlink()
    holder = {"pid": 1, "host": "elsewhere", "job": None, "since": "2026-01-01T00:00:00Z"}
    (run / ".lock").write_text(json.dumps(holder))
    found = {f"run/{p.relative_to(run)}": p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    train(place, "whole", "selfpatch", *SMALL)
    place("pretrain", "--resume", "runs/killed", "--data", PICTURES)
    whole, goes_on = (ended(place, Path("runs", name)) for name in ("whole", "killed"))
    assert whole == goes_on, "the run that was killed does not end as the unbroken one"
    return found


def resumed(place: Place) -> dict[str, str]:
    """The stored run goes on to its end: to the last bit that of the unbroken one."""
    shutil.copytree(KILLED, place.folder / "runs/killed")
    place("pretrain", "--resume", "runs/killed", "--data", PICTURES)
    return {"whole.txt": ended(place, Path("runs/killed"))}


def exports(place: Place) -> dict[str, str]:
    """The stored run before it goes on: every export of it, which is no arithmetic; and a run of it as a checkpoint."""
    shutil.copytree(KILLED, place.folder / "runs/killed")
    found = []
    for name, *options in (
        ("teacher.safetensors",),
        ("student.safetensors", "--which", "student"),
        ("step.safetensors", "--step", "3"),
        ("official.pth", "--format", "selfpatch"),
        ("dino.pth", "--format", "dino"),
        ("other.safetensors", "--step", "4"),
    ):
        done = place("export", "runs/killed", "--out", name, *options)
        found.append(str(done))
        made = place.folder / name
        if made.suffix == ".safetensors" and made.exists():
            found.append(f"sha256 {sha256(made)}\n")
        elif made.exists():
            tree = torch.load(made, weights_only=False)
            args = {k: v for k, v in sorted(vars(tree.pop("args")).items())}
            found.append(f"{sorted(tree)} {args}\n{summary(tree).replace('bits:', 'sha256 ')}\n")
            found.append(str(place("inspect", name)))
    found.append(str(place.run("runs/killed", "--task", "davis", *DAVIS)))
    return {"said.txt": "\n".join(found)}
