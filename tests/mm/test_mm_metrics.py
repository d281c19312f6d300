"""mmdet's and mmseg's evaluation against other implementations: pycocotools, published figures, a confusion matrix."""

import contextlib
import importlib.util
import io
import json
import os

import numpy as np
import pytest
import torch

from selfpatch_bench.benchmarks.datasets.coco import CATEGORIES
from selfpatch_bench.benchmarks.synthetic.small_sets import COCO_CLASSES, make_coco

if importlib.util.find_spec("mmdet") is None:
    pytest.skip("the extra `mm` is not installed", allow_module_level=True)

# pycocotools 2.0.11 with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
AP = ("", "_50", "_75", "_s", "_m", "_l")
NAMES = {"bbox": [f"AP_bb{end}" for end in AP], "segm": [f"AP_mk{end}" for end in AP]}


@pytest.fixture(scope="module")
def mm():
    """The module under test: mm is imported once, behind the operations that stand in for the compiled ones."""
    from selfpatch_bench.benchmarks.mm import ops

    ops.install()
    from selfpatch_bench.benchmarks.mm.evaluation import metrics

    return metrics


def _sample(image, detections, kind, index, masks=None):
    """One image's detections (in the COCO API's form) as the network's output reaches the metric."""
    boxes = np.zeros((len(detections), 4))
    if kind == "bbox" or masks is not None:
        boxes = np.reshape([d["bbox"] for d in detections], (-1, 4)).astype(float)
        boxes[:, 2:] += boxes[:, :2]
    found = {
        "bboxes": torch.from_numpy(boxes),
        "scores": torch.tensor([d["score"] for d in detections], dtype=torch.float64),
        "labels": torch.tensor([index[d["category_id"]] for d in detections], dtype=torch.long),
    }
    if masks is not None:
        found["masks"] = masks
    elif kind == "segm":
        found["masks"] = [d["segmentation"] for d in detections]
    return {"img_id": image["id"], "ori_shape": (image["height"], image["width"]), "pred_instances": found}


