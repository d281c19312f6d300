"""Evaluation on a GPU: the official masks, and k-NN as on the CPU."""

import json
from pathlib import Path

import pytest
from on_device import device as device
from on_device import exact as exact
from rich.console import Console
from test_gpu_steps import trainer

from conftest import REPO
from frozen_knn import drawn_classes
from official_runs import checkpoint_of, videos_of
from selfpatch_bench.benchmarks.datasets.masks import read_mask
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.pretrain.common.weights import save_weights
from selfpatch_bench.pretrain.export import portable

DAVIS = sorted((REPO / "tests/golden/official").glob("*/scores.json"))


def evaluate(file: Path, task: str, root: Path, out: Path, device, values=(), **card) -> record.Record:
    """The record of a task."""
    options = Options(data=[str(root)], out=out, card=card, overrides=list(values), device=str(device))
    jobs = plan([file], [task], options)
    assert run(jobs, options, Console(quiet=True)) == 0
    return record.read(record.done(out, task, jobs[0].key)[-1])


@pytest.mark.parametrize("file", DAVIS, ids=lambda p: p.parent.name)
def test_davis_masks_are_the_official_ones(file, device, exact, tmp_path):
    """At least 99.9 % equal pixels in every frame, J&F within 0.002."""
    golden = json.loads(file.read_text())
    values = [f"frames={golden['frames']}"] if golden["frames"] else []
    root = videos_of(golden, tmp_path)
    found = evaluate(checkpoint_of(golden), "davis", root, tmp_path / "out", device, values, heads=golden["heads"])
    compared = 0
    for name, scores in golden["sequences"].items():
        for path in sorted((file.parent / "masks" / name).glob("*.png")):
            mine = read_mask(Path(found.artifacts) / "masks" / name / path.name)
            assert (mine == read_mask(path)).mean() >= 0.999, path
            compared += 1
        for number, parts in scores["objects"].items():
            for measure in "JF":
                mean = found.parts["sequences"][name][number][measure]["mean"]
                assert abs(mean - parts[measure]["mean"]) < 0.002, (name, number, measure)
    assert compared > 0


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_knn_is_the_cpus(precision, device, exact, tmp_path, monkeypatch):
    """float32: the same up to one picture; bf16: up to a tenth of them."""
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    root = drawn_classes(tmp_path / "classes", 60, 30, 48, 3)
    file = tmp_path / "net.safetensors"
    made = trainer("dino", "cpu")
    save_weights(file, *portable(made.learner.teacher.state_dict(), made.cfg))
    values = ["k=5", "other_k=[]", "resize=36", "crop=32"]
    wanted = evaluate(file, "knn", root, tmp_path / "cpu", "cpu", values)
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "other"))
    found = evaluate(file, "knn", root, tmp_path / "gpu", device, [*values, f"precision={precision}"])
    pictures = 1 if precision == "float32" else 3
    assert found.metrics["top1"] == pytest.approx(wanted.metrics["top1"], abs=pictures * 100 / 30 + 1e-6)
