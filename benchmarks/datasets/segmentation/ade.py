"""ADE20K for the frozen tasks: its checks are those of the fine-tuned ones (datasets/ade20k.py)."""

from dataclasses import replace
from pathlib import Path

from ..ade20k import CLASSES, open_ade20k, pairs
from ..base import ANY, SPLITS, Data
from . import Labelled, LabelledSet


def open_labelled_ade(root: Path | str, limit: int | None = None) -> Data:
    """ADE20K, or a set of its own classes in its layout, with a LabelledSet as content: labels 0 (other, not judged) to
    150, or to as many as classes.txt names. Errors as of `open_ade20k`."""
    data = open_ade20k(root, limit, ANY)
    names = ("other", *(data.content or (f"class {i}" for i in range(1, CLASSES + 1))))
    train, val = (Labelled(s, *pairs(data.root, SPLITS[s], limit if s == "val" else None)) for s in ("train", "val"))
    return replace(data, content=LabelledSet(train, val, len(names), 0, names))
