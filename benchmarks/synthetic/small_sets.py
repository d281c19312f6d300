"""Small data sets in COCO's and ADE20K's layout, drawn from scenes: exact boxes, outlines and label maps.

For tests, the demo, and for trying out a recipe. Drawn, not photographed: no number on them says anything about COCO.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...pretrain.common.errors import UserError
from ..datasets.masks import write_mask
from .drawing import SHAPES, STUFF, Frame, Scene, draw_scene
from .folders import draw_once, in_parallel, save_jpeg
from .outlines import outlines, run_lengths

COCO_CLASSES = ("round", "polygon", "star")  # by the outline of the cut-out
COCO_IDS = (1, 2, 4)  # with a gap, as COCO's have: whoever takes an id for an index is found out
ADE_CLASSES = (
    *(f"{surface} ground" for surface in STUFF),
    *COCO_CLASSES,
)  # labels 1, 2 ...; 0 is the rim of every object
_CLASS_OF_SHAPE = {"blob": 0, "ellipse": 0, "polygon": 1, "star": 2}
_VERSION = 1  # of what is drawn here: part of what makes two sets the same
_SEEN = 9  # pixels: of an object that is hidden but for less, nobody could say what it is


def _class(scene: Scene, k: int) -> int:
    """Index into COCO_CLASSES of the scene's thing k."""
    return _CLASS_OF_SHAPE[SHAPES[scene.things[k].class_id % len(SHAPES)]]


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

    def draw(root: Path, split: int, source: int, count: int) -> None:
        name, first = ("train2017", "val2017")[split], 1 if same else split * 100_000 + 1

        def one(i: int) -> list[dict]:
            scene, frame, crowd = _scene(seed, 3, source, i, size)
            save_jpeg(root / name / f"{first + i:012d}.jpg", frame.picture)
            return [{"image_id": first + i, **a} for a in _objects(scene, frame, crowd)]

        drawn = [a for every in in_parallel(one, count) for a in every]
        shape = {"height": size[0], "width": size[1]}
        pairs = zip(COCO_IDS, COCO_CLASSES, strict=True)
        content = {
            "info": {"description": "drawn scenes", "version": str(_VERSION)},
            "images": [{"id": i, "file_name": f"{i:012d}.jpg", **shape} for i in range(first, first + count)],
            "annotations": [{"id": n, **a} for n, a in enumerate(drawn, split * 1_000_000 + 1)],
            "categories": [{"id": i, "name": name, "supercategory": "thing"} for i, name in pairs],
        }
        path = root / f"annotations/instances_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    return _draw_splits(folder, "coco", images, size, seed, same, draw)


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

    def draw(root: Path, split: int, source: int, count: int) -> None:
        name, short = (("training", "train"), ("validation", "val"))[split]

        def one(i: int) -> None:
            scene, frame, _ = _scene(seed, 4, source, i, size)
            file = f"{name}/ADE_{short}_{i + 1:08d}"
            save_jpeg(root / f"images/{file}.jpg", frame.picture)
            write_mask(root / f"annotations/{file}.png", label_map(scene, frame))

        in_parallel(one, count)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in ADE_CLASSES), encoding="utf-8")

    return _draw_splits(folder, "ade20k", images, size, seed, same, draw)


def _draw_splits(folder, layout: str, images, size, seed: int, same: bool, draw: Callable) -> Path:
    """draw(root, split 0 or 1, number of the split whose scenes are drawn, pictures) for training and validation."""
    counts = [images, images] if isinstance(images, int) else [*images]
    if min(counts) < 1:
        raise UserError(f"images={images}: at least one picture to train on and one to evaluate on")
    if min(size) < 32:
        raise UserError(f"size={size}: pictures of at least 32x32 pixels")

    def both(root: Path) -> None:
        for split, count in enumerate(counts):
            draw(root, split, 0 if same else split, count)

    what = {layout: counts, "size": list(size), "seed": seed, "same": same, "sets": _VERSION}
    return draw_once(folder, what, both)


def _scene(seed: int, family: int, split: int, i: int, size: tuple[int, int]) -> tuple[Scene, Frame, bool]:
    """Picture i of a split. Every eighth is empty, every eighth has six small objects, the others one to three."""
    rng = np.random.default_rng([seed, family, split, i])
    objects = 0 if i % 8 == 7 else 6 if i % 8 == 3 else int(rng.integers(1, 4))
    scene = draw_scene((seed, family, split, i), size, 9, objects)
    return scene, scene.frame(int(rng.integers(9))), objects == 6


def _objects(scene: Scene, frame: Frame, crowd: bool) -> list[dict]:
    """Annotations of one picture; with `crowd`, up to three objects of its commonest class are taken as one crowd."""
    seen = [(_class(scene, k), frame.labels == k + 1) for k in range(len(scene.things))]
    seen = [(label, mask) for label, mask in seen if mask.sum() >= _SEEN]
    found = []
    if crowd and seen:
        common = Counter(label for label, _ in seen).most_common(1)[0][0]
        taken = [k for k, (label, _) in enumerate(seen) if label == common][:3]
        if len(taken) > 1:
            found.append(_annotation(np.any([seen[k][1] for k in taken], 0), common, True))
            seen = [one for k, one in enumerate(seen) if k not in taken]
    return [_annotation(mask, label, False) for label, mask in seen] + found


def _annotation(mask: np.ndarray, label: int, crowd: bool) -> dict:
    """One entry of `annotations` but for its ids. A crowd is run lengths, as in COCO; anything with a hole is too."""
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    polygons = None if crowd else outlines(mask)
    shape = run_lengths(mask) if polygons is None else [p.ravel().tolist() for p in polygons]
    where = {"bbox": [float(v) for v in box], "area": float(mask.sum()), "segmentation": shape}
    return {"category_id": COCO_IDS[label], "iscrowd": int(crowd), **where}


def label_map(scene: Scene, frame: Frame) -> np.ndarray:
    """ADE_CLASSES of a picture as ADE20K writes labels: uint8 [H, W], 1 and up; 0 (not judged) on the objects' rims."""
    labels = frame.stuff + 1
    for k in range(len(scene.things)):
        labels[frame.labels == k + 1] = 1 + len(STUFF) + _class(scene, k)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    labels[cv2.dilate(frame.labels, cross) != cv2.erode(frame.labels, cross)] = 0
    return labels
