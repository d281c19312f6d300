"""COCO and sets in its layout: checked to the last file before any long work, and fingerprinted. Nothing of mm here."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...pretrain.common.errors import UserError
from .base import Data
from .files import Known, digest

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
# Pictures and annotations (crowds among them) of the published splits.
OFFICIAL = {"train": (118287, 860001), "val": (5000, 36781)}
ANY = "any"  # for `classes`: the published benchmark's or a set's own, as many as it has


@dataclass(frozen=True)
class MmData:
    """A checked data set of an mm recipe.

    root: the folder to hand to the recipe. classes: their names in the order of the labels; empty for ADE20K's own 150,
    whose names mmseg has. counts: pictures in use of 'train' (absent if not asked for) and 'val'. fingerprint: hash of
    sorted relative paths, sizes and annotation bytes (hex sha256). differs: how this is not the published benchmark
    ('80 of 5000 images'), empty if it is. notes: lines for the user.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    num_classes: int
    counts: dict[str, int]
    fingerprint: str
    differs: str
    summary: str
    notes: list[str] = field(default_factory=list)

    @property
    def official(self) -> bool:
        return not self.differs

    def task_data(self) -> Data:
        """The same as a task's `check` returns it."""
        mark = f"sha256:{self.fingerprint}"
        return Data(self.name, self.root, mark, self.official, self.differs, self.summary, self.notes, self)


# ------------------------------------------------------------------------------------------- for both kinds of sets
def positive(name: str, value: int | None) -> None:
    """UserError unless it is None or a whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name}={value}: must be a whole number of at least 1")


def look_at_picture(path: Path) -> list:
    """[H, W, whole, bytes] from the header: the size as OpenCV (and so mm) decodes it, turned by the EXIF orientation;
    whole is 0 where the end is missing: OpenCV decodes such a file to a picture that is grey below."""
    try:
        with open(path, "rb") as file:
            with Image.open(file, formats=["JPEG", "PNG"]) as image:
                (width, height), kind = image.size, image.format
                turned = kind == "JPEG" and _orientation(image) > 4
            size = os.path.getsize(path)
            file.seek(max(0, size - 1024))
            tail = file.read()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "no JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{path}: cannot be read as a picture: {reason}") from None
    whole = (b"IEND" if kind == "PNG" else b"\xff\xd9") in tail or _decodes(path)
    return [width, height, int(whole), size] if turned else [height, width, int(whole), size]


def _decodes(path: Path) -> bool:
    """Whether Pillow, which refuses a file that was cut, decodes it: there may be much of other data behind the end."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError):
        return False
    return True


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # whatever a damaged EXIF block makes Pillow raise: OpenCV ignores such a block
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def truncated(paths: Sequence[Path], facts: Sequence[list], split: str, notes: list[str]) -> None:
    """A picture without its end is an error where numbers are computed, and a note where the network is trained: there
    one damaged file of many thousands does not matter."""
    bad = [path for path, one in zip(paths, facts, strict=True) if not one[2]]
    if bad and split == "val":
        raise UserError(f"{bad[0]}: truncated: its end is missing{more(bad)}; copy it again")
    if bad:
        notes.append(f"{bad[0]}: truncated: its end is missing{more(bad)}")


def more(things: Sequence) -> str:
    """' (7 more)' behind the first of 8 things."""
    return f" ({len(things) - 1} more)" if len(things) > 1 else ""


def share(found: int, official: int, what: str) -> list[str]:
    """How a number differs from the published set's, [] if it does not."""
    if found == official:
        return []
    return [f"{found} of {official} {what}" if found < official else f"{found} {what} instead of {official}"]


# ------------------------------------------------------------------------------------------------------------- COCO
def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _outline(shape, size: tuple[int, int]) -> str:
    """What is wrong with a segmentation, '' if nothing, 'few' for a polygon of under three corners."""
    if isinstance(shape, dict):
        if list(shape.get("size") or ()) != list(size):
            return f"run lengths of size {shape.get('size')} in a picture of {list(size)}"
        return "" if isinstance(shape.get("counts"), list | str) else "run lengths without counts"
    if not isinstance(shape, list) or not shape or not all(isinstance(p, list) for p in shape):
        return "no segmentation (polygons or run lengths), which the recipe trains on"
    return "few" if any(len(p) < 6 or len(p) % 2 for p in shape) else ""


