"""Networks that are often given and not read here, named for what they are.

By `model_type` of a config.json beside the file, or by names of tensors that no other network has.
"""

import re
from collections.abc import Iterable, Mapping

from ...pretrain.common.errors import shorten
from .stated import architectures, table_in

NOT_SSL = "trained with text, not a self-supervised image network"
# what it is -> (its model_type in transformers, names that only it has); the first that fits counts.
KINDS = {
    f"SigLIP ({NOT_SSL})": (r"siglip.*", r"vision_model\.head\.probe|logit_bias"),
    f"open_clip's or OpenAI's CLIP ({NOT_SSL})": (None, r"visual\.(transformer|trunk|conv1|proj|class_embedding)\b"),
    f"CLIP ({NOT_SSL})": (r"\w*clip\w*|blip.*", r"pre_layrnorm\.|embeddings\.class_embedding$|text_projection\b"),
    "a ViT with timm's attention pooling, as SigLIP has it": (None, r"attn_pool\.latent$"),
    "a ViT with a norm before its blocks, as CLIP has it in timm's names": (None, r"norm_pre\.weight$"),
    "SAM 2 or a detector on Hiera": (r"sam2.*", r"trunk\.blocks|image_encoder\.trunk"),
    "SAM (Segment Anything)": (
        r"sam\w*",
        r"mask_decoder\.|prompt_encoder\.|(image|vision)_encoder\.neck|attn\.rel_pos_h",
    ),
    "Hiera": (
        r"hiera",
        r"pos_embed_(spatial|temporal|window)$|blocks\.\d+\.proj\.weight$|encoder\.stages\.\d+\.layers\.\d+\.attn\.",
    ),
    "Swin V2 in names of Hugging Face's or torchvision's": (
        r"swinv2",
        r"features\.\d+\.\d+\.attn\.cpb_mlp\.|continuous_position_bias_mlp\.",
    ),
    "ConvNeXt in names of Hugging Face's or torchvision's": (
        r"convnext(v2)?",
        r"encoder\.stages\.\d+\.layers\.\d+\.dwconv\.|features\.\d+\.\d+\.block\.0\.weight$",
    ),
    "a language model": (r"llama|gpt\w*|bert|qwen.*|mistral|t5", r"word_embeddings\.|embed_tokens\.|wte\."),
    "a diffusion model": (None, r"(down|up|mid)_blocks?\.|time_embed(ding)?\.|x_embedder\."),
    "a LoRA adapter without its network: merge it first": (None, r"lora_[AB]\b"),
    "a detector of the DETR family": (r".*detr.*", r"class_embed\.|bbox_embed\.|query_embed\."),
    "an EfficientNet or MobileNet": (
        r"efficientnet|mobilenet.*",
        r"conv_stem\.|_conv_stem\.|features\.\d+\.(0\.)?block\.0\.0\.",
    ),
    "a DenseNet": (None, r"denseblock\d"),
    "a VGG or AlexNet": (None, r"classifier\.6\.(weight|bias)$"),
}
SHOWN = 4


def described(names: Iterable[str], meta: Mapping) -> str:
    """`CLIP (...), by config.json: model_type clip_vision_model: it is not read here`; '' for what is none of these."""
    kind, names = model_type(meta), list(names)
    for what, (kinds, _) in KINDS.items():
        if kind and kinds and re.fullmatch(kinds, kind):
            return f"it is {what}, by config.json: model_type {shorten(kind)}; such networks are not read here"
    for what, (_, marks) in KINDS.items():
        if found := [name for name in names if re.search(rf"(?:^|\.)(?:{marks})", name)]:
            return f"it is {what}, by {', '.join(found[:SHOWN])}; such networks are not read here"
    if kind:
        return f"config.json says that it is a network of model_type {shorten(kind)}, which is not read here"
    for where, arch, _ in architectures(meta):
        return f"{where} {shorten(arch)}: no network of that name and these tensors is built here"
    return ""


def model_type(meta: Mapping) -> str | None:
    """transformers' word for the network, in a config.json beside the file."""
    kind = table_in(meta, "config.json").get("model_type")
    return kind if isinstance(kind, str) else None


def telling(names: Iterable[str], count: int = 8) -> list[str]:
    """Some names that show what network it is: the first of each part, of all below a common prefix and one block."""
    names = list(names)
    for depth in range(1, 9):
        groups: dict[str, str] = {}
        for name in names:
            groups.setdefault(re.sub(r"\d+", "N", ".".join(name.split(".")[:depth])), name)
        if len(groups) >= 3:
            break
    return list(groups.values())[:count]
