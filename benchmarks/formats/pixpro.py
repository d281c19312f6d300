"""PixPro: training checkpoint, whole or as released (`model` alone).

Source: zdaxie/PixPro, main_pretrain.py (save_checkpoint), publish_model.py, contrast/models/PixPro.py,
contrast/resnet.py (torchvision's names), transfer/detection/convert_pretrain_to_d2.py. Downstream uses `encoder`.
"""

from ._conv import IMAGENET, is_resnet, prefix_of, resnet, under, wrapped

NETWORKS = {"online": wrapped("encoder."), "teacher": wrapped("encoder_k.")}
HEADS = ("projector.", "projector_k.", "projector_instance.", "projector_instance_k.", "predictor.", "value_transform.")


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, {None: NETWORKS["online"]}, is_resnet)
    return 3 * (prefix is not None and f"{prefix.removesuffix('encoder.')}projector_k.linear1.weight" in shapes)


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_resnet)
    mine = "encoder." if prefix.endswith("encoder.") else "encoder_k."
    beside = dict.fromkeys(HEADS, "head") | {"encoder.": "online", "encoder_k.": "teacher"}
    del beside[mine]
    return resnet(state, prefix, under(prefix.removesuffix(mine), beside), **IMAGENET)
