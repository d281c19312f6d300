"""Pictures with a label for every pixel, as the frozen segmentation tasks read them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ....pretrain.common.errors import UserError
from ..files import read_frame
from ..masks import decode_labels, read_bytes

IGNORED = 255  # in the label maps of VOC and Cityscapes


@dataclass(frozen=True)
class Labelled:
    """Pictures and their label maps, in the order of the set's list. table: label in the file -> label in use, uint8
    [256]; None: as they are."""

    name: str
    images: list[Path]
    labels: list[Path]
    table: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def by_name(self) -> "Labelled":
        """The same in the order of the file names."""
        order = sorted(range(len(self)), key=lambda i: self.images[i].name)
        return replace(self, images=[self.images[i] for i in order], labels=[self.labels[i] for i in order])

    def read(self, i: int) -> np.ndarray:
        """The picture, uint8 RGB [H, W, 3]. Raises UserError naming a file that cannot be decoded."""
        return read_frame(self.images[i])

    def read_labels(self, i: int) -> np.ndarray:
        """uint8 [H, W]"""
        labels, _ = decode_labels(read_bytes(self.labels[i]), self.labels[i])
        return labels if self.table is None else self.table[labels]


def check_judged(labels: list[Path], seen: dict[Path, dict], judged: Iterable[int]) -> None:
    """UserError where none of these label maps has a pixel that is judged."""
    judged = set(judged)
    if not any(judged.intersection(seen[path]["labels"]) for path in labels):
        raise UserError(f"{labels[0]}: has no pixel that is judged, and no other of {len(labels)} label maps has one")


@dataclass(frozen=True)
class LabelledSet:
    """classes: how many labels there are, 0 to classes - 1. ignored: the label that is not judged."""

    train: Labelled
    val: Labelled
    classes: int
    ignored: int
    names: tuple[str, ...]
