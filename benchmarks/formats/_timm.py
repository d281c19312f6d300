"""What timm's words, in a file or beside it, say of a ViT: what its weights do not show."""

from collections.abc import Mapping

from ...pretrain.common.errors import UserError
from ..checkpoints.named import facts_in

READOUTS = {"avg": "mean", "token": "token"}  # timm's word for the pooling -> the card's, after the final norm
KNOWN = ("norm_eps", "act")


def told(state, meta: Mapping, shapes: Mapping[str, tuple]) -> dict:
    """norm_eps, act and readout of the card; those that nothing says are assumed. shapes: of the network in timm's
    names. Raises UserError for a pooling that is not built here."""
    known = facts_in(meta, shapes)
    facts = {key: known[key] for key in KNOWN if key in known}
    state.assume(*(key for key in KNOWN if key not in facts))
    pool, pooled = known.get("global_pool"), "fc_norm.weight" in shapes
    if pool and (pool not in READOUTS or (pooled and pool == "token")):
        raise UserError(f"its pooling (global_pool {pool}{' with a norm after it' * pooled}) is not built here")
    if pool and not pooled:
        facts["readout"] = READOUTS[pool]
    elif not pool:
        state.assume("readout")
    return facts
