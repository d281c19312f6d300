import json

import cv2
import numpy as np
import pytest

from selfpatch_bench.benchmarks.datasets.files import read_frame
from selfpatch_bench.benchmarks.datasets.masks import read_mask
from selfpatch_bench.benchmarks.synthetic import small_sets
from selfpatch_bench.benchmarks.synthetic.outlines import outlines, run_lengths
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, COCO_CLASSES, COCO_IDS, make_ade20k, make_coco
from selfpatch_bench.pretrain.common.errors import UserError

# pycocotools 2.0.11 with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = (96, 120)


def _tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _polygon(points, shape):
    """Pixels whose centre lies inside the closed line, by the even-odd rule (no OpenCV, no COCO API)."""
    y, x = (np.arange(n) + 0.5 for n in shape)
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        rows = (y0 > y) != (y1 > y)
        if rows.any():
            inside[rows] ^= x[None] < (x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0))[:, None]
    return inside


def _mask(segmentation, shape):
    if isinstance(segmentation, dict):
        assert segmentation["size"] == list(shape)
        counts = segmentation["counts"]
        assert all(n > 0 for n in counts[1:])  # only the first run, of the outside, may be empty
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape[::-1]).T
    parts = [_polygon(np.reshape(flat, (-1, 2)), shape) for flat in segmentation]
    assert np.max(np.sum(parts, 0)) == 1  # none overlaps another
    return np.any(parts, 0)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("sets") / "coco", (12, 9), SIZE, seed=5)


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    return make_ade20k(tmp_path_factory.mktemp("sets") / "ade", (3, 9), SIZE, seed=5)


def _content(root, split):
    return json.loads((root / f"annotations/instances_{split}2017.json").read_text())


