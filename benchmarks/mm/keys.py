"""Dotted keys of an mm config: `model.neck.out_channels=64`, `train_dataloader.dataset.pipeline.2.scale=[128,96]`."""

import difflib
import fnmatch
import math
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from ...pretrain.common.errors import UserError
from .recipe import OWN

# Keys of the config that follow from something else, and from what; so does what lies below them. `*`: any parts.
DERIVED = {
    "train_dataloader.batch_size": "batch= or per_gpu=",
    "optim_wrapper.accumulative_counts": "batch= or per_gpu=",
    "optim_wrapper.type": "amp=",
    "optim_wrapper.optimizer.lr": "lr=",
    "train_cfg.max_epochs": "epochs=",
    "train_cfg.max_iters": "iterations=",
    "param_scheduler.*.end": "epochs=, iterations= or warmup=",
    "model.backbone.card": "--card",
    "model.data_preprocessor.mean": "--card mean=...",
    "model.data_preprocessor.std": "--card std=...",
    "model.backbone.weights": "another checkpoint",
    "model.backbone.blocks": "blocks=",
    "model.backbone.pos_resize": "pos_resize=",
    "model.backbone.with_cp": "with_cp=",
    "model.*.num_classes": "classes=",
    "*_dataloader.dataset.metainfo": "classes=",
    "*_dataloader.dataset.data_root": "--data",
    "*_dataloader.dataset.ann_file": "--data",
    "*_dataloader.dataset.data_prefix": "--data",
    "*_dataloader.dataset.indices": "--limit",
    "*_dataloader.num_workers": "workers=",
    "val_evaluator.ann_file": "--data",
    "val_evaluator.limit": "--limit",
    # of these depends what all others mean
    "model.type": "another recipe",
    "model.backbone.type": "another recipe",
    "train_cfg.type": "another recipe",
    "train_cfg.by_epoch": "another recipe",
    "param_scheduler.*.by_epoch": "another recipe",
    "*_dataloader.dataset.type": "another recipe",
    "val_evaluator.type": "another recipe",
    "default_scope": "another recipe",
}

# Keys that change nothing here, and why; with what lies below them.
IDLE = {
    "val_cfg": "there is no validation on the way",
    "train_cfg.val_interval": "there is no validation on the way",
    "default_hooks.checkpoint.type": "checkpoints are always whole, and only the latest is kept",
    "env_cfg.dist_cfg": "the processes have met before",
}


def _is_size(value) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)


def _is_positive(value) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


# Keys that configs leave out although mm's parts take them: of a part that has which other key, what the value is in
# words, and whether it is that.
OPTIONAL = {
    "model.test_cfg.crop_size": ("model.test_cfg.mode", "two whole numbers above 0, height and width", _is_size),
    "model.test_cfg.stride": ("model.test_cfg.mode", "two whole numbers above 0, down and to the right", _is_size),
    "optim_wrapper.clip_grad.max_norm": ("optim_wrapper.clip_grad", "a number above 0", _is_positive),
    "optim_wrapper.clip_grad.norm_type": ("optim_wrapper.clip_grad", "a number above 0", _is_positive),
    "optim_wrapper.optimizer.eps": ("optim_wrapper.optimizer.betas", "a number above 0", _is_positive),
}


def walk(node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a part of a config."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in pairs:
        yield f"{prefix}{key}", child
        yield from walk(child, f"{prefix}{key}.")


def derived(key: str) -> str | None:
    """What a key, or one above it, follows from; None: nothing."""
    parts = key.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return next((instead for pattern, instead in DERIVED.items() if fnmatch.filter(names, pattern)), None)


def override(cfg: Config, key: str, value) -> None:
    """Replace one value of the config, or add one of OPTIONAL. Raises UserError, naming the nearest key, where there is
    none; for a value of another kind than the one it replaces; and where it, or a part of the old or the new value,
    follows from something else."""
    known = dict(walk(cfg._cfg_dict))
    if instead := derived(key):
        raise UserError(f"{key} follows from others: use {instead}")
    if why := next((why for idle, why in IDLE.items() if f"{key}.".startswith(f"{idle}.")), None):
        raise UserError(f"{key} changes nothing: {why}")
    if key not in known and OPTIONAL.get(key, ("",))[0] not in known:
        near = difflib.get_close_matches(key, [*OWN, *known], 1, 0)
        raise UserError(f"the config of this recipe has no {key}; did you mean {near[0]}?")
    for part in (*dict(walk(known.get(key), f"{key}.")), *dict(walk(value, f"{key}."))):
        if instead := derived(part):
            raise UserError(
                f"{key} cannot be replaced as a whole: {part} follows from others (use {instead}); "
                "give its other values one by one"
            )
    above, _, last = key.rpartition(".")
    node = known.get(above, cfg._cfg_dict)
    if node is None:
        override(cfg, above, {})
        node = dict(walk(cfg._cfg_dict))[above]
    if isinstance(node, tuple):
        raise UserError(f"{key}: give all of {above}, like {above}={list(node)}")
    node[int(last) if isinstance(node, list) else last] = _like(known.get(key), value, key)


def check_values(cfg: Config) -> None:
    """Raises UserError for values of OPTIONAL that are no such values, or do not go with others."""
    known = dict(walk(cfg._cfg_dict))
    for key, (_, words, good) in OPTIONAL.items():
        if key in known and not good(known[key]):
            raise UserError(f"{key}={known[key]}: {words}")
    clip = known.get("optim_wrapper.clip_grad")
    if clip is not None and clip.get("type", "norm") == "norm" and "max_norm" not in clip:
        raise UserError(f"optim_wrapper.clip_grad={dict(clip)}: it needs optim_wrapper.clip_grad.max_norm=")
    mode = known.get("model.test_cfg.mode")
    if mode is None:
        return
    if mode not in ("whole", "slide"):
        raise UserError(f"model.test_cfg.mode={mode}: whole or slide")
    crop, stride = (known.get(f"model.test_cfg.{name}") for name in ("crop_size", "stride"))
    if mode == "whole" and (crop or stride):
        raise UserError(
            "model.test_cfg.crop_size and stride do nothing for whole pictures; give model.test_cfg.mode=slide"
        )
    if mode == "slide" and not (crop and stride):
        raise UserError(
            "model.test_cfg.mode=slide needs model.test_cfg.crop_size=[H,W] and model.test_cfg.stride=[H,W]"
        )
    if mode == "slide" and any(step > side for step, side in zip(stride, crop, strict=True)):
        raise UserError(f"model.test_cfg.stride={list(stride)} leaves gaps between crops of {list(crop)}")


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
