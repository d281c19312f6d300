"""What a task declares is what the runner and the command line do with it: flags, variants, families, old plug-ins."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import warm
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.cli.app import task_flags
from selfpatch_bench.benchmarks.commands.ls import listing
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.results.collect import ORDER
from selfpatch_bench.benchmarks.run.runner import Options, plan, run_command
from selfpatch_bench.benchmarks.tasks._registry import get_task, tasks
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights

TOYS = '''
"""Two toys: a family of a user's own."""
from dataclasses import dataclass
from pathlib import Path
from selfpatch_bench.benchmarks import Data, Metric, Task
from selfpatch_bench.benchmarks.tasks import Flag

@dataclass
class Protocol:
    size: int = 8
    note: str = "none"

class Toy(Task):
    def check(self, cfg):
        return Data("toy", Path(cfg.root), "sha256:0", False, "a toy", "nothing")

    def run(self, encoder, cfg, out):
        number = cfg.protocol.size + (100 if cfg.twice else 0) + cfg.bonus
        return {"metrics": {"toy": float(number)}, "parts": {"own": dict(cfg.own)}, "protocol": {}}

def make(**more):
    flags = (Flag("twice", bool, "Say it twice.", False), Flag("bonus", int, "To add.", 0, text="--add", least=0))
    return Toy(1, "toy-v1", Protocol, (Metric("toy"),), "toy", flags=flags, seeded=False, **more)

