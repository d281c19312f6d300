"""Cityscapes: street scenes of 19 judged classes, by the label ids of its files."""

from pathlib import Path

import numpy as np

from ....pretrain.common.errors import UserError
from ..base import Data, check_size, find_layout, more, share_of_splits, summary_of_splits
from ..files import Known, check_whole, look_at_mask, look_at_picture, note_turns
from . import IGNORED, Labelled, LabelledSet, check_judged

IMAGES = {"train": 2975, "val": 500}
# Ids of the judged classes in *_labelIds.png (cityscapesscripts, helpers/labels.py), in the order of their train ids.
JUDGED = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
HIGHEST = 33  # label id; licence plates are -1, which 8 bits hold as 255
PICTURE, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def open_cityscapes(root: Path | str, limit: int | None = None) -> Data:
    """Open Cityscapes and check all of it. limit: the first so many validation pictures, by name.

    root: the folder with leftImg8bit/{train,val}/CITY and gtFine/{train,val}/CITY. Content: a LabelledSet, whose labels
    are 0 to 18. Raises UserError naming the file: no layout, no picture, a label map that is missing or damaged,
    another size, a label id that Cityscapes has not.
    """
    parts = [f"{folder}/{split}" for folder in ("leftImg8bit", "gtFine") for split in IMAGES]
    root = find_layout(root, "Cityscapes", parts, "give the folder with leftImg8bit/ and gtFine/")
    table = np.full(256, IGNORED, np.uint8)
    table[list(JUDGED)] = np.arange(len(JUDGED))
    known, notes, used, counts, splits = Known(root), [], [], {}, {}
    for split in IMAGES:
        folder = root / "leftImg8bit" / split
        images = sorted(folder.glob(f"*/*{PICTURE}"))[: limit if split == "val" else None]
        if not images:
            raise UserError(f"{folder}: holds no CITY/*{PICTURE}")
        labels = [
            root / "gtFine" / split / path.parent.name / f"{path.name.removesuffix(PICTURE)}{LABELS}" for path in images
        ]
        if absent := [path for path in labels if not path.is_file()]:
            raise UserError(f"{absent[0]}: is missing{more(absent)}: every picture needs its label map")
        known.look(images, look_at_picture)
        known.look(labels, look_at_mask)
        for image, path in zip(images, labels, strict=True):
            check_size(path, known.seen[path]["size"], known.seen[image]["size"], f"{image.name} has")
            if wrong := [label for label in known.seen[path]["labels"] if HIGHEST < label != IGNORED]:
                raise UserError(f"{path}: label id {wrong[0]}; Cityscapes has 0 to {HIGHEST}")
        check_judged(labels, known.seen, JUDGED)
        check_whole(images, known.seen)
        note_turns(images, known.seen, notes)
        splits[split], counts[split] = Labelled(split, images, labels, table), len(images)
        used += images + labels
    differs = ", ".join(share_of_splits(counts, IMAGES))
    content = LabelledSet(splits["train"], splits["val"], len(JUDGED), IGNORED, tuple(JUDGED.values()))
    mark, summary = known.fingerprint(used), summary_of_splits(counts, len(JUDGED))
    return Data("cityscapes", root, mark, not differs, differs, summary, notes, content)
