"""The core lifted out: a copy of pretrain/ alone, under a name of its own, trains, resumes and exports."""

import shutil
import subprocess
import sys

from conftest import REPO
from selfpatch_bench.benchmarks import load
from training import SELFPATCH, pictures

# No module of the installed package can be imported in this process.
SCRIPT = """
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("selfpatch_bench", "benchmarks"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import torch
from core import train
from core.checkpoint import Run, read
from core.common.errors import UserError
from core.config import load_recipe
from core.export import export

data, out, *options = sys.argv[2:]
torch.set_num_threads(1)
given = [*options, f"data.path={data}", "loop.steps=3", "schedule.warmup_epochs=0", "checkpoint.every_steps=2"]
assert train.run(train.absolute_paths(load_recipe("selfpatch", given)), Path(out)) == 0
run = Run(Path(out))
assert list(run.steps()) == [2, 3]
whole = read(run.steps()[3])
run.steps()[3].unlink()
assert train.run(run.config([]), Path(out), resume=True) == 0
again = read(run.steps()[3])
for name in ("student", "teacher"):
    assert all(torch.equal(again[name][key], value) for key, value in whole[name].items())
file = export(Path(out))
assert train.run(train.absolute_paths(load_recipe("selfpatch", [*given, f"init={file}"])), Path(f"{out}-again")) == 0
try:
    train.run(train.absolute_paths(load_recipe("selfpatch", [*given, "watch.every=1"])), Path(f"{out}-watched"))
except UserError as error:
    print(error)
print(file)
"""


def test_a_copy_of_the_core_trains_resumes_and_exports(tmp_path):
    """What it exports is read by the evaluation; what needs something from above says so."""
    shutil.copytree(REPO / "pretrain", tmp_path / "place/core", ignore=shutil.ignore_patterns("__pycache__"))
    data = pictures(tmp_path / "pictures")
    line = [sys.executable, "-P", "-c", SCRIPT, tmp_path / "place", data, tmp_path / "run", *SELFPATCH]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said, file = done.stdout.splitlines()
    assert "nothing evaluates here" in said
    assert not (tmp_path / "run-watched").exists()
    assert "0 missing" in load(file).accounting
