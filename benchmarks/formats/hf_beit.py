"""Hugging Face BEiT and Data2Vec-vision: folder or file of the backbone, with or without a head.

Source: huggingface/transformers 5, models/beit/modeling_beit.py, models/data2vec/modeling_data2vec_vision.py, in the
names of its files and in those that version 5 has in memory. Relative positions are tables of each layer's or of one
for all, resized bilinearly for other sizes. The image vector is the class token of `last_hidden_state`, which a network
with mean pooling leaves without a norm (that is the pooler's). Heads, norm eps and activation are in config.json.
"""

import re

from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import normalisation_from
from . import drop, under
from ._relative import INDEX, TABLE, check_index
from ._transformers import facts_of, read, root_of

LAMBDA = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.lambda_([12])")
OWN_TABLE = re.compile(
    rf"(?:encoder\.)?layers?\.(\d+)\.(?:attention\.(?:attention\.)?)?relative_position_bias\.{TABLE}"
)
SHARED_TABLE = re.compile(rf"(?:encoder\.relative_position_bias|shared_position_bias)\.{TABLE}")
BIAS = re.compile(r"\.(query|key|value|q_proj|k_proj|v_proj)\.bias$")
HEADS = dict.fromkeys(("lm_head.", "decode_head.", "auxiliary_head.", "fpn", "bottleneck."), "head")
ALL_HEADS = (*HEADS, "classifier.", "layernorm.")
MODEL_TYPES = ("beit", "data2vec-vision")
ALWAYS = {"class_token": True}
USUAL = {"layer_scale": True, "qkv_bias": True}


def around(root: str) -> str:
    """The prefix of what lies beside the network: its heads."""
    return root.removesuffix(".").rpartition(".")[0] + "." * (root.count(".") > 1)


def claims(shapes, meta) -> int:
    if (root := root_of(shapes)) is None or not any(k.endswith(".0.layernorm_before.weight") for k in shapes):
        return 0
    names = [k.removeprefix(root) for k in shapes if k.startswith(root)]
    if any(".blocks." in n for n in names):
        return 0  # a Swin
    if not all(k.startswith((root, *(around(root) + head for head in ALL_HEADS))) for k in shapes):
        return 0  # another's trainer keeps it beside something else
    if any(LAMBDA.fullmatch(n) or OWN_TABLE.fullmatch(n) or SHARED_TABLE.fullmatch(n) for n in names):
        return 3
    biased = {found[1][0] for n in names if (found := BIAS.search(n))}
    return 3 * (biased == {"q", "v"})


def convert(state, meta):
    root = root_of(state) or ""
    weights, dropped = read(state, root, keyless=True)
    dropped |= drop(state, under(around(root), HEADS)) if root else {}
    for name, key in state.below(root).items():
        if match := LAMBDA.fullmatch(name):
            weights[f"blocks.{int(match[1])}.ls{match[2]}.gamma"] = state[key]
        elif match := OWN_TABLE.fullmatch(name):
            weights[f"blocks.{int(match[1])}.attn.{TABLE}"] = state[key]
        elif SHARED_TABLE.fullmatch(name):
            weights[f"rel_pos_bias.{TABLE}"] = state[key]
        elif name.endswith(f".{INDEX}"):
            check_index(name, state[key])
            dropped[key] = "rebuilt"
    # A model of masked pretraining keeps a norm beside the network: its last one, where the network has none itself.
    outer = {f"norm.{p}": f"{around(root)}layernorm.{p}" for p in ("weight", "bias")} if root else {}
    outer = {name: key for name, key in outer.items() if key in state.shapes}
    if "norm.weight" in weights:
        dropped |= dict.fromkeys(outer.values(), "head")
    else:
        weights |= {name: state[key] for name, key in outer.items()}
    tables = any(name.endswith(f".{TABLE}") for name in weights)
    facts = {"pos_resize": "bilinear" if tables else "size"} | facts_of(meta, 1e-12) | normalisation_from(meta)
    return weights, vit_card(shapes_of(weights), **facts), dropped
