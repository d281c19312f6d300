"""XCiT: DINO's released backbones and training checkpoints, XCiT's own classifiers, timm's Xcit.

Source: facebookresearch/dino 7c446df, main_dino.py, hubconf.py; facebookresearch/xcit 82f5291, xcit.py; timm 1.0.31,
timm/models/xcit.py, which splits the class attention's query, key and value. Whether class attention norms the patches
too cannot be seen in the weights: all released networks do but the smallest (`nano`, 128 wide); code without a name
does not. Downstream uses the teacher. Mean and std are ImageNet's in all of them.
"""

import re

from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import shapes_of, xcit_card
from . import IMAGENET, alone, and_alone, drop, prefix_of, under
from .dino import HEADS, NETWORKS, beside

MARKS = {"blocks.0.attn.temperature", "cls_attn_blocks.0.norm1.weight", "patch_embed.proj.0.0.weight", "cls_token"}
STACK = re.compile(r"(cls_attn_blocks\.\d+\.attn)\.qkv\.(weight|bias)")
COUNTER = "num_batches_tracked"  # of batch norm, for training only
NORMED = (192, 384, 512, 768)  # widths of networks whose class attention norms all tokens
USUAL = {"cls_depth": 2, "qkv_bias": True}


def networks(keys) -> dict:
    """DINO's two, or the one of a file beside which nothing else lies than its averaged copy."""
    own = [k for k in keys if not k.startswith("model_ema.")]
    return and_alone({**NETWORKS, None: ()}, alone(own, "blocks.0.attn.temperature"))


def claims(shapes, meta) -> int:
    if (prefix := prefix_of(shapes, networks(shapes), MARKS.issubset)) is None:
        return 0
    return 3 if f"{prefix}cls_attn_blocks.0.attn.qkv.weight" in shapes else 1  # timm's


def convert(state, meta):
    prefix = state.pick(networks(state), MARKS.issubset)
    reasons = under(prefix, {"head.": "head"}) | ({"model_ema.": "EMA copy"} if prefix == "model." else {})
    dropped = drop(state, reasons) | (beside(state, prefix, HEADS) if prefix else {})
    names = state.below(prefix)
    dropped |= {key: "counter" for name, key in names.items() if name.endswith(COUNTER)}
    weights = {}
    for name, key in names.items():
        if key in dropped:
            continue
        value = state[key]
        if match := STACK.fullmatch(name):
            if not value.dim() or value.shape[0] % 3:
                raise UserError(f"{name} is {list(value.shape)}, not query, key and value")
            weights |= {f"{match[1]}.{n}.{match[2]}": v for n, v in zip("qkv", value.chunk(3), strict=True)}
        else:
            weights[name.replace("pos_embeder.", "pos_embed.")] = value
    state.assume("tokens_norm")
    card = xcit_card(shapes_of(weights), **IMAGENET)
    return weights, card.override({"tokens_norm": card.dim in NORMED}), dropped
