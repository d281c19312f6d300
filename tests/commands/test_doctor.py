"""`selfpatch doctor --data`: every root that is named or lies in SELFPATCH_DATA, by its set's own check; only these."""

import shutil

import cv2
import numpy as np
import pytest

import warm
from selfpatch_bench.benchmarks.commands.doctor import Checklist, check_data
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.synthetic.small_sets import make_ade20k, make_coco

TASK = """
from dataclasses import dataclass
from pathlib import Path
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.tasks import Data, Metric, Task

@dataclass
class Protocol:
    sides: int = 3

TASK = Task(1, "shapes-v1", Protocol, (Metric("shapes"),), "shapes")

def check(cfg):
    if not (Path(cfg.root) / "list").is_file():
        raise UserError(f"{cfg.root}: has no list")
    if (Path(cfg.root) / "bad").exists():
        raise ZeroDivisionError("two\\nlines")
    return Data("shapes", Path(cfg.root), "sha256:0", True, "", f"{cfg.protocol.sides} shapes", ["one is odd"])

def run(encoder, cfg, out):
    return {"metrics": {"shapes": 0.0}, "parts": {}, "protocol": {}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one healthy set of each kind, by name."""
    root = tmp_path_factory.mktemp("sets")
    make_videos(root / "davis2017", sequences=2, frames=4, size=(48, 80))
    make_coco(root / "coco", (4, 3), (48, 64))
    make_ade20k(root / "ade20k", (3, 2), (48, 64))
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            folder = root / "imagenet" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(folder / f"{i}.png"), np.full((9, 9, 3), 40 * i, np.uint8))
    return root


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SELFPATCH_DATA", raising=False)
    monkeypatch.delenv("SELFPATCH_PLUGINS", raising=False)


def doctor(*data, plugins=None) -> tuple[int, list[str]]:
    """A real process -> exit status, and the lines that speak of data."""
    given = [x for d in data for x in ("--data", d)] + (["--plugins", plugins] if plugins else [])
    done = warm.run("doctor", *given)
    assert not done.stderr
    lines = done.stdout.splitlines()
    first = next(i for i, text in enumerate(lines) if text.split()[1] in ("disk", "results"))
    return done.returncode, lines[first + 1 : -2]


def said(*data) -> tuple[int, list[str]]:
    """The same in this process -> what is to fix, the lines."""
    points = Checklist()
    check_data(points, [str(d) for d in data])
    return points.failed, points.lines


WORDS = {
    "davis2017": "2 sequences, 8 frames, {} objects (2 sequences, none of DAVIS-2017 val)",
    "coco": "4 training and 3 validation pictures, 3 classes ({}, 3 classes of its own)",
    "ade20k": "3 training and 2 validation pictures, 9 classes ({}, 9 classes of its own)",
    "imagenet": "2 classes, 6 + 4 images (2 classes instead of 1000, {}",
}


@pytest.mark.parametrize("name", WORDS)
def test_healthy_data_of_every_kind(made, name):
    """What is there and how it differs from the published set, and no word about any other."""
    failed, lines = said(f"{name}={made / name}")
    assert failed == 0, lines
    before, after = WORDS[name].split("{}")
    assert lines[0].startswith(f"ok    {name:<12} {made / name}: {before}")
    assert after in lines[0]
    assert all(line.split()[1] == name for line in lines)


def test_each_set_is_checked_by_its_own_check(made, tmp_path):
    """A fault of each, all in one report; another kind of set under a name is a fault, too."""
    spoiled = shutil.copytree(made, tmp_path / "spoiled")
    mask = next((spoiled / "davis2017/Annotations").rglob("00002.png"))
    mask.unlink()
    (spoiled / "coco/annotations/instances_val2017.json").write_text("{")
    label = next((spoiled / "ade20k/annotations/validation").glob("*.png"))
    label.unlink()
    (spoiled / "imagenet/val/cat").rename(spoiled / "imagenet/val/cow")
    status, lines = doctor(*(f"{name}={spoiled / name}" for name in WORDS), f"davis={made}")
    assert status == 1
    names = [*WORDS, "davis"]
    assert [line.split()[:2] for line in lines[::2]] == [["FAIL", name] for name in names]
    wanted = str(mask), "broken json", str(label), "class cat is in train/", "did you mean davis2017?"
    for line, words in zip(lines[::2], wanted, strict=True):
        assert words in line
    assert all("fix: " in line for line in lines[1::2])
    failed, lines = said(f"coco={made / 'imagenet'}", f"davis2017={made / 'davis2017'}")
    assert failed == 1
    assert "not a COCO layout" in lines[0]
    assert lines[1].startswith("ok    davis2017")


