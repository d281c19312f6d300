"""Hugging Face ViT: pytorch_model.bin, model.safetensors, or their folder; with or without pooler and classifier.

Source: huggingface/transformers, models/vit/modeling_vit.py, names as `save_pretrained` writes them and as version 5
has them in memory (`layers.N.attention.q_proj`; that form is unverified: no file of it was at hand). Heads and norm eps
(1e-12 where nothing is said) are in config.json, mean and std in preprocessor_config.json.
"""

from ...pretrain.common.shapes import vit_card
from ..checkpoints.stated import normalisation_from
from . import drop, example_vit, save_example
from ._transformers import BESIDE, HEADS, example_names, facts_of, prefix_of, weights_of

ALWAYS = {"class_token": True, "final_norm": True}
USUAL = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes)
    if prefix is None or any(".layer_scale1." in k for k in shapes):
        return 0
    return 3 if any(k.endswith(".0.layernorm_before.weight") for k in shapes) else 0


def convert(state, meta):
    prefix = prefix_of(state) or ""
    dropped = drop(state, {prefix + k: why for k, why in BESIDE.items()} | HEADS)
    weights = weights_of(state, prefix, dropped)
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes, pos_resize="size", **facts_of(meta, 1e-12), **normalisation_from(meta)), dropped


def example(folder):
    """A tiny folder as `save_pretrained` leaves it, with a classifier."""
    import json

    import torch
    from safetensors.torch import save_file

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


def example_since_5(folder):
    """The other naming, as torch saves a model's state dict."""
    parts = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = dict(zip(parts, ("layernorm_before", "layernorm_after", "attention.o_proj", *parts[3:]), strict=True))
    tree = example_names(example_vit(), "layers", names, tuple(f"attention.{n}_proj" for n in "qkv"))
    return save_example(folder / "vit5.bin", tree, {"heads": 2, "mean": 0.5, "std": 0.5})
