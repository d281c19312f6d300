"""A tiny random file of every format of ResNets and Swins."""

import pickle
import re
from pathlib import Path

import torch

from selfpatch_bench.benchmarks.backbones.conv import timm_network
from selfpatch_bench.pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, Card

from .vit import Example, save_example

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
# Formats whose example has the card of that of `vicreg` or `moby`: what sees only card and weights need not run them.
SAME_NETWORK = ("densecl", "detco", "dino_resnet50", "hf_resnet", "mocov2", "mocov3_resnet", "pixpro", "resim")
SAME_NETWORK += ("timm_resnet", "timm_swin", "lightly_resnet")


def resnet_weights(block: str = "bottleneck, stride on the 3x3", **fields) -> dict[str, torch.Tensor]:
    """A small ResNet's tensors with batch statistics, in torchvision's names (timm's are the same)."""
    sizes = {"widths": (8, 8, 16, 32) if block != "basic" else (4, 4, 8, 8), "stem_channels": 64} | fields
    card = Card("resnet", block=block, blocks=(1, 2, 1, 1), bn_eps=1e-5, **IMAGENET, **sizes)
    network = timm_network(card)
    for name, value in network.named_parameters():
        if value.dim() == 1:  # batch norms; timm begins with 0 at the end of each block
            torch.nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.2)
    network.train()(torch.randn(2, 3, 64, 64))  # statistics that are not 0 and 1
    return {k: v.clone() for k, v in network.state_dict().items()}


def deep_resnet_weights() -> dict[str, torch.Tensor]:
    """A small ResNet-D's tensors in timm's names: three convolutions in the stem, pooled shortcuts."""
    return resnet_weights(stem_channels=16, stem_widths=(4, 8), avg_down=True)


def swin_weights(official: bool = False) -> dict[str, torch.Tensor]:
    """A small Swin's tensors in timm's names; official: merging closes a stage, buffers are in the file."""
    sizes = {"patch": 4, "window": 2, "dim": 8, "depths": (1, 2, 1, 2), "heads": (1, 2, 2, 4), "final_norm": True}
    card = Card("swin", **sizes, class_token=False, patch_norm=True, absolute_pos=False, norm_eps=1e-5, sizes="padded")
    network = timm_network(card)
    for name, value in network.named_parameters():
        if "norm" in name or name.endswith("table"):
            torch.nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.2)
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    if not official:
        return weights
    for i in (1, 2, 3):
        for part in ("norm.weight", "norm.bias", "reduction.weight"):
            weights[f"layers.{i - 1}.downsample.{part}"] = weights.pop(f"layers.{i}.downsample.{part}")
    for i, stage in enumerate(network.layers):
        for j, block in enumerate(stage.blocks):
            weights[f"layers.{i}.blocks.{j}.attn.relative_position_index"] = block.attn.relative_position_index.clone()
            if j % 2:
                weights[f"layers.{i}.blocks.{j}.attn_mask"] = torch.zeros(4, 4, 4)
    return weights


