"""DenseCL, ResNet: released backbone, or full training checkpoint of OpenSelfSup.

Source: WXinlong/DenseCL 5d1c456, tools/extract_backbone_weights.py, openselfsup/models/densecl.py (which has the
encoder's tensors twice: `backbone.` and `encoder_q.0.`). The full layout is unverified: no such file was at hand.
"""

from ._conv import IMAGENET, alone_resnet, and_alone, is_resnet, prefix_of, resnet, under, wrapped

NETWORKS = {"online": wrapped("backbone.", ""), "teacher": wrapped("encoder_k.0.")}
BESIDE = {"queue": "queue", "head.": "head", "encoder_q.1.": "neck", "encoder_k.1.": "neck"}


def claims(shapes, meta) -> int:
    if alone_resnet(shapes) == "state_dict.":
        return 3 if meta.get("author") == "DenseCL" else 1
    prefix = prefix_of(shapes, NETWORKS, is_resnet)
    return 3 * bool(prefix and f"{prefix.removesuffix('backbone.')}queue2" in shapes)


def convert(state, meta):
    prefix = state.pick(and_alone(NETWORKS, alone_resnet(state)), is_resnet)
    root = prefix.removesuffix("backbone.").removesuffix("encoder_k.0.")
    if prefix == root or alone_resnet(state) is not None:
        if meta.get("author") != "DenseCL":
            state.assume("block")
        return resnet(state, prefix, {}, **IMAGENET)
    others = {"backbone.": "online", "encoder_q.0.": "online", "encoder_k.0.": "teacher"}
    others |= {"encoder_q.0.": "same as backbone"} if prefix.endswith("backbone.") else {}
    del others[prefix.removeprefix(root)]
    return resnet(state, prefix, under(root, BESIDE | others), **IMAGENET)
