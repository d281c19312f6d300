"""A detector or segmenter fine-tuned by mmdet or mmseg (ours included): its backbone, taken out again.

Source: open-mmlab/mmdetection and mmsegmentation (`state_dict` with `backbone.`, `neck.` and heads), alinlab/SelfPatch
81aef14, detection/ and segmentation/ (timm's names, rescale layers fpn1 to fpn4). Unverified: no file of theirs was at
hand. Positions are stored at the grid of fine-tuning, and resized to an output size. What the backbone is, the other
formats say.
"""

import re

from ...pretrain.common.errors import UserError
from ..checkpoints import FORMATS
from ..checkpoints.state import State
from . import drop, is_vit, under, vit
from .mm_swin import OUTPUT
from .mmpretrain_vit import OTHERS, normalisation

PREFIXES = ("state_dict.backbone.", "backbone.")
INNER = ("encoder.vit.", "encoder.", "net.", "")  # ours keep the network in these
USUAL = {"qkv_bias": True}
HEADS = dict.fromkeys((*OTHERS, "neck."), "head")
RESCALE = {f"fpn{i}.": "rescale layers" for i in (1, 2, 3, 4)}


def claims(shapes, meta) -> int:
    """A backbone with a head beside it."""
    for prefix in PREFIXES:
        heads = tuple(prefix.removesuffix("backbone.") + name for name in OTHERS)
        if any(k.startswith(prefix) for k in shapes) and any(k.startswith(heads) for k in shapes):
            return 3
    return 0


def convert(state, meta):
    prefix = state.pick({None: PREFIXES}, len)
    around, config = prefix.removesuffix("backbone."), str(meta.get("meta"))
    if re.search(r"\b(bgr_to_rgb|to_rgb)['\"]?\s*[=:]\s*False", config):
        raise UserError("its config feeds BGR images, which no encoder here takes")
    reasons = under(around, HEADS) | under(prefix, RESCALE)
    if any(k.startswith(f"{prefix}norm0.") for k in state):  # Swin's; ViTs count theirs from 1
        reasons |= under(prefix, OUTPUT)
    dropped = drop(state, reasons)
    names = {k: key for k, key in state.below(prefix).items() if key not in dropped}
    inner = next(i for i in INNER if all(k.startswith(i) for k in names))
    names = {_timm_name(k.removeprefix(inner)): key for k, key in names.items()}
    backbone = State({name: state.refs[key] for name, key in names.items()})
    if is_vit(names):
        weights, card, more = vit(backbone, "", {}, pos_resize="size")
    else:
        weights, card, more = _other(backbone, meta)
    state.used |= {names[k] for k in backbone.used}
    return weights, card.override(normalisation(meta)), dropped | {names[k]: why for k, why in more.items()}


def _timm_name(name: str) -> str:
    """timm's name of a block's LayerNorm; our segmenters call it ln1 or ln2, for the decay rules of mmseg."""
    return re.sub(r"^(blocks\.\d+)\.ln([12])\.", r"\1.norm\2.", name)


def _other(backbone: State, meta):
    """The reading of the format with the highest claim on the backbone alone. Raises UserError if there is none."""
    formats = [p.module for p in FORMATS.scan().values() if p.ours and p.name != __name__.rpartition(".")[2]]
    claim, chosen = max(((f.claims(backbone.shapes, meta), f) for f in formats), key=lambda pair: pair[0])
    if not claim:
        raise UserError(f"no format knows its backbone ({', '.join(list(backbone)[:4])} ...)")
    return chosen.convert(backbone, meta)
