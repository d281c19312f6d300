"""A checkpoint by its path or by its name on a hub, with what the zoo knows of it."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from ..backbones.encoder import Encoder
from ..checkpoints.open import Checkpoint, build, open_file
from .remote import resolve
from .zoo import look_up


def open_checkpoint(
    path: str | Path,
    *,
    format: str | None = None,
    card: Mapping | None = None,
    weights: str | None = None,
    part: str | None = None,
) -> Checkpoint:
    """`checkpoints.open.open_file`, also of `timm:NAME` and `hf:REPO`, with the facts that the zoo has of a file."""
    return open_file(path, format=format, card=card, weights=weights, part=part, resolve=resolve, look_up=look_up)


def load(
    path: str | Path, *, format: str | None = None, weights: str | None = None, part: str | None = None, **overrides
) -> Encoder:
    """A checkpoint as an encoder: `load("file.pth", heads=6)`; see `open_checkpoint`.

    overrides: fields of the card (heads, mean, std, pos_resize ...; see card.Card). Strict: every weight of the network
    comes from the file and every tensor of the file is accounted for (`encoder.accounting`); else UserError.
    """
    checkpoint = open_checkpoint(path, format=format, card=overrides, weights=weights, part=part)
    for text in checkpoint.warnings:
        warnings.warn(f"{path}: {text}", stacklevel=2)
    return build(checkpoint)
