"""Small data sets in COCO's and ADE20K's layout, drawn from scenes: exact boxes, outlines and label maps.

For tests, the demo, and for trying out a recipe. Drawn, not photographed: no number on them says anything about COCO.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ..datasets.masks import write_mask
from .scenes import SHAPES, STUFF, Frame, Scene, _all, _once, _save_jpeg, draw_scene

COCO_CLASSES = ("round", "polygon", "star")  # by the outline of the cut-out
COCO_IDS = (1, 2, 4)  # with a gap, as COCO's have: whoever takes an id for an index is found out
ADE_CLASSES = (*(f"{kind} ground" for kind in STUFF), *COCO_CLASSES)  # labels 1, 2 ...; 0 is the rim of every object
_CLASS_OF_SHAPE = {"blob": 0, "ellipse": 0, "polygon": 1, "star": 2}
_VERSION = 1  # of what is drawn here: part of what makes two sets the same
_SEEN = 9  # pixels: of an object that is hidden but for less, nobody could say what it is


def _class(scene: Scene, k: int) -> int:
    """Index into COCO_CLASSES of the scene's thing k."""
    return _CLASS_OF_SHAPE[SHAPES[scene.things[k].class_id % len(SHAPES)]]


def outlines(mask: np.ndarray) -> list[np.ndarray] | None:
    """Closed outlines of a mask bool [H, W] along the edges of its pixels, each float [n, 2] of (x, y); None if the
    mask has a hole, which polygons cannot say. The COCO API turns them back into exactly this mask.
    """
    inside = np.pad(mask, 1)
    here = inside[1:-1, 1:-1]
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> directions, the mask on the right-hand side
    for (dy, dx), (y0, x0), way in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (0, 1), (0, 1)),
        ((1, 0), (1, 1), (-1, 0)),
        ((0, -1), (1, 0), (0, -1)),
    ):
        outside = inside[1 + dy : inside.shape[0] - 1 + dy, 1 + dx : inside.shape[1] - 1 + dx]
        for y, x in np.argwhere(here & ~outside).tolist():
            ways.setdefault((x + x0, y + y0), []).append(way)
    found = []
    while ways:
        start = at = next(iter(ways))
        corners, way = [], None
        while at != start or way is None:
            ahead = ways[at]
            # Where two pixels touch at a corner, turn right: each of them keeps an outline of its own.
            turn = ahead.index((-way[1], way[0])) if way and len(ahead) > 1 else 0
            new = ahead.pop(turn)
            if not ahead:
                del ways[at]
            if new != way:
                corners.append(at)
            at, way = (at[0] + new[0], at[1] + new[1]), new
        points = np.array(corners, float)
        x, y = points.T
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:  # runs the other way round
            return None
        found.append(points)
    return found


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask bool [H, W]: columns from the left, beginning with the outside."""
    flat = np.concatenate(([False], mask.T.ravel(), [False]))
    change = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate(([0], change, [mask.size])))
    return {"counts": counts[: len(counts) - (counts[-1] == 0)].tolist(), "size": list(mask.shape)}


def _annotation(mask: np.ndarray, kind: int, crowd: bool) -> dict:
    """One entry of `annotations` but for its ids. A crowd is run lengths, as in COCO; anything with a hole is too."""
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    polygons = None if crowd else outlines(mask)
    shape = run_lengths(mask) if polygons is None else [p.ravel().tolist() for p in polygons]
    where = {"bbox": [float(v) for v in box], "area": float(mask.sum()), "segmentation": shape}
    return {"category_id": COCO_IDS[kind], "iscrowd": int(crowd), **where}


def _scene(seed: int, family: int, split: int, i: int, size: tuple[int, int]) -> tuple[Scene, Frame, bool]:
    """Picture i of a split. Every eighth is empty, every eighth has six small objects, the others one to three."""
    rng = np.random.default_rng([seed, family, split, i])
    objects = 0 if i % 8 == 7 else 6 if i % 8 == 3 else int(rng.integers(1, 4))
    scene = draw_scene((seed, family, split, i), size, 9, objects)
    return scene, scene.frame(int(rng.integers(9))), objects == 6


def _objects(scene: Scene, frame: Frame, crowd: bool) -> list[dict]:
    """Annotations of one picture; with `crowd`, up to three objects of its commonest class are taken as one crowd."""
    seen = [(_class(scene, k), frame.labels == k + 1) for k in range(len(scene.things))]
    seen = [(kind, mask) for kind, mask in seen if mask.sum() >= _SEEN]
    found = []
    if crowd and seen:
        common = Counter(kind for kind, _ in seen).most_common(1)[0][0]
        taken = [k for k, (kind, _) in enumerate(seen) if kind == common][:3]
        if len(taken) > 1:
            found.append(_annotation(np.any([seen[k][1] for k in taken], 0), common, True))
            seen = [one for k, one in enumerate(seen) if k not in taken]
    return [_annotation(mask, kind, False) for kind, mask in seen] + found


def _counts(images: int | Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    train, val = (images, images) if isinstance(images, int) else images
    if train < 1 or val < 1:
        raise UserError(f"images={images}: at least one picture to train on and one to evaluate on")
    if min(size) < 32:
        raise UserError(f"size={size}: pictures of at least 32x32 pixels")
    return train, val


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text, sync=False)


def make_coco(
    folder: Path | str,
    images: int | Sequence[int] = (16, 8),
    size: tuple[int, int] = (160, 200),
    seed: int = 0,
    same: bool = False,
) -> Path:
    """Draw a set in COCO's layout with the classes COCO_CLASSES and return its root; nothing is redone.

    folder: becomes annotations/instances_{train,val}2017.json, train2017/, val2017/. images: how many, one number for
    each of both or (train, val). size: (H, W). same: the validation pictures are the first of the training pictures,
    to show that a training loop learns. Polygons fit to the pixel; what has a hole, and crowds (iscrowd 1, in picture
    3, 11 ... where two objects are of one class) are uncompressed run lengths; picture 7, 15 ... holds nothing.
    UserError: a folder with other files, fewer than one picture, pictures too small.
    """
    counts = _counts(images, size)

    def draw(root: Path) -> None:
        for split, (name, count) in enumerate(zip(("train2017", "val2017"), counts, strict=True)):
            source, base = (0, 0) if same else (split, split * 100_000)

            def one(i: int, name=name, source=source, base=base) -> list[dict]:
                scene, frame, crowd = _scene(seed, 3, source, i, size)
                _save_jpeg(root / name / f"{base + i + 1:012d}.jpg", frame.picture)
                return [{"image_id": base + i + 1, **a} for a in _objects(scene, frame, crowd)]

            found = [a for every in _all(one, count) for a in every]
            shape = {"height": size[0], "width": size[1]}
            content = {
                "info": {"description": "drawn scenes", "version": str(_VERSION)},
                "images": [
                    {"id": base + i + 1, "file_name": f"{base + i + 1:012d}.jpg", **shape} for i in range(count)
                ],
                "annotations": [{"id": n, **a} for n, a in enumerate(found, split * 1_000_000 + 1)],
                "categories": [
                    {"id": i, "name": c, "supercategory": "thing"} for i, c in zip(COCO_IDS, COCO_CLASSES, strict=True)
                ],
            }
            _write(root / f"annotations/instances_{name}.json", json.dumps(content))

    what = {"coco": list(counts), "size": list(size), "seed": seed, "same": same, "sets": _VERSION}
    return _once(folder, what, draw)


def label_map(scene: Scene, frame: Frame) -> np.ndarray:
    """ADE_CLASSES of a picture as ADE20K writes labels: uint8 [H, W], 1 and up; 0 (not judged) on the objects' rims."""
    labels = frame.stuff + 1
    for k in range(len(scene.things)):
        labels[frame.labels == k + 1] = 1 + len(STUFF) + _class(scene, k)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    labels[cv2.dilate(frame.labels, cross) != cv2.erode(frame.labels, cross)] = 0
    return labels


