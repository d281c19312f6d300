import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch_bench.benchmarks.datasets.files import read_frame
from selfpatch_bench.benchmarks.datasets.masks import read_mask
from selfpatch_bench.benchmarks.pictures.predictions import Objects, detections, palette, segmentation
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, COCO_CLASSES, make_ade20k, make_coco

# pycocotools 2.0.11 with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
GREY = 120
CLASSES = ["cat", "dog"]
HEAD, GAP = 34, 8  # of a sheet: where the panels begin


def _panels(path, count, width, height):
    """The panels' pixels of a sheet, int [H, W, 3] each."""
    sheet = np.array(Image.open(path)).astype(int)
    return [sheet[HEAD : HEAD + height, GAP + k * (width + GAP) :][:, :width] for k in range(count)]


def _scene(shape=(60, 80)):
    image = np.full((*shape, 3), GREY, np.uint8)
    masks = np.zeros((2, *shape), bool)
    masks[0, 20:30, 10:30] = masks[1, 35:55, 50:70] = True
    boxes = np.array([[10, 20, 30, 30], [50, 35, 70, 55]], float)
    return image, Objects(boxes, np.array([0, 1]), masks)


def _changed(panel):
    return np.abs(panel - GREY).max(2) > 3


def test_palette():
    """Any two of the first forty colours differ by 25 levels in some channel; none is black, which is 'nothing'."""
    colours = palette().astype(int)
    assert colours.shape == (256, 3)
    assert (colours[0] == 0).all()
    apart = np.abs(colours[:41, None] - colours[None, :41]).max(2) + 255 * np.eye(41, dtype=int)
    assert apart.min() >= 25


def test_ground_truth_is_where_it_is(tmp_path):
    """Masks and boxes of the left panel cover exactly their own pixels, four times as large; labels aside."""
    image, truth = _scene()
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 60, 80), bool), np.zeros(0))
    path = detections(image, truth, nothing, CLASSES, tmp_path / "a" / "x.png", "a title", width=320)
    assert path == tmp_path / "a" / "x.png"
    left, right = _panels(path, 2, 320, 240)
    inside = np.kron(truth.masks.any(0), np.ones((4, 4), bool))
    written = np.zeros_like(inside)  # the names, at the boxes' left top corners
    for x, y in ((10, 20), (50, 35)):
        written[4 * y - 2 : 4 * y + 24, 4 * x - 2 : 4 * x + 60] = True
    assert _changed(left)[inside & ~written].all()
    assert not _changed(left)[~inside & ~written].any()
    # one colour for each object, and not the same
    first, second = left[29 * 4 - 8, 28 * 4 - 8], left[50 * 4, 60 * 4]
    assert np.abs(first - second).max() > 30
    # On the right nothing was found: only outlines, white on dark, within two pixels of the masks' edges
    assert (right == 255).all(2).any()
    assert not _changed(right)[38 * 4 + 8 : 52 * 4, 53 * 4 : 67 * 4].any()


def test_scores_decide(tmp_path):
    """Below the least score nothing is painted; of equals above it the best stay, the best of all on top."""
    image, truth = _scene()
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 5:15, 5:25] = True  # score too low
    masks[1:, 35:55, 5:25] = True  # the same place twice
    boxes = np.array([[5, 5, 25, 15], [5, 35, 25, 55], [5, 35, 25, 55]], float)
    few = Objects(boxes[1:2], np.array([1]), masks[1:2], np.array([0.9]))
    all_three = Objects(boxes, np.array([0, 1, 0]), masks, np.array([0.2, 0.9, 0.5]))
    panels = []
    for n, (found, most) in enumerate(((few, 20), (all_three, 1), (all_three, 20))):
        path = detections(image, truth, found, CLASSES, tmp_path / f"{n}.png", "", most=most, width=320)
        panels.append(_panels(path, 2, 320, 240)[1])
    assert np.array_equal(panels[0], panels[1])
    assert not _changed(panels[2])[5 * 4 : 15 * 4, 5 * 4 : 25 * 4].any()
    assert _changed(panels[2])[45 * 4 : 50 * 4, 10 * 4 : 20 * 4].all()
    assert not np.array_equal(panels[1], panels[2])


