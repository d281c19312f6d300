"""COCO and sets in its layout: checked to the last file before any long work, and fingerprinted. Nothing of mm here."""

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

from ...pretrain.common.errors import UserError
from .base import (
    ANY,
    Data,
    check_positive,
    check_size,
    find_layout,
    more,
    read_bytes,
    share_of_splits,
    summary_of_splits,
)
from .files import Known, check_whole, look_at_picture, note_turns

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
    (about 4 GB of memory) and 123,000 headers, the next one only asks for sizes and times. UserError naming the file:
    no layout, broken json, other categories, an annotation that the loops or the evaluation would stumble over,
    pictures that are listed but absent, damaged or of another size, no object.
    """
    check_positive(limit=limit, classes=None if classes == ANY else classes)
    splits = ("train", "val") if train else ("val",)
    names = {split: f"annotations/instances_{split}2017.json" for split in splits}
    advice = "give the folder with annotations/, train2017/ and val2017/"
    root = find_layout(root, "COCO", [*names.values(), *(f"{split}2017" for split in splits)], advice)
    sources = {split: root / name for split, name in names.items()}
    known, notes, used, counts = Known(root), [], [], {}
    known.look(sources.values(), look_at_instances)
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
        notes += facts[split]["notes"]
        counts[split] = len(images)
        used += [source, *_pictures(root / f"{split}2017", images, source, known, notes)]
    if train and (both := set.intersection(*({image[1] for image in one["images"]} for one in facts.values()))):
        named = f"{min(both)}{' ...' * (len(both) > 1)}"
        notes.append(f"{len(both)} validation pictures are named like training pictures ({named})")
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


# --------------------------------------------------------------------------------------- the file of annotations
def look_at_instances(path: Path) -> dict:
    """Facts of an annotation file, all of it checked: `sha256`, `bytes`; `categories` [[id, name]]; `images` [[id, file
    name, height, width, objects but for crowds]]; the number of `annotations`; `notes`."""
    data = read_bytes(path)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken json, copy it again: {error}") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: no list '{part}': not a file of COCO instances")
    try:
        sizes = _sizes(content["images"])
        categories = _categories(content["categories"])
        objects, few = _objects(content["annotations"], sizes, {number for number, _ in categories})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "categories": categories,
        "images": [[i["id"], i["file_name"], i["height"], i["width"], objects[i["id"]]] for i in content["images"]],
        "annotations": len(content["annotations"]),
        "notes": [f"{path}: annotation {few[0]}{more(few)}: a polygon of fewer than three corners"] if few else [],
    }


def _sizes(images: list) -> dict[int, tuple[int, int]]:
    """Image id -> (height, width)."""
    sizes: dict = {}
    for image in images:
        if not isinstance(image, dict) or type(image.get("id")) is not int or type(image.get("file_name")) is not str:
            raise UserError(f"an image without a whole number as id or without file_name: {str(image)[:80]}")
        number, size, name = image["id"], (image.get("height"), image.get("width")), image["file_name"]
        if number in sizes:
            raise UserError(f"image id {number} occurs twice")
        if not all(type(side) is int and side > 0 for side in size):
            raise UserError(f"image {number} has height {size[0]} and width {size[1]}")
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"image {number} has file_name '{name}'; a relative path is needed")
        sizes[number] = size
    return sizes


def _categories(categories: list) -> list[list]:
    """[[id, name]] in the file's order."""
    pairs = [[c.get("id"), c.get("name")] if isinstance(c, dict) else [None, None] for c in categories]
    if not pairs or not all(type(number) is int and isinstance(name, str) for number, name in pairs):
        raise UserError("every category needs a whole number as id and a name")
    for values in zip(*pairs, strict=True):
        if len(set(values)) < len(values):
            raise UserError(f"category {Counter(values).most_common(1)[0][0]} occurs twice")
    return pairs


def _objects(annotations: list, sizes: dict, categories: set[int]) -> tuple[Counter, list[int]]:
    """Objects of each image, but for crowds; ids of annotations with a polygon of under three corners."""
    ids, objects, few = set(), Counter(), []
    for number, a in enumerate(annotations, 1):
        if wrong := _wrong(a, sizes, categories):
            name = a.get("id") if isinstance(a, dict) else None
            raise UserError(f"annotation {name} (number {number} of the list): {wrong}")
        if a["id"] in ids:
            raise UserError(f"annotation id {a['id']} occurs twice")
        ids.add(a["id"])
        objects[a["image_id"]] += 1 - a["iscrowd"]
        if _trained(a) and isinstance(a["segmentation"], list):
            few += [a["id"]] * any(len(p) < 6 or len(p) % 2 for p in a["segmentation"])
    return objects, few


def _trained(a: dict) -> bool:
    """COCO has a few annotations of no extent, which mm leaves out."""
    return a["area"] > 0 and min(a["bbox"][2:]) >= 1


def _wrong(a, sizes: dict, categories: set[int]) -> str:
    """What is wrong with an annotation, '' if nothing."""
    if not isinstance(a, dict) or type(a.get("id")) is not int:
        return "no whole number as id"
    if a["id"] == 0:
        return "id 0, which COCO's evaluation takes for 'no match'; number them from 1"
    if a.get("image_id") not in sizes:
        return f"image_id {a.get('image_id')}, which is not among the images"
    if a.get("category_id") not in categories:
        return f"category_id {a.get('category_id')}, which is not among the categories"
    box = a.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)) or min(box[2:]) < 0:
        return f"bbox {box}; four numbers are needed: left, top, width, height"
    if not _number(a.get("area")):
        return f"area {a.get('area')}"
    if a.get("iscrowd") not in (0, 1):
        return f"iscrowd {a.get('iscrowd')}; it is 0 or 1"
    shape, size = a.get("segmentation"), sizes[a["image_id"]]
    if not _trained(a):
        return ""
    if isinstance(shape, dict):
        if list(shape.get("size") or ()) != list(size):
            return f"run lengths of size {shape.get('size')} in a picture of {list(size)}"
        return "" if isinstance(shape.get("counts"), list | str) else "run lengths without counts"
    if not isinstance(shape, list) or not shape or not all(isinstance(p, list) for p in shape):
        return "no segmentation (polygons or run lengths), which the recipe trains on"
    return ""


def _number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
