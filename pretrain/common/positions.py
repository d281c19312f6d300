"""Learned positions of a ViT at another patch grid than the stored one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

ASSUMED = "dino (assumed)"


def rule_for(rule: str, side: int, grid: tuple[int, int]) -> str:
    """The rule that makes the positions of `grid` from a stored side x side: `rule`, or DINO's where it has no answer.

    The official code of some formats takes the stored grid only, or square ones: for others DINO's rule is assumed, and
    for relative positions that of transformers.
    """
    square = rule == "square" and grid[0] == grid[1]
    answers = grid == (side, side) or rule not in ("stored", "square", "window") or square
    return rule if answers else "bilinear (assumed)" if rule == "window" else ASSUMED


def resize_positions(
    patches: Tensor, grid: tuple[int, int], rule: str, stored_grid: tuple[int, int] | None = None
) -> Tensor:
    """Stored positions [1, G*G, D] at another grid (h, w) -> [1, h*w, D].

    rule: a key of card.POSITION_RULES. "dino" hands bicubic interpolation a scale factor with 0.1 added to each side
    (facebookresearch/dino 7c446df, vision_transformer.py), which samples other points than an output size does.
    stored_grid: rows and columns of the stored ones, where they are no square.
    """
    rows, columns = stored_grid or (math.isqrt(patches.shape[1]),) * 2
    h, w = grid
    if (h, w) == (rows, columns):
        return patches
    rule = rule_for(rule, rows, grid)
    if patches.is_cuda and patches.requires_grad:
        return (resizing((rows, columns), grid, rule, patches.device) @ patches.double()).to(patches.dtype)
    stored = patches.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    return interpolated(stored, grid, rule).permute(0, 2, 3, 1).flatten(1, 2)


def interpolated(stored: Tensor, grid: tuple[int, int], rule: str) -> Tensor:
    """[M, D, rows, columns] -> [M, D, h, w]"""
    (h, w), (rows, columns) = grid, stored.shape[-2:]
    if rule in ("dino", ASSUMED):
        scale = ((h + 0.1) / rows, (w + 0.1) / columns)
        out = F.interpolate(stored, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
    else:
        out = F.interpolate(stored, size=(h, w), mode="bicubic", antialias=rule == "timm")
    if out.shape[-2:] != (h, w):
        raise UserError(f"positions {rows}x{columns} resized to {tuple(out.shape[-2:])} instead of {h}x{w}")
    return out


def resizing(stored: tuple[int, int], grid: tuple[int, int], rule: str, device: torch.device | None = None) -> Tensor:
    """float64 [h*w, rows * columns]: the matrix by which stored positions become those of another grid; made on the
    device.

    A product with it has a backward pass that adds in the same order each time, which bicubic interpolation on a GPU
    has not. Its entries are float32's, as the interpolation has them; in float64 neither autocast nor TF32 rounds the
    product.
    """
    rows, columns = stored
    with torch.no_grad():
        single = torch.eye(rows * columns, device=device).view(1, rows * columns, rows, columns)
        return interpolated(single, grid, rule).flatten(2)[0].t().double()


def relative_bias(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table of relative positions [(2G-1)^2 + 3, heads] -> what is added to the attention's logits of a class token
    and h x w patches, [1, heads, 1 + h*w, 1 + h*w].

    The entry of two patches is that of the difference of their places, query less key, rows first; the last three are
    of the class token's to a patch, a patch's to it, and its own (microsoft/unilm, beit/modeling_finetune.py). At
    another grid than the stored one the table is resized bilinearly (huggingface/transformers 5, modeling_beit.py).
    """
    (h, w), heads = grid, table.shape[1]
    side = math.isqrt(len(table) - 3)
    places = table[:-3].t().reshape(1, heads, side, side)
    if (side, side) != (2 * h - 1, 2 * w - 1):
        places = F.interpolate(places, size=(2 * h - 1, 2 * w - 1), mode="bilinear")
    steps = (torch.arange(n, device=table.device) for n in grid)
    down, right = (at[:, None] - at + len(at) - 1 for at in steps)
    index = (down[:, None, :, None] * (2 * w - 1) + right[None, :, None, :]).view(h * w, h * w)
    bias = F.pad(places.flatten(2)[0][:, index], (1, 0, 1, 0))
    to_patch, to_token, own = table[-3:, :, None]
    bias[:, 0, :], bias[:, :, 0], bias[:, 0, 0] = to_patch, to_token, own[:, 0]
    return bias[None]