def _feed(metric, truth, detections, kind):
    index = {c["id"]: i for i, c in enumerate(truth["categories"])}
    metric.dataset_meta = {"classes": [c["name"] for c in truth["categories"]]}
    for image in truth["images"][: metric.limit]:
        mine = [d for d in detections if d["image_id"] == image["id"]]
        metric.process({}, [_sample(image, mine, kind, index)])
    return metric.evaluate(len(truth["images"][: metric.limit]))


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_published_results(mm, need, kind):
    """The COCO API's own example results: all twelve figures as pycocotools gives them."""
    folder = need("data/coco_eval")
    expected = json.loads((folder / "expected.json").read_text())[kind]
    (truth_file,) = [p for p in folder.glob("instances_*.json") if "results" not in p.name]
    (results,) = folder.glob(f"*{'fakebbox' if kind == 'bbox' else 'fakesegm'}*results.json")
    metric = mm.SelfpatchCocoMetric(str(truth_file), metric=kind)
    found = _feed(metric, json.loads(truth_file.read_text()), json.loads(results.read_text()), kind)
    assert list(found) == NAMES[kind]
    short = NAMES[kind][0][3:]
    assert list(metric.parts["AR"]) == [f"AR_{short}{end}" for end in ("_1", "_10", "_100", "_s", "_m", "_l")]
    values = [*found.values(), *metric.parts["AR"].values()]
    assert np.abs(np.array(values) / 100 - list(expected.values())).max() < 1e-9
    assert len(expected) == 12


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A set with crowds, empty pictures and objects of every size: file, content, detections with masks.

    Detections are shifted copies of the objects (some with another class, some twice), crowds too, and noise; every
    picture has more than the 10 of AR_10 or none at all. Scores are rounded, so that many are equal."""
    root = make_coco(tmp_path_factory.mktemp("sets") / "coco", (1, 16), (256, 320), seed=2)
    file = root / "annotations/instances_val2017.json"
    truth = json.loads(file.read_text())
    mask_tools = pytest.importorskip("pycocotools.mask")
    rng, detections = np.random.default_rng(1), []
    for image in truth["images"]:
        size = image["height"], image["width"]
        for a in (a for a in truth["annotations"] if a["image_id"] == image["id"]):
            runs = mask_tools.frPyObjects(a["segmentation"], *size)
            mask = mask_tools.decode(runs if isinstance(runs, dict) else mask_tools.merge(runs))
            for far in (1, 2, 4, 8, 12)[: int(rng.integers(2, 6))]:
                moved = np.roll(mask, rng.integers(-far, far + 1, 2), (0, 1))
                detections.append((image["id"], int(rng.choice([a["category_id"]] * 5 + [1, 2, 4])), moved))
        for _ in range(12 if image["id"] % 5 else 0):
            y, x, h, w = rng.integers(0, 200), rng.integers(0, 260), *rng.integers(4, 50, 2)
            noise = np.zeros(size, np.uint8)
            noise[y : y + h, x : x + w] = 1
            detections.append((image["id"], int(rng.choice([1, 2, 4])), noise))
    complete = []
    for image_id, category, mask in detections:
        runs = mask_tools.encode(np.asfortranarray(mask))
        box = [float(v) + rng.normal() for v in mask_tools.toBbox(runs)]
        runs["counts"] = runs["counts"].decode()
        score = round(float(rng.random()), 1)
        one = {"image_id": image_id, "category_id": category, "score": score, "bbox": [*box[:2], *np.abs(box[2:])]}
        complete.append({**one, "segmentation": runs})
    assert {a["iscrowd"] for a in truth["annotations"]} == {0, 1}
    assert len({a["image_id"] for a in truth["annotations"]}) < len(truth["images"])
    areas = [a["area"] for a in truth["annotations"] if not a["iscrowd"]]
    assert min(areas) < 32**2 < np.median(areas) < 96**2 < max(areas)
    return file, truth, complete


def _reference(file, detections, kind, images):
    """pycocotools' twelve figures, and per class the six of its precision table."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        drop = "bbox" if kind == "segm" else "segmentation"
        found = truth.loadRes([{k: v for k, v in d.items() if k != drop} for d in detections])
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table, classes = evaluation.eval["precision"], {}
    for k, category in enumerate(evaluation.params.catIds):
        parts = (table[:, :, k, 0, 2], table[0, :, k, 0, 2], table[5, :, k, 0, 2])
        parts += tuple(table[:, :, k, area, 2] for area in (1, 2, 3))
        values = [None if (part < 0).all() else 100 * part[part >= 0].mean() for part in parts]
        classes[truth.cats[category]["name"]] = dict(zip(NAMES[kind], values, strict=True))
    return evaluation.stats, classes


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [None, 9])
def test_equals_pycocotools(mm, scenes, kind, limit):
    file, truth, detections = scenes
    images = [image["id"] for image in truth["images"]][:limit]
    detections = [d for d in detections if d["image_id"] in images]
    stats, classes = _reference(file, detections, kind, images)
    metric = mm.SelfpatchCocoMetric(str(file), metric=kind, limit=limit)
    found = _feed(metric, truth, detections, kind)
    if limit is None:
        assert (stats > 0).all()
        assert len(set(stats[:6].tolist())) == 6  # no two alike: a figure under another's name would be seen
        assert len(set(stats[6:9].tolist())) == 3
    recall = metric.parts["AR"]
    for value, got in zip(stats, [*(found.get(n) for n in NAMES[kind]), *recall.values()], strict=True):
        assert got is None if value == -1 else abs(got - 100 * value) < 1e-9
    for name, expected in classes.items():
        for figure, value in expected.items():
            got = metric.parts["classes"][name][figure]
            assert got == value if value is None else abs(got - value) < 1e-9, (name, figure)


