"""DINO: full training checkpoint, released backbone file, or its backbone alone.

Source: facebookresearch/dino 7c446df, main_dino.py (save_dict), utils.py (MultiCropWrapper), vision_transformer.py.
Downstream uses the teacher. Copies of the released full file from before June 2021 have no `backbone.` prefix and a
head called `projection_head`; that form is supported by its description only.
"""

from ..card import IMAGENET_MEAN, IMAGENET_STD, vit_card
from . import below, drop, fits, is_vit

NETWORKS = ("teacher.backbone.", "teacher.", "student.backbone.", "student.", "backbone.", "")
NEED = {"cls_token", "norm.weight"}
OTHERS = ("ibot_loss.", "dino_loss.patch_center")  # written by code bases that share the rest of the layout


def network(shapes) -> str | None:
    """Prefix of the network to evaluate: the teacher if there is one."""
    for prefix in NETWORKS:
        if is_vit(keys := below(shapes, prefix)) and set(keys) >= NEED:
            return prefix
    return None


def claims(shapes, meta) -> int:
    prefix = network(shapes)
    if prefix is None or any(k.startswith(OTHERS) for k in shapes):
        return 0
    if prefix == "":
        return int(fits(shapes))
    return 3 if "dino_loss.center" in shapes else 2


def convert(state, meta):
    prefix = network(state)
    dropped = {} if not prefix else heads(state, prefix, ("head.mlp.", "head.last_layer.", "projection_head."))
    weights = {name: state[key] for name, key in state.below(prefix).items() if key not in dropped}
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes, pos_resize="dino", mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped


def heads(state, prefix: str, names: tuple[str, ...]) -> dict[str, str]:
    """Everything beside the backbone in a checkpoint of this family: own heads, the other network, training state."""
    own = prefix.partition(".")[0] + "." if prefix.startswith(("teacher.", "student.")) else ""
    reasons = {own + name: "head" for name in names}
    reasons |= {"optimizer.": "optimizer", "dino_loss.": "loss", "fp16_scaler.": "scaler"}
    other = {"teacher.": "student.", "student.": "teacher."}.get(own)
    if other:
        reasons[other] = other.rstrip(".")
    return drop(state, reasons)


def example(folder):
    """A tiny full checkpoint."""
    import argparse

    import torch

    from ..encoder import Encoder

    shapes = {"patch": 8, "dim": 24, "depth": 2, "heads": 2, "pos": "learned 4x4", "mlp_ratio": 2.0}
    from ..card import Card

    encoder = Encoder(Card("vit", **shapes))
    backbone = {f"backbone.{k}": v for k, v in encoder.vit.state_dict().items()}
    head = {"head.mlp.0.weight": torch.zeros(8, 24), "head.last_layer.weight_g": torch.ones(4, 1)}
    student = {f"module.{k}": v for k, v in (backbone | head).items()}
    tree = {
        "student": student,
        "teacher": backbone | head,
        "dino_loss": {"center": torch.zeros(1, 4)},
        "args": argparse.Namespace(arch="vit_small", patch_size=8),
        "epoch": 1,
    }
    torch.save(tree, folder / "dino.pth")
    return folder / "dino.pth", {"heads": 2}
