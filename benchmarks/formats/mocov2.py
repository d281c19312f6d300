"""MoCo v1 and v2, ResNet: training checkpoint, with or without momentum encoder, queue and optimizer.

Source: facebookresearch/moco 132aea9, main_moco.py (save_checkpoint), moco/builder.py. Downstream uses the query
encoder (main_lincls.py). v1's head is `fc`, v2's is `fc.0` and `fc.2`.
"""

from ._conv import IMAGENET, is_resnet, prefix_of, resnet, wrapped

NETWORKS = {"online": wrapped("encoder_q."), "teacher": wrapped("encoder_k.")}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_resnet)
    others = any(".fpn_" in k or f".{k}".rpartition(".encoder.")[1] for k in shapes)  # ReSim's, PixPro's
    return 0 if prefix is None or others else 3


def convert(state, meta):
    return read(state, ("fc.",))


def read(state, heads: tuple[str, ...]):
    """What `convert` returns for a MoCo-like checkpoint; beside the encoder: its heads, the other one, the queue."""
    prefix = state.pick(NETWORKS, is_resnet)
    root, _, mine = prefix.removesuffix(".").rpartition(".")
    root += "." if root else ""
    reasons = {prefix + head: "head" for head in heads}
    reasons |= {f"{root}{name}.": name for name in ("encoder_q", "encoder_k") if name != mine}
    return resnet(state, prefix, reasons | {root + "queue": "queue"}, **IMAGENET)
