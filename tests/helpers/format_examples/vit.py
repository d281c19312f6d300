"""A tiny random file of every ViT format whose names are timm's, or nearly."""

import argparse
from pathlib import Path

import torch

from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights

Example = tuple[Path, dict]  # the file or folder, and fields of the card that it does not state


def save_example(path: Path, tree, **facts) -> Example:
    """Write the tree with torch; facts: fields of the card that the file does not state."""
    torch.save(tree, path)
    return path, facts


def example_vit(**fields) -> dict:
    """Weights of a tiny random ViT (24 wide, 2 blocks and heads, 4x4 patches of 8) in timm's names, for examples."""
    sizes = {"patch": 8, "dim": 24, "depth": 2, "heads": 2, "pos": "learned 4x4", "mlp_ratio": 2.0}
    state = Encoder(Card("vit", **(sizes | fields))).vit.state_dict()
    return {k: v + 0.1 * torch.randn_like(v) for k, v in state.items()}


def sincos(side: int, dim: int, first: str) -> torch.Tensor:
    """Fixed positions [1, 1 + side*side, dim]; first: what the first half encodes, "rows" or "columns"."""
    angles = torch.arange(side)[:, None] / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    one = torch.cat([angles.sin(), angles.cos()], 1)
    halves = [one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)]
    grid = torch.cat(halves if first == "rows" else halves[::-1], 2)
    return torch.cat([torch.zeros(1, dim), grid.flatten(0, 1)])[None]


def example_tree(backbone: dict, head: dict, loss: dict, student: dict | None = None) -> dict:
    """A full checkpoint's content; `student`: what only its backbone has."""
    teacher = {f"backbone.{k}": v for k, v in backbone.items()} | head
    other = {f"backbone.{k}": v * 1.5 for k, v in backbone.items()} | head
    other |= {f"backbone.{k}": v for k, v in (student or {}).items()}
    args = argparse.Namespace(arch="vit_small", patch_size=8)
    return {
        "student": {f"module.{k}": v for k, v in other.items()},
        "teacher": teacher,
        "args": args,
        "epoch": 1,
    } | loss


def dino(folder: Path) -> Example:
    """A tiny full checkpoint."""
    head = {"head.mlp.0.weight": torch.zeros(8, 24), "head.last_layer.weight_g": torch.ones(4, 1)}
    tree = example_tree(example_vit(), head, {"dino_loss": {"center": torch.zeros(1, 4)}})
    return save_example(folder / "dino.pth", tree, heads=2)


def ibot(folder: Path) -> Example:
    """A tiny full checkpoint."""
    shared = torch.ones(4, 1)
    head = {"head.mlp.0.weight": torch.zeros(8, 24), "head.last_layer.weight_g": shared}
    head["head.last_layer2.weight_g"] = shared
    losses = {"ibot_loss": {"center": torch.zeros(1, 4), "center2": torch.zeros(1, 1, 4)}}
    tree = example_tree(example_vit(), head, losses, student={"masked_embed": torch.ones(1, 24)})
    return save_example(folder / "ibot.pth", tree, heads=2)


def sere(folder: Path) -> Example:
    """A tiny full checkpoint."""
    relations = {
        f"{r}projection.0.weight": torch.ones(24)
        for r in ("pixel_sere.", "channel_sere.", "pixel_sere_local.", "channel_sere_local.")
    }
    head = {"head.mlp.0.weight": torch.zeros(8, 24), "head.last_layer2.weight_g": torch.ones(4, 1)}
    losses = {"ibot_loss": {"center": torch.zeros(1, 4), "center2": torch.zeros(1, 1, 4)}}
    tree = example_tree(example_vit(), head, losses, student={"masked_embed": torch.ones(1, 24)})
    for side, before in (("student", "module.backbone."), ("teacher", "backbone.")):
        tree[side] |= {before + k: v for k, v in relations.items()}
    tree["teacher"] = {f"module.{k}": v for k, v in tree["teacher"].items()}
    return save_example(folder / "sere.pth", tree, heads=2)


def pwself(folder: Path) -> Example:
    """A tiny full checkpoint."""
    head = {"head.mlp.0.weight": torch.zeros(8, 24), "head.last_layer.weight_g": torch.ones(4, 1)}
    tree = example_tree(example_vit(), head, {"dino_loss": {"center": torch.zeros(1, 17, 4)}})
    return save_example(folder / "pwself.pth", tree, heads=2)


