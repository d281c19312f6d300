"""open-mmlab's Swin: mmpretrain's (mmcls's) classifier or SimMIM, or the backbone of mmdet and mmseg alone.

Source: open-mmlab/mmpretrain, mmpretrain/models/backbones/swin_transformer.py, models/utils/attention.py; open-mmlab/
mmdetection, mmdet/models/backbones/swin.py, mmdet/models/layers/transformer/utils.py (PatchMerging, whose channels are
in the order of torch's unfold). Verified against these networks, not against a file of mmdet. Each stage whose output
is taken has a norm (`norm0` to `norm3`): a detector's four belong to it, mmpretrain's only one is the final norm.
"""

import re

from ...pretrain.common.errors import UserError
from . import prefix_of
from ._conv import IMAGENET, SWIN_PARTS, drop, swin, under
from ._mm import HOMES, beside, by_runner, images_of

MARKS = {"patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"}
NETWORKS = {None: (*HOMES, "state_dict.", "")}
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
    return 0 if prefix is None else 1 if not prefix else 3 if prefix in HOMES and by_runner(meta) else 2


def convert(state, meta):
    prefix = state.pick(NETWORKS, MARKS.issubset)
    around = beside(prefix.removesuffix("backbone.")) if prefix in HOMES else {}
    final = final_norm(state.below(prefix))
    norms = {name: why for name, why in OUTPUT.items() if name != final}
    dropped = drop(state, under(prefix, norms | {"mask_token": "mask token"}) | around)
    names = {official(name, final): key for name, key in state.below(prefix).items() if key not in dropped}
    tensors = {name: in_order(name, state[key]) for name, key in names.items() if name.startswith(SWIN_PARTS)}
    known = {"sizes": "padded_own"} | images_of(state, meta) if prefix in HOMES else IMAGENET
    weights, card, rebuilt = swin(tensors, "", {}, **known)
    return weights, card, dropped | {names[name]: why for name, why in rebuilt.items()}


def final_norm(names) -> str:
    """`norm3.` where the last of four stages alone has an output norm; '' where there is none, or there are several."""
    stages = {int(found[1]) for name in names if (found := re.match(r"stages\.(\d{1,4})\.", name))}
    norms = {found[0] for name in names if (found := re.match(r"norm\d{1,4}\.", name))}
    return next(iter(norms)) if norms == {f"norm{max(stages)}."} else ""


def official(name: str, final: str = "") -> str:
    """The official code's name of a tensor; final: what its final norm is called, if not `norm.`."""
    for old, new in NAMES:
        name = name.replace(old, new)
    name = f"norm.{name.removeprefix(final)}" if final and name.startswith(final) else name
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
