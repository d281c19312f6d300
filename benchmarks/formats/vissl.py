"""VISSL's DINO with a ViT: training checkpoint (`classy_state_dict`, `loss`).

Source: facebookresearch/vissl, vissl/hooks/log_hooks.py, vissl/losses/dino_loss.py, vissl/models/trunks/
vision_transformer.py, configs/config/benchmark/nearest_neighbor/models/dino/deit_s16.yaml. Downstream uses the teacher,
which lies in the loss, twice; the trunk of `base_model`, where VISSL's other methods have theirs, is the student.
Positions: one scale factor sqrt(patches/stored) for both sides, so square grids only; there it is a resize by size.
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from . import drop, example_vit, find, is_dino, save_example, take

CLASSY = "classy_state_dict."
NETWORKS = {
    "teacher": ("loss.momentum_teacher.trunk.", f"{CLASSY}loss.momentum_teacher.trunk."),
    "student": (f"{CLASSY}base_model.model.trunk.",),
}

ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    return 3 if find(shapes, [p for prefixes in NETWORKS.values() for p in prefixes], is_dino) else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dino)
    heads = {f"{p.removesuffix('trunk.')}heads.": "head" for prefixes in NETWORKS.values() for p in prefixes}
    centre = {"loss.center": "loss", f"{CLASSY}loss.center": "loss", f"{CLASSY}optimizer.": "optimizer"}
    dropped = drop(state, heads | centre)
    taken = next(name for name, prefixes in NETWORKS.items() if prefix in prefixes)
    for name, prefixes in NETWORKS.items():
        for other in prefixes:
            if other != prefix:
                dropped |= drop(state, {other: "copy" if name == taken else name})
    weights, shapes = take(state, prefix, dropped)
    return weights, vit_card(shapes, pos_resize="square", mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped


def example(folder):
    """A tiny training checkpoint."""
    import torch

    trunk, head = example_vit(), {"heads.0.mlp.0.weight": torch.zeros(8, 24)}
    loss = {f"momentum_teacher.module.trunk.{k}": v for k, v in trunk.items()} | {"center": torch.zeros(1, 4)}
    loss |= {f"momentum_teacher.module.{k}": v for k, v in head.items()}
    student = {"trunk": {k: v * 1.5 for k, v in trunk.items()}, "heads": {"0.mlp.0.weight": torch.zeros(8, 24)}}
    tree = {"phase_idx": 1, "loss": loss, "type": "consolidated"}
    tree["classy_state_dict"] = {"base_model": {"model": student, "meta": {}}, "loss": loss}
    return save_example(folder / "vissl.torch", tree, {"heads": 2})