def test_random_masks_come_back():
    """Random noise has every way in which pixels can touch: outlines, where they exist, give the mask back exactly."""
    rng = np.random.default_rng(0)
    drawn = 0
    for _ in range(400):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.choice([0.15, 0.4, 0.8])
        assert np.array_equal(_mask(run_lengths(mask), mask.shape), mask)
        lines = outlines(mask)
        around, _ = cv2.connectedComponents((~np.pad(mask, 1)).astype(np.uint8), connectivity=8)
        assert (lines is None) == (around > 2)  # label 0 is the mask, 1 the outside, anything more a hole
        if lines:
            drawn += 1
            assert np.array_equal(_mask([p.ravel().tolist() for p in lines], mask.shape), mask)
            turns = [np.diff(np.vstack([p, p[:1]]), axis=0) for p in lines]
            assert all((np.count_nonzero(t, axis=1) == 1).all() for t in turns)  # along the pixels' edges only
    assert drawn > 100


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_annotations_are_exact(coco, split):
    """Boxes, areas and outlines against the scenes they were drawn from; every object that is seen is annotated."""
    content = _content(coco, split)
    assert [(c["id"], c["name"]) for c in content["categories"]] == list(zip(COCO_IDS, COCO_CLASSES, strict=True))
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    kinds = set()
    for i, image in enumerate(content["images"]):
        assert (image["height"], image["width"]) == SIZE
        scene, frame, _ = small_sets._scene(5, 3, split == "val", i, SIZE)
        picture = read_frame(coco / f"{split}2017" / image["file_name"])
        # JPEG at quality 92 of noisy pictures; another picture differs by 30 and more
        assert np.abs(picture.astype(int) - frame.picture).mean() < 6
        classes = [small_sets._class(scene, k) for k in range(len(scene.things))]
        free = {k for k in range(len(classes)) if (frame.labels == k + 1).sum() >= 9}
        crowded = False
        for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            mask = _mask(a["segmentation"], SIZE)
            owners = set((frame.labels[mask] - 1).tolist())
            assert owners <= free
            assert np.array_equal(np.isin(frame.labels, [k + 1 for k in owners]), mask)
            assert {COCO_IDS[classes[k]] for k in owners} == {a["category_id"]}
            free -= owners
            y, x = np.nonzero(mask)
            assert a["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert a["area"] == mask.sum()
            assert a["iscrowd"] == (len(owners) > 1)
            if a["iscrowd"]:
                assert isinstance(a["segmentation"], dict)
                crowded = True
            kinds |= {"crowd" if a["iscrowd"] else type(a["segmentation"]).__name__}
        assert not free
        assert crowded == (i % 8 == 3)
        assert (len(classes) == 0) == (i % 8 == 7)
    assert kinds >= {"crowd", "list"}


def test_coco_api_agrees(coco):
    """The COCO API's own decoding of polygons and run lengths gives the areas that are written."""
    pycocotools = pytest.importorskip("pycocotools.coco")
    api = pycocotools.COCO(str(coco / "annotations/instances_train2017.json"))
    for a in api.anns.values():
        mask = api.annToMask(a)
        assert mask.sum() == a["area"]
        assert np.array_equal(mask > 0, _mask(a["segmentation"], SIZE))


def test_objects_with_holes_are_run_lengths():
    ring = np.zeros((9, 9), bool)
    ring[2:7, 2:7] = True
    solid = small_sets._annotation(ring, 0, False)
    ring[4, 4] = False
    holed = small_sets._annotation(ring, 0, False)
    assert solid["segmentation"] == [[2, 2, 7, 2, 7, 7, 2, 7]]
    assert np.array_equal(_mask(holed["segmentation"], ring.shape), ring)
    assert (holed["area"], holed["bbox"]) == (24, [2, 2, 5, 5])


def test_ade_labels_are_exact(ade):
    assert (ade / "classes.txt").read_text().splitlines() == list(ADE_CLASSES)
    seen = set()
    for i in range(9):
        labels = read_mask(ade / f"annotations/validation/ADE_val_{i + 1:08d}.png")
        scene, frame, _ = small_sets._scene(5, 4, 1, i, SIZE)
        truth = frame.stuff + 1
        for k in range(len(scene.things)):
            truth[frame.labels == k + 1] = 7 + small_sets._class(scene, k)
        judged = labels > 0
        assert np.array_equal(labels[judged], truth[judged])
        # not judged: exactly the pixels with a neighbour of another object
        padded = np.pad(frame.labels, 1, mode="edge")
        around = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
        assert np.array_equal(~judged, np.any([n != frame.labels for n in around], 0))
        assert (ade / f"images/validation/ADE_val_{i + 1:08d}.jpg").is_file()
        seen |= set(labels.ravel().tolist())
    assert seen == set(range(len(ADE_CLASSES) + 1))
    assert len(list((ade / "images/training").iterdir())) == len(list((ade / "annotations/training").iterdir())) == 3


@pytest.mark.parametrize("make", [make_coco, make_ade20k])
def test_same_seed_same_bytes(tmp_path, make):
    first = make(tmp_path / "a", 2, (40, 48), seed=3)
    assert _tree(make(tmp_path / "b", (2, 2), (40, 48), seed=3)) == _tree(first)
    assert _tree(make(tmp_path / "c", 2, (40, 48), seed=4)) != _tree(first)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    make(first, 2, (40, 48), seed=3)
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before  # nothing is drawn again
    with pytest.raises(UserError, match="give another folder"):
        make(first, 3, (40, 48), seed=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_splits_differ_or_are_the_same(tmp_path):
    def halves(root):
        splits = [_content(root, split) for split in ("train", "val")]
        folders = [[p.read_bytes() for p in sorted((root / name).iterdir())] for name in ("train2017", "val2017")]
        return folders, [[(a["bbox"], a["category_id"]) for a in split["annotations"]] for split in splits]

    pictures, objects = halves(make_coco(tmp_path / "other", 2, (48, 48)))
    assert not set(pictures[0]) & set(pictures[1])
    pictures, objects = halves(make_coco(tmp_path / "same", 2, (48, 48), same=True))
    assert pictures[0] == pictures[1]
    assert objects[0] == objects[1]
    root = make_ade20k(tmp_path / "ade", 2, (48, 48), same=True)
    for kind in ("images", "annotations"):
        train, val = ([p.read_bytes() for p in sorted((root / kind / s).iterdir())] for s in ("training", "validation"))
        assert train == val


@pytest.mark.parametrize(("images", "size"), [(0, SIZE), ((3, 0), SIZE), (2, (20, 64))])
def test_refusals(tmp_path, images, size):
    for make in (make_coco, make_ade20k):
        with pytest.raises(UserError):
            make(tmp_path / "set", images, size)
    assert not list(tmp_path.iterdir())


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(small_sets, "save_jpeg", stop)
    for make in (make_coco, make_ade20k):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "set", 1, (40, 40))
        assert not list(tmp_path.iterdir())
