"""Records, the runner and plug-ins, with real processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import warm
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights
from toy import TASK


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A plug-in folder with the task `toy`, two checkpoints and a data folder."""
    folder = tmp_path / "plug"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "toy.py").write_text(TASK)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(folder))
    card = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    for i, name in enumerate("ab"):
        torch.manual_seed(i)
        save_weights(tmp_path / f"{name}.safetensors", Encoder(card).vit.state_dict(), card)
    return tmp_path


def go(folder, names="a", values=(), **options):
    chosen = Options(data=[str(folder / "data")], out=folder / "out", overrides=list(values), device="cpu", **options)
    jobs = plan([folder / f"{n}.safetensors" for n in names], ["toy"], chosen)
    return jobs, run(jobs, chosen, Console(quiet=True))


def worked(folder) -> int:
    log = folder / "data" / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_what_is_done_is_skipped_and_rerun_adds(toy, capsys):
    jobs, status = go(toy, "ab", seeds=[0, 1])
    assert (status, worked(toy), len({j.key for j in jobs})) == (0, 4, 4)
    before = {p: p.read_bytes() for p in (toy / "out/records/toy").glob("*.json")}
    assert go(toy, "ab", seeds=[0, 1])[1] == 0
    assert worked(toy) == 4
    jobs, _ = go(toy, "a", rerun=True)
    assert worked(toy) == 5
    assert [p.name for p in record.done(toy / "out", "toy", jobs[0].key)] == [
        f"{jobs[0].key}.json",
        f"{jobs[0].key}.2.json",
    ]
    assert all(p.read_bytes() == b for p, b in before.items())


@pytest.mark.parametrize(
    "change",
    [{"values": ["seconds=0.01"]}, {"limit": 3}, {"seeds": [7]}, {"card": {"pos_resize": "timm"}}],
    ids=lambda c: next(iter(c)),
)
def test_whatever_changes_a_number_changes_the_key(toy, change):
    assert go(toy)[0][0].key != go(toy, **change)[0][0].key


def test_a_failure_leaves_a_record_and_the_rest_goes_on(toy):
    for n in (1, 2):
        jobs, status = go(toy, "ab", values=["fail=true"])
        assert status == 1
        for job in jobs:
            path = toy / f"out/records/toy/{job.key}.failed-{n}.json"
            assert record.read(path).status == "failed"
            assert "RuntimeError: out of memory, say" in record.read(path).error
            assert not record.done(toy / "out", "toy", job.key)
    assert worked(toy) == 4


def test_two_fingerprints_under_one_name_are_an_error(toy):
    with pytest.raises(UserError, match="--name is for a single"):
        go(toy, "ab", name="x")
    go(toy, "a", name="x")
    with pytest.raises(UserError, match="x already names other weights"):
        go(toy, "b", name="x")


def start(folder, *arguments):
    line = ["run", *arguments, "--task", "toy", "--data", folder / "data", "--out", folder / "out", "--device", "cpu"]
    return warm.Process(*line)


def test_two_runners_on_one_folder_share_the_work(toy):
    files = [toy / f"{n}.safetensors" for n in "ab"]
    runners = [start(toy, *files, "--seed", "0,1", "seconds=1") for _ in range(2)]
    texts = ["".join(r.communicate()) for r in runners]
    assert [r.returncode for r in runners] == [0, 0], texts
    assert worked(toy) == 4  # nothing was computed twice
    paths = sorted((toy / "out/records/toy").glob("*.json"))
    assert len(paths) == 4
    assert all(record.read(p).status == "done" for p in paths)


