"""A tiny random file of every ViT format of another library's names: Hugging Face's and OpenMMLab's."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .vit import Example, example_vit, save_example


def example_names(vit: dict, layer: str, names: dict[str, str], split: tuple[str, str, str]) -> dict:
    """timm's tiny weights under a naming, for examples. names: timm's part of a block -> theirs; split: of qkv."""
    top = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "reg_token": "register_tokens"}
    top |= {f"patch_embed.proj.{p}": f"patch_embeddings.projection.{p}" for p in ("weight", "bias")}
    top = {new: f"embeddings.{old}" for new, old in top.items()}
    top |= {f"norm.{p}": f"layernorm.{p}" for p in ("weight", "bias")}
    out = {}
    for key, value in vit.items():
        if key in top:
            out[top[key]] = value
            continue
        _, number, rest = key.split(".", 2)
        part, _, kind = rest.rpartition(".")
        if part == "attn.qkv":
            for name, piece in zip(split, value.chunk(3), strict=True):
                out[f"{layer}.{number}.{name}.{kind}"] = piece.clone()
        else:
            out[f"{layer}.{number}.{names[part]}.{'lambda1' if kind == 'gamma' else kind}"] = value
    return out


def hf_vit(folder: Path) -> Example:
    """A tiny folder as `save_pretrained` leaves it, with a classifier."""
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    split = tuple(f"attention.attention.{n}" for n in ("query", "key", "value"))
    tree = {f"vit.{k}": v for k, v in example_names(example_vit(), "encoder.layer", names, split).items()}
    tree |= {"classifier.weight": torch.ones(3, 24), "classifier.bias": torch.ones(3)}
    folder = folder / "vit-tiny"
    folder.mkdir()
    save_file(tree, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "vit", "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder, {}


def names_since_5(vit: dict) -> dict:
    """timm's tiny weights in the names that transformers 5 has in memory."""
    parts = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = dict(zip(parts, ("layernorm_before", "layernorm_after", "attention.o_proj", *parts[3:]), strict=True))
    return example_names(vit, "layers", names, tuple(f"attention.{n}_proj" for n in "qkv"))


def hf_vit_since_5(folder: Path) -> Example:
    """The other naming, as torch saves a model's state dict."""
    return save_example(folder / "vit5.bin", names_since_5(example_vit()), heads=2, mean=0.5, std=0.5)


def hf_dinov2(folder: Path) -> Example:
    """A tiny state dict with registers."""
    parts = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    names = dict.fromkeys(parts) | {p: p for p in parts} | {"ls1": "layer_scale1", "ls2": "layer_scale2"}
    names["attn.proj"] = "attention.output.dense"
    split = tuple(f"attention.attention.{n}" for n in ("query", "key", "value"))
    vit = example_vit(registers=2, layer_scale=True)
    tree = example_names(vit, "encoder.layer", names, split) | {"embeddings.mask_token": torch.ones(1, 24)}
    return save_example(folder / "dinov2.bin", tree, heads=2)


def dinov3_ports(folder: Path) -> Example:
    """A tiny folder in Hugging Face's names."""
    vit = example_vit(registers=2, layer_scale=True, pos="rotary", pos_resize="rotary", heads=3)
    names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj", "ls1": "layer_scale1"}
    names |= {"ls2": "layer_scale2", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    tree = example_names(vit, "layer", names, tuple(f"attention.{n}_proj" for n in "qkv"))
    tree = {k.replace("patch_embeddings.projection", "patch_embeddings"): v for k, v in tree.items()}
    tree = {k.replace("layernorm.", "norm."): v for k, v in tree.items() if not k.endswith("k_proj.bias")}
    (folder / "dinov3").mkdir()
    config = {"num_attention_heads": 3, "rope_theta": 100.0, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    (folder / "dinov3" / "config.json").write_text(json.dumps(config))
    save_example(folder / "dinov3" / "model.bin", tree | {"embeddings.mask_token": torch.zeros(1, 1, 24)})
    return folder / "dinov3", {}


def mmpretrain_vit(folder: Path) -> Example:
    """A tiny checkpoint of a classifier."""
    pairs = (("patch_embed.proj", "patch_embed.projection"), ("norm1", "ln1"), ("norm2", "ln2"))
    pairs += (("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"), ("blocks.", "layers."))
    state = {}
    for name, value in example_vit().items():
        for new, old in pairs:
            name = name.replace(new, old)
        state[f"backbone.{'ln1' + name[4:] if name.startswith('norm.') else name}"] = value
    state |= {"head.layers.head.weight": torch.ones(3, 24)}
    text = "data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)"
    return save_example(folder / "mmpretrain.pth", {"meta": {"cfg": text}, "state_dict": state}, heads=2)


def mm_finetuned(folder: Path) -> Example:
    """A tiny segmenter of ours: ln1 and ln2, rescale layers, a head."""
    vit = {k: v for k, v in example_vit().items() if not k.startswith("norm.")}
    vit = {k.replace(".norm1.", ".ln1.").replace(".norm2.", ".ln2."): v for k, v in vit.items()}
    state = {f"backbone.encoder.vit.{k}": v for k, v in vit.items()}
    state |= {"backbone.fpn1.0.weight": torch.ones(24, 24, 2, 2), "decode_head.conv_seg.weight": torch.ones(5, 8, 1, 1)}
    text = "data_preprocessor = dict(bgr_to_rgb=True, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])"
    return save_example(folder / "iter_10.pth", {"meta": {"cfg": text}, "state_dict": state}, heads=2)