def make_ade20k(
    folder: Path | str,
    images: int | Sequence[int] = (16, 8),
    size: tuple[int, int] = (160, 200),
    seed: int = 0,
    same: bool = False,
) -> Path:
    """Draw a set in ADE20K's layout with the classes ADE_CLASSES and return its root; nothing is redone.

    folder: becomes images/{training,validation}, annotations/{training,validation} and classes.txt, the names of labels
    1, 2 ... a line each. Label 0 is the two pixels of an object's rim, where nobody judges. Else as `make_coco`.
    """
    counts = _counts(images, size)

    def draw(root: Path) -> None:
        for split, (name, short, count) in enumerate(
            (("training", "train", counts[0]), ("validation", "val", counts[1]))
        ):
            source = 0 if same else split

            def one(i: int, name=name, short=short, source=source) -> None:
                scene, frame, _ = _scene(seed, 4, source, i, size)
                file = f"{name}/ADE_{short}_{i + 1:08d}"
                _save_jpeg(root / f"images/{file}.jpg", frame.picture)
                write_mask(root / f"annotations/{file}.png", label_map(scene, frame))

            _all(one, count)
        _write(root / "classes.txt", "".join(f"{name}\n" for name in ADE_CLASSES))

    what = {"ade20k": list(counts), "size": list(size), "seed": seed, "same": same, "sets": _VERSION}
    return _once(folder, what, draw)
