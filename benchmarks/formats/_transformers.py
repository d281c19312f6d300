"""Hugging Face transformers' names of ViT, Dinov2 and DINOv3 as timm's: both namings (before and since version 5).

Version 5 has other names in memory, which a bare state dict shows, than `save_pretrained` writes.
"""

import re

import torch

from ...pretrain.common.errors import UserError, shorten
from ..checkpoints import parts
from ..checkpoints.stated import table_in
from . import drop, under

MARK = "embeddings.patch_embeddings.projection.weight"
LAYER = re.compile(r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.+)\.(weight|bias|lambda1)")
PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.down_proj": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
STACKED = {  # several Linears that are one in timm: (name, place)
    **{f"attention.attention.{n}": ("attn.qkv", i) for i, n in enumerate(("query", "key", "value"))},
    **{f"attention.{n}_proj": ("attn.qkv", i) for i, n in enumerate("qkv")},
    **{f"mlp.{n}_proj": ("mlp.fc1", i) for i, n in enumerate(("gate", "up"))},
}
WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    **{f"{n}.{p}": f"norm.{p}" for n in ("layernorm", "norm") for p in ("weight", "bias")},
}
BESIDE = {"embeddings.mask_token": "mask token", "pooler.": "head", "decoder.": "head"}
ACTS = {"gelu": "gelu (erf)", "gelu_new": "gelu (tanh)", "gelu_pytorch_tanh": "gelu (tanh)", "gelu_fast": "gelu (tanh)"}


def root_of(keys, mark: str = MARK) -> str | None:
    """Prefix of the one network of a file: '', 'vit.', 'dinov2.' ..., below whatever wraps it; else None."""
    found = [k.removesuffix(mark) for k in keys if k.endswith(mark)]
    return found[0] if len(found) == 1 and found[0][-1:] in ("", ".") else None


def beside(keys, root: str) -> dict[str, str]:
    """What lies outside the network and is known to lie beside one (a classifier, a decoder): name -> reason."""
    found, path = {}, root.split(".")[:-1]
    for key in keys:
        names = key.split(".")
        apart = next((i for i, name in enumerate(names) if i >= len(path) or name != path[i]), 0)
        if apart < len(path) and parts.BESIDE.fullmatch(names[apart]):
            found[key] = "head"
    return found


def read(state, root: str, keyless: bool = False) -> tuple[dict, dict]:
    """(timm-named weights of the known names below `root`, what is dropped); the others stay unasked for, and are
    refused. keyless: the keys may have no bias, which is then 0."""
    dropped = drop(state, under(root, BESIDE)) | beside(state, root)
    weights, stacks = {}, {}
    # ViTMSNForImageClassification of 5.24 writes its layers without the network's prefix
    bare = {key: key for key in state if root and LAYER.fullmatch(key)}
    for name, key in (state.below(root) | bare).items():
        match = LAYER.fullmatch(name)
        if key in dropped:
            continue
        if name in WHOLE:
            weights[WHOLE[name]] = state[key]
        elif match and match[2] in PARTS:
            tensor = "gamma" if match[3] == "lambda1" else match[3]
            weights[f"blocks.{int(match[1])}.{PARTS[match[2]]}.{tensor}"] = state[key]
        elif match and match[2] in STACKED:
            part, place = STACKED[match[2]]
            stacks.setdefault(f"blocks.{int(match[1])}.{part}.{match[3]}", {})[place] = key
    for name, places in stacks.items():
        weights[name] = _stack(state, name, places, keyless)
    return weights, dropped


def _stack(state, name: str, places: dict[int, str], keyless: bool):
    """query, key and value, or gate and up, one after the other."""
    gated = {0, 1} if 0 in places else {1}  # `up` alone is a plain MLP's first layer
    wanted = gated if ".mlp.fc1." in name else {0, 1, 2}
    parts = {i: state[key] for i, key in places.items()}
    if keyless and name.endswith("qkv.bias") and wanted - set(parts) == {1}:
        parts[1] = torch.zeros_like(parts[0])
    if set(parts) != wanted:
        raise UserError(f"{name}: of query, key and value (or gate and up) one is missing")
    ordered = [parts[i] for i in sorted(parts)]
    if len({tuple(p.shape) for p in ordered}) != 1:
        raise UserError(f"{name}: query, key and value differ in shape: {[list(p.shape) for p in ordered]}")
    return torch.cat(ordered)


def facts_of(meta, eps: float, state=None) -> dict:
    """norm_eps and act by config.json; what it does not say is assumed of a `state`. Raises UserError for an
    activation that is not there."""
    config = table_in(meta, "config.json")
    if state is not None:
        said = {"norm_eps": "layer_norm_eps", "act": "hidden_act"}
        state.assume(*(field for field, key in said.items() if key not in config))
    act = str(config.get("hidden_act", "gelu"))
    gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
    if act not in ACTS and not gated:
        raise UserError(f"config.json: hidden_act {shorten(act)} is not supported: {', '.join(ACTS)} are")
    facts = {} if gated or act == "gelu" else {"act": ACTS[act]}
    value = config.get("layer_norm_eps", eps)
    return facts | {"norm_eps": float(value) if isinstance(value, (int, float)) and 0 < value < 1 else eps}
