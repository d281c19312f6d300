"""Folders as trainers leave them: the checkpoint is found one level below, or the choice is listed."""

import zipfile
from pathlib import Path

import pytest
import torch

from format_examples import example_vit
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.checkpoints.folders import locate
from selfpatch_bench.benchmarks.checkpoints.state import read_file

ZERO = "global_step9/zero_pp_rank_{}_mp_rank_00_{}_states.pt"
TRAINER = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin")


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.touch() if not name.endswith("/") else path.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([f"checkpoint-500/{n}" for n in TRAINER], "checkpoint-500/model.safetensors"),
        ([f"checkpoint-500/{n}" for n in TRAINER] + ["model.safetensors", "training_args.bin"], "model.safetensors"),
        (["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "random_states_0.pkl"], "pytorch_model_fsdp_0"),
        (["pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.bin", "sampler.bin"], "pytorch_model_fsdp.bin"),
        (["train/last.pth.tar", "train/args.yaml", "train/summary.csv"], "train/last.pth.tar"),
        (["version_0/checkpoints/epoch=1-step=9.ckpt"], None),  # two levels
        (["checkpoints/epoch=1-step=9.ckpt", "hparams.yaml"], "checkpoints/epoch=1-step=9.ckpt"),
        (["checkpoint-500/model.safetensors", "checkpoint-900/model.safetensors"], "checkpoint-500, checkpoint-900"),
        (["x/last.pth.tar", "x/model_best.pth.tar"], r"x: .*several checkpoints \(last.pth.tar, model_best.pth.tar\)"),
        ([], "it holds nothing"),
        (["readme.md", "tf_model.h5", "flax_model.msgpack"], "flax_model.msgpack, tf_model.h5, which no torch reads"),
    ],
)
def test_what_a_folder_holds(names, found, tmp_path):
    put(tmp_path, *names)
    if found in names or (found and (tmp_path / found).is_dir()):
        assert locate(tmp_path) == tmp_path / found
    else:
        with pytest.raises(UserError, match=found or "no checkpoint in it or one level below"):
            locate(tmp_path)


def test_deepspeed(tmp_path):
    """Stages 1 and 2 keep the network whole, beside the optimiser's shards; of stage 3 each file is a part."""
    put(tmp_path, ZERO.format(0, "optim"), ZERO.format(1, "optim"))
    (tmp_path / "latest").write_text("global_step9")
    torch.save(
        {"module": example_vit(), "ds_version": "0.14"}, tmp_path / "global_step9" / "mp_rank_00_model_states.pt"
    )
    assert set(read_file(tmp_path)[0]) == set(example_vit())
    (tmp_path / "global_step9" / "mp_rank_00_model_states.pt").unlink()
    for name in (tmp_path, put(tmp_path, ZERO.format(0, "model"), ZERO.format(1, "model")), tmp_path / "global_step9"):
        with pytest.raises(UserError, match=r"zero_to_fp32|no checkpoint"):
            read_file(name)
    with pytest.raises(UserError, match=r"a shard of DeepSpeed's ZeRO.*zero_to_fp32.py"):
        read_file(tmp_path / ZERO.format(0, "optim"))


def test_an_unpacked_torch_file(tmp_path):
    torch.save(example_vit(), tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        file.extractall(tmp_path / "out")
    for path in ("out", "out/x", "out/x/data.pkl"):
        with pytest.raises(UserError, match=r"x: an unpacked torch file .*`zip -0 -r x.pth x`"):
            read_file(tmp_path / path)
    with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_STORED) as file:  # as that command does
        for path in [tmp_path / "out" / "x", *sorted((tmp_path / "out" / "x").rglob("*"))]:
            file.write(path, path.relative_to(tmp_path / "out"))
    assert set(read_file(tmp_path / "y.pth")[0]) == set(example_vit())


def test_configs_of_the_folder_that_was_named(tmp_path):
    (tmp_path / "checkpoint-9").mkdir()
    torch.save(example_vit(), tmp_path / "checkpoint-9" / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3}')
    assert read_file(tmp_path)[1]["config.json"] == {"num_attention_heads": 3}
