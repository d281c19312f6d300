"""COCO and sets in its layout: checked to the last file before any long work, and fingerprinted. Nothing of mm here."""

import os
from pathlib import Path

from ...pretrain.common.errors import UserError
from .annotations.instances import TRAIN, VAL, read_instances
from .base import (
    ANY,
    Data,
    check_positive,
    check_size,
    find_layout,
    more,
    share_of_splits,
    summary_of_splits,
)
from .files import Known, check_whole, look_at_picture, note_turns
from .overlap import same_pictures

# COCO's categories as (id, name), in the order of its files (Lin et al., 2014; instances_val2017.json).
_NAMES = """
    person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant||stop sign|parking meter
    |bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe||backpack|umbrella|||handbag|tie|suitcase|frisbee
    |skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle||wine glass
    |cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch
    |potted plant|bed||dining table|||toilet||tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink
    |refrigerator||book|clock|vase|scissors|teddy bear|hair drier|toothbrush
    """
CATEGORIES = tuple((i, name) for i, part in enumerate(_NAMES.split("|"), 1) if (name := part.strip()))
_OFFICIAL = [list(pair) for pair in CATEGORIES]
# Of the published splits; crowds are among the annotations.
IMAGES = {"train": 118287, "val": 5000}
ANNOTATIONS = {"train": 860001, "val": 36781}


def open_coco(root: Path | str, limit: int | None = None, classes: int | str | None = None, train: bool = True) -> Data:
    """Open a set in COCO's layout and check all of it (of the validation pictures those that `limit` leaves in use).

    root: the folder with annotations/instances_{train,val}2017.json, train2017/ and val2017/. limit: the first so many
    validation pictures, in the file's order. classes: None demands COCO's 80 categories; a number, that the set has so
    many of its own; ANY takes either. train: whether the training split is needed. Content: the classes' names in the
    order of the labels. What was seen is remembered (`files.Known`): the first look at all of COCO reads 0.5 GB of json
    and 123,000 headers, the next one only asks for sizes and times. UserError naming the file: no layout, broken json,
    other categories, an annotation that the loops or the evaluation would stumble over, boxes that mean something
    else, pictures that are listed but absent, damaged or of another size, no object, or none that mmdet trains on.
    """
    check_positive(limit=limit, classes=None if classes == ANY else classes)
    splits = {"train": TRAIN, "val": VAL} if train else {"val": VAL}
    names = {split: f"annotations/{name}" for split, name in splits.items()}
    advice = "give the folder with annotations/, train2017/ and val2017/"
    root = find_layout(root, "COCO", [*names.values(), *(f"{split}2017" for split in splits)], advice)
    sources = {split: root / name for split, name in names.items()}
    known, notes, used, counts, pictures = Known(root), [], [], {}, {}
    for source in sources.values():  # one by one: each shows how far it is
        known.look([source], read_instances)
    facts = {split: known.seen[source] for split, source in sources.items()}
    categories = facts["val"]["categories"]
    for split, source in sources.items():
        _check_categories(source, facts[split]["categories"], classes)
        if facts[split]["categories"] != categories:
            raise UserError(f"{source}: other categories than {sources['val'].name}")
        images = facts[split]["images"][: limit if split == "val" else None]
        if not any(objects for *_, objects in images):
            which = f"the first {limit} pictures hold" if split == "val" and limit else "holds"
            raise UserError(f"{source}: {which} no object" + (": nothing to score" if split == "val" else ""))
        notes += [f"{source}: {note}" for note in facts[split]["notes"]]
        counts[split] = len(images)
        pictures[split] = _pictures(root / f"{split}2017", images, source, known, notes)
        used += [source, *pictures[split]]
    if train:
        notes += same_pictures(pictures["train"], pictures["val"], known.seen)
    differs = share_of_splits(counts, IMAGES)
    if categories != _OFFICIAL:
        differs.append(f"{len(categories)} classes of its own")
    annotations = {split: one["annotations"] for split, one in facts.items()}
    differs = ", ".join(differs or share_of_splits(annotations, ANNOTATIONS, "annotations"))
    summary, names = summary_of_splits(counts, len(categories)), tuple(name for _, name in categories)
    return Data("coco", root, known.fingerprint(used), not differs, differs, summary, notes, names)


def _check_categories(path: Path, categories: list[list], classes: int | str | None) -> None:
    """UserError unless the categories are COCO's, or as many as were announced."""
    if classes in (None, ANY) and categories != _OFFICIAL and sorted(categories) == _OFFICIAL:
        raise UserError(f"{path}: COCO's categories in another order; sort them by id")
    if classes is None and categories != _OFFICIAL:
        own = [name for _, name in categories]
        named = ", ".join(own[:4]) + (" ..." if len(own) > 4 else "")
        raise UserError(
            f"{path}: {len(own)} categories ({named}), not COCO's 80; of a set of your own, classes={len(own)}"
        )
    if classes not in (None, ANY, len(categories)):
        raise UserError(f"{path}: {len(categories)} categories, but classes={classes}")


def _pictures(folder: Path, images: list[list], source: Path, known: Known, notes: list[str]) -> list[Path]:
    """Every picture listed. UserError for one that is absent, damaged or of another size."""
    paths = [folder / image[1] for image in images]
    there = {entry.name for entry in os.scandir(folder)}
    absent = [p for p, i in zip(paths, images, strict=True) if i[1] not in there and not ("/" in i[1] and p.is_file())]
    if absent:
        raise UserError(f"{absent[0]}: does not exist, but {source.name} lists it{more(absent)}")
    seen = known.look(paths, look_at_picture)
    for path, (_, _, height, width, _) in zip(paths, images, strict=True):
        check_size(path, seen[path]["size"], (height, width), f"{source.name} says")
    check_whole(paths, seen, notes if folder.name == "train2017" else None)
    note_turns(paths, seen, notes)
    return paths
