"""DINOv3's ViT in Hugging Face's and in timm's names.

Source: huggingface/transformers, models/dinov3_vit/modeling_dinov3_vit.py; huggingface/pytorch-image-models 1.0.31,
timm/models/eva.py. Neither stores the periods of the rotary positions: both compute them in float32 from the base
(`rope_theta`, 100), where the original's are rounded, so that features differ a little from dinov3.py's. The number of
heads is needed for them: of config.json, of timm, or given. timm's image vector is the mean of the patches (its
`global_pool` avg).
"""

import torch

from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import heads_from, normalisation_from, table_in
from . import IMAGENET, drop
from ._timm import told
from ._transformers import facts_of, read, root_of

HUB = "embeddings.patch_embeddings.weight"
TIMM = {"reg_token", "cls_token", "patch_embed.proj.weight", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight"}
MODEL_TYPES = ("dinov3_vit",)
ALWAYS = {"layer_scale": True, "final_norm": True}
USUAL = {"registers": 4}
BIASES = (".attn.q_bias", ".attn.k_bias", ".attn.v_bias")


def is_hub(keys) -> bool:
    root = root_of(keys, HUB)
    return root is not None and any(f"{root}{m}layer.0.layer_scale1.lambda1" in keys for m in ("", "model."))


def claims(shapes, meta) -> int:
    return 3 if is_hub(shapes) or (shapes.keys() >= TIMM and "pos_embed" not in shapes) else 0


def convert(state, meta):
    if is_hub(state):
        weights, dropped = read(state, root_of(state, HUB), keyless=True)
        facts = facts_of(meta, 1e-5, state)
    else:
        dropped = drop(state, {"head.": "head"})
        weights = _from_timm({name: state[name] for name in state if name not in dropped})
        pooled = {} if "fc_norm.weight" in weights else {"readout": "mean"}
        facts = {"norm_eps": 1e-5} | pooled | told(state, meta, shapes_of(weights))
    dim = weights["cls_token"].shape[-1]
    heads, why = heads_from(meta, dim)
    if not heads or dim % (4 * heads):
        raise UserError(f"its rotary positions need the number of heads (--heads N): {why or heads}")
    base = table_in(meta, "config.json").get("rope_theta", 100.0)
    if not isinstance(base, (int, float)) or not 1 < base < 1e9:
        raise UserError(f"config.json: rope_theta {base}")
    count = dim // heads // 4
    weights["rope_periods"] = float(base) ** (2 * torch.arange(count, dtype=torch.float32) / (2 * count))
    return weights, vit_card(shapes_of(weights), **facts, **(normalisation_from(meta) or IMAGENET)), dropped


def _from_timm(found: dict) -> dict:
    """timm's Eva in the names of its VisionTransformer: layer scale, biases, the two halves of a SwiGLU."""
    weights = {}
    for name, value in found.items():
        if name.endswith(".attn.q_bias"):
            parts = [found.get(name.replace("q_bias", f"{p}_bias"), torch.zeros_like(value)) for p in "qkv"]
            weights[name.replace("q_bias", "qkv.bias")] = torch.cat(parts)
        if name.endswith(BIASES) or ".mlp.fc1_x." in name:
            continue
        if ".mlp.fc1_g." in name:
            value, name = torch.cat([value, found[name.replace("fc1_g", "fc1_x")]]), name.replace("fc1_g", "fc1")
        weights[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = value
    return weights