def _bad_annotation(a, sizes: dict, kinds: set) -> str:
    """What is wrong with an annotation, '' if nothing, 'few' for a polygon of under three corners."""
    if not isinstance(a, dict) or not _whole(a.get("id")):
        return "no whole number as id"
    if a["id"] == 0:
        return "id 0, which COCO's evaluation takes for 'no match'; number them from 1"
    if a.get("image_id") not in sizes:
        return f"image_id {a.get('image_id')}, which is not among the images"
    if a.get("category_id") not in kinds:
        return f"category_id {a.get('category_id')}, which is not among the categories"
    box = a.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)) or min(box[2:]) < 0:
        return f"bbox {box}; four numbers are needed: left, top, width, height"
    if not _number(a.get("area")):
        return f"area {a.get('area')}"
    if a.get("iscrowd") not in (0, 1):
        return f"iscrowd {a.get('iscrowd')}; it is 0 or 1"
    if a["area"] <= 0 or min(box[2:]) < 1:  # COCO has a few of no extent: mm does not train on them
        return ""
    return _outline(a.get("segmentation"), sizes[a["image_id"]])


def look_at_instances(path: Path) -> list:
    """[sha256, categories [[id, name]], images [[id, file name, height, width, objects but for crowds]], number of
    annotations, notes] of an annotation file, all of it checked."""
    try:
        data = path.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken json, copy it again: {error}") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: no list '{part}': not a file of COCO instances")
    sizes: dict[int, tuple[int, int]] = {}
    for image in content["images"]:
        if not isinstance(image, dict) or not _whole(image.get("id")) or not isinstance(image.get("file_name"), str):
            raise UserError(f"{path}: an image without a whole number as id or without file_name: {str(image)[:80]}")
        if image["id"] in sizes:
            raise UserError(f"{path}: image id {image['id']} occurs twice")
        size = image.get("height"), image.get("width")
        if not all(_whole(v) and v > 0 for v in size):
            raise UserError(f"{path}: image {image['id']} has height {size[0]} and width {size[1]}")
        name = Path(image["file_name"])
        if not image["file_name"] or name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{path}: image {image['id']} has file_name '{image['file_name']}'; a relative path is needed"
            )
        sizes[image["id"]] = size
    kinds = [[c.get("id"), c.get("name")] if isinstance(c, dict) else [None, None] for c in content["categories"]]
    if not kinds or not all(_whole(i) and isinstance(name, str) for i, name in kinds):
        raise UserError(f"{path}: every category needs a whole number as id and a name")
    for values in zip(*kinds, strict=True):
        if len(set(values)) < len(values):
            raise UserError(f"{path}: category {Counter(values).most_common(1)[0][0]} occurs twice")
    known = {i for i, _ in kinds}
    ids, objects, few = set(), Counter(), []
    for number, a in enumerate(content["annotations"]):
        bad = _bad_annotation(a, sizes, known)
        if bad == "few":
            few.append(a["id"])
        elif bad:
            name = a.get("id") if isinstance(a, dict) else None
            raise UserError(f"{path}: annotation {name} (number {number + 1} of the list): {bad}")
        if a["id"] in ids:
            raise UserError(f"{path}: annotation id {a['id']} occurs twice")
        ids.add(a["id"])
        objects[a["image_id"]] += 1 - a["iscrowd"]
    notes = [f"{path}: annotation {few[0]}{more(few)}: a polygon of fewer than three corners"] if few else []
    images = [[i["id"], i["file_name"], i["height"], i["width"], objects[i["id"]]] for i in content["images"]]
    return [hashlib.sha256(data).hexdigest(), kinds, images, len(ids), notes]


def _categories(path: Path, kinds: list[list], classes: int | str | None) -> None:
    """UserError unless the categories are COCO's, or as many as were announced."""
    official = [list(pair) for pair in CATEGORIES]
    if classes in (None, ANY) and kinds != official and sorted(kinds) == official:
        raise UserError(f"{path}: COCO's categories in another order; sort them by id")
    if classes is None and kinds != official:
        own = [name for _, name in kinds]
        named = ", ".join(own[:4]) + (" ..." if len(own) > 4 else "")
        raise UserError(
            f"{path}: {len(own)} categories ({named}), not COCO's 80; of a set of your own, classes={len(own)}"
        )
    if classes not in (None, ANY, len(kinds)):
        raise UserError(f"{path}: {len(kinds)} categories, but classes={classes}")


