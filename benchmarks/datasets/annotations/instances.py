"""A file of COCO instances: all of it checked, what of it mmdet trains on, and what is odd about it. No mm here."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....pretrain.common.errors import UserError, shorten
from ....pretrain.common.progress import patient_reporter
from ..base import absent_classes, more
from .boxes import check_boxes
from .json_lists import JsonLists
from .outlines import LONGEST, look_at_polygons, look_at_runs

TRAIN, VAL = "instances_train2017.json", "instances_val2017.json"
SMALLEST = 32  # pixels of the shorter side: mmdet trains on no smaller picture (coco_instance.py: filter_cfg)
LONGEST_NAME, LONGEST_PATH = 255, 2048  # bytes of a file's name, and of a path below the pictures' folder
_LARGEST_ID = 2**62
_ROW = np.dtype(
    [
        *((name, np.int64) for name in ("id", "image", "category", "crowd", "ignore")),
        ("area", np.float64),
        ("box", np.float64, 4),
        ("outline", np.float64, 4),  # left, top, right, bottom; nan: none that is usable
        ("runs", np.int64, 2),  # size of run lengths; 0: there are none
        ("bare", np.bool_),  # no segmentation at all
        ("short", np.bool_),  # a polygon of fewer than three corners, or of half a corner
    ]
)


def read_instances(path: Path) -> dict:
    """Facts of an annotation file, all of it checked: `sha256`, `bytes`; `categories` [[id, name]]; `images` [[id, file
    name, height, width, objects but for crowds]]; the number of `annotations`; `notes`, lines without the file's name.

    Of the training file what mmdet leaves out is left out, and something has to remain.
    """
    images, categories, rows, count = [], [], [np.empty(0, _ROW)], 0
    with patient_reporter(f"check {path.name}") as report:
        said = lambda done, total: report(round(done / 2**20, 1), round(total / 2**20, 1), "MiB")  # noqa: E731
        lists = JsonLists(path, ("images", "annotations", "categories"), said)
        try:
            for name, entries in lists:
                if name == "images":
                    images += map(_image, entries)
                elif name == "categories":
                    categories += map(_category, entries)
                else:
                    rows.append(_rows(entries, count))
                    count += len(entries)
            known = Instances(_unique(images), _named(categories), np.concatenate(rows))
            known.check()
            notes = known.notes_on_training() if path.name == TRAIN else known.notes_on_validation()
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    objects = np.bincount(known.place[known.objects], minlength=len(images)).tolist()
    return {
        "sha256": lists.sha256,
        "bytes": lists.bytes,
        "categories": categories,
        "images": [[*image, number] for image, number in zip(images, objects, strict=True)],
        "annotations": count,
        "notes": notes,
    }


# ------------------------------------------------------------------------------------------------------- the entries
def _image(image) -> list:
    """[id, file name, height, width]"""
    if not isinstance(image, dict) or not _whole(image.get("id")) or type(image.get("file_name")) is not str:
        raise UserError(f"an image without a whole number as id or without file_name: {shorten(image, 80)}")
    number, name, size = image["id"], image["file_name"], (image.get("height"), image.get("width"))
    if not all(type(side) is int and 0 < side <= LONGEST for side in size):
        raise UserError(f"image {number} has height {shorten(size[0], 40)} and width {shorten(size[1], 40)}")
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"image {number} has file_name '{shorten(name)}'; a relative path is needed")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise UserError(f"image {number} has file_name {shorten(ascii(name))}, which is no UTF-8")
    if max(map(len, encoded := name.encode().split(b"/"))) > LONGEST_NAME or sum(map(len, encoded)) > LONGEST_PATH:
        raise UserError(f"image {number} has file_name '{shorten(name, 60)}', longer than file systems take")
    return [number, name, *size]


def _category(category) -> list:
    """[id, name]"""
    pair = [category.get("id"), category.get("name")] if isinstance(category, dict) else [None, None]
    if not _whole(pair[0]) or not isinstance(pair[1], str):
        raise UserError("every category needs a whole number as id and a name")
    return pair


def _unique(images: list[list]) -> list[list]:
    number, times = Counter(image[0] for image in images).most_common(1)[0] if images else (0, 1)
    if times > 1:
        raise UserError(f"image id {number} occurs twice")
    return images


def _named(categories: list[list]) -> list[list]:
    if not categories:
        raise UserError("every category needs a whole number as id and a name")
    for values in zip(*categories, strict=True):
        if len(set(values)) < len(values):
            raise UserError(f"category {shorten(Counter(values).most_common(1)[0][0])} occurs twice")
    return categories


def _rows(annotations: list, before: int) -> np.ndarray:
    """Annotations of the list as _ROW [N]; `before`: how many stand before them."""
    for number, a in enumerate(annotations, before + 1):
        if wrong := _wrong(a):
            raise _error(a.get("id") if isinstance(a, dict) else None, number, wrong)
    rows = np.zeros(len(annotations), _ROW)
    for field, key in (("id", "id"), ("image", "image_id"), ("category", "category_id"), ("crowd", "iscrowd")):
        rows[field] = [a[key] for a in annotations]
    rows["ignore"] = [bool(a.get("ignore")) for a in annotations]
    rows["area"], rows["box"] = [a["area"] for a in annotations], [a["bbox"] for a in annotations]
    rows["outline"] = np.nan
    shapes = [a.get("segmentation") or None for a in annotations]
    rows["bare"] = [shape is None for shape in shapes]
    drawn = [i for i, shape in enumerate(shapes) if isinstance(shape, list)]
    try:
        rows["outline"][drawn], rows["short"][drawn], _ = look_at_polygons([shapes[i] for i in drawn])
        for i, shape in enumerate(shapes):
            if isinstance(shape, dict):
                rows["runs"][i], rows["outline"][i] = look_at_runs(shape)
    except ValueError as error:
        i, wrong = drawn[error.args[0]], error.args[1]
        raise _error(annotations[i]["id"], before + i + 1, wrong) from None
    except UserError as error:
        raise _error(annotations[i]["id"], before + i + 1, str(error)) from None
    return rows


def _wrong(a) -> str:
    """What is wrong with an annotation alone, but for the numbers in its segmentation; '' if nothing."""
    if not isinstance(a, dict) or not _whole(a.get("id")):
        return "no whole number as id"
    if a["id"] == 0:
        return "id 0, which COCO's evaluation takes for 'no match'; number them from 1"
    if not _whole(a.get("image_id")):
        return f"image_id {shorten(a.get('image_id'), 40)}, which is not among the images"
    if not _whole(a.get("category_id")):
        return f"category_id {shorten(a.get('category_id'), 40)}, which is not among the categories"
    box = a.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)) or min(box[2:]) < 0:
        return f"bbox {shorten(box, 80)}; four numbers are needed: left, top, width, height"
    if not _number(a.get("area")):
        return f"area {shorten(a.get('area'), 40)}"
    if a.get("iscrowd") not in (0, 1):
        return f"iscrowd {shorten(a.get('iscrowd'), 40)}; it is 0 or 1"
    shape = a.get("segmentation")
    if shape and not isinstance(shape, dict) and not (isinstance(shape, list) and set(map(type, shape)) == {list}):
        return f"segmentation {shorten(shape, 60)}; it is a list of polygons, or run lengths"
    return ""


def _whole(value) -> bool:
    return type(value) is int and abs(value) < _LARGEST_ID


def _number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15


def _error(name, number: int, wrong: str) -> UserError:
    return UserError(f"annotation {shorten(name, 40)} (number {number} of the list): {wrong}")


# ----------------------------------------------------------------------------------------------------- all of a file
@dataclass
class Instances:
    """images: [[id, file name, height, width]]. categories: [[id, name]]. rows: annotations, _ROW [N].

    After `check`: place [N], index of each annotation's image; sizes [N, 2], that image's (H, W); objects [N], whether
    the annotation is one object, and not a crowd.
    """

    images: list[list]
    categories: list[list]
    rows: np.ndarray

    def check(self) -> None:
        """UserError for the first annotation that does not go with the images, the categories or the others."""
        rows = self.rows
        ids = np.array([image[0] for image in self.images], np.int64)
        order = np.argsort(ids)
        near = np.searchsorted(ids, rows["image"], sorter=order).clip(max=max(len(ids) - 1, 0))
        self.place = order[near] if len(ids) else np.zeros(len(rows), np.int64)
        lost = ids[self.place] != rows["image"] if len(ids) else np.ones(len(rows), bool)
        self._first(lost, lambda row: f"image_id {row['image']}, which is not among the images{_more(lost)}")
        numbers = [number for number, _ in self.categories]
        odd = ~np.isin(rows["category"], numbers)
        self._first(odd, lambda row: self._no_category(int(row["category"]), odd))
        order = np.argsort(rows["id"], kind="stable")
        same = np.zeros(len(rows), bool)
        same[order[1:]] = np.diff(rows["id"][order]) == 0
        if same.any():
            raise UserError(f"annotation id {rows['id'][same.argmax()]} occurs twice{_more(same)}")
        self.sizes = np.array([image[2:] for image in self.images], np.int64).reshape(-1, 2)[self.place]
        odd = (rows["runs"] > 0).any(1) & (rows["runs"] != self.sizes).any(1)
        self._first(
            odd,
            lambda row: (
                f"run lengths of size {row['runs'].tolist()} in a picture of {self.sizes[odd.argmax()].tolist()}"
            ),
        )
        self.objects = rows["crowd"] == 0

    def _first(self, which: np.ndarray, say) -> None:
        """UserError about the first annotation of which it is true."""
        if which.any():
            row = self.rows[which.argmax()]
            raise _error(row["id"], int(which.argmax()) + 1, say(row))

    def _no_category(self, number: int, odd: np.ndarray) -> str:
        ids = [i for i, _ in self.categories]
        found = self.rows["category"]
        hint = ""
        if number == 0 and min(ids) == 1:
            hint = ": are they numbered from 0 instead of 1?"
        elif found.min() >= 1 and found.max() <= len(ids) < max(ids):
            hint = f": are they numbered 1 to {len(ids)}, instead of by the categories' ids, which have gaps?"
        return f"category_id {number}, which is not among the categories{_more(odd)}{hint}"

    def _notes(self, split: str, effect: str) -> list[str]:
        """What is odd in either file. effect: of classes that occur nowhere among `objects`."""
        rows, which = self.rows, self.objects
        notes = check_boxes(rows["box"], rows["outline"], self.sizes, rows["id"])
        present = np.isin([number for number, _ in self.categories], rows["category"][which])
        absent = [name for (_, name), there in zip(self.categories, present, strict=True) if not there]
        notes += absent_classes(absent, len(self.categories), f"{split} annotation", effect)
        extent = rows["box"][:, 2:].prod(1)
        use = which & (rows["area"] > 0) & (extent >= 1)
        if use.any() and not 0.02 <= (share := float(np.median(rows["area"][use] / extent[use]))) <= 1.05:
            text = f"areas are {share:.3g} times those of the boxes (median)"
            notes.append(f"{text}: are they in pixels? AP_s, AP_m and AP_l sort the objects by them")
        pairs = np.column_stack([rows["image"], rows["category"], rows["box"]])
        pairs = pairs[np.lexsort(pairs.T)]
        if (twice := (pairs[1:] == pairs[:-1]).all(1).sum()) > 0.01 * len(rows):
            notes.append(f"{twice} of {len(rows)} annotations have picture, class and box of another one")
        names = Counter(image[1] for image in self.images)
        if again := len(self.images) - len(names):
            name, times = names.most_common(1)[0]
            text = f"{again} of {len(self.images)} images are files that are listed already"
            notes.append(f"{text} ('{shorten(name)}' {times} times)")
        return notes

    def notes_on_training(self) -> list[str]:
        """What mmdet leaves out, and what is odd. UserError if nothing remains to train on."""
        rows = self.rows
        reasons = self._leave_out()
        lost = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
        notes = self._notes("training", "nothing can be learnt of them")
        if not self.objects.any():
            why = f"; mmdet leaves out {lost}" if lost else ""
            raise UserError(f"holds no object to train on: {len(rows)} annotations{why}")
        if lost:
            notes.insert(0, f"mmdet trains on {self.objects.sum()} of {len(rows)} annotations; left out: {lost}")
        empty = np.bincount(self.place, minlength=len(self.images)) == 0
        small = ~empty & (self._sides() < SMALLEST)
        if number := empty.sum() + small.sum():
            every = len(self.images)
            text = f"{empty.sum()} without annotation, {small.sum()} under {SMALLEST} pixels"
            notes.insert(0, f"mmdet trains on {every - number} of {every} pictures; left out: {text}")
        if rows["short"].any():
            text = "a polygon of fewer than three corners or of half a corner, which mmdet leaves out"
            notes.append(f"{_some(rows, rows['short'])} {text}")
        return notes

    def _leave_out(self) -> dict[str, int]:
        """Take from `objects` what mmdet does not train on as an object (CocoDataset.parse_data_info and filter_data,
        LoadAnnotations._process_masks): reason -> how many, each counted once."""
        rows, (left, width) = self.rows, (self.rows["box"][:, :2], self.rows["box"][:, 2:])
        inside = np.minimum(left + width, self.sizes[:, ::-1]) - np.maximum(left, 0)
        runs = (rows["runs"] > 0).any(1)
        remain, reasons = np.ones(len(rows), bool), {}
        for reason, which in (
            ("marked 'ignore'", rows["ignore"] > 0),
            ("outside of the picture", (inside <= 0).any(1)),
            ("of area 0", rows["area"] <= 0),
            ("under one pixel wide or high", (width < 1).any(1)),
            (f"in pictures under {SMALLEST} pixels", self._sides()[self.place] < SMALLEST),
            ("in crowds", rows["crowd"] > 0),
            ("without a polygon of three corners", ~rows["bare"] & ~runs & np.isnan(rows["outline"]).any(1)),
        ):
            reasons[reason] = int((which & remain).sum())
            remain &= ~which
        needed = "no segmentation (polygons or run lengths), which the recipe trains on"
        self._first(remain & rows["bare"], lambda _: needed)
        self.objects = remain
        return reasons

    def _sides(self) -> np.ndarray:
        """The shorter side of every image."""
        return np.array([min(image[2:]) for image in self.images], np.int64)

    def notes_on_validation(self) -> list[str]:
        """What is odd. UserError for what the evaluation would take for something else, or stop at."""
        rows = self.rows
        needed = "no segmentation (polygons or run lengths), which the evaluation compares with"
        self._first(rows["bare"], lambda _: needed)
        short = "a polygon of fewer than three corners or of half a corner, which the evaluation misreads"
        self._first(rows["short"], lambda _: short)
        notes = self._notes("validation", "AP is the mean over the others")
        if (zero := self.objects & (rows["area"] <= 0)).any():
            notes.append(f"{_some(rows, zero)} no area: AP_s, AP_m and AP_l sort the objects by it")
        if (ignored := rows["ignore"] > 0).any():
            notes.append(f"{_some(rows, ignored)} the mark 'ignore': the evaluation does not know it and counts them")
        if (empty := len(self.images) - len(np.unique(self.place))) > 0.1 * len(self.images):
            notes.append(f"{empty} of {len(self.images)} pictures hold no annotation")
        return notes


def _some(rows: np.ndarray, which: np.ndarray) -> str:
    return f"{which.sum()} of {len(rows)} annotations (first: {rows['id'][which.argmax()]}) have"


def _more(which: np.ndarray) -> str:
    return more(range(int(which.sum())))
