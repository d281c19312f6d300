"""Labelled images in the ImageNet layout: ROOT/train/CLASS/... and ROOT/val/CLASS/..."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.data.images import ImageSource, Unreadable, open_source
from .base import Data
from .files import digest

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000  # of ImageNet-1k


@dataclass(frozen=True)
class Split:
    """Images with their labels: image i of the split is `picks[i]` of the source and belongs to class `labels[i]`.

    fingerprint: hash of relative paths and sizes; the folders are the annotation.
    """

    name: str
    source: ImageSource
    picks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.picks)

    @cached_property
    def fingerprint(self) -> str:
        root = Path(self.source.where)
        names = [self.file(i) for i in range(len(self))]
        return digest((f"{self.name}/{name}", os.path.getsize(root / name), "") for name in names)

    def file(self, i: int) -> str:
        """The image's path below the split's folder."""
        return self.source.name(int(self.picks[i]))

    def read(self, i: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises UserError naming the file: an evaluation leaves nothing out."""
        try:
            return self.source.read(int(self.picks[i]))
        except Unreadable as error:
            raise UserError(f"{self.source.where}/{self.file(i)}: cannot be read: {error}") from None


@dataclass(frozen=True)
class ClassSet:
    """A checked data set."""

    root: Path
    classes: list[str]
    train: Split
    val: Split
    differs: str
    notes: list[str] = field(default_factory=list)

    def as_data(self) -> Data:
        """What a task's `check` returns."""
        summary = f"{len(self.classes)} classes, {len(self.train)} + {len(self.val)} images"
        mark = f"sha256:{digest((s.name, len(s), s.fingerprint) for s in (self.train, self.val))}"
        return Data("imagenet", self.root, mark, not self.differs, self.differs, summary, self.notes, self)


def _split(root: Path, name: str, limit: int | None) -> tuple[ImageSource, list[str], np.ndarray]:
    """Source, class name of every image, and which images are used: the first `limit`, one of every class in turn."""
    if not (root / name).is_dir():
        raise UserError(f"{root}: has no {name}/: give the folder that holds train/ and val/ with a folder per class")
    source = open_source(root / name)
    folders = [source.name(i).partition("/") for i in range(len(source))]
    if loose := [first for first, _, rest in folders if not rest]:
        raise UserError(f"{root / name}/{loose[0]}: is not in a class folder: the layout is {name}/CLASS/image")
    classes = [first for first, _, _ in folders]
    if limit is None:
        return source, classes, np.arange(len(source))
    return source, classes, np.array(in_turn(classes, limit))


def in_turn(labels: Iterable, count: int) -> list[int]:
    """The first `count` images, one of every class in turn: their numbers, sorted. labels: every image's class."""
    seen: Counter = Counter()
    turns = []
    for i, label in enumerate(labels):
        turns.append((seen[label], i))
        seen[label] += 1
    return sorted(i for _, i in sorted(turns)[:count])


def open_classes(root: Path | str, limit: int | None = None) -> ClassSet:
    """Open a data set of class folders.

    limit: only so many validation images, taken from the classes in turn; the training images stay. Raises UserError
    naming the folder: no train/ or val/, images outside class folders, a class of only one of them.
    """
    root = Path(root).expanduser()
    train, train_classes, train_picks = _split(root, "train", None)
    val, val_classes, val_picks = _split(root, "val", limit)
    names = sorted(set(train_classes))
    for which, other, have in (("val", "train", set(val_classes)), ("train", "val", set(train_classes))):
        lacking = sorted((set(names) | set(val_classes)) - have)
        if lacking:
            more = f" ({len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise UserError(f"{root}: class {lacking[0]} is in {other}/ but not in {which}/{more}")
    numbers = {name: i for i, name in enumerate(names)}
    splits = [
        Split(name, source, picks, np.array([numbers[classes[i]] for i in picks], np.int64))
        for name, source, classes, picks in (
            ("train", train, train_classes, train_picks),
            ("val", val, val_classes, val_picks),
        )
    ]
    counts = (
        (len(names), CLASSES, "classes"),
        (len(splits[0]), TRAIN, "training images"),
        (len(val), VAL, "validation images"),
    )
    differs = ", ".join(f"{have} {what} instead of {want}" for have, want, what in counts if have != want)
    return ClassSet(root, names, *splits, differs)
