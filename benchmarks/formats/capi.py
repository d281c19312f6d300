"""CAPI's ViT: released backbone, its evaluation checkpoint, or a training checkpoint.

Source: facebookresearch/capi 98b4fa1, model.py, train_capi.py, default_pretrain_config.yaml. RMSNorms (eps 1e-5), no
biases but that of the patches, rotary positions whose frequencies each block stores, registers and no class token. The
final norm has no weights: those of 1 here are the same. The image vector is the mean of the normed patches; the decoder
predicts and is dropped. Training files hold the student's average as `student_ema` and as `teacher`, which share it.
"""

import torch

from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import shapes_of, vit_card
from . import IMAGENET, alone, and_alone, below, drop, prefix_of, under

NETWORKS = {
    "teacher": ("model.student_ema.backbone.", "student_ema.backbone.", "model.teacher.backbone.", "teacher.backbone."),
    "student": ("model.student.backbone.", "student.backbone."),
}
MARKS = {"registers", "patch_embed.weight", "encoder.blocks.0.residual1.fn.rope.freqs"}
NAMES = (
    ("encoder.blocks.", "blocks."),
    (".residual1.norm.", ".norm1."),
    (".residual2.norm.", ".norm2."),
    (".residual1.fn.rope.freqs", ".attn.rope_freqs"),
    (".residual1.fn.proj.", ".attn.proj."),
    (".residual2.fn.", ".mlp."),
    ("patch_embed.", "patch_embed.proj."),
    ("registers", "reg_token"),
)
HEADS = ("head.last_layer.", "head.layer.")  # of student and teacher
BESIDE = {"decoder.": "decoder", "mask_token": "mask token"}
ALWAYS = {"class_token": False, "norm": "rms", "proj_bias": False}
USUAL = {"registers": 16}


def networks(keys) -> dict:
    """Those of the training, or the one of a file beside which nothing else lies than its head."""
    own = [k for k in keys if not k.startswith(HEADS)]
    return and_alone(NETWORKS, alone(own, "encoder.blocks.0.residual1.fn.rope.freqs"))


def claims(shapes, meta) -> int:
    return 3 if prefix_of(shapes, networks(shapes), MARKS.issubset) is not None else 0


def convert(state, meta):
    prefix = state.pick(networks(state), MARKS.issubset)
    kept = [k for k in below(state, prefix) if not k.startswith(tuple(BESIDE))]
    around = prefix.removesuffix("backbone.")
    reasons = under(prefix, BESIDE) | ({f"{around}head.": "head"} if around != prefix else {})
    if side := around.rstrip(".").rpartition(".")[2]:
        root = around.removesuffix(f"{side}.")
        reasons |= {f"{root}{n}.": n for n in ("student", "student_ema", "teacher") if n != side}
        reasons |= {"clustering_optimizer.": "optimizer"}
    dropped = drop(state, reasons)
    weights = {}
    for name in kept:
        value = state[prefix + name]
        for old, new in NAMES:
            name = name.replace(old, new)
        weights[name] = value
    weights = _stacked(weights)
    weights["norm.weight"] = torch.ones(weights["patch_embed.proj.weight"].shape[0])
    if (registers := weights["reg_token"].shape[1]) % 4:
        raise UserError(f"{registers} registers do not lie evenly on the four sides of an image")
    facts = {"norm": "rms", "norm_eps": 1e-5, "proj_bias": "blocks.0.attn.proj.bias" in weights}
    return weights, vit_card(shapes_of(weights), **facts, **IMAGENET), dropped


def _stacked(weights: dict) -> dict:
    """query, key and value of each block as one."""
    found, stacks = {}, {}
    for name, value in weights.items():
        home, mark, rest = name.partition(".residual1.fn.")
        if mark and rest[1:].startswith("_proj."):
            stacks.setdefault(f"{home}.attn.qkv.{rest[7:]}", {})["qkv".index(rest[0])] = value
        else:
            found[name] = value
    for name, parts in stacks.items():
        if sorted(parts) != [0, 1, 2] or len({p.shape for p in parts.values()}) != 1:
            raise UserError(f"{name}: of query, key and value one is missing or of another shape")
        found[name] = torch.cat([parts[i] for i in range(3)])
    return found