def test_without_masks_and_odd_boxes(tmp_path):
    """Boxes alone, of no extent, outside and the wrong way round, as an untrained network may give them."""
    image, truth = _scene((41, 33))[0], Objects(np.array([[2.0, 3, 20, 30]]), np.array([0]))
    boxes = np.array([[5, 5, 5, 5], [-9, -9, 99, 99], [30, 20, 10, 10], [500, 500, 600, 600.0]])
    found = Objects(boxes, np.array([0, 1, 0, 1]), None, np.full(4, 0.5), np.array([True, False, False, False]))
    path = detections(image, truth, found, CLASSES, tmp_path / "x.png", "x")
    assert Image.open(path).size == (2 * 480 + 3 * GAP, HEAD + round(41 * 480 / 33) + 28)


def test_segmentation(tmp_path):
    """Three panels: the picture as it is, then both label maps in the same colours; 255 is left unpainted."""
    image = np.full((60, 80, 3), GREY, np.uint8)
    truth = np.zeros((60, 80), int)
    truth[:, 40:] = 1
    truth[:20] = 255
    found = np.zeros((60, 80), int)
    path = segmentation(image, truth, found, CLASSES, tmp_path / "x.png", "title", width=320)
    plain, left, right = _panels(path, 3, 320, 240)
    assert (plain == GREY).all()
    assert (left[: 20 * 4 - 4] == GREY).all()
    assert _changed(left[20 * 4 + 4 :]).all()
    assert _changed(right).all()
    at, other = (50 * 4, 10 * 4), (50 * 4, 60 * 4)
    assert np.array_equal(left[at], right[at])  # both say class 0
    assert not np.array_equal(left[other], right[other])
    assert np.array_equal(right[at], right[other])
    sheet = np.array(Image.open(path)).astype(int)
    below = sheet[HEAD + 240 + 28 :]
    for k in (1, 2):  # the legend names both classes in their colours
        assert (below == palette()[k]).all(2).sum() >= 100
    assert not (below == palette()[3]).all(2).any()


