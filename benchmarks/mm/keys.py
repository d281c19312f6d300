"""Dotted keys of an mm config: `model.neck.out_channels=64`, `train_dataloader.dataset.pipeline.2.scale=[128,96]`."""

import difflib
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from ...pretrain.common.errors import UserError
from .recipe import OWN

# Keys of the config that follow from something else, and from what.
DERIVED = {
    "train_dataloader.batch_size": "batch= or per_gpu=",
    "optim_wrapper.accumulative_counts": "batch= or per_gpu=",
    "optim_wrapper.type": "amp=",
    "optim_wrapper.optimizer.lr": "lr=",
    "model.backbone.card": "--card",
    "model.backbone.weights": "another checkpoint",
    "model.backbone.blocks": "blocks=",
    "model.backbone.pos_resize": "pos_resize=",
    "model.backbone.with_cp": "with_cp=",
    "train_dataloader.dataset.data_root": "--data",
    "val_dataloader.dataset.data_root": "--data",
    "val_dataloader.dataset.indices": "--limit",
    "val_evaluator.ann_file": "--data",
    "val_evaluator.limit": "--limit",
    "train_dataloader.num_workers": "workers=",
    "val_dataloader.num_workers": "workers=",
}


def walk(node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a part of a config."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in pairs:
        yield f"{prefix}{key}", child
        yield from walk(child, f"{prefix}{key}.")


def override(cfg: Config, key: str, value) -> None:
    """Replace one value of the config. Raises UserError, naming the nearest key, where there is none; or for a value of
    another kind than the one it replaces."""
    if instead := DERIVED.get(key):
        raise UserError(f"{key} follows from others: use {instead}")
    *path, last = key.split(".")
    node = cfg._cfg_dict
    try:
        for name in path:
            node = node[int(name)] if isinstance(node, list | tuple) else node[name]
        last = int(last) if isinstance(node, list) else last
        old = node[last]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        near = difflib.get_close_matches(key, [*OWN, *dict(walk(cfg._cfg_dict))], 1, 0)
        raise UserError(f"the config of this recipe has no {key}; did you mean {near[0]}?") from None
    node[last] = _like(old, value, key)


def _like(old, value, key: str):
    """The value in the type of the one it replaces. Raises UserError for one of another type."""
    wanted, given = _type(old), _type(value)
    if (wanted, given) == (float, int):
        value, given = float(value), float
    if wanted not in (None, given):
        raise UserError(f"{key}={value}: it replaces {old!r}, a value of another kind")
    if isinstance(value, dict):
        return ConfigDict(value)
    if isinstance(value, list):
        value = [ConfigDict(v) if isinstance(v, dict) else v for v in value]
        if old and all(isinstance(v, tuple) for v in old):  # mm tells a list of sizes from a size by the type
            value = [tuple(v) if isinstance(v, list) else v for v in value]
    return tuple(value) if isinstance(old, tuple) else value


def _type(value):
    """One of the types that the command line can give; None for any other value."""
    return next((one for one in (bool, int, float, str, dict, list | tuple) if isinstance(value, one)), None)


def for_record(value):
    """Part of a config as JSON has it, without the paths of this machine."""
    if isinstance(value, dict):
        hidden = ("_scope_", "data_root", "ann_file", "card", "weights") if "type" in value else ("_scope_",)
        return {str(k): for_record(v) for k, v in value.items() if k not in hidden}
    return [for_record(v) for v in value] if isinstance(value, list | tuple) else value
