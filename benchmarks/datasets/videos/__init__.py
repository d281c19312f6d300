"""A checked set of videos, as a task gets it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..masks import VOID, read_mask

INSIST = "--odd-masks scores them all the same"


@dataclass(frozen=True)
class Sequence:
    """One video. Frame i belongs to mask i; `size` is (H, W) of all of them; a binary one has the single object 255.

    masks: None for a frame without annotation; the first has one. later: objects that the first mask lacks, and the
    name of the frame that each appears in.
    """

    name: str
    frames: list[Path]
    masks: list[Path | None]
    size: tuple[int, int]
    objects: int
    binary: bool
    later: Mapping[int, str] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether all frames are annotated. Of a test set only the first ones of each object are."""
        return None not in self.masks

    def truth(self, i: int) -> np.ndarray:
        """Annotation i as labels uint8 [H, W]: void (255) is background, a binary sequence's 255 is object 1."""
        labels = read_mask(self.masks[i])
        if self.binary:
            return (labels == VOID).astype(np.uint8)
        labels[labels == VOID] = 0
        return labels


@dataclass(frozen=True)
class Videos:
    """The content of a checked set, and a method's masks (None for a frame without) where such are scored."""

    sequences: list[Sequence]
    results: dict[str, list[Path | None]] = field(default_factory=dict)
    results_fingerprint: str = ""

    @property
    def scored(self) -> bool:
        """Whether there are annotations to score by."""
        return self.sequences[0].scored
