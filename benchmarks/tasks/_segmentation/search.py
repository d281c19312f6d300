"""Exact nearest neighbours by inner product, in bounded memory, about as fast as the matrix product alone."""

import torch
from torch import Tensor

SCORES = 1 << 24  # products held at once: 64 MB in float32
ROWS = 256  # queries at a time: enough for a fast product
GROUP = 64  # keys whose largest product is looked at first


def nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """queries [q, D], keys [n, D] of one type and device -> the k largest products of each query and the numbers of
    their keys, falling: float [q, min(k, n)], int64 of the same shape.

    The products are made block by block. Of a block, the k groups of keys with the largest maxima hold its k largest
    products, so only those are ranked: torch.topk over all would cost as much as the product.
    """
    k = min(k, len(keys))
    step = max(GROUP * k, SCORES // ROWS // GROUP * GROUP)
    values, indices = [], []
    for some in queries.split(ROWS):
        best = some.new_full((len(some), k), -torch.inf)
        where = torch.zeros(best.shape, dtype=torch.int64, device=some.device)
        for start in range(0, len(keys), step):
            value, at = _largest(some @ keys[start : start + step].T, k)
            value, order = torch.cat([best, value], 1).topk(k, dim=1)
            best, where = value, torch.cat([where, at + start], 1).gather(1, order)
        values.append(best)
        indices.append(where)
    return torch.cat(values), torch.cat(indices)


def _largest(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """products [q, n] -> the largest of each row, at most k, and their columns."""
    rows, n = products.shape
    whole = n // GROUP
    if whole <= k:
        return products.topk(min(k, n), dim=1)
    groups = products[:, : whole * GROUP].view(rows, whole, GROUP)
    chosen = groups.amax(2).topk(k, dim=1, sorted=False).indices
    value = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    column = (chosen[:, :, None] * GROUP + torch.arange(GROUP, device=products.device)).flatten(1)
    rest = torch.arange(whole * GROUP, n, device=products.device).expand(rows, -1)
    value, column = torch.cat([value, products[:, whole * GROUP :]], 1), torch.cat([column, rest], 1)
    value, order = value.topk(k, dim=1)
    return value, column.gather(1, order)
