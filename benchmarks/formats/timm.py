"""timm's VisionTransformer: a flat state dict (.pth, .safetensors) or timm's own training checkpoint.

Source: huggingface/pytorch-image-models 1.0.31, timm/models/vision_transformer.py, timm/utils/checkpoint_saver.py.
The names say nothing about mean and std: 0.5 for AugReg, ImageNet's for DeiT and DINO.
"""

from ..card import vit_card
from . import VIT_ROOTS, below, drop, is_vit

WRAPPERS = ("state_dict.", "")
HEAD = ("head.", "fc_norm.")
NORMS = {"norm.weight", "fc_norm.weight"}


def network(shapes) -> str | None:
    for prefix in WRAPPERS:
        keys = below(shapes, prefix)
        if is_vit(keys) and set(keys) & NORMS and all(k.startswith(VIT_ROOTS + HEAD) for k in keys):
            return prefix
    return None


def claims(shapes, meta) -> int:
    prefix = network(shapes)
    return 0 if prefix is None else 2 if prefix else 1


def convert(state, meta):
    prefix = network(state) or ""
    reasons = {prefix + name: "head" for name in HEAD} | {"optimizer.": "optimizer"}
    reasons |= {"state_dict_ema.": "EMA copy", "amp_scaler.": "scaler"} if prefix else {}
    dropped = drop(state, reasons)
    weights = {name: state[key] for name, key in state.below(prefix).items() if key not in dropped}
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes, pos_resize="timm"), dropped


def example(folder):
    """A tiny flat state dict with a classifier."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5)
    torch.save(network.state_dict(), folder / "timm.pth")
    return folder / "timm.pth", {"heads": 2, "mean": 0.5, "std": 0.5}
