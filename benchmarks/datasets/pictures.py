"""Pictures of a data set by number, and what identifies them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.data.decode import Unreadable, note_on_turned
from .identity import Item, fingerprint, read_contents

if TYPE_CHECKING:
    from ...pretrain.data.images import ImageSource  # torch, which takes its time


@dataclass(frozen=True)
class Pictures:
    """Picture i is `picks[i]` of the source.

    fingerprint: of the pictures' names, sizes and content; '' before they have been read (`identified`).
    """

    name: str
    source: "ImageSource"
    picks: np.ndarray
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.picks)

    def items(self, root: Path) -> list[Item]:
        """Where the pictures' bytes lie below the set's root."""
        names, spans = list(self.source.names), (self.source.span(i) for i in self.picks.tolist())
        below = os.path.relpath(self.source.root, root)
        return [
            Item(f"{self.name}/{names[i]}", f"{below}/{file}", offset, size)
            for i, (file, offset, size) in zip(self.picks.tolist(), spans, strict=True)
        ]

    def file(self, i: int) -> str:
        """The picture's path below its folder."""
        return self.source.name(int(self.picks[i]))

    def turned(self) -> list[str]:
        """A line where orientation tags are ignored."""
        return note_on_turned(lambda i: self.source.data(int(self.picks[i])), len(self))

    def read(self, i: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises UserError naming the file: an evaluation leaves nothing out."""
        try:
            return self.source.read(int(self.picks[i]))
        except Unreadable as error:
            raise UserError(f"{self.source.where}/{self.file(i)}: cannot be read: {error}") from None


def open_pictures(name: str, folder: Path | str) -> Pictures:
    """All pictures of a folder, at any depth, or what else `open_source` opens. Raises UserError as that does."""
    from ...pretrain.data.images import open_source

    source = open_source(folder)
    return Pictures(name, source, np.arange(len(source)))


def identified(root: Path, sets: Sequence[Pictures]) -> list[Pictures]:
    """The same sets with their fingerprints. root: the folder that they lie in. Raises UserError naming a file that
    cannot be read."""
    items = [one.items(root) for one in sets]
    read = read_contents(root, [item for some in items for item in some])
    facts = zip(read.sizes.tolist(), read.hex(), strict=True)
    marks = [fingerprint(read.whole, [(item.name, *next(facts)) for item in some]) for some in items]
    return [replace(one, fingerprint=mark) for one, mark in zip(sets, marks, strict=True)]