def selfpatch(folder: Path) -> Example:
    """A tiny full checkpoint."""
    card = Card("vit", 8, 24, 2, 3, False, False, pos="learned 4x4", mlp_ratio=2.0, readout="class_attention")
    encoder = Encoder(card)
    teacher = {f"backbone.{k}": v for k, v in encoder.vit.state_dict().items()}
    teacher |= {f"ca_head.{k}": v for k, v in encoder.readout.state_dict().items()}
    teacher |= {"c_head.mlp.0.weight": torch.zeros(8, 24), "p_head.mlp.0.weight": torch.zeros(8, 24)}
    student = {f"module.{k}": v for k, v in teacher.items()}
    losses = {"center": torch.zeros(1, 1, 8), "patch_center": torch.zeros(1, 8)}
    return save_example(
        folder / "selfpatch.pth", {"student": student, "teacher": teacher, "dino_loss": losses}, heads=3
    )


def vissl(folder: Path) -> Example:
    """A tiny training checkpoint."""
    trunk, head = example_vit(), {"heads.0.mlp.0.weight": torch.zeros(8, 24)}
    loss = {f"momentum_teacher.module.trunk.{k}": v for k, v in trunk.items()} | {"center": torch.zeros(1, 4)}
    loss |= {f"momentum_teacher.module.{k}": v for k, v in head.items()}
    student = {"trunk": {k: v * 1.5 for k, v in trunk.items()}, "heads": {"0.mlp.0.weight": torch.zeros(8, 24)}}
    tree = {"phase_idx": 1, "loss": loss, "type": "consolidated"}
    tree["classy_state_dict"] = {"base_model": {"model": student, "meta": {}}, "loss": loss}
    return save_example(folder / "vissl.torch", tree, heads=2)


def mae(folder: Path) -> Example:
    """A tiny training checkpoint."""
    model = example_vit() | {"pos_embed": sincos(4, 24, "columns"), "mask_token": torch.ones(1, 1, 24)}
    model |= {"decoder_pos_embed": torch.ones(1, 17, 8), "decoder_embed.weight": torch.ones(8, 24)}
    tree = {"model": model, "epoch": 1, "scaler": {}, "args": argparse.Namespace(model="mae_vit_base_patch16")}
    return save_example(folder / "mae.pth", tree, heads=2)


def mocov3(folder: Path) -> Example:
    """A tiny training checkpoint."""
    vit = example_vit() | {"pos_embed": sincos(4, 24, "rows")}
    state = {f"base_encoder.{k}": v for k, v in vit.items()} | {"base_encoder.head.0.weight": torch.ones(8, 24)}
    state |= {f"momentum_encoder.{k}": v if k == "pos_embed" else v * 1.5 for k, v in vit.items()}
    state |= {"momentum_encoder.head.0.weight": torch.ones(8, 24), "predictor.0.weight": torch.ones(8, 8)}
    tree = {"epoch": 1, "arch": "vit_small", "state_dict": {f"module.{k}": v for k, v in state.items()}}
    return save_example(folder / "mocov3.pth.tar", tree, heads=2)


def timm(folder: Path) -> Example:
    """A tiny flat state dict with a classifier."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5)
    return save_example(folder / "timm.pth", network.state_dict(), heads=2, mean=0.5, std=0.5)


def dinov2(folder: Path) -> Example:
    """A tiny released backbone with registers and a SwiGLU."""
    vit = example_vit(registers=2, layer_scale=True, act="swiglu")
    tree = {k.replace("reg_token", "register_tokens"): v for k, v in vit.items()}
    for new, old in ((".mlp.fc1.", ".mlp.w12."), (".mlp.fc2.", ".mlp.w3.")):
        tree = {k.replace(new, old): v for k, v in tree.items()}
    return save_example(folder / "dinov2.pth", tree | {"mask_token": torch.zeros(1, 24)}, heads=2)


def dinov3(folder: Path) -> Example:
    """A tiny released backbone with a SwiGLU."""
    vit = example_vit(registers=2, layer_scale=True, act="swiglu", pos="rotary", pos_resize="rotary", heads=3)
    tree = {"mask_token": torch.zeros(1, 24), "rope_embed.periods": 100 ** (torch.arange(2) / 2).bfloat16().float()}
    mask = torch.ones(72)
    mask[24:48] = 0
    for name, value in vit.items():
        name = name.replace("reg_token", "storage_tokens").replace(".mlp.fc2.", ".mlp.w3.")
        if ".mlp.fc1." in name:
            tree |= {name.replace("fc1", w): v.clone() for w, v in zip(("w1", "w2"), value.chunk(2), strict=True)}
            continue
        tree[name] = value
        if name.endswith("qkv.bias"):
            tree[f"{name}_mask"] = mask
    return save_example(folder / "dinov3.pth", tree)


def selfpatch_bench(folder: Path) -> Example:
    """A tiny export."""
    card = Card("vit", 8, 24, 2, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_weights(folder / "own.safetensors", Encoder(card).vit.state_dict(), card)
    return folder / "own.safetensors", {}
