"""Swin V2 as timm or the official code writes it: a flat state dict, timm's training checkpoint, the official `model`.

Source: huggingface/pytorch-image-models 1.0.31, timm/models/swin_transformer_v2.py; microsoft/Swin-Transformer, models/
swin_transformer_v2.py. The official files store the index and the log distances of each window, which tell the window
and that of the pretraining, by which distances were divided; timm's files store neither: then the architecture that is
named tells them, or the user gives the window. All of them want ImageNet's mean and std.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch

from ...pretrain.common.card import MAX_WINDOW
from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import shapes_of, swinv2_card
from ..checkpoints.named import network_in
from ..checkpoints.stated import normalisation_from
from . import IMAGENET, alone, and_alone, below, drop, prefix_of, under
from ._conv import ALONE, SWIN_PARTS, check_index, only, own, swin_names

MARKS = {"patch_embed.proj.weight", *(f"layers.0.blocks.0.attn.{n}" for n in ("cpb_mlp.0.weight", "logit_scale"))}
INDEX, TABLE, MASK = "relative_position_index", "relative_coords_table", "attn_mask"
BESIDE = {"head.": "head", "mask_token": "mask token"}
USUAL = {"qkv_bias": True}


def root_of(keys) -> str | None:
    """The prefix of the one network."""
    prefix = alone(keys, "patch_embed.proj.weight")
    fits = prefix is not None and MARKS.issubset(below(keys, prefix)) and only(keys, prefix, (*SWIN_PARTS, *BESIDE))
    return prefix if fits else None


def claims(shapes, meta) -> int:
    if root_of(shapes) is not None:
        return 1
    prefix = prefix_of(shapes, ALONE, MARKS.issubset)
    return 2 * bool(prefix and "arch" in meta and only(shapes, prefix, (*SWIN_PARTS, *BESIDE)))


def convert(state, meta):
    prefix = state.pick(and_alone(ALONE, root_of(state)), MARKS.issubset)
    dropped = drop(state, under(prefix, BESIDE) | ({"state_dict_ema.": "EMA copy"} if prefix else {}))
    names = own(state, prefix, SWIN_PARTS)
    stored = {name: state[key] for name, key in names.items() if name.endswith((INDEX, TABLE))}
    dropped |= {key: "rebuilt" for name, key in names.items() if name.endswith((INDEX, TABLE, MASK))}
    renamed = swin_names(name for name, key in names.items() if key not in dropped)
    weights = {new: state[names[name]] for new, name in renamed.items()}
    card = swinv2_card(shapes_of(weights), **(normalisation_from(meta) or IMAGENET))
    windows = _stored(stored) or _named(meta, card.dim)
    if not windows or (stored and not any(name.endswith(TABLE) for name in stored)):
        state.assume("pretrained_windows")
    if windows:
        if sorted(windows) != list(range(len(card.depths))):
            raise UserError(f"windows are stored for {len(windows)} of its {len(card.depths)} stages: part was lost?")
        sides, before = zip(*(windows[i] for i in sorted(windows)), strict=True)
        _check_one(sides)
        card = card.override({"window": sides[0], "pretrained_windows": before})
    return weights, card, dropped


def _stored(stored: Mapping[str, torch.Tensor]) -> dict[int, tuple[int, int]]:
    """Stage -> its window and that of the pretraining (0: the same), by the indices and tables of a file."""
    found: dict[int, tuple[int, int]] = {}
    for name, value in sorted(stored.items()):  # an index comes after the table beside it
        stage = int(name.split(".")[1])
        if name.endswith(TABLE):
            window, before = _of_table(name, value)
        else:
            check_index(name, value)
            window = math.isqrt(len(value))
            before = found.get(stage, (0, 0))[1]
        if found.setdefault(stage, (window, before)) != (window, before):
            raise UserError(f"{name} is of another window than those before it in its stage")
    return found


def _of_table(name: str, table: torch.Tensor) -> tuple[int, int]:
    """The window whose log distances these are [1, 2w-1, 2w-1, 2], and the other that divides them, or 0."""
    shape = tuple(table.shape)
    window = (shape[1] + 1) // 2 if len(shape) == 4 else 0
    if not 1 <= window <= MAX_WINDOW or shape != (1, 2 * window - 1, 2 * window - 1, 2):
        raise UserError(f"{name} is {list(shape)}, not that of a square window")
    table, before = table.double(), window
    reach = 8 ** min(table.max().item(), 8) - 1
    if window > 1 and reach > 0.1:
        before = round(8 * (window - 1) / reach) + 1
    away = torch.arange(1 - window, window, dtype=torch.float64) * 8 / max(before - 1, 1)
    away = away.sign() * (away.abs() + 1).log2() / 3
    if not torch.allclose(table[0], torch.stack(torch.meshgrid(away, away, indexing="ij"), -1), atol=4e-3):
        raise UserError(f"{name} holds other distances than Swin V2's")
    return window, 0 if before == window else before


def _named(meta: Mapping, dim: int) -> dict[int, tuple[int, int]]:
    """The same of timm's network that is named, if it is a Swin V2 of that width."""
    where, network = network_in(meta)
    if type(network).__name__ != "SwinTransformerV2" or network.embed_dim != dim:
        return {}
    attention = [stage.blocks[0].attn for stage in network.layers]
    if any(len({*sides}) > 1 for a in attention for sides in (a.window_size, a.pretrained_window_size)):
        raise UserError(f"{where} is not built here: its windows are not square")
    return {i: (a.window_size[0], a.pretrained_window_size[0]) for i, a in enumerate(attention)}


def _check_one(sides: tuple[int, ...]) -> None:
    """Raise UserError unless these are one window, in stages of smaller maps the whole map."""
    for one, two in pairwise(sides):
        half = (one + 1) // 2
        if not half <= two <= one or (one < sides[0] and two != half):
            raise UserError(f"windows of {', '.join(map(str, sides))} in its stages: only one of all is built here")