def test_segmentation_of_150_classes(tmp_path):
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 150, (2, 30, 40)).astype(np.uint8)
    truth[:3] = 255
    names = [f"a rather long class name, number {i}" for i in range(150)]
    segmentation(np.zeros((30, 40, 3), np.uint8), truth, found, names, tmp_path / "x.png", "all")
    nothing = np.full((30, 40), 255)
    segmentation(np.zeros((30, 40, 3), np.uint8), nothing, found.astype(int), names, tmp_path / "y.png", "none judged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "y.png"]


# ------------------------------------------------------------------------------------------------- from mm's objects
class _Oracle:
    """A model whose answer is the ground truth that it is given, in mm's own objects."""

    def test_step(self, data):
        samples = data["data_samples"]
        for sample in samples:
            if "gt_sem_seg" in sample:
                sample.pred_sem_seg = sample.gt_sem_seg
            else:
                truth = sample.gt_instances
                boxes = getattr(truth.bboxes, "tensor", truth.bboxes)
                masks = torch.from_numpy(truth.masks.to_ndarray())
                found = {"bboxes": boxes, "labels": truth.labels, "masks": masks, "scores": torch.ones(len(truth))}
                sample.pred_instances = type(truth)(**found)
        return samples


def drawn(dataset, folder: Path, most: int = 8) -> list[Path]:
    """What the hook draws of a validation by the oracle."""
    from mmengine.dataset import pseudo_collate

    from selfpatch_bench.benchmarks.mm.evaluation.gallery import Gallery

    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    runner, hook = SimpleNamespace(test_loop=loop, rank=0, world_size=1), Gallery(str(folder), most)
    for i in range(len(dataset)):
        hook.after_test_iter(runner, i, outputs=_Oracle().test_step(pseudo_collate([dataset[i]])))
    return sorted(folder.glob("*.png"))


@pytest.fixture
def mm():
    if importlib.util.find_spec("mmdet") is None:
        pytest.skip("the extra `mm` is not installed")
    from selfpatch_bench.benchmarks.mm import ops

    ops.install()
    import mmdet.datasets
    import mmseg.datasets

    return SimpleNamespace(det=mmdet.datasets, seg=mmseg.datasets)


def test_mmdet_samples(mm, tmp_path):
    """Through mmdet's own reader, which resizes the picture and not the objects: both panels show them where they are,
    crowds on the left alone; a picture without objects is drawn too."""
    root = make_coco(tmp_path / "coco", (1, 8), (96, 120))
    pipeline = [
        {"type": "mmdet.LoadImageFromFile"},
        {"type": "mmdet.Resize", "scale": (300, 240), "keep_ratio": True},
        {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": True},
        {"type": "mmdet.PackDetInputs"},
    ]
    dataset = mm.det.CocoDataset(
        ann_file=str(root / "annotations/instances_val2017.json"),
        data_prefix={"img": str(root / "val2017")},
        metainfo={"classes": COCO_CLASSES},
        pipeline=pipeline,
        test_mode=True,
    )
    names = [f"{100_001 + i:012d}" for i in range(8)]
    paths = drawn(dataset, tmp_path / "out", most=99)
    assert [p.stem for p in paths] == names
    assert len(drawn(dataset, tmp_path / "few", most=2)) == 2
    content = json.loads((root / "annotations/instances_val2017.json").read_text())
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        annotations = [a for a in content["annotations"] if a["image_id"] == number + 100_001]
        left, right = _panels(path, 2, 480, 384)
        plain = cv2.resize(read_frame(root / "val2017" / f"{name}.jpg"), (480, 384), interpolation=cv2.INTER_CUBIC)
        boxes = [4 * np.array(a["bbox"]).astype(int) for a in annotations]
        for panel, crowds in ((left, True), (right, False)):
            painted = np.abs(panel - plain).max(2) > 12
            for a, (x, y, w, h) in zip(annotations, boxes, strict=True):
                # the lower part of the box, free of the name: more than a third of it is the object
                if (crowds or not a["iscrowd"]) and min(w, h) > 60:
                    assert painted[y + 20 : y + h, x : x + w].mean() > 0.33
            free = np.ones((384, 480), bool)
            for x, y, w, h in boxes:
                free[max(0, y - 4) : max(y, 0) + max(h, 24) + 4, max(0, x - 4) : x + max(w, 130) + 4] = False
            assert not painted[free].any()
    assert (_panels(paths[7], 2, 480, 384)[0] == _panels(paths[7], 2, 480, 384)[1]).all()  # the empty one


def test_mmseg_samples(mm, tmp_path):
    """Through mmseg's own reader: labels move down by one, 0 is ignored; both panels are alike."""
    root = make_ade20k(tmp_path / "ade", (1, 2), (96, 120))
    pipeline = [
        {"type": "mmseg.LoadImageFromFile"},
        {"type": "mmseg.Resize", "scale": (300, 240), "keep_ratio": True},
        {"type": "mmseg.LoadAnnotations", "reduce_zero_label": True},
        {"type": "mmseg.PackSegInputs"},
    ]
    dataset = mm.seg.BaseSegDataset(
        data_root=str(root),
        data_prefix={"img_path": "images/validation", "seg_map_path": "annotations/validation"},
        metainfo={"classes": ADE_CLASSES},
        reduce_zero_label=True,
        pipeline=pipeline,
        test_mode=True,
    )
    paths = drawn(dataset, tmp_path / "out")
    assert [p.name for p in paths] == ["ADE_val_00000001.png", "ADE_val_00000002.png"]
    for path in paths:
        _, left, right = _panels(path, 3, 360, 288)
        assert np.array_equal(left, right)
        labels = read_mask(root / "annotations/validation" / path.name)
        flat = cv2.resize(labels, (360, 288), interpolation=cv2.INTER_NEAREST)
        edge = (cv2.dilate(flat, np.ones((3, 3), np.uint8)) != cv2.erode(flat, np.ones((3, 3), np.uint8))) & (flat > 0)
        rim = np.abs(left - palette()[flat].astype(int)).max(2) == 0
        assert rim[edge].mean() > 0.6  # the rims have the class's own colour: names and colours have not shifted