def moco_tree(heads: tuple[str, ...] = ("fc.0.weight", "fc.2.weight")) -> dict:
    """A MoCo training checkpoint's content."""
    state = {"queue": torch.zeros(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    for encoder in ("encoder_q", "encoder_k"):
        network = resnet_weights() | {name: torch.zeros(8, 32) for name in heads}
        state |= {f"{encoder}.{k}": v for k, v in network.items()}
    state = {f"module.{k}": v for k, v in state.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


def detectron2_tree(pyramid: bool = False) -> dict:
    """A ResNet's tensors as NumPy arrays in detectron2's names, as MoCo's converter makes them."""
    arrays = {}
    for key, value in (resnet_weights() | {"fc.0.weight": torch.zeros(8, 32)}).items():
        key = key if "layer" in key else f"stem.{key}"
        for i in (1, 2, 3, 4):
            key = key.replace(f"layer{i}.", f"res{i + 1}.").replace(f"bn{i}.", f"conv{i}.norm.")
        arrays[key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value.numpy()
    if pyramid:
        arrays["backbone.fpn_lateral5.weight"] = torch.zeros(4, 32, 1, 1).numpy()
    return {"model": arrays, "__author__": "MOCO", "matching_heuristics": True}


def torchvision_resnet(folder: Path) -> Example:
    """A small ResNet-18 with a classifier."""
    head = {"fc.weight": torch.zeros(5, 8), "fc.bias": torch.zeros(5)}
    return save_example(folder / "torchvision.pth", resnet_weights(block="basic") | head)


def timm_resnet(folder: Path) -> Example:
    """A tiny training checkpoint."""
    network = resnet_weights() | {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}
    return save_example(folder / "timm_resnet.pth.tar", {"epoch": 3, "arch": "resnet50", "state_dict": network})


def swav(folder: Path) -> Example:
    """A tiny file as released."""
    heads = {"projection_head.0.weight": torch.zeros(8, 32), "prototypes.weight": torch.zeros(5, 8)}
    return save_example(folder / "swav.pth.tar", {f"module.{k}": v for k, v in (resnet_weights() | heads).items()})


def mocov2(folder: Path) -> Example:
    """A tiny training checkpoint."""
    return save_example(folder / "mocov2.pth.tar", moco_tree())


def densecl(folder: Path) -> Example:
    """A tiny released backbone."""
    return save_example(folder / "densecl.pth", {"state_dict": resnet_weights(), "author": "DenseCL"})


def detco(folder: Path) -> Example:
    """A tiny backbone file."""
    network = resnet_weights() | {"fc.weight": torch.zeros(5, 32)}
    return save_example(folder / "detco.pth", {"state_dict": network})


def dino_resnet50(folder: Path) -> Example:
    """A tiny full checkpoint."""
    teacher = {f"backbone.{k}": v for k, v in resnet_weights().items()} | {"head.mlp.0.weight": torch.zeros(8, 32)}
    student = {f"module.{k}": v for k, v in teacher.items()}
    tree = {"student": student, "teacher": teacher, "dino_loss": {"center": torch.zeros(1, 8)}, "epoch": 1}
    return save_example(folder / "dino_resnet50.pth", tree)


def resim(folder: Path) -> Example:
    """A tiny encoder in detectron2's names, NumPy arrays in a plain pickle."""
    (folder / "resim.pkl").write_bytes(pickle.dumps(detectron2_tree(pyramid=True)))
    return folder / "resim.pkl", {}


def moby(folder: Path) -> Example:
    """A tiny training checkpoint with Swin, in the official order of stages."""
    model = {f"encoder.{k}": v for k, v in swin_weights(official=True).items()}
    model |= {f"encoder_k.{k}": v for k, v in swin_weights(official=True).items()}
    model |= {"predictor.linear_out.bias": torch.zeros(8), "queue1": torch.zeros(8, 4)}
    return save_example(folder / "moby.pth", {"model": model, "epoch": 3, "max_accuracy": 0.0})


def timm_swin(folder: Path) -> Example:
    """A tiny flat state dict with a classifier."""
    return save_example(folder / "timm_swin.pth", swin_weights() | {"head.fc.weight": torch.zeros(5, 64)})


def mm_swin_names(weights: dict) -> dict[str, torch.Tensor]:
    """Official names of a Swin as open-mmlab's, whose merging has its channels in unfold's order."""
    mm_names = {"patch_embed.proj.": "patch_embed.projection.", ".attn.": ".attn.w_msa."}
    mm_names |= {".mlp.fc1.": ".ffn.layers.0.0.", ".mlp.fc2.": ".ffn.layers.1."}
    found = {}
    for name, value in weights.items():
        if ".downsample." in name:
            value = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        for official, mm in mm_names.items():
            name = name.replace(official, mm)
        found[re.sub(r"^layers\.", "stages.", name)] = value
    return found


def mm_swin(folder: Path) -> Example:
    """A tiny backbone in mm's names, with the norms of its outputs."""
    names = swin_weights(official=True).items()
    weights = mm_swin_names({k: v for k, v in names if "attn_mask" not in k and not k.startswith("norm.")})
    weights |= {f"norm{i}.weight": torch.ones(8 << i) for i in range(4)}
    return save_example(folder / "mm_swin.pth", weights)
