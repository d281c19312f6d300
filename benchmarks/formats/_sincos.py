"""Fixed sine-cosine positions, which MAE and MoCo v3 store: the order of their halves tells the two apart."""

import torch
from torch import Tensor

from ..checkpoints.state import Mismatch

ORDERS = {"columns": "MAE", "rows": "MoCo v3"}  # what the first half of the channels encodes -> who stores it so


def order(pos_embed: Tensor) -> str | None:
    """`columns` if the first half encodes the column of a patch (MAE), `rows` if the row (MoCo v3), None if learned.

    pos_embed [1, 1 + G*G, D]: the class token's is 0. Tolerance: half precision of values up to 1.
    """
    count, dim = pos_embed.shape[1] - 1, pos_embed.shape[2]
    side = round(count**0.5)
    if side * side != count or dim % 4 or side < 2 or pos_embed[0, 0].abs().max() > 1e-3:
        return None
    omega = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], 1)
    first, second = (pos_embed[0, 1:].double().view(side, side, 2, dim // 2)[:, :, i] for i in (0, 1))
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    for name, wanted in (("columns", (columns, rows)), ("rows", (rows, columns))):
        if (first - wanted[0]).abs().max() < 1e-2 and (second - wanted[1]).abs().max() < 1e-2:
            return name
    return None


def check_order(pos_embed: Tensor, wanted: str) -> None:
    """Raise Mismatch unless these are the positions of that order."""
    found = order(pos_embed)
    if found != wanted:
        stored = f"{ORDERS[found]}'s" if found else "learned"
        raise Mismatch(f"its positions are {stored}, not the fixed ones that {ORDERS[wanted]} stores")
