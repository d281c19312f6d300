"""Names and rows are labels: given for a result that is there, they lie beside it, and every command shows them."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

import warm
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands import demo
from selfpatch_bench.benchmarks.commands.ablate import Cell, Grid, Sweep
from selfpatch_bench.benchmarks.commands.ls import listing
from selfpatch_bench.benchmarks.results import labels, record
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.progress import line_console
from selfpatch_bench.pretrain.common.weights import save_weights
from toy import TASK

CARD = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
ROW, OTHER = "DINO|ViT-S/16", "DINO+SelfPatch|ViT-S/16"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The task `toy`, data for it, and the networks a and b."""
    (tmp_path / "plug/tasks").mkdir(parents=True)
    (tmp_path / "plug/tasks/toy.py").write_text(TASK)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_weights(tmp_path / f"{name}.safetensors", Encoder(CARD).vit.state_dict(), CARD)
    return tmp_path


def go(toy, net="a", values=(), console=None, **more):
    """Run one network; -> its only job."""
    options = Options(data=[str(toy / "data")], out=toy / "out", device="cpu", overrides=list(values), **more)
    [job] = plan([toy / f"{net}.safetensors"] if net else [], ["toy"], options)
    assert run([job], options, console or Console(quiet=True)) == int("fail=true" in values)
    return job


def command(toy, *arguments, start=warm.run, **more):
    return start(*arguments, "--out", toy / "out", **more)


def shown(toy) -> list[tuple]:
    """(name, row) of every record, as tables see them."""
    return [(r.model.name, r.model.row) for r in record.records(toy / "out")]


def label(toy, job) -> dict:
    return json.loads((toy / f"out/records/toy/{job.key}.label.json").read_text())


def test_a_result_that_is_there_is_called_anew(toy, capsys):
    job = go(toy)
    path = record.done(toy / "out", "toy", job.key)[0]
    before, name = path.read_bytes(), job.model.name
    go(toy)
    go(toy, name=name)  # nothing new
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix == ".json") == [path.name]
    go(toy, console=line_console(), name="mine", row=ROW)
    said = [x for x in capsys.readouterr().out.splitlines() if "is now" in x]
    assert len(said) == 1
    assert f"its name is now mine (was {name}), its row is now {ROW} (was none)" in said[0]
    assert said[0].endswith(f"{job.key}.label.json")
    assert shown(toy) == [("mine", ROW)]
    go(toy, row=OTHER)
    assert shown(toy) == [("mine", OTHER)]
    go(toy)  # nothing given: nothing changes
    go(toy, name="mine")
    found = label(toy, job)
    assert (found["name"], found["row"]) == ("mine", OTHER)
    assert [(x["name"], x["row"]) for x in found["history"]] == [("mine", ROW)]
    go(toy, name="last")
    assert [x["row"] for x in label(toy, job)["history"]] == [ROW, OTHER]
    assert path.read_bytes() == before
    assert len((toy / "data/log").read_text().splitlines()) == 1  # computed once
    assert not list(path.parent.glob("*.tmp"))


def test_what_is_not_there_yet_has_them_in_its_record(toy):
    job = go(toy, name="mine", row=ROW)
    raw = json.loads(record.done(toy / "out", "toy", job.key)[0].read_text())
    assert (raw["model"]["name"], raw["model"]["row"]) == ("mine", ROW)
    assert not labels.label_file(record.done(toy / "out", "toy", job.key)[0]).exists()


def test_reruns_and_failures_of_a_key_share_the_label(toy):
    """A rerun without a name keeps the one that was given; one with a name changes it."""
    go(toy)
    job = go(toy, name="mine")
    go(toy, rerun=True)
    assert shown(toy) == [("mine", None)] * 2
    go(toy, rerun=True, name="again")
    assert shown(toy) == [("again", None)] * 3
    assert len(record.done(toy / "out", "toy", job.key)) == 3
    assert label(toy, job)["name"] == "again"


def test_every_command_shows_the_label(toy):
    """By the command line: run, ls, table, compare; a label is nowhere taken for a record."""
    rest = ("--task", "toy", "--data", toy / "data", "--device", "cpu")
    first = command(toy, "run", toy / "a.safetensors", *rest)
    second = command(toy, "run", toy / "a.safetensors", *rest, "--name", "renamed [x]", "--row", ROW)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "its name is now renamed [x]" in second.stdout
    assert "done already" in second.stdout
    assert len(list((toy / "out/records/toy").glob("*.json"))) == 2
    listed = command(toy, "ls", "records")
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["renamed"]
    table = command(toy, "table", "--format", "csv")
    assert "renamed [x]" in table.stdout
    assert ROW in table.stdout
    compared = command(toy, "compare", toy / "a.safetensors", toy / "b.safetensors", *rest)
    assert compared.returncode == 0
    assert "| metric | renamed [x] | " in compared.stdout
    assert listed.stderr + table.stderr + second.stderr == ""


def test_a_models_file_gives_them_as_well(toy):
    go(toy)
    (toy / "models.yaml").write_text(f"- {{path: a.safetensors, name: listed, row: {ROW}}}\n")
    options = Options(data=[str(toy / "data")], out=toy / "out", device="cpu", models=toy / "models.yaml")
    from selfpatch_bench.benchmarks.run.runner import run_command

    assert run_command([], ["toy"], options) == 0
    assert shown(toy) == [("listed", ROW)]


