"""Labelled images in the ImageNet layout: ROOT/train/CLASS/... and ROOT/val/CLASS/..., or ROOT/train/*.tar and
ROOT/val/*.tar with the classes in .cls members (webdataset)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.data.images import ImageSource, Shards, open_source
from ...pretrain.data.listing import HELD_OUT
from .base import SPLITS, Data, instead, more
from .identity import fingerprint, read_contents
from .pictures import Pictures

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000  # of ImageNet-1k


@dataclass(frozen=True)
class Split(Pictures):
    """Images with their labels: image i belongs to class `labels[i]`.

    fingerprint: of the images' names, sizes, content and classes; '' before `ClassSet.as_data` has read them.
    """

    labels: np.ndarray = field(kw_only=True)


@dataclass(frozen=True)
class ClassSet:
    """The content of a checked data set. classes: names in the order of the labels."""

    root: Path
    classes: list[str]
    train: Split
    val: Split

    def as_data(self) -> Data:
        """What a task's `check` returns. It reads the content of the images (identity.py), which takes its time."""
        differs = instead(len(self.classes), CLASSES, "classes") + instead(len(self.train), TRAIN, "training images")
        differs = ", ".join(differs + instead(len(self.val.source), VAL, "validation images"))
        summary = f"{len(self.classes)} classes, {len(self.train)} + {len(self.val)} images"
        splits = [self.train, self.val]
        items = [item for split in splits for item in split.items(self.root)]
        read = read_contents(self.root, items)
        facts = [(item.name, size, sha) for item, size, sha in zip(items, read.sizes.tolist(), read.hex(), strict=True)]
        for k, part in enumerate((facts[: len(self.train)], facts[len(self.train) :])):
            kinds = (self.classes[label] for label in splits[k].labels.tolist())
            files = ((f"{name} {kind}", *rest) for (name, *rest), kind in zip(part, kinds, strict=True))
            splits[k] = replace(splits[k], fingerprint=fingerprint(read.whole, files))
        mark = fingerprint(read.whole, ((s.name, len(s), s.fingerprint) for s in splits))
        found = replace(self, train=splits[0], val=splits[1])
        notes = [f"{self.root / s.name}: {note}" for s in splits for note in [*s.source.notes, *s.turned()]]
        notes += self._same(facts)
        return Data("imagenet", self.root, mark, not differs, differs, summary, notes, found)

    def _same(self, facts: list[tuple[str, int, str]]) -> list[str]:
        """Notes on pictures that are there more than once: under two classes, or in both splits. facts: name, size and
        hash of every image, train/ first."""
        first, classes, both = {}, [], []
        for (name, _, sha), label in zip(facts, self.train.labels.tolist(), strict=False):
            other, known = first.setdefault(sha, (name, label))
            classes += [(name, other)] * (known != label)
        for name, _, sha in facts[len(self.train) :]:
            both += [(name, first[sha][0])] if sha in first else []
        notes = []
        if classes:
            notes.append(f"{len(classes)} training images are those of another class ({' = '.join(classes[0])})")
        if both:
            notes.append(f"{len(both)} of {len(self.val)} validation images are in train/ too ({' = '.join(both[0])})")
        return [f"{self.root}: {note}" for note in notes]


def open_classes(root: Path | str, limit: int | None = None) -> ClassSet:
    """Open a data set of class folders, or of shards with .cls members.

    limit: only so many validation images, taken from the classes in turn; the training images stay. Raises UserError
    naming the folder: no train/ or val/, images outside class folders, shards without classes, a class of only one of
    them.
    """
    root = Path(root).expanduser()
    (train, of_train), (val, of_val) = (_source(root, name) for name in ("train", "val"))
    names, val_names = set(of_train), set(of_val)
    for lacking, other, which in ((names - val_names, "train", "val"), (val_names - names, "val", "train")):
        if lacking:
            raise UserError(f"{root}: {_lacking(lacking, other, which, of_train + of_val)}")
    numbers = {name: i for i, name in enumerate(sorted(names))}

    def split(name: str, source: ImageSource, classes: list[str], limit: int | None) -> Split:
        picks = np.arange(len(source)) if limit is None else np.array(in_turn(classes, limit))
        return Split(name, source, picks, labels=np.array([numbers[classes[i]] for i in picks], np.int64))

    return ClassSet(root, list(numbers), split("train", train, of_train, None), split("val", val, of_val, limit))


def _lacking(lacking: set[str], other: str, which: str, classes: list[str]) -> str:
    """What is said of classes that are in one split only."""
    if inside := sorted(name for name in lacking if name.lower() in {*HELD_OUT, *SPLITS, *SPLITS.values()}):
        found = classes.count(inside[0])
        return f"{other}/{inside[0]}/ holds {found} images: of a split, not of a class? It belongs beside {other}/"
    return f"class {min(lacking)} is in {other}/ but not in {which}/{more(lacking)}"


def _source(root: Path, name: str) -> tuple[ImageSource, list[str]]:
    """The images of a split, and the class of each."""
    if not (root / name).is_dir():
        raise UserError(f"{root}: has no {name}/: give the folder that holds train/ and val/ with a folder per class")
    source = open_source(root / name)
    if isinstance(source, Shards):
        return source, _labels(source)
    folders = [file.partition("/") for file in source.names]
    if loose := [first for first, _, rest in folders if not rest]:
        raise UserError(f"{root / name}/{loose[0]}: is not in a class folder: the layout is {name}/CLASS/image")
    return source, [first for first, _, _ in folders]


def _labels(source: Shards) -> list[str]:
    """Of every image what its .cls member says. A shard's name is no class."""
    labels = list(source.labels)
    if absent := [i for i, label in enumerate(labels) if not label]:
        of = f"{source.name(absent[0])} has none{more(absent)}"
        todo = "or unpack them into a folder per class"
        raise UserError(f"{source.where}: tar shards need a .cls member for every image: {of}; {todo}")
    return labels


def in_turn(labels: Iterable, count: int) -> list[int]:
    """The first `count` images, one of every class in turn: their numbers, sorted. labels: every image's class."""
    seen: Counter = Counter()
    turns = []
    for i, label in enumerate(labels):
        turns.append((seen[label], i))
        seen[label] += 1
    return sorted(i for _, i in sorted(turns)[:count])
