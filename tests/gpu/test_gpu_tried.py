"""The scripts for a GPU, tried on a CPU at sizes that mean nothing: what fails here would cost minutes of a GPU."""

import importlib.util
import math
import subprocess
import sys
import time

import pytest
import torch

from conftest import REPO
from selfpatch_bench.pretrain.recipes import RECIPES

sys.path.insert(0, str(REPO / "tests/gpu"))
import figures
import pack
import table

from training import one_thread as one_thread

# Not by its name: another script of the tests has the same.
spec = importlib.util.spec_from_file_location("learn_on_a_gpu", REPO / "tests/gpu/learn.py")
learn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(learn)
TRIED = ["--device", "cpu", "--tiny"]


def rows(path) -> list[list[str]]:
    """The cells of a markdown table, without its head."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("part", ["pretrain", "evaluate"])
def test_every_figure_has_a_number(part, tmp_path, capsys):
    assert figures.main(["--only", part, *TRIED, "--out", str(tmp_path / "out.md")]) == 0
    found = rows(tmp_path / "out.md")
    for cells in found:
        assert float(cells[1].split()[0]) > 0, cells
    names = " ".join(cells[0] for cells in found)
    wanted = (
        (name for name in RECIPES.scan() if not name.endswith("_small"))
        if part == "pretrain"
        else ("DAVIS", "image vectors")
    )
    assert all(name in names for name in wanted)
    if part == "evaluate" and importlib.util.find_spec("mmengine"):
        assert "ade20k_semfpn_40k" in names
    assert (tmp_path / "out.md").read_text().strip() in capsys.readouterr().out


def test_a_table_is_written_row_by_row_and_ends_in_time(tmp_path):
    """A row that fails says why, one that the deadline meets is named, and later ones are not begun."""
    made = table.Table(tmp_path / "out.md", "title", ("what", "figure"), 1, torch.device("cpu"))
    made.row("first", lambda: {"figure": "1"})
    assert rows(tmp_path / "out.md") == [["first", "1"]]

    def wrong():
        raise ValueError("a | b\nc")

    def endless():
        while True:
            pass

    made.row("wrong", wrong)
    made.end, made.longest = time.monotonic() + 0.02, 0.0
    made.row("endless", endless)
    made.row("never", lambda: pytest.fail("begun after the deadline"))
    made.close("A note.")
    assert rows(tmp_path / "out.md") == [["first", "1"], ["wrong", "failed: ValueError: a / b"]]
    assert "No time was left for: endless, never.\n\nA note." in (tmp_path / "out.md").read_text()


@pytest.mark.skipif("dino_small" not in RECIPES.scan(), reason="no recipe for small pictures")
def test_learning(tmp_path, capsys):
    assert learn.main(["drawn", *TRIED]) in (0, 1)
    said = capsys.readouterr().out
    assert "| 3 |" in said
    assert "ccepted: k-NN" in said
    assert "no epoch after" not in said.splitlines()[-1]


def test_acceptance():
    """20 points of k-NN, and KL and rank above those of epoch 2."""
    rising = {e: {"KL": 0.1 * e, "rank": 10.0 + e, "loss": 5.0} for e in range(1, 6)}
    assert learn.judged(30.0, 50.0, rising)[0]
    assert not learn.judged(30.0, 49.9, rising)[0]
    for name in ("KL", "rank"):
        assert not learn.judged(30.0, 60.0, rising | {5: rising[5] | {name: rising[2][name]}})[0]
    assert not learn.judged(30.0, 60.0, {e: rising[e] for e in (1, 2)})[0]
    assert not learn.judged(30.0, math.nan, rising)[0]


def test_what_is_packed(tmp_path):
    """Nothing that the machine has, all else at the pinned versions; unpacked, this checkout is found by its name."""
    found = pack.needed({"torch", "torchvision"}, mm=True)
    names = {item.partition("==")[0] for item in found}
    assert {"timm", "omegaconf", "onedl-mmcv", "pytest"} <= names
    assert not {"torch", "torchvision"} & names
    pins = (REPO / "constraints.txt").read_text().splitlines()
    assert all(item in pins for item in found)
    assert "onedl-mmcv" not in {item.partition("==")[0] for item in pack.needed(set(), mm=False)}
    (tmp_path / "wheels").mkdir()
    assert pack.install(tmp_path) == 0
    code = "from selfpatch_bench.pretrain.common import errors; from importlib.metadata import version; "
    code += "print(errors.__file__, version('selfpatch-bench'))"
    line = ["bash", "-c", f'source {tmp_path}/env.sh && exec "$0" -c "$1"', sys.executable, code]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(REPO / "pretrain/common/errors.py"), "0.1.0"]
