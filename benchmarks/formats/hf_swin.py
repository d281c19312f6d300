"""Hugging Face Swin: state dict or folder, with or without classifier or decoder.

Source: huggingface/transformers 5.24, models/swin/modeling_swin.py, conversion_mapping.py: names as `save_pretrained`
writes them and as version 5 has them in memory. The norms of embedding and merging have torch's eps in every file, the
others that of config.json. Mean and std: of preprocessor_config.json, else ImageNet's, which all its Swins have.
"""

import re

import torch

from ...pretrain.common.errors import UserError
from ..checkpoints.stated import normalisation_from
from . import drop, under
from ._conv import IMAGENET, swin
from ._transformers import PARTS, facts_of, root_of

MODEL_TYPES = ("swin", "donut-swin", "maskformer-swin")
BLOCK = re.compile(r"encoder\.(layers\.\d+\.blocks\.\d+)\.(.+)\.(weight|bias)")
TABLE = re.compile(r"encoder\.(layers\.\d+\.blocks\.\d+\.)attention\.\w+\.(relative_position_\w+)")
STACKED = {f"attention.self.{name}": i for i, name in enumerate(("query", "key", "value"))}
STACKED |= {f"attention.{name}_proj": i for i, name in enumerate("qkv")}
WHOLE = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.position_embeddings$", "absolute_pos_embed"),
    (r"^encoder\.(layers\.\d+\.downsample\.)", r"\1"),
    (r"^layernorm\.", "norm."),
)
BESIDE = {"embeddings.mask_token": "mask token", "hidden_states_norms.": "output norm"}
HEADS = {"classifier.": "head", "decoder.": "head"}
USUAL = {"qkv_bias": True, "final_norm": True, "patch_norm": True}


def claims(shapes, meta) -> int:
    root = root_of(shapes)
    names = () if root is None else (k.removeprefix(root) for k in shapes)
    return 3 * any((found := TABLE.fullmatch(n)) and found[2] == "relative_position_bias_table" for n in names)


def convert(state, meta):
    root = root_of(state) or ""
    around = root.rstrip(".").rpartition(".")[0]
    dropped = drop(state, under(root, BESIDE) | under(f"{around}." if around else "", HEADS))
    tensors, stacks, back = {}, {}, {}
    for name, key in state.below(root).items():
        block = BLOCK.fullmatch(name)
        if key in dropped:
            continue
        if block and block[2] in STACKED:
            stacks.setdefault(f"{block[1]}.attn.qkv.{block[3]}", {})[STACKED[block[2]]] = state[key]
        elif new := official(name, block):
            tensors[new], back[new] = state[key], key
    for name, parts in stacks.items():
        if sorted(parts) != [0, 1, 2] or len({part.shape for part in parts.values()}) != 1:
            raise UserError(f"{name}: of query, key and value one is missing, or of another shape")
        tensors[name] = torch.cat([parts[i] for i in range(3)])
    known = normalisation_from(meta)
    state.assume(*(() if known else IMAGENET), *(() if "config.json" in meta else ("norm_eps", "act")))
    facts = facts_of(meta, 1e-5) | (known or IMAGENET)
    if facts["norm_eps"] != 1e-5:
        eps = facts["norm_eps"]
        raise UserError(
            f"config.json: layer_norm_eps {eps} beside 1e-5 of embedding and merging: no network here has two"
        )
    weights, card, rebuilt = swin(tensors, "", {}, sizes="padded_own", **facts)
    return weights, card, dropped | {back[name]: why for name, why in rebuilt.items()}


def official(name: str, block: re.Match | None) -> str | None:
    """The official code's name of a tensor; None for one that is not of a Swin."""
    if block:
        return f"{block[1]}.{PARTS[block[2]]}.{block[3]}" if block[2] in PARTS else None
    if found := TABLE.fullmatch(name):
        return f"{found[1]}attn.{found[2]}"
    return next((new for old, to in WHOLE if (new := re.sub(old, to, name)) != name), None)
