"""PW-Self (patch-wise DINO): full training checkpoint. Unverified: no file of it was at hand.

Source: alijavidani/Local_Global_Representation_Learning 7eeff8c, patch_wise_dino.py. The network and the file are
DINO's; only the loss's centre differs, with a row for each token of a global view. Downstream: the teacher.
"""

from . import below, find, fits, is_dino
from .dino import ALWAYS, HEADS, NETWORKS, PREFIXES, per_token, read  # noqa: F401


def claims(shapes, meta) -> int:
    prefix, centre = find(shapes, PREFIXES, is_dino), shapes.get("dino_loss.center")
    alone = not any(k.startswith(("ibot_loss.", "dino_loss.patch_center")) for k in shapes)
    return 3 if prefix and centre and per_token(centre) and alone and fits(below(shapes, prefix), HEADS) else 0


def convert(state, meta):
    return read(state, NETWORKS, dict.fromkeys(HEADS, "head"))
