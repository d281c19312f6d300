"""torchvision's VisionTransformer: a flat state dict, or torchvision's training checkpoint.

Source: pytorch/vision 0.29, torchvision/models/vision_transformer.py, references/classification/train.py (`model`,
`model_ema` beside `optimizer`). LayerNorm's eps is 1e-6, the MLP's activation the exact GELU; the image vector is the
normed class token. The network takes images of its own size only. Mean and std are ImageNet's in all of its weights.
"""

import re

from . import IMAGENET, alone, below, drop, under, vit

MARK = "conv_proj.weight"
ROOTS = ("class_token", "conv_proj.", "encoder.pos_embedding", "encoder.layers.encoder_layer_", "encoder.ln.")
BESIDE = {"heads.": "head", "n_averaged": "counter"}  # the latter of torch's AveragedModel
NAMES = (
    (re.compile(r"^encoder\.layers\.encoder_layer_(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.self_attention\.in_proj_"), ".attn.qkv."),
    (re.compile(r"\.self_attention\.out_proj\."), ".attn.proj."),
    (re.compile(r"\.ln_([12])\."), r".norm\1."),
    (re.compile(r"\.mlp\.(?:0|linear_1)\."), ".mlp.fc1."),  # linear_1, linear_2: torchvision before 0.12
    (re.compile(r"\.mlp\.(?:3|linear_2)\."), ".mlp.fc2."),
    (re.compile(r"^encoder\.pos_embedding$"), "pos_embed"),
    (re.compile(r"^encoder\.ln\."), "norm."),
    (re.compile(r"^conv_proj\."), "patch_embed.proj."),
    (re.compile(r"^class_token$"), "cls_token"),
)
ALWAYS = {"class_token": True, "final_norm": True, "qkv_bias": True}


def root_of(keys) -> str | None:
    """The prefix of the one network, or of the trained one beside its averaged copy."""
    keys = [k for k in keys if not k.startswith("model_ema.")]
    prefix = alone(keys, MARK)
    fit = prefix is not None and {"class_token", "encoder.pos_embedding"} <= set(names := below(keys, prefix))
    return prefix if fit and all(n.startswith((*ROOTS, *BESIDE)) for n in names) else None


def claims(shapes, meta) -> int:
    return 0 if root_of(shapes) is None else 3


def convert(state, meta):
    prefix = state.pick({None: (root_of(state) or "",)}, lambda names: "class_token" in names)
    dropped = drop(state, under(prefix, BESIDE) | {"model_ema.": "EMA copy"})
    return vit(state, prefix, dropped, timm_name, pos_resize="stored", **IMAGENET)


def timm_name(name: str) -> str:
    for old, new in NAMES:
        name = old.sub(new, name)
    return name
