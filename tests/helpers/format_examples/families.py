"""A tiny random file of every format of a network whose positions or blocks are not an ordinary ViT's or ResNet's."""

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from selfpatch_bench.benchmarks.backbones.build import encoder_for
from selfpatch_bench.pretrain.common.card import Card

from .ports import example_names
from .vit import Example, example_vit, save_example

RELATIVE = {"pos": "relative 4x4", "pos_resize": "window", "layer_scale": True}
XCIT = Card("xcit", patch=8, dim=24, depth=2, heads=2, cls_depth=2, tokens_norm=False)
EVA = Card(
    "eva", patch=8, dim=24, depth=2, heads=2, pos="learned 4x4", pos_resize="timm", mlp_ratio=2.0, act="swiglu",
    final_norm=False, readout="mean_norm", inner_norms="mlp", rope_grid=16,
)  # fmt: skip
CONVNEXT = Card("convnext", patch=4, depths=(1, 1, 2, 1), widths=(8, 16, 16, 24), layer_scale=True, response_norm=False)
SWINV2 = Card(
    "swinv2", patch=4, window=4, pretrained_windows=(0, 0, 0, 0), dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4),
    norm_eps=1e-5,
)  # fmt: skip


def torchvision_vit(folder: Path) -> Example:
    """A tiny flat state dict with a classifier."""
    names = (("patch_embed.proj.", "conv_proj."), ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"))
    names += ((r"^norm\.", "encoder.ln."), (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."))
    names += ((r"\.norm([12])\.", r".ln_\1."), (r"\.attn\.qkv\.", ".self_attention.in_proj_"))
    names += ((r"\.attn\.proj\.", ".self_attention.out_proj."), (r"\.fc1\.", ".0."), (r"\.fc2\.", ".3."))
    state = {}
    for name, value in example_vit().items():
        for old, new in names:
            name = re.sub(old, new, name)
        state[name] = value
    return save_example(folder / "torchvision_vit.pth", state | {"heads.head.weight": torch.ones(3, 24)}, heads=2)


def beit_names(weights: dict) -> dict:
    """A ViT's weights with relative positions, from timm's VisionTransformer's names to BEiT's."""
    state = {}
    for name, value in weights.items():
        name = re.sub(r"\.ls([12])\.gamma", r".gamma_\1", name)
        if name.endswith(".attn.qkv.bias"):
            state |= {name.replace("qkv.bias", f"{n}_bias"): v for n, v in zip("qv", value.chunk(3)[::2], strict=True)}
        else:
            state[name] = value
    return state


def beit(folder: Path) -> Example:
    """A tiny pretraining checkpoint."""
    model = beit_names(example_vit(**RELATIVE | {"pos": "relative 4x4, shared"})) | {"mask_token": torch.ones(1, 1, 24)}
    model |= {"lm_head.weight": torch.ones(5, 24), "lm_head.bias": torch.ones(5)}
    args = argparse.Namespace(model="beit_base_patch16_224_8k_vocab", imagenet_default_mean_and_std=False)
    return save_example(folder / "beit.pth", {"model": model, "optimizer": {}, "epoch": 1, "args": args})


def hf_beit(folder: Path) -> Example:
    """A tiny folder as `save_pretrained` leaves a classifier."""
    vit = example_vit(**RELATIVE)
    own = {k: vit.pop(k) for k in list(vit) if ".ls" in k or k.endswith("_table")}
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    parts |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    split = tuple(f"attention.attention.{n}" for n in ("query", "key", "value"))
    tree = example_names(vit, "encoder.layer", parts, split)
    for name, value in own.items():
        name = re.sub(r"^blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.lambda_\2", name)
        name = re.sub(r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention.attention.relative_position_bias.", name)
        tree[name] = value
    tree = {f"beit.{k}": v for k, v in tree.items() if not k.endswith(".key.bias")}
    tree |= {"classifier.weight": torch.ones(3, 24), "classifier.bias": torch.ones(3)}
    folder = folder / "beit-tiny"
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tree.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "beit", "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder, {}


def capi(folder: Path) -> Example:
    """A tiny backbone with its decoder."""
    facts = {"pos": "rotary, stored", "pos_resize": "rotary", "norm": "rms", "proj_bias": False, "qkv_bias": False}
    vit = example_vit(class_token=False, registers=4, readout="mean", **facts)
    names = (("norm1.", "residual1.norm."), ("norm2.", "residual2.norm."), ("mlp.", "residual2.fn."))
    names += (("attn.rope_freqs", "residual1.fn.rope.freqs"), ("attn.proj.", "residual1.fn.proj."))
    names += (("blocks.", "encoder.blocks."), ("reg_token", "registers"), ("patch_embed.proj.", "patch_embed."))
    state = {"mask_token": torch.ones(1, 24), "decoder.blocks.0.residual1.norm.weight": torch.ones(24)}
    for name, value in vit.items():
        if name.endswith(".qkv.weight"):
            home = f"encoder.{name.removesuffix('attn.qkv.weight')}residual1.fn."
            state |= {f"{home}{n}_proj.weight": v.clone() for n, v in zip("qkv", value.chunk(3), strict=True)}
        elif name != "norm.weight":
            for new, old in names:
                name = name.replace(new, old)
            state[name] = value
    return save_example(folder / "capi.pth", {f"backbone.{k}": v for k, v in state.items()})


def tiny_weights(card: Card) -> dict:
    """Random weights of a card's network in timm's names, batch norm's counters included."""
    encoder = encoder_for(card)
    state = {k.removeprefix(f"{encoder.network}."): v for k, v in encoder.state_dict().items()}
    state = {k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    return state | {k: v.clamp(min=0.5) for k, v in state.items() if k.endswith("running_var")}


def xcit(folder: Path) -> Example:
    """A tiny released backbone in the official names."""
    state, weights = {}, tiny_weights(XCIT)
    for name, value in weights.items():
        name = name.replace("pos_embed.", "pos_embeder.")
        if match := re.fullmatch(r"(cls_attn_blocks\.\d+\.attn)\.q\.(weight|bias)", name):
            parts = [weights[f"{match[1]}.{n}.{match[2]}"] for n in "kv"]
            state[f"{match[1]}.qkv.{match[2]}"] = torch.cat([value, *parts])
        elif not re.fullmatch(r"cls_attn_blocks\.\d+\.attn\.[kv]\.(weight|bias)", name):
            state[name] = value
    return save_example(folder / "xcit.pth", state)


def timm_eva(folder: Path) -> Example:
    """A tiny EVA-02 of timm with a classifier, whose query, key and value come apart; a config beside it has heads."""
    (folder / "eva.config.json").write_text(json.dumps({"num_heads": 2}))
    state, weights = {"head.weight": torch.ones(3, 24), "head.bias": torch.ones(3)}, tiny_weights(EVA)
    for name, value in weights.items():
        if name.endswith(".attn.qkv.weight"):
            home = name.removesuffix("qkv.weight")
            state |= {f"{home}{n}_proj.weight": v.clone() for n, v in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[re.sub(r"\.([qv])_bias$", r".\1_proj.bias", name)] = value
    return save_example(folder / "eva.pth", state, heads=2)


def convnext(folder: Path) -> Example:
    """A tiny released backbone in DINOv3's names, where the last of `norms` is the final norm once more."""
    names = ((r"^stem\.", "downsample_layers.0."), (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."))
    names += ((r"\.blocks\.", "."), (r"\.conv_dw\.", ".dwconv."), (r"\.mlp\.fc([12])\.", r".pwconv\1."))
    names += ((r"^head\.norm\.", "norm."),)
    state = {}
    for name, value in tiny_weights(CONVNEXT).items():
        for old, new in names:
            name = re.sub(old, new, name)
        state[name] = value
    copies = {f"norms.3.{p}": state[f"norm.{p}"] for p in ("weight", "bias")}
    return save_example(folder / "convnext.pth", state | copies)


def swinv2_names(network: torch.nn.Module) -> dict:
    """The state dict of timm's network as the official code writes it: merging closes a stage, windows are stored."""
    state = {}
    for name, value in network.state_dict().items():
        name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
        state[name.replace("head.fc.", "head.")] = value
    for name, module in network.named_modules():
        for key in ("relative_coords_table", "relative_position_index", "attn_mask"):
            if getattr(module, key, None) is not None:
                state[f"{name}.{key}"] = getattr(module, key)
    return state


def timm_swinv2(folder: Path) -> Example:
    """A tiny released network of the official code, of 64x64 images: the last window is 2x2."""
    encoder = encoder_for(SWINV2)
    encoder.net.load_state_dict(tiny_weights(SWINV2))
    encoder(torch.zeros(1, 3, 64, 64))
    return save_example(folder / "swinv2.pth", {"model": swinv2_names(encoder.net)})