def test_names_that_clash_are_those_that_are_shown(toy):
    """A name that was given away is free again; one that was given is taken."""
    go(toy, "a", name="x")
    go(toy, "a", name="y")
    with pytest.raises(UserError, match="y already names other weights"):
        go(toy, "b", name="y")
    go(toy, "b", name="x")
    with pytest.raises(UserError, match="x already names other weights"):
        go(toy, "a", name="x")
    assert sorted(name for name, _ in shown(toy)) == ["x", "y"]


def test_two_processes_at_once_lose_nothing(toy):
    """Ten labels from two processes that write as fast as they can, each under the key's lock; and two commands."""
    job = go(toy)
    code = (
        "import sys; from pathlib import Path; from selfpatch_bench.benchmarks.results import labels, record\n"
        "out, key, who = Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "for i in range(5):\n"
        "    with record.lock(out, 'toy', key):\n"
        "        labels.write(record.done(out, 'toy', key)[-1], {'name': f'{who}{i}'}, record.now())"
    )
    writers = [warm.Process(toy / "out", job.key, who, code=code) for who in "pq"]
    assert [w.wait(timeout=120) for w in writers] == [0, 0]
    rest = ("--task", "toy", "--data", toy / "data", "--device", "cpu")
    runs = [command(toy, "run", toy / "a.safetensors", *rest, "--name", f"run{n}", start=warm.Process) for n in "12"]
    assert [r.wait(timeout=300) for r in runs] == [0, 0]
    found = label(toy, job)
    names = [x["name"] for x in [*found["history"], found]]
    assert sorted(names) == sorted([f"{who}{i}" for who in "pq" for i in range(5)] + ["run1", "run2"])
    for who in "pq":
        assert [n for n in names if n[0] == who] == [f"{who}{i}" for i in range(5)]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "null", "[" * 100_000, '{"name": 3}', '{"name": ""}', '{"row": ["a"]}', '{"name": "a\\nb"}',
        '{"history": {}}', '{"history": [1]}', '{"name": "x", "schema": 2}', '{"history": [{"name": 7}]}', "\udcff",
    ],
)  # fmt: skip
def test_a_damaged_label_is_one_warning(toy, caplog, text):
    """The record's own name and row stand; the next label that is given replaces the file."""
    job = go(toy)
    path = labels.label_file(record.done(toy / "out", "toy", job.key)[0])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert shown(toy) == [(job.model.name, None)]
            assert job.model.name in listing("records", toy / "out")
        go(toy)
    assert [r.getMessage().partition(": ")[0] for r in caplog.records] == [str(path)]
    go(toy, name="whole")
    assert shown(toy) == [("whole", None)]


def test_a_label_edited_by_hand_counts(toy):
    """With a byte order mark, and with no more than what is to change."""
    job = go(toy, row=ROW)
    path = labels.label_file(record.done(toy / "out", "toy", job.key)[0])
    path.write_text('{"name": "by hand"}', encoding="utf-8-sig")
    assert shown(toy) == [("by hand", ROW)]
    go(toy, row=OTHER)
    assert shown(toy) == [("by hand", OTHER)]
    assert label(toy, job)["history"][0]["name"] == "by hand"


def test_a_disk_that_refuses_is_one_line(toy):
    job = go(toy)
    path = labels.label_file(record.done(toy / "out", "toy", job.key)[0])
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match=r"label\.json cannot be written: "):
        go(toy, name="mine")
    assert shown(toy) == [(job.model.name, None)]
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".tmp")] == []


def made(out: Path, key: str, name: str, value: float, created: str) -> Path:
    """A record of davis as an ablation's evaluation leaves it."""
    model = record.Model(name, f"sha256:{key}")
    return record.write(out, record.Record(key, model, "davis", metrics={"JF_m": value}, created=created))


def test_ablations_and_the_demo_go_by_the_label(tmp_path):
    """Two cells whose weights came out equal share one record, by both names."""
    first = made(tmp_path, "k" * 16, "one", 50.0, "2026-01-01")
    made(tmp_path, "l" * 16, "three", 60.0, "2026-01-02")
    labels.write(first, {"name": "two"}, "2026-01-03")
    grid = Grid({name: Cell("dino") for name in ("one", "two", "three")}, [])
    found = Sweep(grid, tmp_path, "", "").results()
    assert {name: one.metrics["JF_m"] for name, one in found.items()} == {"one": 50.0, "two": 50.0, "three": 60.0}
    assert {name: one.metrics for name, one in demo.scores(tmp_path).items()} == {
        "two": {"JF_m": 50.0},
        "three": {"JF_m": 60.0},
    }


def test_hidden_files_are_no_records(tmp_path):
    path = made(tmp_path, "k" * 16, "one", 50.0, "2026-01-01")
    labels.write(path, {"name": "two"}, "2026-01-03")
    (path.parent / ".half.json").write_text("{")
    assert [r.path for r in record.records(tmp_path)] == [r.path for r in record.records(tmp_path, "davis")] == [path]
    assert record.records(tmp_path, "knn") == record.records(tmp_path / "nowhere") == []
    assert os.stat(labels.label_file(path)).st_size
