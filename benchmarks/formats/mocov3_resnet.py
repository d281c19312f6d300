"""MoCo v3 with a ResNet: training checkpoint, as released (`r-50-*ep.pth.tar`).

Source: facebookresearch/moco-v3, main_moco.py (save_checkpoint), moco/builder.py (MoCo_ResNet), main_lincls.py: the
network is torchvision's, `fc` its projector. Downstream uses the online network (`base_encoder`).
"""

from ._conv import IMAGENET, is_resnet, prefix_of, resnet, under, wrapped

NETWORKS = {"online": wrapped("base_encoder."), "teacher": wrapped("momentum_encoder.")}


def claims(shapes, meta) -> int:
    return 3 * (prefix_of(shapes, NETWORKS, is_resnet) is not None)


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_resnet)
    mine = "base_encoder." if prefix.endswith("base_encoder.") else "momentum_encoder."
    beside = {"base_encoder.": "online", "momentum_encoder.": "teacher", "predictor.": "predictor"}
    reasons = under(prefix.removesuffix(mine), {name: why for name, why in beside.items() if name != mine})
    return resnet(state, prefix, reasons | {f"{prefix}fc.": "projector"}, **IMAGENET)
