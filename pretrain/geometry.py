"""Geometry of views and of their patch grids: pure, batched functions.

Views carry only a crop box and a flip; everything else is derived from those here, on the device, by functions
without state: which patches are neighbours (SelfPatch), where two crops overlap and what a view's features are there
(SERE), which patches of two crops show the same place (PW-Self). Boxes are [..., 4]: left, top, width, height.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.errors import UserError


@lru_cache(maxsize=64)
def neighbours(
    h: int, w: int, radius: int | str = 1, wrap: bool = True, device: torch.device | str = "cpu"
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


def overlap_grid(box_a: Tensor, flip_a: Tensor, box_b: Tensor, flip_b: Tensor, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """s x s points over the intersection of two crops of one image, as each of them sees the points.

    box_a, box_b [B, 4], flip_a, flip_b [B] bool -> grid_a, grid_b [B, s, s, 2], x and y from -1 (left, upper edge of
    the crop) to 1, float64, and valid [B]: whether the crops overlap; both grids are -2 where they do not. The points
    reach from edge to edge of the intersection. Source: MCG-NKU/SERE e20f37f, transforms_overlap.py.
    """
    low, high, valid = _intersection(box_a, box_b)
    at = torch.linspace(0, 1, s, dtype=torch.float64, device=low.device)
    points = low[:, None] + (high - low)[:, None] * at[:, None]  # [B, s, 2]: x of the columns, y of the rows
    grids = []
    for box, flip in ((box_a, flip_a), (box_b, flip_b)):
        unit = (points - box[:, None, :2].double()) / box[:, None, 2:].double()
        x, y = unit.unbind(-1)
        x = torch.where(flip[:, None], 1 - x, x)
        both = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1) * 2 - 1
        grids.append(torch.where(valid[:, None, None, None], both, -2.0))
    return *grids, valid


def _intersection(box_a: Tensor, box_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> upper left and lower right corner [B, 2], float64, and whether there is anything between them [B]"""
    a, b = box_a.double(), box_b.double()
    low = torch.maximum(a[:, :2], b[:, :2])
    high = torch.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    return low, high, (low < high).all(1)


def sampling(grid: Tensor, hw: tuple[int, int], border: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """Points [..., s, t, 2] -> the matrix [..., s * t, h * w] that samples features [..., h * w, D] there, bilinearly.

    As `grid_sample(align_corners=False)`: beyond the centres of the outermost patches zeros are mixed in or, if
    `border`, the outermost patches repeated. A matrix, because its product needs no other layout of the features and
    has a gradient that does not depend on the order of additions. dtype: the matrix's; the points', if not given.
    """
    x, y = (_weights(grid[..., axis], hw[1 - axis], border).to(dtype or grid.dtype) for axis in (0, 1))
    return (y[..., :, None] * x[..., None, :]).flatten(-2).flatten(-3, -2)


def _weights(at: Tensor, n: int, border: bool) -> Tensor:
    """Points [...] from -1 to 1 -> their bilinear weights of n cells [..., n]"""
    place = ((at + 1) * n - 1) / 2
    if border:
        place = place.clamp(0, n - 1)
    cells = torch.arange(n, dtype=place.dtype, device=place.device)
    return (1 - (place[..., None] - cells).abs()).clamp(min=0)


def match(
    box_a: Tensor, flip_a: Tensor, grid_a: tuple[int, int], box_b: Tensor, flip_b: Tensor, grid_b: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of two crops of one image that show the same place.

    box_a, box_b [B, 4] and flip_a, flip_b [B] bool, patch grids (h, w) -> index_a, index_b and valid, all [B, 1 + m]:
    pairs of tokens, 0 the class token (paired first, always), patches from 1 in row-major order; m is the number of
    patches in the smaller grid, and entries that are not valid are padding. Every token is in one valid pair at most.

    The patches of either crop in the intersection, in whole patches, then along each axis every so many of the longer
    list. Source: alijavidani/Local_Global_Representation_Learning 7eeff8c, patch_wise_dino.py. Its rounding can run
    over the crop's edge by one patch; as there, a crop that is also flipped then has no patch in any pair.
    """
    low, high, overlap = _intersection(box_a, box_b)
    by_axis = []  # columns first: places in a, places in b, which of them count
    for axis in (0, 1):
        lines = []
        for box, flip, grid in ((box_a, flip_a, grid_a), (box_b, flip_b, grid_b)):
            start, length, n = box[:, axis].double(), box[:, 2 + axis].double(), grid[1 - axis]
            count = (n * ((high - low)[:, axis] / length)).round()  # ties to even
            first = (n * ((low[:, axis] - start) / length)).round()
            mirrored = flip if axis == 0 else torch.zeros_like(flip)
            over = first + count > n
            count = torch.where(over, torch.where(mirrored, 0.0, n - first), count) * overlap
            lines.append((first, count, mirrored, n))
        most = min(n for *_, n in lines)
        shorter = torch.minimum(lines[0][1], lines[1][1])
        at = torch.arange(most, dtype=torch.float64, device=low.device)
        places = []
        for first, count, mirrored, n in lines:
            step = (count - 1) / (shorter - 1).clamp(min=1)
            last = (at > 0) & (at == shorter[:, None] - 1)  # exactly, whatever the step has been rounded to
            place = first[:, None] + torch.where(last, (count - 1)[:, None], (at * step[:, None]).floor())
            places.append(torch.where(mirrored[:, None], n - 1 - place, place).clamp(0, n - 1).long())
        by_axis.append((*places, at < shorter[:, None]))
    (xa, xb, by_x), (ya, yb, by_y) = by_axis
    pairs = []
    for x, y, grid in ((xa, ya, grid_a), (xb, yb, grid_b)):
        patches = 1 + y[:, :, None] * grid[1] + x[:, None, :]
        pairs.append(F.pad(patches.flatten(1), (1, 0)))
    valid = (by_y[:, :, None] & by_x[:, None, :]).flatten(1)
    return *pairs, F.pad(valid, (1, 0), value=True)