TASKS = {
    "toy_small": make(published=(("davis2017", "label_propagation"),), variants={"huge": {"size": 512}}),
    "toy_large": make(),
}
'''
# As tasks were written before there was an object: functions beside a bare declaration.
PLAIN = """
from dataclasses import dataclass
from pathlib import Path
from selfpatch_bench.benchmarks.task import Data, Metric, Task

@dataclass
class Protocol:
    size: int = 3

TASK = Task(1, "plain-v1", Protocol, (Metric("toy"),), "toy", needs="image vector", takes="encoder", seeded=False)

def check(cfg):
    assert cfg.masks is None and cfg.list_file is None and not cfg.pictures
    return Data("toy", Path(cfg.root), "sha256:0", False, "a toy", "nothing")

def run(encoder, cfg, out):
    return {"metrics": {"toy": float(cfg.protocol.size)}, "parts": {}, "protocol": {}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A network, and plug-ins: a family, a task of plain functions, one that lacks `run`."""
    folder = tmp_path / "plug/tasks"
    folder.mkdir(parents=True)
    (folder / "toys.py").write_text(TOYS)
    (folder / "plain.py").write_text(PLAIN)
    (folder / "lacking.py").write_text(PLAIN.partition("def run")[0])
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    torch.manual_seed(0)
    card = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_weights(tmp_path / "net.safetensors", Encoder(card).vit.state_dict(), card)
    return tmp_path


def evaluate(place: Path, *names: str, **more) -> dict[str, record.Record]:
    """-> the newest record of each task."""
    options = Options(data=[str(place)], out=place / "out", device="cpu", **more)
    assert run_command([str(place / "net.safetensors")], list(names), options) == 0
    found = sorted(place.glob("out/records/*/*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {one.task: one for one in map(record.read, found)}


def test_a_family_and_plain_functions_are_tasks(place):
    found = evaluate(place, "toy_small", "toy_large", "plain")
    assert {name: r.metrics["toy"] for name, r in found.items()} == {"toy_small": 8, "toy_large": 8, "plain": 3}
    assert "toys" not in tasks()
    rows = {line.split()[0]: line for line in listing("tasks", Path()).splitlines() if line}
    assert "[variants: toy_small:huge]" in rows["toy_small"]
    assert rows["lacking"].partition("broken: ")[2].split("  ")[0].endswith("lacking.py: its task has no run")
    (place / "plug/tasks/toy_large.py").write_text(PLAIN)
    with pytest.raises(UserError, match=r"two tasks are called toy_large: .*toy_large\.py and .*toys\.py"):
        tasks()


def test_a_variant_is_another_protocol_and_stands_beside_no_published_row(place):
    usual = evaluate(place, "toy_small")["toy_small"]
    huge = evaluate(place, "toy_small:huge")["toy_small"]
    by_hand = evaluate(place, "toy_small", overrides=["size=512"])["toy_small"]
    assert (usual.protocol.id, usual.published) == ("toy-v1", (("davis2017", "label_propagation"),))
    assert (huge.protocol.id, huge.published) == ("toy-v1-huge", ())
    assert huge.protocol.overridden == {"size": 512}
    assert huge.metrics["toy"] == 512
    assert len({usual.key, huge.key, by_hand.key}) == 3
    assert evaluate(place, "toy_small:huge", overrides=["size=9"])["toy_small"].metrics["toy"] == 9
    with pytest.raises(UserError, match="toy_small:tiny: variants of toy_small: huge"):
        get_task("toy_small:tiny")


def test_a_flag_goes_to_the_tasks_that_declare_it(place):
    found = evaluate(place, "toy_small", "plain", own={"twice": True})
    assert found["toy_small"].metrics["toy"] == 108
    assert found["toy_small"].parts["own"] == {"twice": True, "bonus": 0}
    for names in (["plain"], ["plain", "davis"]):
        with pytest.raises(
            UserError, match=rf"--add: is for toy_large, toy_small; {', '.join(names)} has no such flag"
        ):
            plan([place / "net.safetensors"], names, Options(data=[str(place)], own={"bonus": 1}))


def test_the_command_line_takes_the_flags_of_the_tasks_asked_for(place):
    common, both = (warm.run("run", *words, "--help").stdout for words in ([], ["--task", "plain,toy_small"]))
    assert "--add" not in common
    assert "Say it twice." in both
    assert "Score the masks" not in both
    words = ["net.safetensors", "--data", ".", "--out", "out", "--device", "cpu"]
    done = warm.run("run", *words, "--task=toy_small:huge,plain", "--twice", "--add", 7, cwd=place)
    assert done.returncode == 0, done.stderr
    (path,) = (place / "out/records/toy_small").glob("*.json")
    assert json.loads(path.read_text())["metrics"] == {"toy": 619.0}
    for task, flag in (("plain", "--twice"), ("toy_small", "--masks=x")):
        done = warm.run("run", *words, "--task", task, flag, cwd=place)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"{task} has no such flag" in done.stderr
    assert "Usage" in warm.run("run", *words, "--task", "plain", "--no-such", cwd=place).stderr
    toys = place / "plug/tasks/toys.py"
    toys.write_text(toys.read_text().replace('text="--add"', 'text="--out"'))
    done = warm.run("run", *words, "--task", "toy_small", cwd=place)
    assert done.stderr == "error: --out of toy_small: every run has an option of that name\n"


def test_two_tasks_whose_flags_of_one_name_are_of_two_types_do_not_run_together(place):
    flag = 'seeded=False, flags=(Flag("twice", int, "How often."),)'
    text = PLAIN.replace("seeded=False", flag).replace("import Data", "import Flag, Data")
    (place / "plug/tasks/other.py").write_text(text.replace("benchmarks.task import", "benchmarks import"))
    with pytest.raises(UserError, match="--twice means different things to toy_small, other: run them one by one"):
        task_flags(["run", "--task", "toy_small,other"])
    assert [flag.type for flag in task_flags(["run", "--task", "other,plain"])] == [int]


def test_the_first_metric_of_every_task_is_in_tables_and_comparisons():
    assert [name for name, e in tasks().items() if e.file.ours and e.task.metrics[0].name not in ORDER] == []


def test_task_files_import_without_torch():
    """Declarations alone: what takes seconds to import, `run` imports."""
    code = (
        "import sys\n"
        "from selfpatch_bench.benchmarks.tasks._registry import tasks\n"
        "found = [entry.task for entry in tasks().values()]\n"
        "assert len(found) > 12, found\n"
        "heavy = {'torch', 'pandas', 'timm', 'matplotlib', 'mmengine'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", ['{"odd": 3}', "{}", '["toy_small"]', "{1: make()}", "None"])
def test_a_family_that_is_no_table_of_tasks_is_a_broken_file_and_breaks_no_other(place, family):
    file = place / "plug/tasks/odd.py"
    file.write_text(TOYS.partition("TASKS = ")[0] + f"TASKS = {family}\n")
    rows = {line.split()[0]: line for line in listing("tasks", Path()).splitlines() if line}
    assert f"broken: plug-in {file}: it has no TASK that is a Task, and no TASKS" in rows["odd"]
    with pytest.raises(UserError, match="--add: is for toy_large, toy_small; plain has no such flag"):
        plan([place / "net.safetensors"], ["plain"], Options(data=[str(place)], own={"bonus": 1}))


def test_a_file_whose_text_alone_speaks_of_a_family_is_one_task(place):
    (place / "plug/tasks/wordy.py").write_text(f'"""\nTASKS are for families.\n"""\n{PLAIN}')
    assert get_task("wordy").protocol_id == "plain-v1"


@pytest.mark.parametrize("values", ['{"sze": 5}', '{"size": "many"}'])
def test_values_of_a_variant_that_are_not_its_protocols_are_one_line(place, values):
    file = place / "plug/tasks/toys.py"
    file.write_text(file.read_text().replace('{"size": 512}', values))
    with pytest.raises(UserError, match=r"variant's values .* are not its protocol's: ") as found:
        plan([place / "net.safetensors"], ["toy_small:huge"], Options(data=[str(place)]))
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="toy_small:: variants of toy_small: huge"):
        get_task("toy_small:")


RESULT = '{"metrics": {"toy": float(cfg.protocol.size)}, "parts": {}, "protocol": {}}'


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("None", "not subscriptable"),
        ('{"metrics": {"toy": 1.0}, "protocol": {}}', "KeyError: 'parts'"),
        ('{"metrics": {"toy": float("nan")}, "parts": {}, "protocol": {}}', "plain gives what no record can hold"),
        ('{"metrics": {"toy": "1.0"}, "parts": {}, "protocol": {}}', "bad or missing metrics"),
        ('{"metrics": {"toy": 1.0}, "parts": {1: {2}}, "protocol": {}}', "set is not JSON"),
    ],
)
def test_a_result_that_no_record_can_hold_is_a_failure_and_the_other_tasks_go_on(place, result, why, capsys):
    file = place / "plug/tasks/plain.py"
    file.write_text(file.read_text().replace(RESULT, result))
    options = Options(data=[str(place)], out=place / "out", device="cpu")
    assert run_command([str(place / "net.safetensors")], ["plain", "toy_small"], options) == 1
    (one,) = record.records(place / "out", "plain")
    assert (one.status, one.path.name.rpartition(".")[0][-9:]) == (record.FAILED, ".failed-1")
    assert why in one.error
    assert record.records(place / "out", "toy_small")[0].status == record.DONE


@pytest.mark.parametrize(
    ("data", "why"),
    [("None", "its check gives NoneType instead of Data"), ('Data("toy", Path(), "0", False, ["a"], "")', "differs")],
)
def test_a_check_that_gives_what_no_record_can_hold_is_told_before_the_work(place, data, why):
    file = place / "plug/tasks/plain.py"
    file.write_text(
        file.read_text().replace('Data("toy", Path(cfg.root), "sha256:0", False, "a toy", "nothing")', data)
    )
    with pytest.raises(UserError, match=why):
        evaluate(place, "plain")
    assert not record.records(place / "out")
