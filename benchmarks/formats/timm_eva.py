"""EVA-02 of timm, or with the official code's names: a flat state dict, or timm's training checkpoint.

Source: timm 1.0.31, timm/models/eva.py (its filter tells the official names, baaivision/EVA, EVA-02). Query, key and
value come as one or as three; a SwiGLU with a norm as w1 and w2, else as one. The rotation counts places of a grid of
16 x 16 in all released networks, which no file says. The number of heads is in no file either: of timm, a config beside
it, or --heads. Mean and std are those that timm states: CLIP's for EVA-02.
"""

import torch

from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import eva_card, shapes_of
from ..checkpoints.stated import heads_from, normalisation_from
from . import VIT_ROOTS, alone, below, drop, under

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
ROOTS = (*(root for root in VIT_ROOTS if root != "reg_token"), "fc_norm.")
BESIDE = {"head.": "head", "mask_token": "mask token", "lm_head.": "head", "rope.": "rebuilt"}
NAMES = (
    (".mlp.ffn_ln.", ".mlp.norm."),
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".mlp.w12.", ".mlp.fc1."),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
    (".attn.q_proj.bias", ".attn.q_bias"),
    (".attn.v_proj.bias", ".attn.v_bias"),
)
GATED = {"blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.w1.weight", "blocks.0.mlp.w12.weight"}
ALWAYS = {"class_token": True}
ASSUMED = ("rope_grid",)


def root_of(shapes) -> str | None:
    """The prefix of the one network, beside its averaged copy."""
    own = {k: v for k, v in shapes.items() if not k.startswith("model_ema.")}
    prefix = alone(own, "patch_embed.proj.weight")
    names = set(below(own, prefix)) if prefix is not None else set()
    first, second = (own.get(f"{prefix}blocks.0.mlp.fc{i}.weight", (0, 0)) for i in "12")
    gated = GATED & names or (first[0] and first[0] == 2 * second[-1])
    biased = {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.weight"} & names
    fits = all(n.startswith((*ROOTS, *BESIDE)) for n in names)
    return prefix if gated and biased and fits and {"pos_embed", "cls_token"} <= names else None


def claims(shapes, meta) -> int:
    return 0 if root_of(shapes) is None else 1


def convert(state, meta):
    prefix = state.pick({None: (root_of(state.shapes) or "",)}, lambda names: "patch_embed.proj.weight" in names)
    dropped = drop(state, under(prefix, BESIDE) | ({"model_ema.": "EMA copy"} if prefix else {}))
    dropped |= {k: "rebuilt" for k in state if ".attn.rope." in k}  # the official code has it in each block
    found = {}
    for name, key in state.below(prefix).items():
        if key not in dropped:
            for old, new in NAMES:
                name = name.replace(old, new)
            found[name] = state[key]
    weights = _fused(found)
    dim = weights["cls_token"].shape[-1]
    heads, why = heads_from(meta, dim)
    if not heads:
        raise UserError(f"its rotary positions need the number of heads: {why}: give --heads N")
    normalisation = normalisation_from(meta)
    if not normalisation:
        state.assume("mean", "std")
    return weights, eva_card(shapes_of(weights), heads=heads, **(normalisation or CLIP)), dropped


def _fused(found: dict) -> dict:
    """Query, key and value of each block as one matrix."""
    weights = {}
    for name, value in found.items():
        home, mark, _ = name.partition(".attn.q_proj.weight")
        if mark:
            parts = [found.get(f"{home}.attn.{n}_proj.weight") for n in "qkv"]
            if any(p is None or p.shape != value.shape for p in parts):
                raise UserError(f"{name}: of query, key and value one is missing or of another shape")
            weights[f"{home}.attn.qkv.weight"] = torch.cat(parts)
        elif not name.endswith((".attn.k_proj.weight", ".attn.v_proj.weight")):
            weights[name] = value
    return weights
