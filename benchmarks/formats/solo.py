"""solo-learn: a Lightning checkpoint of any of its methods, with a ViT, ResNet or Swin.

Source: vturrisi/solo-learn 9187ea3, solo/methods/ (base.py: classifier, momentum_backbone), solo/backbones/vit/,
main_linear.py. Its evaluations take `backbone`, the network that is trained by gradients, a ViT's class token. Its ViTs
take the size that they were trained at only; for others timm's rule is taken, of whose networks they are made. Those of
MAE and MoCo v3 have 12 heads up to ViT-B (vit_mae.py, vit_mocov3.py).
"""

import re

from ...pretrain.common.card import ARCHITECTURES
from ..checkpoints.stated import table_in, vit_size
from . import IMAGENET, below, fits, is_dino, prefix_of, vit
from ._conv import RESNET_PARTS, SWIN_PARTS, is_resnet, is_swin, only, resnet, swin

NETWORKS = {
    "student": ("state_dict.backbone.", "backbone."),
    "teacher": ("state_dict.momentum_backbone.", "momentum_backbone."),
}
# What its methods keep beside the networks, by the first segment; of MAE's decoder all names begin with `decoder.`.
HEADS = re.compile(r"(?:momentum_)?(?:classifier|projector|predictor\d?|prototypes|head|decoder)|transformer_encoder")
LOSS = re.compile(r"queue\w*|\w+_loss_func|mask_token|whitening|local_memory_\w+|knn")
OWN = {"projector", "head", "decoder", "predictor", "prototypes", "queue"}  # beside a classifier, of one network
ALWAYS = {"qkv_bias": True}
KINDS = {is_resnet: RESNET_PARTS, is_swin: SWIN_PARTS}


def is_network(keys) -> bool:
    return is_dino(keys) or any(test(keys) for test in KINDS)


def is_whole(keys, prefix: str) -> bool:
    """Do the names below the prefix hold one of its networks and nothing else?"""
    names = below(keys, prefix)
    return fits(names) or any(test(names) and only(keys, prefix, parts) for test, parts in KINDS.items())


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_network)
    if prefix is None or not is_whole(shapes, prefix):
        return 0
    home = prefix.removesuffix("momentum_backbone.").removesuffix("backbone.")
    parts = {name.partition(".")[0] for name in below(shapes, home)}
    if "classifier" not in parts:
        return 0
    method = table_in(meta, "hyper_parameters").get("method")
    return 3 if "momentum_backbone" in parts or isinstance(method, str) else 2 * bool(parts & OWN)


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_network)
    home = prefix.removesuffix("momentum_backbone.").removesuffix("backbone.")
    dropped = {}
    for name, key in state.below(home).items():
        part = name.partition(".")[0]
        if HEADS.fullmatch(part) or LOSS.fullmatch(part):
            dropped[key] = "head" if HEADS.fullmatch(part) else "loss"
        elif part in ("backbone", "momentum_backbone") and not key.startswith(prefix):
            dropped[key] = "the other network"
    for test, read in ((is_resnet, resnet), (is_swin, swin)):
        if test(below(state, prefix)):
            return read(state, prefix, dropped, **IMAGENET)
    state.assume("pos_resize")
    weights, card, dropped = vit(state, prefix, dropped, pos_resize="timm", **IMAGENET)
    heads = _heads(table_in(meta, "hyper_parameters"), card.dim)
    return weights, card.override({"heads": heads} if heads else {}), dropped


def _heads(stated, dim: int) -> int | None:
    """Heads of the backbone that the file's own configuration names, if its width is that of the weights."""
    method, name = stated.get("method"), table_in(stated, "backbone").get("name")
    size = vit_size(name) if isinstance(name, str) else None
    if size is None or not isinstance(method, str) or ARCHITECTURES[size][0] != dim:
        return None
    return max(12, ARCHITECTURES[size][1]) if method in ("mae", "mocov3") else ARCHITECTURES[size][1]