def test_boxes_and_masks_together(mm, scenes, capsys):
    """As the network gives them: mask tensors, float32; built by name, without a word on the terminal."""
    from mmdet.registry import METRICS
    from pycocotools import mask as mask_tools

    file, truth, detections = scenes
    metric = METRICS.build({"type": "SelfpatchCocoMetric", "ann_file": str(file)})
    metric.dataset_meta = {"classes": COCO_CLASSES}
    kept = []
    for image in truth["images"]:
        mine = [d for d in detections if d["image_id"] == image["id"]]
        masks = np.array([mask_tools.decode(d["segmentation"]) for d in mine], bool)
        masks = torch.from_numpy(masks.reshape(-1, image["height"], image["width"]))
        sample = _sample(image, mine, "segm", {1: 0, 2: 1, 4: 2}, masks)
        found = sample["pred_instances"]
        found["bboxes"], found["scores"] = found["bboxes"].float(), found["scores"].float()
        for d, box, score in zip(mine, found["bboxes"].double(), found["scores"].double(), strict=True):
            box[2:] -= box[:2]
            kept.append({**d, "bbox": box.tolist(), "score": float(score)})
        metric.process({}, [sample])
    found = metric.evaluate(len(truth["images"]))
    assert list(found) == NAMES["bbox"] + NAMES["segm"]
    assert capsys.readouterr().out == ""
    for kind, names in NAMES.items():
        stats, _ = _reference(file, kept, kind, [image["id"] for image in truth["images"]])
        assert np.abs(np.array([found[n] for n in names]) - 100 * stats[:6]).max() < 1e-9
    json.dumps([found, metric.parts], allow_nan=False)
    assert set(metric.parts["classes"]["star"]) == set(found)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found(mm, scenes, kind):
    """An untrained network that finds nothing has an AP of 0, not none."""
    file, truth, _ = scenes
    metric = mm.SelfpatchCocoMetric(str(file), metric=kind)
    assert _feed(metric, truth, [], kind) == dict.fromkeys(NAMES[kind], 0.0)
    assert metric.parts["classes"]["round"][NAMES[kind][0]] == 0


def test_undefined_figures(mm, scenes, tmp_path):
    """Without small objects and without one of the classes, their figures are none: not -100 %, not 0."""
    _, truth, detections = scenes
    kept = [a for a in truth["annotations"] if a["area"] > 32**2 and a["category_id"] != 4]
    small = tmp_path / "large.json"
    small.write_text(json.dumps({**truth, "annotations": kept}))
    metric = mm.SelfpatchCocoMetric(str(small), metric="bbox")
    found = _feed(metric, truth, detections, "bbox")
    assert list(found) == [name for name in NAMES["bbox"] if name != "AP_bb_s"]
    assert metric.parts["AR"]["AR_bb_s"] is None
    assert set(metric.parts["classes"]["star"].values()) == {None}
    mean = np.mean([metric.parts["classes"][name]["AP_bb"] for name in ("round", "polygon")])
    assert abs(found["AP_bb"] - mean) < 1e-9
    json.dumps(metric.parts, allow_nan=False)


def test_file_order_of_categories(mm, scenes, tmp_path):
    """The network's labels follow the file's order, the evaluator sorts the ids: names must not get mixed up."""
    file, truth, detections = scenes
    shuffled = {**truth, "categories": [truth["categories"][i] for i in (2, 0, 1)]}
    (tmp_path / "x.json").write_text(json.dumps(shuffled))
    parts = []
    for path, content in ((file, truth), (tmp_path / "x.json", shuffled)):
        metric = mm.SelfpatchCocoMetric(str(path), metric="bbox")
        found = _feed(metric, content, detections, "bbox")
        parts.append((found, metric.parts))
    assert parts[0] == parts[1]