def test_kill_at_any_moment_leaves_the_old_state_or_a_whole_record(tmp_path):
    """A process that writes records without pause is killed at 8 moments: every file that has a name is whole."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from selfpatch_bench.benchmarks.results import record
        parts = {"filling": "x" * 200_000}
        one = record.Record("k", record.Model("m", "sha256:m"), "t", metrics={}, parts=parts)
        print("ready", flush=True)
        while True:
            record.write(Path(sys.argv[1]), one)
        """
    )
    for i in range(8):
        process = warm.Process(tmp_path, code=code)
        while process.out != "ready\n":
            assert process.poll() is None, process.err
            time.sleep(0.005)
        time.sleep(0.02 + 0.013 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
    paths = record.done(tmp_path, "t", "k")
    assert len(paths) >= 8
    assert [p.name for p in paths] == ["k.json"] + [f"k.{n}.json" for n in range(2, len(paths) + 1)]
    assert all(len(record.read(p).parts["filling"]) == 200_000 for p in paths)


def test_writers_never_share_a_name(tmp_path):
    code = (
        "import sys; from pathlib import Path; from selfpatch_bench.benchmarks.results import record\n"
        "for i in range(50):\n"
        "    model = record.Model(sys.argv[2] + str(i), 'sha256:m')\n"
        "    record.write(Path(sys.argv[1]), record.Record('k', model, 't', metrics={}))"
    )
    writers = [warm.Process(tmp_path, w, code=code) for w in "xy"]
    assert [w.wait(timeout=120) for w in writers] == [0, 0]
    who = {record.read(p).model.name for p in record.done(tmp_path, "t", "k")}
    assert who == {f"{w}{i}" for w in "xy" for i in range(50)}


def test_unwritable_out_is_one_line(toy):
    (toy / "out").write_text("a file, not a folder")
    process = start(toy, toy / "a.safetensors")
    text = "".join(process.communicate())
    assert process.returncode == 1
    assert text.count("\n") == 1
    assert text.startswith("error: cannot write below")


# --- plug-ins


def test_one_file_of_each_kind_is_found_and_used(toy, monkeypatch):
    """A format dropped into a folder, next to the task of the fixture; both run, and `ls` says where they come from."""
    from selfpatch_bench.benchmarks.commands.ls import listing

    folder = toy / "plug"
    (folder / "formats").mkdir()
    (folder / "formats" / "shouty.py").write_text(
        textwrap.dedent(
            '''
            """Everything in capitals."""
            from selfpatch_bench.pretrain.common.shapes import vit_card

            def claims(shapes, meta):
                return 3 if "POS_EMBED" in shapes else 0

            def convert(state, meta):
                weights = {k.lower(): state[k] for k in state}
                shapes = {k: tuple(v.shape) for k, v in weights.items()}
                return weights, vit_card(shapes, heads=2, mean=(0.5,) * 3, std=(0.5,) * 3), {}
            '''
        )
    )
    card = Card("vit", 8, 24, 1, 2, pos="learned 4x4")
    torch.save({k.upper(): v for k, v in Encoder(card).vit.state_dict().items()}, toy / "c.safetensors")
    jobs, status = go(toy, "c")
    assert status == 0
    assert jobs[0].model.format == "shouty"
    text = listing("formats", toy)
    assert any(line.split()[0] == "shouty" and line.endswith(str(folder / "formats")) for line in text.splitlines())
    assert "Everything in capitals." in text
    assert "toy " in listing("tasks", toy)
    assert "davis" in listing("tasks", toy)


def test_a_broken_plugin_is_listed_and_hinders_nobody(toy):
    from selfpatch_bench.benchmarks.commands.ls import listing

    folder = toy / "plug" / "formats"
    folder.mkdir()
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    assert "broken: plug-in" in listing("formats", toy)
    assert go(toy)[1] == 0


def test_a_duplicate_name_is_an_error(toy):
    folder = toy / "plug" / "formats"
    folder.mkdir()
    (folder / "dino.py").write_text("")
    with pytest.raises(UserError, match=r"two plug-ins of formats are called dino"):
        FORMATS.scan()


def test_a_plugin_folder_that_is_not_there(monkeypatch):
    monkeypatch.setenv("SELFPATCH_PLUGINS", "/nowhere/at/all")
    with pytest.raises(UserError, match="/nowhere/at/all"):
        FORMATS.scan()


def test_records_are_listed(toy):
    from selfpatch_bench.benchmarks.commands.ls import listing

    assert "selfpatch run" in listing("records", toy / "out")
    go(toy, "a")
    go(toy, "a", values=["fail=true"])
    (toy / "out/records/toy/foreign.json").write_text(json.dumps([1]))
    lines = listing("records", toy / "out").splitlines()
    assert len(lines) == 3
    assert sum("failed: RuntimeError" in line for line in lines) == 1
    assert sum("not a record" in line for line in lines) == 1
    assert sum("toy " in line and "1 image" in line for line in lines) >= 1


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for n in range(2):
        record.write(tmp_path, record.Record("k", record.Model("m", "sha256:m"), "t", seed=n, metrics={}))
    assert [record.read(p).seed for p in record.done(tmp_path, "t", "k")] == [0, 1]
    assert not [p for p in Path(tmp_path, "records/t").iterdir() if p.name.endswith(".tmp")]


def test_peak_memory_is_the_process_own():
    """A small program that a large one starts is small: its record must not carry its parent's peak."""
    parent = """
import subprocess, sys
from selfpatch_bench.pretrain.common.machine import process_peak
filled = bytearray(b"1") * 300_000_000
print(process_peak(), subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True).stdout)
"""
    child = "from selfpatch_bench.pretrain.common.machine import process_peak; print(process_peak())"
    done = subprocess.run([sys.executable, "-c", parent, child], capture_output=True, text=True, check=True)
    large, small = map(int, done.stdout.split())
    assert large > 300_000_000
    assert small < 150_000_000
