"""Hugging Face ResNet: state dict or folder, with or without classifier.

Source: huggingface/transformers 5.24, models/resnet/modeling_resnet.py. Where the stride of a block is, and whether the
first stage has one, is in config.json; mean and std in preprocessor_config.json, else ImageNet's, which all its ResNets
have.
"""

import re

from ...pretrain.common.card import BLOCKS
from ...pretrain.common.errors import UserError, shorten
from ..checkpoints.stated import normalisation_from, table_in
from ._conv import IMAGENET, assume_strides, drop, resnet

MODEL_TYPES = ("resnet",)
MARK = "embedder.embedder.convolution.weight"
NAME = re.compile(
    r"(?:embedder\.embedder|encoder\.stages\.(\d)\.layers\.(\d{1,4})\.(?:layer\.(\d)|shortcut))"
    r"\.(convolution|normalization)\.(\w+)"
)


def home(keys) -> str | None:
    """Prefix of the network: '' or 'resnet.'; None where there is none."""
    found = (
        p
        for p in ("", "resnet.")
        if {p + MARK, f"{p}encoder.stages.0.layers.0.layer.0.convolution.weight"} <= set(keys)
    )
    return next(found, None)


def claims(shapes, meta) -> int:
    return 3 * (home(shapes) is not None)


def convert(state, meta):
    prefix = home(state) or ""
    dropped = drop(state, {"classifier.": "head"} if prefix else {})
    names = {new: key for name, key in state.below(prefix).items() if (new := torchvision_name(name))}
    config = table_in(meta, "config.json")
    for key, plain in (("hidden_act", "relu"), ("downsample_in_first_stage", False)):
        if (value := config.get(key, plain)) != plain:
            raise UserError(f"config.json: {key} {shorten(value)}, which no ResNet here has")
    known = normalisation_from(meta)
    state.assume(*(() if known else IMAGENET))
    tensors = {name: state[key] for name, key in names.items()}
    if not config:
        assume_strides(state, tensors)
    weights, card, more = resnet(tensors, "", {}, **(known or IMAGENET))
    moved = config.get("downsample_in_bottleneck") and card.block != "basic"
    card = card.override({"block": BLOCKS[1]} if moved else {})
    return weights, card, dropped | {names[name]: why for name, why in more.items()}


def torchvision_name(name: str) -> str | None:
    """torchvision's name of a tensor; None for one that is not of a ResNet."""
    if not (found := NAME.fullmatch(name)):
        return None
    stage, block, layer, what, tensor = found.groups()
    norm = what == "normalization"
    if stage is None:
        return f"{'bn1' if norm else 'conv1'}.{tensor}"
    part = f"downsample.{int(norm)}" if layer is None else f"{'bn' if norm else 'conv'}{int(layer) + 1}"
    return f"layer{int(stage) + 1}.{block}.{part}.{tensor}"
