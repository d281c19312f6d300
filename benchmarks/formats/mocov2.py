"""MoCo v1 and v2, ResNet: training checkpoint, with or without momentum encoder, queue and optimizer.

Source: facebookresearch/moco 132aea9, main_moco.py (save_checkpoint), moco/builder.py. Downstream uses the query
encoder (main_lincls.py). v1's head is `fc`, v2's is `fc.0` and `fc.2`.
"""

from ._conv import IMAGENET, RESNET, drop, find, pick, resnet

NETWORKS = {"online": ("encoder_q.",), "teacher": ("encoder_k.",)}


def claims(shapes, meta) -> int:
    prefix = find(shapes, RESNET, NETWORKS)
    return 0 if prefix is None or any(".fpn_" in k for k in shapes) else 3


def convert(state, meta):
    prefix = pick(state, RESNET, NETWORKS)
    return resnet(state, prefix, moco_drops(state, prefix), **IMAGENET)


def moco_drops(state, prefix: str, heads: tuple[str, ...] = ("fc.",)) -> dict[str, str]:
    """What a MoCo checkpoint holds beside the encoder at `prefix`: heads, the other encoder, the queue."""
    root, _, mine = prefix.removesuffix(".").rpartition(".")
    root += "." if root else ""
    reasons = {prefix + head: "head" for head in heads}
    reasons |= {f"{root}{name}.": name for name in ("encoder_q", "encoder_k") if name != mine}
    return drop(state, reasons | {root + "queue": "queue"})
