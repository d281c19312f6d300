"""Ablation grids: the poster's, cell by cell and number by number, and a small one that really runs."""

import re
import sys
from dataclasses import replace

import pytest
import yaml

import warm
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.commands import ablate
from selfpatch_bench.benchmarks.commands.ablate import Grid, Sweep, ablate_command, read_grid
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.results.record import DataSet, Model, Protocol, Record
from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures, make_videos
from selfpatch_bench.benchmarks.tasks.davis import TASK
from selfpatch_bench.pretrain.ablations import ABLATIONS
from selfpatch_bench.pretrain.config import load_recipe, to_dict

POSTER = "selfpatch_poster"


def test_the_posters_tables_have_its_numbers_in_its_order():
    left, right = read_grid(POSTER).tables
    assert [r.published.text for r in left.rows if r.published] == [
        "55.1",
        "57.0",
        "56.5",
        "47.3",
        "56.3",
        "56.4",
        "57.0",
        "56.5",
        "51.4",
        "57.0",
    ]
    assert [float(r.published.text) for r in right.rows] == [54.1, 58.4, 58.9, 50.8, 56.4, 55.1, 57.0, 61.6, 65.8]
    assert [r.cell for r in left.rows if not r.published] == ["baseline"]  # the controlled one, which the poster lacks


@pytest.mark.parametrize("quick", [False, True])
def test_every_cell_is_a_valid_run_and_no_two_are_the_same(quick):
    grid = read_grid(POSTER, quick)
    used = {row.cell for table in grid.tables for row in table.rows}
    assert used == set(grid.cells)
    configs = {name: to_dict(load_recipe(cell.recipe, cell.values)) for name, cell in grid.cells.items()}
    assert len({str(c) for c in configs.values()}) == len(configs)
    assert {c["loop"]["batch"] for c in configs.values()} == {4 if quick else 256}


def test_the_cells_differ_from_the_default_in_what_their_labels_say():
    grid = read_grid(POSTER)

    def facts(cell):
        entry = load_recipe(grid.cells[cell].recipe, grid.cells[cell].values).objectives[-1]
        return entry.options.radius, entry.options.k, entry.options.aggregation, entry.weight

    radius, k, how, weight = facts("selfpatch")
    assert (radius, k, weight) == (1, 4, 0.1)
    assert facts("baseline") == (1, 4, how, 0)
    assert facts("radius2") == (2, 4, how, 0.1)
    assert facts("radius_all") == ("all", 4, how, 0.1)
    assert [facts(c)[1] for c in ("k1", "k2", "k8")] == [1, 2, 8]
    assert facts("mean")[2] == "mean" != how


