"""PW-Self (patch-wise DINO): full training checkpoint. Unverified: no file of it was at hand.

Source: alijavidani/Local_Global_Representation_Learning 7eeff8c, patch_wise_dino.py. The network and the file are
DINO's; only the loss's centre differs, with a row for each token of a global view. Downstream: the teacher.
"""

from . import is_dino, prefix_of
from .dino import ALWAYS, NETWORKS, convert, is_layout, per_token  # noqa: F401


def claims(shapes, meta) -> int:
    centre = shapes.get("dino_loss.center")
    return 3 if centre and per_token(centre) and is_layout(shapes, prefix_of(shapes, NETWORKS, is_dino)) else 0