def test_other_images_than_the_sets(mm, scenes):
    file, truth, detections = scenes
    metric = mm.SelfpatchCocoMetric(str(file), metric="bbox")
    fewer = {**truth, "images": truth["images"][:8]}
    with pytest.raises(RuntimeError, match="saw 8 pictures, 8 of the 16 to evaluate"):
        _feed(metric, fewer, detections, "bbox")
    metric = mm.SelfpatchCocoMetric(str(file), metric="bbox")
    more = {**truth, "categories": [*truth["categories"], {"id": 9, "name": "other"}]}
    with pytest.raises(RuntimeError, match="4 classes, of which the set has 3"):
        _feed(metric, more, detections, "bbox")
    with pytest.raises(RuntimeError, match="the network gave no masks"):
        _feed(mm.SelfpatchCocoMetric(str(file), metric=["bbox", "segm"]), truth, detections, "bbox")
    with pytest.raises(ValueError, match="metric=proposal"):
        mm.SelfpatchCocoMetric(str(file), metric="proposal")


def test_category_names_are_mmdets(mm):
    from mmdet.datasets import CocoDataset

    assert CocoDataset.METAINFO["classes"] == tuple(name for _, name in CATEGORIES)


# ------------------------------------------------------------------------------------------------------ segmentation
def _iou(mm, pairs, classes, **how):
    from mmseg.registry import METRICS

    metric = METRICS.build({"type": "SelfpatchIoUMetric", **how})
    metric.dataset_meta = {"classes": classes}
    for truth, found in pairs:
        sample = {"gt_sem_seg": {"data": torch.from_numpy(truth)[None]}}
        sample["pred_sem_seg"] = {"data": torch.from_numpy(found)[None]}
        metric.process({}, [sample])
    return metric, metric.evaluate(len(pairs))


def _maps(seed=0, n=5):
    """(truth, prediction) of 8 classes: class 6 is never annotated, class 7 neither annotated nor predicted."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        shape = rng.integers(20, 60, 2)
        truth = rng.integers(0, 6, shape)
        found = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, 7, shape))
        truth[rng.random(shape) < 0.1] = 255
        yield truth, found


def test_equals_confusion_matrix(mm, capsys):
    """mIoU, aAcc, mAcc and every class from the confusion matrix of all pixels, in float64: equal to rounding."""
    pairs, classes = list(_maps()), [f"c{i}" for i in range(8)]
    metric, found = _iou(mm, pairs, classes)
    matrix = np.zeros((8, 8), np.int64)
    for truth, prediction in pairs:
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    hit, annotated, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = annotated + predicted - hit
    iou = {f"c{i}": hit[i] / union[i] for i in range(8) if union[i]}
    acc = {f"c{i}": hit[i] / annotated[i] for i in range(8) if annotated[i]}
    assert (len(iou), len(acc)) == (7, 6)
    expected = {"aAcc": hit.sum() / matrix.sum(), "mIoU": np.mean([*iou.values()]), "mAcc": np.mean([*acc.values()])}
    assert set(found) == set(expected)
    assert max(abs(found[k] - 100 * v) for k, v in expected.items()) < 1e-11
    for name in classes:
        part = metric.parts["classes"][name]
        for what, values in (("IoU", iou), ("Acc", acc)):
            assert part[what] is None if name not in values else abs(part[what] - 100 * values[name]) < 1e-11
    assert metric.parts["classes"]["c6"] == {"IoU": 0.0, "Acc": None}
    assert metric.parts["classes"]["c7"] == {"IoU": None, "Acc": None}
    json.dumps([found, metric.parts], allow_nan=False)
    assert capsys.readouterr().out == ""


def test_equals_mmseg_to_its_two_digits(mm):
    from mmseg.evaluation.metrics import IoUMetric

    pairs, classes = list(_maps(1)), [f"c{i}" for i in range(8)]
    _, found = _iou(mm, pairs, classes)
    theirs = IoUMetric(prefix="x")
    theirs.dataset_meta = {"classes": classes}
    theirs.results = [IoUMetric.intersect_and_union(torch.from_numpy(p), torch.from_numpy(t), 8, 255) for t, p in pairs]
    rounded = theirs.compute_metrics(theirs.results)
    assert {k: round(v, 2) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in rounded.items()})
    assert any(found[k] != float(rounded[k]) for k in found)


def test_totals_are_exact(mm):
    """More pixels than float32 counts (2^24): ADE20K's validation set has some 700 million."""
    metric = mm.SelfpatchIoUMetric()
    metric.dataset_meta = {"classes": ["a", "b"]}
    big, one = torch.tensor([2.0**24, 2.0]), torch.tensor([1.0, 0.0])
    found = metric.compute_metrics([(big, big, big, big), (one, one, one, one), (one * 0, one, one, one)])
    assert found["mIoU"] == 100 * np.mean([(2**24 + 1) / (2**24 + 2), 1.0])
    assert found["aAcc"] == 100 * (2**24 + 3) / (2**24 + 4)