SMALL = {
    "values": [
        "network.backbone=vit_tiny_patch8", "network.overrides={embed_dim: 24, depth: 2, num_heads: 3}",
        "views.rows.0.size=32", "views.rows.1.size=32", "views.rows.2.size=16", "views.rows.2.count=2",
        "objectives.dino.outputs=16", "objectives.dino.hidden=16", "objectives.dino.bottleneck=8", "loop.batch=4",
        "loop.steps=3", "schedule.warmup_epochs=0", "data.workers=0", "loop.precision=float32",
    ],
    "quick": {"values": ["loop.steps=2"], "davis": ["size=64", "multiple=8"], "limit": 1},
    "cells": {
        "plain": {"recipe": "dino"},
        "weightless": {"recipe": "selfpatch", "values": ["objectives.selfpatch.weight=0"]},
        "patches": {
            "recipe": "selfpatch",
            "values": ["objectives.selfpatch.outputs=8", "objectives.selfpatch.hidden=16"],
        },
    },
    "tables": [
        {
            "title": "Small", "source": POSTER, "table": "poster ablation table, left (component analysis)",
            "columns": ["method"],
            "rows": [
                {"labels": ["DINO"], "cell": "plain", "row": ["DINO", "ViT-Ti/16", "row (a)"]},
                {"labels": ["baseline"], "cell": "weightless"},
                {"labels": ["patches"], "cell": "patches"},
                {"labels": ["patches again"], "cell": "patches"},
            ],
        }
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A plug-in folder with the ablation `small`."""
    (tmp_path / "plug/ablations").mkdir(parents=True)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))

    def put(content) -> None:
        (tmp_path / "plug/ablations/small.yaml").write_text(yaml.safe_dump(content))

    put(SMALL)
    return tmp_path, put


def test_three_cells_run_once_each_and_fill_the_table(folder, monkeypatch, capsys):
    """Every run a process; the second time everything is there; other values in the same folder are refused.
    (test_processes.py starts runs of an ablation as Python does.)"""
    tmp_path, _ = folder
    pictures = make_pictures(tmp_path / "pictures", 8)
    videos = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(64, 96))
    started = []

    def start(_, arguments: list[str]) -> int:
        done = warm.run(*arguments)
        started.append(arguments[:2])
        return done.returncode

    monkeypatch.setattr(Sweep, "start", start)

    def ablate(*values) -> str:
        given = (str(pictures), str(videos), tmp_path / "out", list(values))
        assert ablate_command("small", *given, quick=True, device="cpu") == 0
        return capsys.readouterr().out

    first = ablate()
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", first, re.MULTILINE)
    rows, below = rows[1:5], rows[6:]  # without the heads
    assert [r[:2] for r in rows] == [("DINO", "55.1"), ("baseline", "-"), ("patches", "-"), ("patches again", "-")]
    assert {r[2] for r in rows} == {"below"}  # two frames of a drawn video say nothing about the published number
    assert all(re.fullmatch(r"\d+\.\d", r[1]) for r in below)
    assert below[2][1] == below[3][1]
    for said in ("limit 1", "multiple=8", "size=64", "pretrained with loop.steps=2"):
        assert all(said in r[2] for r in below)
    assert len(list((tmp_path / "out/records/davis").glob("*.json"))) == 3
    assert sorted(started[::2]) == [["pretrain", "dino"], *[["pretrain", "selfpatch"]] * 2]
    assert ablate() == first
    assert len(list((tmp_path / "out/records/davis").glob("*.json"))) == 3
    assert started[6::2] == [["pretrain", "--resume"]] * 3
    with pytest.raises(UserError, match="holds a run with other values than cell"):
        ablate("schedule.lr=0.1")


OFFICIAL = Record(
    "k" * 16,
    Model("plain", "sha256:aa"),
    "davis",
    TASK.version,
    Protocol(TASK.protocol_id),
    TASK.published,
    DataSet("davis2017", "/data/DAVIS", "sha256:full", True, summary="30 sequences, 1999 frames, 61 objects"),
    metrics={"JF_m": 54.32},
)
SIX = replace(OFFICIAL.data, official=False, differs="6 of 30 sequences")


@pytest.mark.parametrize(
    ("change", "added", "said"),
    [
        ({}, (), None),
        ({}, ("data.workers=0", "loop.device=cpu"), None),
        ({}, ("schedule.lr=0.1",), "pretrained with schedule.lr=0.1"),
        ({"limit": 2}, (), "limit 2"),
        ({"data": SIX}, (), "6 of 30 sequences (DAVIS)"),
        ({"published": (("davis2017", "trained"),)}, (), "protocol trained, not label_propagation"),
        ({"published": ()}, (), f"{TASK.protocol_id} is not in this table"),
        ({"version": TASK.version + 1}, (), f"version {TASK.version + 1} of the task, now {TASK.version}"),
        ({"protocol": replace(OFFICIAL.protocol, overridden={"size": 64})}, (), "size=64"),
    ],
)
def test_ours_stands_beside_a_published_number_under_its_conditions_only(folder, change, added, said):
    """As in `selfpatch table`: else it stands below the table, with what differs."""
    tmp_path, _ = folder
    one = replace(OFFICIAL, **change)
    record.write(tmp_path / "out", one)
    asked = tuple(f"{k}={v}" for k, v in one.protocol.overridden.items())
    grid = read_grid("small", overrides=added)._replace(limit=one.limit, davis=asked)
    text = Sweep(grid, tmp_path / "out", "", "").text()
    assert f"| DINO | 55.1 | {'below' if said else '54.3'} |" in text
    assert "| patches | - | not run |" in text
    assert (f"| DINO | 54.3 | {said} |" in text) == bool(said)
    assert ("what differs" in text) == bool(said)


def test_a_cell_that_fails_is_named_and_the_others_run(folder, monkeypatch, capsys):
    from rich.console import Console

    tmp_path, _ = folder
    started = []
    sweep = Sweep(read_grid("small"), tmp_path, "data", "video")
    monkeypatch.setattr(
        Sweep, "start", lambda _, a: started.append(a[:2]) or (3 if a[:2] == ["pretrain", "dino"] else 0)
    )
    assert sweep.run(Console(), ["plain", "patches"]) == 1
    assert "plain: failed (status 3)" in capsys.readouterr().out
    assert started == [["pretrain", "dino"], ["pretrain", "selfpatch"], ["run", str(tmp_path / "runs/patches")]]
    monkeypatch.setattr(Sweep, "start", lambda *_: 130)
    with pytest.raises(UserError, match="goes on from here"):
        sweep.run(Console(), ["plain"])


TOLD = """
import os, sys
with open(f"{sys.argv[1]}/{sys.argv[3]}.{os.environ.get('RANK')}", "w") as file:
    file.write(" ".join([*sys.argv[4:], *(f"{k}={os.environ.get(k)}" for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))]))
"""


def test_several_processes_pretrain_and_one_evaluates(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ablate, "python", lambda *line: [sys.executable, "-c", TOLD, str(tmp_path), *line])
    sweep = Sweep(Grid({}, []), tmp_path, "data", "video", gpus=3)
    assert sweep.start(["pretrain", "dino"]) == sweep.start(["run", "x"]) == 0
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        **{f"pretrain.{rank}": "dino WORLD_SIZE=3 LOCAL_WORLD_SIZE=3" for rank in range(3)},
        "run.None": "x WORLD_SIZE=None LOCAL_WORLD_SIZE=None",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": None}, "not an ablation"),
        ({"tables": [SMALL["tables"][0] | {"rows": [{"labels": ["x"], "cell": "none"}]}]}, "no cell none"),
        (
            {
                "tables": [
                    SMALL["tables"][0] | {"rows": [{"labels": ["x"], "cell": "plain", "row": ["DINO", "X", "y"]}]}
                ]
            },
            "0 published numbers",
        ),
    ],
)
def test_a_bad_file_is_one_line(folder, change, said):
    _, put = folder
    put(SMALL | change)
    with pytest.raises(UserError, match=said):
        read_grid("small")


def test_the_grids_are_listed():
    assert POSTER in ABLATIONS.scan()