def test_what_lies_in_selfpatch_data(made, tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    for name in ("coco", "imagenet"):
        (tmp_path / "some" / name).symlink_to(made / name)
    (tmp_path / "some/holiday").mkdir()
    monkeypatch.setenv("SELFPATCH_DATA", str(tmp_path / "some"))
    failed, lines = said()
    assert failed == 0
    assert {line.split()[1] for line in lines} == {"coco", "imagenet"}
    failed, lines = said(f"davis2017={made / 'davis2017'}", f"coco={tmp_path / 'gone'}")  # what is named wins
    assert failed == 1
    assert [line.split()[:2] for line in lines if not line.startswith((" ", "-"))] == [
        ["ok", "davis2017"],
        ["FAIL", "coco"],
        ["ok", "imagenet"],
    ]
    failed, lines = said(made / "davis2017")  # not of the sets that lie there
    assert failed == 1
    assert f"coco         {tmp_path / 'some/coco'}" in "".join(lines)
    table = tmp_path / "sets.yaml"
    table.write_text(f"ade20k: {made / 'ade20k'}\nImageNets: {made / 'imagenet'}\n")
    monkeypatch.setenv("SELFPATCH_DATA", str(table))
    failed, lines = said()
    assert failed == 1
    assert lines[0].startswith("ok    ade20k")
    assert "no task has a data set of this name; did you mean imagenet?" in "".join(lines)
    monkeypatch.setenv("SELFPATCH_DATA", str(tmp_path))
    failed, lines = said()
    assert failed == 0
    known = "ade20k, cityscapes, coco, copydays, davis2017, imagenet, roxford5k, rparis6k, voc2012"
    assert lines == [f"-     data         SELFPATCH_DATA={tmp_path} holds none of {known}"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["davis2107=ROOT"], "davis2107    no task has a data set of this name; did you mean davis2017?"),
        (["DAVIS=ROOT"], "did you mean davis2017?"),
        (["photos=ROOT"], "photos       no task has a data set of this name"),
        (["ROOT"], "--data ROOT: of which data set?"),
        (["ROOT", "coco=ROOT"], "with several data sets each is given as"),
        (["coco=ROOT", "coco=ROOT"], "coco is given twice"),
        (["coco="], "no root after '='"),
        (["coco=ROOT/none"], "ROOT/none does not exist"),
    ],
)
def test_what_is_no_data_set_is_one_line(tmp_path, data, words):
    failed, lines = said(*(d.replace("ROOT", str(tmp_path)) for d in data))
    assert failed == 1
    [line] = [line for line in lines if line.startswith("FAIL")]
    assert words.replace("ROOT", str(tmp_path)) in line
    assert "fix: " in line


def test_a_set_of_a_plug_in(made, tmp_path, monkeypatch):
    """Declared by a task of the user's, it is checked like ours; a broken task and one that raises break nothing."""
    folder = tmp_path / "plug/tasks"
    folder.mkdir(parents=True)
    (folder / "shapes.py").write_text(TASK)
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "empty.py").write_text("")
    root = tmp_path / "shapes"
    root.mkdir()
    status, lines = doctor(f"shapes={root}", f"imagenet={made / 'imagenet'}", plugins=tmp_path / "plug")
    assert status == 1
    text = "\n".join(lines)
    assert f"FAIL  shapes       {root}: has no list" in text
    assert "ok    imagenet" in text
    assert "-     broken       left out: " in text
    assert "-     empty        left out: " in text
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    (root / "list").write_text("")
    failed, lines = said(f"shapes={root}")
    assert failed == 0
    assert lines[-2:] == [
        f"ok    shapes       {root}: 3 shapes (the official data)",
        "-     shapes       one is odd",
    ]
    (root / "bad").mkdir()
    failed, lines = said(f"shapes={root}")
    assert failed == 1
    assert "FAIL  shapes       ZeroDivisionError: two lines" in lines[-1]


@pytest.mark.shared
def test_real_sets(need):
    """Photographs and videos, and sets with classes of their own."""
    failed, lines = said(
        f"davis2017={need('data/davis_multi')}",
        f"coco={need('data/coco')}",
        f"ade20k={need('data/ade_like')}",
        f"imagenet={need('data/tiny_imagenet')}",
    )
    assert failed == 0, lines
    failed, lines = said(f"coco={need('cases/coco_ok/D')}", f"ade20k={need('cases/ade_ok/D')}")
    assert failed == 0, lines
    failed, lines = said(f"davis2017={need('data/coco')}", f"coco={need('data/ade_like')}")
    assert failed == 2, lines
