"""What no file can be right in: sizes that no network has, numbers that are none; and inputs that once failed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_completeness import example, save

import warm
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common.weights import KEY

# -- sizes that a card claims


def claimed(path: Path, card, names=("norm.weight",)) -> Path:
    """A file of ours whose card says more than its small tensors."""
    save_file({k: torch.ones(2) for k in names}, path, metadata={KEY: json.dumps({"card": card})})
    return path


SWIN = {"family": "swin", "patch": 4, "window": 7, "dim": 8, "patch_norm": True, "absolute_pos": False}
SWIN |= {"sizes": "padded", "class_token": False}
RESNET = {"family": "resnet", "block": "basic", "stem_channels": 64, "widths": [4] * 4, "bn_eps": 1e-5}
VIT = {"family": "vit", "patch": 8, "dim": 24, "heads": 2}


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (VIT | {"depth": 1000}, "1000 blocks .* at most 128"),
        (VIT | {"depth": 100}, "its tensors are of 0 blocks"),
        (VIT | {"depth": 10**30}, "card depth=1"),
        (RESNET | {"blocks": [4000] * 4}, "at most 1000"),
        (RESNET | {"blocks": [1000] * 16}, "16000 blocks"),
        (RESNET | {"blocks": [30] * 4}, "its tensors are of 0 blocks in stage 1"),
        (SWIN | {"depths": [1000] * 16, "heads": [1] * 16}, "16000 blocks"),
        (SWIN | {"depths": [2] * 16, "heads": [1] * 16}, "its tensors are of 0 blocks in stage 1"),
        (VIT | {"depth": [[1]]}, "card depth="),
        (VIT | {"depth": None}, "lacks depth"),
        (VIT | {"depth": 2, "mlp_ratio": None}, "card mlp_ratio=None"),
        (VIT | {"depth": 2, "heads": [2, 2]}, "a ViT has one number of heads"),
        (VIT | {"depth": 2, "x" * 3000: 1}, "no field xxx"),
        (VIT | {"depth": 2, "family": "x" * 3000}, "card family=xxx"),
        ([1, 2], "its card is damaged"),
        (None, "its card is damaged"),
    ],
)
def test_a_card_is_held_against_the_names(card, words, tmp_path):
    """Before anything is built: a thousand blocks take ten seconds, 16,000 minutes."""
    path = claimed(tmp_path / "x.safetensors", card)
    with pytest.raises(UserError, match=words) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "card",
    [
        SWIN | {"dim": 65536, "depths": [1] * 16, "heads": [1] * 16, "window": 32, "mlp_ratio": 64},
        VIT | {"dim": 65536, "depth": 1, "heads": 65536, "mlp_ratio": 64, "registers": 1024},
        VIT | {"depth": 1, "pos": "learned 9999x9999", "patch": 1024},
        VIT | {"depth": 1, "heads": 24, "pos": "rotary", "pos_resize": "rotary"},
        RESNET | {"widths": [65536] * 4, "blocks": [1] * 4, "groups": 7, "block": "bottleneck, stride on the 3x3"},
        RESNET | {"blocks": [1] * 4, "readout": "class_attention"},
    ],
)
def test_sizes_that_no_layer_has_are_one_line(card, tmp_path):
    """With a tensor for each block that the card claims, so that the network is built, without memory."""
    stages = len(card.get("depths") or card.get("blocks") or ())
    names = {"vit": ["blocks.0.x"], "swin": [f"layers.{i}.blocks.0.x" for i in range(stages)]}
    names["resnet"] = [f"layer{i + 1}.0.x" for i in range(stages)]
    path = claimed(tmp_path / "x.safetensors", card, names[card["family"]])
    with pytest.raises(UserError) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("command", ["inspect", "run", "convert"])
def test_every_command_refuses_such_a_file_at_once(command, tmp_path):
    path = claimed(tmp_path / "x.safetensors", SWIN | {"depths": [1000] * 16, "heads": [1] * 16})
    more = {"run": ["--task", "davis", "--data", "."], "convert": [str(tmp_path / "out.safetensors")]}
    done = warm.run(command, path, *more.get(command, []), cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "16000 blocks" in done.stderr


def test_sizes_given_by_hand_are_held_against_the_names_too(tmp_path):
    path, card, _, _ = example("dino", tmp_path)
    for depth, words in ((900, "900 blocks"), (3, "of 2 blocks")):
        with pytest.raises(UserError, match=words):
            open_checkpoint(path, card=card | {"depth": depth})


# -- NaN and inf


def test_numbers_that_are_none_are_named(tmp_path):
    """inspect names the tensors and how many of each; run and convert refuse. What is dropped does not matter."""
    path, card, tensors, meta = example("dino", tmp_path)
    odd = dict(tensors)
    odd["student.backbone.norm.bias"] = odd["student.backbone.norm.bias"] * float("nan")
    assert not open_checkpoint(save(tmp_path / "a.pth", odd, meta), card=card).lacking
    odd["teacher.backbone.blocks.1.mlp.fc1.bias"] = torch.full((48,), float("nan"))
    odd["teacher.backbone.norm.weight"] = torch.ones(24).index_fill(0, torch.tensor([3]), -float("inf"))
    save(path, odd, meta)
    words = "blocks.1.mlp.fc1.bias (48 NaN), norm.weight (1 inf)"
    assert words in report(path, None, card)
    videos = make_videos(tmp_path / "videos", sequences=1, frames=2, size=(72, 96), objects=1)
    out = tmp_path / "x.safetensors"
    for command in (["run", str(path), "--task", "davis", "--data", str(videos)], ["convert", str(path), str(out)]):
        done = warm.run(*command, "--heads", "2", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
    assert not out.exists()
    assert not (tmp_path / "results" / "records").exists()
    everywhere = {k: v * float("nan") if k.startswith("teacher.") else v for k, v in tensors.items()}
    (line,) = open_checkpoint(save(path, everywhere, meta), card=card).lacking
    assert "and 26 more tensors" in line
    assert len(line) < 600


# -- inputs that once failed


@pytest.mark.shared
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("teacher_last_block/dino_teacher1block.pth", "its teacher.backbone has depth=1, its student.backbone depth=2"),
        ("qkv_bias_dropped/dino_noqkvbias.pth", "always have qkv_bias=True"),
        ("card_swin_16000_blocks/x.safetensors", "16000 blocks"),
        ("float8_pos/mae_float8_pos.pth", r"pos_embed holds torch\.float8"),
        ("hidden_act", "hidden_act .* is not supported"),
        ("index_longname", "not a file beside it"),
        ("ckpt_expanded/c.pth", None),
    ],
)
def test_shared_cases(case, words, need):
    path = need(f"cases/{case}")
    if words is None:
        assert "30/30 tensors" in report(path, None, {})
        return
    with pytest.raises(UserError, match=words) as error:
        report(path, None, {})
    assert len(str(error.value)) < 700