def test_nothing_is_annotated(mm):
    metric = mm.SelfpatchIoUMetric()
    metric.dataset_meta = {"classes": ["a"]}
    nothing = torch.zeros(1)
    assert metric.compute_metrics([(nothing,) * 4]) == {}
    assert metric.parts == {"classes": {"a": {"IoU": None, "Acc": None}}}


@pytest.mark.shared
def test_annotations_fed_back(mm, need):
    """Real ADE20K label maps through mmseg's own reader (0 becomes ignored, the others move down): a score of 100."""
    from mmseg.datasets import ADE20KDataset

    root = need("data/ade20k_samples")
    pipeline = [
        {"type": "mmseg.LoadImageFromFile"},
        {"type": "mmseg.LoadAnnotations", "reduce_zero_label": True},
        {"type": "mmseg.PackSegInputs"},
    ]
    folders = {"img_path": "images/validation", "seg_map_path": "annotations/validation"}
    dataset = ADE20KDataset(data_root=str(root), data_prefix=folders, pipeline=pipeline, test_mode=True)
    pairs = [(s.gt_sem_seg.data[0].numpy().astype(np.int64),) * 2 for s in (d["data_samples"] for d in dataset)]
    classes = dataset.metainfo["classes"]
    assert len(pairs) == len(list((root / "annotations/validation").glob("*.png")))
    metric, found = _iou(mm, pairs, classes)
    assert found == {"aAcc": 100.0, "mIoU": 100.0, "mAcc": 100.0}
    present = {classes[i] for truth, _ in pairs for i in np.unique(truth) if i != 255}
    assert {name for name, part in metric.parts["classes"].items() if part["IoU"] is not None} == present
    judged = np.argwhere(pairs[0][0] != 255)[0]
    wrong = pairs[0][0].copy()
    wrong[tuple(judged)] = (wrong[tuple(judged)] + 1) % 150
    assert max(_iou(mm, [(pairs[0][0], wrong), *pairs[1:]], classes)[1].values()) < 100


# --------------------------------------------------------------------------------------------------- two processes
def _rank(rank, folder, file, truth, detections):
    """One of two processes: every second picture, the last one padded with the first, as mmengine's sampler does."""
    from selfpatch_bench.benchmarks.mm.evaluation import metrics

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = metrics.SelfpatchCocoMetric(str(file), metric="bbox", limit=9)
    metric.dataset_meta = {"classes": COCO_CLASSES}
    images = (truth["images"][:9] + truth["images"][:1])[rank::2]
    for image in images:
        mine = [d for d in detections if d["image_id"] == image["id"]]
        metric.process({}, [_sample(image, mine, "bbox", {1: 0, 2: 1, 4: 2})])
    found = metric.evaluate(9)
    (folder / f"{rank}.json").write_text(json.dumps([found, metric.parts]))
    torch.distributed.barrier()
    os._exit(0)  # nothing of pytest is to run in the copy


def test_two_processes(mm, scenes, tmp_path):
    """The collected figures are those of one process, on every rank; the parts are with the first."""
    file, truth, detections = scenes
    metric = mm.SelfpatchCocoMetric(str(file), metric="bbox", limit=9)
    expected = _feed(metric, truth, detections, "bbox")
    context = torch.multiprocessing.get_context("fork")  # mm is imported already
    ranks = [context.Process(target=_rank, args=(r, tmp_path, file, truth, detections)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == [expected, metric.parts]
    assert second == [expected, {}]
