"""mmpretrain's (mmcls's) and mmseg's VisionTransformer: training checkpoint, or its backbone alone.

Source: open-mmlab/mmpretrain, mmpretrain/models/backbones/vision_transformer.py; open-mmlab/mmsegmentation,
mmseg/models/backbones/vit.py (attention by torch's MultiheadAttention). Unverified: no file of them was at hand;
mmseg's own network, with random weights, gives the same features. Positions are resized to an output size. Mean and
std: of the `data_preprocessor` in the config that the file holds, if it names one pair.
"""

import re

import torch

from . import drop, prefix_of, under, vit

NETWORKS = {None: ("state_dict.backbone.", "backbone.", "state_dict.", "")}
MARKS = {"patch_embed.projection.weight", "layers.0.ln1.weight", "pos_embed"}
MMSEG = "layers.0.attn.attn.in_proj_weight"
HEADS = {"head.": "head", "neck.": "head", "momentum_encoder.": "teacher"}  # MoCo v3's, an average
OTHERS = ("decode_head.", "auxiliary_head.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.", "panoptic_head.")
USUAL = {"qkv_bias": True}
NAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.attn\.attn\.in_proj_(weight|bias)$", r"blocks.\1.attn.qkv.\2"),
    (r"^layers\.(\d+)\.attn\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^layers\.(\d+)\.attn\.gamma1\.weight$", r"blocks.\1.ls1.gamma"),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.ffn\.gamma2\.weight$", r"blocks.\1.ls2.gamma"),
    (r"^layers\.", "blocks."),
    (r"^(?:ln1|norm1?)\.", "norm."),
    (r"^ln2\.", "fc_norm."),
)


def timm_name(name: str) -> str:
    for old, new in NAMES:
        name, count = re.subn(old, new, name)
        if count:
            return name
    return name


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, MARKS.issubset)
    around = prefix.removesuffix("backbone.") if prefix else ""
    tuned = any(k.startswith(tuple(around + name for name in OTHERS)) for k in shapes)
    return 3 if prefix is not None and not tuned else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, MARKS.issubset)
    around = prefix.removesuffix("backbone.")
    dropped = drop(state, under(around, HEADS) if around != prefix else {})
    known = {"pos_resize": "size"} | normalisation(meta)
    weights, card, dropped = vit(state, prefix, dropped, timm_name, **known)
    if prefix + MMSEG in state:  # mmseg's patch embedding has no bias without `patch_bias`
        weights.setdefault("patch_embed.proj.bias", torch.zeros(weights["patch_embed.proj.weight"].shape[0]))
    return weights, card, dropped


def config_of(meta) -> str:
    """The text of the config that the file was trained with (mmengine's and mmcv's `meta`); '' if it has none."""
    about = meta.get("meta")
    config = (about.get("cfg") or about.get("config")) if isinstance(about, dict) else None
    return str(config)[: 1 << 20] if config else ""


def normalisation(meta) -> dict:
    """Mean and std in 0..1 by the config's text or table, if it names one pair; else {}."""
    config, found = config_of(meta), {}
    for key in ("mean", "std"):
        lists = re.findall(rf"\b{key}['\"]?\s*[=:]\s*[\[(]([\d.,\s]+)[\])]", config)
        try:
            values = {tuple(round(float(v) / 255, 6) for v in text.split(",") if v.strip()) for text in lists}
        except ValueError:
            return {}
        if len(values) == 2:  # of ours, which name the card's in 0..1 beside those of pixels
            small, large = sorted(values)
            same = len(small) == len(large) and all(abs(255 * a - b) < 1e-3 for a, b in zip(small, large, strict=True))
            values = {large} if same else values
        if len(values) != 1 or len(value := values.pop()) != 3:
            return {}
        found[key] = value
    rounded = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    near = all(abs(a - b) < 2e-4 for k in found for a, b in zip(found[k], rounded[k], strict=True))
    return rounded if near else found  # 123.675 / 255 is 0.485
