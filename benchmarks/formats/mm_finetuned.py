"""A detector or segmenter fine-tuned by mmdet or mmseg (ours included): its backbone, taken out again.

Source: open-mmlab/mmdetection and mmsegmentation (`state_dict` with `backbone.`, `neck.` and heads), alinlab/SelfPatch
81aef14, detection/ (timm's names, rescale layers fpn1 to fpn4, DINO's resizing of positions) and segmentation/ (mmseg's
ViT), SwinTransformer/Swin-Transformer-Object-Detection c7b2011. Verified against these networks; unverified: no file of
theirs was at hand. Else positions are stored at the grid of fine-tuning, and resized to an output size. Attention
heads, mean and std: of the config that the file holds, if it names one value. What the backbone is, the other formats
say; all of the model is read by checkpoints/finetuned.py.
"""

import re

from ...pretrain.common.card import POSITION_RULES
from ...pretrain.common.errors import UserError
from ..checkpoints import FORMATS
from ..checkpoints.state import State
from . import drop, is_vit, under, vit
from .mm_swin import OUTPUT
from .mmpretrain_vit import OTHERS, config_of, normalisation

PREFIXES = ("state_dict.backbone.", "backbone.")
INNER = ("encoder.vit.", "encoder.", "net.", "")  # ours keep the network in these
USUAL = {"qkv_bias": True}
HEADS = dict.fromkeys((*OTHERS, "neck."), "head")
DETECTORS = ("rpn_head.", "roi_head.", "bbox_head.")
XCIT = {"blocks.0.attn.temperature", "blocks.0.local_mp.conv1.weight"}
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
    if state.below(prefix).keys() >= XCIT:
        raise UserError("its backbone is XCiT: cross-covariance attention, which no network here has")
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
        detector = any(k.startswith(tuple(around + name for name in DETECTORS)) for k in state)
        rule = _positions(meta, "dino" if detector and not inner and "cls_token" not in names else "size")
        weights, card, more = vit(backbone, "", {}, pos_resize=rule)
    else:
        weights, card, more = _other(backbone, meta)
    state.used |= {names[k] for k in backbone.used}
    known = stated(meta)
    known = {k: known[k] for k in ("mean", "std", "heads") if k in known and (k != "heads" or card.family == "vit")}
    return weights, card.override(known), dropped | {names[k]: why for k, why in more.items()}


def stated(meta) -> dict:
    """What the text of its config names once: `mean` and `std` in 0..1, `heads` (num_heads of a ViT, or of a card of
    ours), and `blocks`, those whose outputs the heads of the model see (four out_indices)."""
    text, found = config_of(meta), normalisation(meta)
    heads = set(re.findall(r"\b(?:num_)?heads['\"]?\s*[=:]\s*([1-9]\d{0,3})\b", text))
    if len(heads) == 1:
        found["heads"] = int(heads.pop())
    lists = re.findall(r"\bout_indices['\"]?\s*[=:]\s*[\[(]([\d,\s]+)[\])]", text)
    blocks = {tuple(int(v) for v in text.split(",") if v.strip()) for text in lists}
    if len(blocks) == 1 and len(one := blocks.pop()) == 4:
        found["blocks"] = one
    return found


def _positions(meta, default: str) -> str:
    """The rule for positions in a config of ours, where the recipe's `size` comes before the card's; else `default`."""
    found = set(re.findall(r"\bpos_resize['\"]?\s*[=:]\s*['\"](\w+)['\"]", config_of(meta)))
    found &= set(POSITION_RULES)
    return "size" if "size" in found else found.pop() if len(found) == 1 else default


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
