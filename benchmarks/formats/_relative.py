"""What the formats of ViTs with tables of relative positions (BEiT and its relatives) share."""

import math

import torch

from ...pretrain.common.errors import UserError

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
MAX_SIDE = 128  # of a grid whose index is looked at


def check_index(name: str, index: torch.Tensor) -> None:
    """Raise UserError unless this is the index of every BEiT, which is made anew: rows of the table by the difference
    of two patches' places, and the last three for the class token."""
    side = math.isqrt(max(index.shape[0] - 1, 0)) if index.dim() == 2 else 0
    if not 1 <= side <= MAX_SIDE or tuple(index.shape) != (side * side + 1,) * 2:
        raise UserError(f"{name} is {list(index.shape)}, not of a square grid and a class token")
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    away = at[:, None] - at[None] + side - 1
    rows = (2 * side - 1) ** 2
    wanted = torch.full_like(index, rows, dtype=torch.long)
    wanted[1:, 1:], wanted[1:, 0], wanted[0, 0] = away[..., 0] * (2 * side - 1) + away[..., 1], rows + 1, rows + 2
    if not torch.equal(index.long(), wanted):
        raise UserError(f"{name} orders relative positions in another way than BEiT does")


def whole_bias(found: dict) -> dict:
    """`attn.q_bias` and `attn.v_bias` of each block as timm's one bias of query, key and value; the key has none."""
    weights = {}
    for name, value in found.items():
        home, mark, part = name.rpartition(".attn.")
        if not mark or part not in ("q_bias", "v_bias"):
            weights[name] = value
        elif part == "q_bias":
            if (other := found.get(f"{home}.attn.v_bias")) is None or other.shape != value.shape:
                raise UserError(f"{name}: no v_bias of the same shape beside it")
            weights[f"{home}.attn.qkv.bias"] = torch.cat([value, torch.zeros_like(value), other])
        elif f"{home}.attn.q_bias" not in found:
            raise UserError(f"{name}: no q_bias beside it")
    return weights