def _files(root: Path, split: str, images: list[list], source: Path, known: Known, notes: list[str]) -> list:
    """(relative path, bytes, '') of every picture listed; UserError for one that is absent or of another size."""
    folder = root / f"{split}2017"
    paths = [folder / image[1] for image in images]
    there = {entry.name for entry in os.scandir(folder)}
    absent = [p for p, i in zip(paths, images, strict=True) if i[1] not in there and not ("/" in i[1] and p.is_file())]
    if absent:
        raise UserError(f"{absent[0]}: does not exist, but {source.name} lists it{more(absent)}")
    facts = known.look(paths, look_at_picture)
    for path, fact, (_, _, height, width, _) in zip(paths, facts, images, strict=True):
        if fact[:2] != [height, width]:
            raise UserError(f"{path}: {fact[0]}x{fact[1]} pixels (HxW), but {source.name} says {height}x{width}")
    truncated(paths, facts, split, notes)
    return [(p.relative_to(root).as_posix(), fact[3], "") for p, fact in zip(paths, facts, strict=True)]


def _layout(root: Path | str, splits: Iterable[str]) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}; give the COCO root")
    absent = [name for s in splits if not (root / (name := f"annotations/instances_{s}2017.json")).is_file()]
    absent += [f"{s}2017" for s in splits if not (root / f"{s}2017").is_dir()]
    if absent:
        raise UserError(
            f"{root}: not a COCO layout: it has no {' and no '.join(absent)}; give the folder with annotations/, "
            "train2017/ and val2017/"
        )
    return root


def open_coco(
    root: Path | str, limit: int | None = None, classes: int | str | None = None, train: bool = True
) -> MmData:
    """Open a set in COCO's layout and check all of it (of the validation pictures those that `limit` leaves in use).

    root: the folder with annotations/instances_{train,val}2017.json, train2017/ and val2017/. limit: the first so many
    validation pictures, in the file's order. classes: None demands COCO's 80 categories; a number, that the set has so
    many of its own; ANY takes either. train: whether the training split is needed. What was seen is remembered
    (`files.Known`): the first look at all of COCO reads 0.5 GB of json (about 4 GB of memory) and 123,000 headers, the
    next one only asks for sizes and times. UserError naming the file: no layout, broken json, other categories, an
    annotation that the loops or the evaluation would stumble over, pictures that are listed but absent, damaged or of
    another size, no object.
    """
    positive("limit", limit)
    if classes != ANY:
        positive("classes", classes)
    splits = ("train", "val") if train else ("val",)
    root, notes = _layout(root, splits), []
    known = Known(root)
    sources = [root / f"annotations/instances_{s}2017.json" for s in splits]
    seen = dict(zip(splits, known.look(sources, look_at_instances), strict=True))
    files, counts, annotations = [], {}, {}
    for split, source in zip(splits, sources, strict=True):
        sha, kinds, images, annotations[split], remarks = seen[split]
        _categories(source, kinds, classes)
        if kinds != seen["val"][1]:
            raise UserError(f"{source}: other categories than {sources[-1].name}")
        images = images[: limit if split == "val" else None]
        objects = sum(image[4] for image in images)
        if not objects:
            which = f"the first {limit} pictures hold" if split == "val" and limit else "holds"
            raise UserError(f"{source}: {which} no object" + (": nothing to score" if split == "val" else ""))
        notes += remarks
        counts[split] = len(images)
        files.append((source.relative_to(root).as_posix(), source.stat().st_size, sha))
        files += _files(root, split, images, source, known, notes)
    if train and (both := {i[1] for i in seen["train"][2]} & {i[1] for i in seen["val"][2]}):
        notes.append(
            f"{len(both)} validation pictures are named like training pictures ({min(both)}{' ...' * (len(both) > 1)})"
        )
    names = tuple(name for _, name in seen["val"][1])
    differs = _differs(counts, annotations, seen["val"][1])
    pictures = " and ".join(
        f"{counts[s]} {w}" for s, w in (("train", "training"), ("val", "validation")) if s in counts
    )
    summary = f"{pictures} pictures, {len(names)} classes"
    return MmData("coco", root, names, len(names), counts, digest(files), differs, summary, notes)


def _differs(counts: dict[str, int], annotations: dict[str, int], kinds: list[list]) -> str:
    parts = share(counts["val"], OFFICIAL["val"][0], "images")
    if "train" in counts:
        parts += share(counts["train"], OFFICIAL["train"][0], "training images")
    if kinds != [list(pair) for pair in CATEGORIES]:
        parts.append(f"{len(kinds)} classes of its own")
    if not parts:
        for split, word in (("val", ""), ("train", "training ")):
            if split in counts:
                parts += share(annotations[split], OFFICIAL[split][1], f"{word}annotations")
    return ", ".join(parts)
