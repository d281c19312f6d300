"""Geometry of views and of their patch grids: pure, batched functions.

Views carry only a crop box and a flip; everything else is derived from those here, on the device, by functions
without state. Next to `neighbours` belong `overlap_grid(box_a, flip_a, box_b, flip_b, s)` (sampling grids over the
intersection of two crops, for SERE) and `match(box_a, flip_a, grid_a, box_b, flip_b, grid_b)` (padded index lists and
weights of corresponding patches, for PW-Self).
"""

from functools import lru_cache

import torch
from torch import Tensor

from ..benchmarks.errors import UserError


def neighbours(
    h: int, w: int, radius: int | str = 1, wrap: bool = True, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """The patches around every patch of an h x w grid, itself left out.

    radius: a window of (2 radius + 1)^2, or "all" for every other patch of the view. wrap: indices are taken modulo h
    and w, so the grid is a torus (alinlab/SelfPatch 81aef14, main_selfpatch.py); otherwise the window is clipped.
    Returns index [N, K] (int64, row-major, ascending; a patch that a wide window reaches twice is listed once) and
    valid [N, K] (bool; False entries are padding, at the end of a row) or None when every entry counts.
    Raises UserError for another radius. The tensors are shared between calls: do not write to them.
    """
    try:
        reach = max(h, w) if radius == "all" else int(radius)
    except ValueError:
        reach = 0
    if reach < 1 or h < 1 or w < 1:
        raise UserError(f"neighbourhood radius {radius} on a {h}x{w} grid: it is 1, 2, ... or all")
    return _neighbours(h, w, reach, wrap, torch.device(device or "cpu"))


@lru_cache(maxsize=64)
def _neighbours(h: int, w: int, reach: int, wrap: bool, device: torch.device) -> tuple[Tensor, Tensor | None]:
    near = _near(h, reach, wrap)[:, None, :, None] & _near(w, reach, wrap)[None, :, None, :]
    near = near.reshape(h * w, h * w)
    near.fill_diagonal_(False)
    count = near.sum(1)
    most = int(count.max())
    # A stable sort brings every row's neighbours to the front in ascending order.
    index = torch.argsort(near, dim=1, descending=True, stable=True)[:, :most]
    if int(count.min()) == most:
        return index.to(device), None
    valid = torch.arange(most) < count[:, None]
    return index.masked_fill(~valid, 0).to(device), valid.to(device)


def _near(n: int, reach: int, wrap: bool) -> Tensor:
    """[n, n] bool: whether two positions of one axis are within reach of each other."""
    steps = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    return (torch.minimum(steps, n - steps) if wrap else steps) <= reach
