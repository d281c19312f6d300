"""Labelled images in the ImageNet layout: ROOT/train/CLASS/... and ROOT/val/CLASS/..."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.data.images import ImageSource, Unreadable, open_source
from .base import Data, digest, instead, more

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
    """The content of a checked data set. classes: names in the order of the labels."""

    root: Path
    classes: list[str]
    train: Split
    val: Split

    def as_data(self) -> Data:
        """What a task's `check` returns. It asks for the size of every image, which takes its time."""
        differs = instead(len(self.classes), CLASSES, "classes") + instead(len(self.train), TRAIN, "training images")
        differs = ", ".join(differs + instead(len(self.val.source), VAL, "validation images"))
        summary = f"{len(self.classes)} classes, {len(self.train)} + {len(self.val)} images"
        mark = f"sha256:{digest((s.name, len(s), s.fingerprint) for s in (self.train, self.val))}"
        return Data("imagenet", self.root, mark, not differs, differs, summary, content=self)


def open_classes(root: Path | str, limit: int | None = None) -> ClassSet:
    """Open a data set of class folders.

    limit: only so many validation images, taken from the classes in turn; the training images stay. Raises UserError
    naming the folder: no train/ or val/, images outside class folders, a class of only one of them.
    """
    root = Path(root).expanduser()
    train, val = (_source(root, name) for name in ("train", "val"))
    names, val_names = set(train[1]), set(val[1])
    for lacking, other, which in ((names - val_names, "train", "val"), (val_names - names, "val", "train")):
        if lacking:
            raise UserError(f"{root}: class {min(lacking)} is in {other}/ but not in {which}/{more(lacking)}")
    numbers = {name: i for i, name in enumerate(sorted(names))}

    def split(name: str, source: ImageSource, folders: list[str], limit: int | None) -> Split:
        picks = np.arange(len(source)) if limit is None else np.array(in_turn(folders, limit))
        return Split(name, source, picks, np.array([numbers[folders[i]] for i in picks], np.int64))

    return ClassSet(root, list(numbers), split("train", *train, None), split("val", *val, limit))


def _source(root: Path, name: str) -> tuple[ImageSource, list[str]]:
    """The images of a split, and the class of each."""
    if not (root / name).is_dir():
        raise UserError(f"{root}: has no {name}/: give the folder that holds train/ and val/ with a folder per class")
    source = open_source(root / name)
    folders = [source.name(i).partition("/") for i in range(len(source))]
    if loose := [first for first, _, rest in folders if not rest]:
        raise UserError(f"{root / name}/{loose[0]}: is not in a class folder: the layout is {name}/CLASS/image")
    return source, [first for first, _, _ in folders]


def in_turn(labels: Iterable, count: int) -> list[int]:
    """The first `count` images, one of every class in turn: their numbers, sorted. labels: every image's class."""
    seen: Counter = Counter()
    turns = []
    for i, label in enumerate(labels):
        turns.append((seen[label], i))
        seen[label] += 1
    return sorted(i for _, i in sorted(turns)[:count])
