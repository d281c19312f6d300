"""What is wrong with the options alone is said before any checkpoint is looked at, let alone opened."""

import os

import pytest
import torch

import warm
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.run.runner import Options, run_command


@pytest.mark.parametrize("command", ["run", "ablate"])
def test_gpus_that_are_not_there_are_said_at_once(tmp_path, command):
    (tmp_path / "data").mkdir()
    rest = ["nowhere.pth", "--task", "ade20k_semfpn_40k"]
    if command == "ablate":
        rest = ["selfpatch_poster", "--video", str(tmp_path / "data")]
    line = [command, *rest, "--data", tmp_path / "data", "--out", tmp_path / "out", "--gpus", "8"]
    done = warm.run(*line, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --gpus 8: there is no GPU here")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_processes_of_the_cpu_need_no_gpu(monkeypatch):
    from selfpatch_bench.benchmarks.run.plan import check_gpus

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for gpus, device in ((8, "cpu"), (1, "auto"), (1, "cuda:0")):
        check_gpus(gpus, device)
    with pytest.raises(UserError, match=r"^--gpus 8: there is 1 GPU here$"):
        check_gpus(8, "auto")


@pytest.mark.parametrize("row", ["DINO|ViT-XX", "dino|vit-s/16", "DINO", "DINO|ViT-S/16|x"])
def test_a_row_that_nobody_published_is_refused_before_any_work(tmp_path, row):
    """Before the checkpoint is looked for, and before a run's folder is exported; by hand, for masks, from a list."""
    options = Options(data=[str(tmp_path / "data")], out=tmp_path / "out", row=row)
    for models, more in ((["nowhere.pth"], {}), ([], {"own": {"masks": tmp_path / "nowhere"}})):
        with pytest.raises(UserError, match=r"^--row: .* is not a published row.* the nearest: .*DINO\|ViT-S/16"):
            run_command(models, ["davis"], Options(**vars(options) | more))
    run_folder = tmp_path / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    (run_folder / "config.yaml").write_text("not even a configuration: [")
    with pytest.raises(UserError, match=r"^--row"):
        run_command([run_folder], ["davis"], options)
    (tmp_path / "models.yaml").write_text(f"- {{path: nowhere.pth, name: mine, row: '{row}'}}\n")
    with pytest.raises(UserError, match=r"entry 1 \(mine\): row: .*the nearest: .*DINO\|ViT-S/16"):
        run_command([], ["davis"], Options(**vars(options) | {"row": None, "models": tmp_path / "models.yaml"}))
    assert not (tmp_path / "out").exists()
