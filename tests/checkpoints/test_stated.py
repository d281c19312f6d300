"""What a file, or a config beside it, says of its network is read; what it names and is not built here is refused."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
import yaml

from format_examples import format_example
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.checkpoints.named import heads_in, network_in
from selfpatch_bench.benchmarks.checkpoints.stated import normalisation_in
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
PARITY = 3e-6  # float32, the same network by other code
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
ARCH = "vit_base_patch16_224"


def tiny(**options) -> torch.nn.Module:
    """timm's ViT, each parameter perturbed."""
    torch.manual_seed(0)
    net = timm.create_model(ARCH, **TINY, **options).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return net


def hub_folder(folder: Path, net: torch.nn.Module, options: dict) -> Path:
    """As timm.models.save_for_hf writes it."""
    config = {"architecture": ARCH, "num_features": 24, "global_pool": net.global_pool, "model_args": TINY | options}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg"}, {"act_layer": "gelu_tanh"}],
    ids=lambda o: ",".join(map(str, o.values())) or "token",
)
def test_timm_s_own_words(options, tmp_path):
    net = tiny(**options)
    encoder = load(hub_folder(tmp_path, net, options))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = net.forward_head(net.forward_features(images), pre_logits=True)
    assert (encoder(images).image - want).abs().max() <= PARITY * want.abs().max()
    assert not open_checkpoint(tmp_path).assumed


def test_a_pooling_that_is_not_built(tmp_path):
    options = {"global_pool": "avgmax", "fc_norm": False}
    with pytest.raises(UserError, match=r"its pooling \(global_pool avgmax\) is not built here"):
        open_checkpoint(hub_folder(tmp_path, tiny(**options), options))


def test_a_bare_file_of_timm_says_less(tmp_path):
    torch.save(tiny().state_dict(), path := tmp_path / "x.pth")
    found = open_checkpoint(path, card={"heads": 2, **HALF})
    assert found.assumed == "norm_eps 1e-06 (assumed), act gelu (erf) (assumed), readout token (assumed)"


def test_timm_s_training_folder(tmp_path):
    """`train.py` leaves mean and std open, and takes those of the network."""
    net, args = tiny(), {"model": ARCH, "gp": None, "mean": None, "std": None, "model_kwargs": dict(TINY)}
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(args))
    torch.save({"state_dict": net.state_dict()}, path := tmp_path / "last.pth.tar")
    found = open_checkpoint(path, format="timm")
    assert (found.card.heads, found.card.mean, found.lacking, found.assumed) == (2, (0.5,) * 3, [], "")
    assert found.facts["mean"] == f"timm's for args.yaml: arch {ARCH}"
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(args | {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}))
    assert open_checkpoint(path, format="timm").card.std == (0.3,) * 3
    (tmp_path / "args.yaml").write_text("a: [")  # any other program's
    assert open_checkpoint(path, format="timm").lacking


def test_a_name_of_another_width_tells_nothing(tmp_path):
    net = tiny()
    torch.save({"arch": ARCH, "epoch": 1, "state_dict": net.state_dict()}, tmp_path / "x.pth")
    assert open_checkpoint(tmp_path / "x.pth").assumed.startswith("norm_eps 1e-06 (assumed), act gelu")


def test_a_named_architecture_whose_weights_do_not_fit_is_named(tmp_path):
    net = timm.create_model("seresnet18", channels=(8, 8, 16, 16), num_classes=0)
    about = {
        "arch": "seresnet18",
        "epoch": 1,
        "args": {"model": "seresnet18", "model_kwargs": {"channels": [8, 8, 16, 16]}},
    }
    torch.save(about | {"state_dict": net.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"unexpected: layer1.0.se.*; args: arch seresnet18 is not built here"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("arch", "table", "words"),
    [
        ("resnetblur50", {}, "arch resnetblur50 is not built here: its maxpool is Sequential, here MaxPool2d"),
        (
            "resnet50",
            {"model_kwargs": {"output_stride": 16}},
            "resnet50 is not built here: its layer4.0 is of stride 1, here 2",
        ),
        ("resnet50", {}, None),
        ("resnet50", {"model_kwargs": {"checkpoint_path": "x.pth", "no_such_argument": 3}}, None),
        ("no_such_network50", {}, None),
    ],
)
def test_an_architecture_that_is_not_built_is_refused_by_name(arch, table, words, tmp_path):
    path, given = format_example("timm_resnet", tmp_path)
    state = torch.load(path)
    torch.save({"arch": arch, "epoch": 1, "state_dict": state.get("state_dict", state)}, path)
    if table:
        torch.save(torch.load(path) | {"args": argparse.Namespace(model=arch, **table)}, path)
    if words is None:
        assert open_checkpoint(path, card=given).reading.format == "timm_resnet"
    else:
        with pytest.raises(UserError, match=words):
            open_checkpoint(path, card=given)


def test_heads_of_a_named_network_that_is_as_wide():
    meta = {"args": {"arch": "vit_medium_patch16_gap_256"}}
    assert heads_in(meta, 512) == (8, "args: arch vit_medium_patch16_gap_256")
    assert heads_in(meta, 384) is None


@pytest.mark.parametrize("value", [10**9, [1] * 100, {"a": 1}, float("inf")])
def test_absurd_arguments_build_nothing(value):
    where, network = network_in({"config.json": {"architecture": ARCH, "model_args": {"depth": value}}})
    assert network is None or len(network.blocks) == 12, where


@pytest.mark.parametrize(
    ("place", "table", "mean", "std"),
    [
        ("preprocessor_config.json", {"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ("preprocessor_config.json", {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "do_normalize": False}, 0, 1),
        ("args", {"mean": [0.4] * 3, "std": [0.3] * 3}, 0.4, 0.3),
        ("args", {"mean": [123.7] * 3, "std": [58.4] * 3}, None, None),
        ("args", {"mean": "imagenet", "std": None}, None, None),
    ],
)
def test_where_mean_and_std_are(place, table, mean, std):
    found, where = normalisation_in({place: table})
    assert found == ({} if mean is None else {"mean": (mean,) * 3, "std": (std,) * 3})
    assert where.startswith(place) == bool(found)


@pytest.mark.parametrize(
    ("student", "eps", "refused"),
    [
        ({"norm_layer": "layernorm", "pos_embed_rope_dtype": "fp32"}, 1e-6, None),
        ({"norm_layer": "layernormbf16"}, 1e-5, None),
        ({}, 1e-5, None),
        ({"pos_embed_rope_dtype": "bf16"}, None, "student.pos_embed_rope_dtype bf16 is not built here, fp32 is"),
        ({"pos_embed_rope_normalize_coords": "max"}, None, "normalize_coords max is not built here"),
        ({"norm_layer": "rmsnorm"}, None, "norm_layer rmsnorm is not built here"),
    ],
)
def test_the_config_of_dinov3_s_run(student, eps, refused, tmp_path):
    (folder := tmp_path / ("eval/training_9" if student else "")).mkdir(parents=True, exist_ok=True)
    path, given = format_example("dinov3", folder)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"student": student}))
    if refused:
        with pytest.raises(UserError, match=refused):
            open_checkpoint(path, card=given)
    else:
        found = open_checkpoint(path, card=given)
        assert (found.card.norm_eps, "norm_eps" in found.assumed) == (eps, "norm_layer" not in student)
