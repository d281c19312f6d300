"""Fixed sine-cosine positions, which MAE and MoCo v3 store: the order of their halves tells the two apart."""

from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

from ..checkpoints.state import Mismatch

ORDERS = {"columns": "MAE", "rows": "MoCo v3"}  # what the first half of the channels encodes -> who stores it so


def order(pos_embed: Tensor, own: int = 1) -> str | None:
    """`columns` if the first half encodes the column of a patch (MAE), `rows` if the row (MoCo v3), None if learned.

    pos_embed [1, own + G*G, D]; own: 1 with a class token, whose position is 0, else 0. Tolerance: half precision of
    values up to 1.
    """
    count, dim = pos_embed.shape[1] - own, pos_embed.shape[2]
    side = round(count**0.5)
    if side * side != count or dim % 4 or side < 2 or pos_embed[0, :own].abs().gt(1e-3).any():
        return None
    rows = build_sincos2d_pos_embed((side, side), dim, interleave_sin_cos=True)
    for name, wanted in (("rows", rows), ("columns", rows.roll(dim // 2, 1))):
        if (pos_embed[0, own:].float() - wanted).abs().max() < 1e-2:
            return name
    return None


def check_order(pos_embed: Tensor, wanted: str, own: int = 1) -> None:
    """Raise Mismatch unless these are the positions of that order."""
    found = order(pos_embed, own)
    if found != wanted:
        stored = f"{ORDERS[found]}'s" if found else "learned"
        raise Mismatch(f"its positions are {stored}, not the fixed ones that {ORDERS[wanted]} stores")
