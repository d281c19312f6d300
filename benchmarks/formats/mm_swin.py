"""mmdet's and mmseg's Swin: its backbone's names, alone or taken out of a fine-tuned model by `mm_finetuned`.

Source: open-mmlab/mmdetection, mmdet/models/backbones/swin.py, mmdet/models/layers/transformer/utils.py (PatchMerging,
whose channels are in the order of torch's unfold). Verified against that network, not against a file of theirs. The
norms `norm0` to `norm3` of the stages' outputs belong to the detector; there is no final norm.
"""

import re

from ...pretrain.common.errors import UserError
from . import prefix_of
from ._conv import IMAGENET, SWIN_PARTS, drop, swin, under

MARKS = {"patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"}
NETWORKS = {None: ("state_dict.", "")}
OUTPUT = {f"norm{i}.": "output norm" for i in range(4)}
USUAL = {"qkv_bias": True, "patch_norm": True}
NAMES = (
    ("patch_embed.projection.", "patch_embed.proj."),
    (".attn.w_msa.", ".attn."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, MARKS.issubset)
    return 0 if prefix is None else 2 if prefix else 1


def convert(state, meta):
    prefix = state.pick(NETWORKS, MARKS.issubset)
    dropped = drop(state, under(prefix, OUTPUT))
    names = {official(name): key for name, key in state.below(prefix).items() if key not in dropped}
    tensors = {name: in_order(name, state[key]) for name, key in names.items() if name.startswith(SWIN_PARTS)}
    weights, card, rebuilt = swin(tensors, "", {}, **IMAGENET)
    return weights, card, dropped | {names[name]: why for name, why in rebuilt.items()}


def official(name: str) -> str:
    """The official code's name of a tensor."""
    for old, new in NAMES:
        name = name.replace(old, new)
    return re.sub(r"^stages\.", "layers.", name)


def in_order(name: str, value):
    """Merging's channels [..., 4 C] in the official order: all of the corner (0, 0), then (1, 0), (0, 1), (1, 1).

    Unfold gives the four corners of each channel together, row by row. Raises UserError where there are no such four.
    """
    if ".downsample." not in name:
        return value
    if not value.dim() or value.shape[-1] % 4:
        raise UserError(f"{name} is {list(value.shape)}, not of four corners")
    corners = value.unflatten(-1, (value.shape[-1] // 4, 4))[..., [0, 2, 1, 3]]
    return corners.transpose(-1, -2).flatten(-2)
