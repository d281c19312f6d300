"""Segmentation by retrieval: equal to open-hummingbird-eval on drawn pictures (tests/golden/drawn) and shared ones."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from frozen import BOTH, DRAWN, golden_of, run_task
from selfpatch_bench.benchmarks import UserError, wrap
from selfpatch_bench.benchmarks.datasets.segmentation.cityscapes import open_cityscapes
from selfpatch_bench.benchmarks.datasets.segmentation.voc import open_voc
from selfpatch_bench.benchmarks.metrics.segmentation import confusion, ious, matched, renamed
from selfpatch_bench.benchmarks.tasks._registry import get_task
from selfpatch_bench.benchmarks.tasks._segmentation import memory as _memory
from selfpatch_bench.benchmarks.tasks._segmentation.dense import nearest_labels, shares
from selfpatch_bench.benchmarks.tasks._segmentation.memory import AREA, augmented, rarest
from selfpatch_bench.benchmarks.tasks._segmentation.search import nearest
from selfpatch_bench.benchmarks.tasks._segmentation.views import random_cut

# Labels are equal but where two classes tie to float32's last digit: 99.9 % of the pixels, and so 0.01 points of a mean
# over 21 classes or more.
POINTS, PIXELS = 0.01, 0.999


@BOTH
def test_it_equals_the_official_code(golden, tmp_path, monkeypatch):
    place = golden_of(golden)
    golden_values, arrays = place.read("hummingbird")
    encoder = place.network(tmp_path, "hummingbird")
    predicted, predict = [], _memory.Memory.predict

    def keep(self, images):
        predicted.append(predict(self, images))
        return predicted[-1]

    monkeypatch.setattr(_memory.Memory, "predict", keep)
    for case, want in golden_values["results"].items():
        if "mIoU" not in want:  # augmented: other draws
            continue
        values = [f"size={want['input_size']}", "augment=false", f"passes={want.get('augmentation_epoch', 1)}"]
        values += [f"memory_size={want.get('memory_size', 'none')}", f"neighbours={want.get('n_neighbours', 30)}"]
        if f"{case}.uniform" in arrays:
            draws = iter(torch.from_numpy(arrays[f"{case}.uniform"]))
            official = lambda counts, _, draws=draws: torch.stack([next(draws) for _ in counts])  # noqa: E731
            monkeypatch.setattr(_memory, "uniform", official)
        predicted.clear()
        task = "hummingbird_ade20k" if "ade" in case else "hummingbird_voc"
        found = run_task(task, encoder, place.data["ade" if "ade" in case else "voc"], *values)
        for ours, value in found["metrics"].items():
            theirs = {"mIoU_present": "mIoU_identity_present_classes"}.get(ours, ours)
            assert abs(value - want[theirs]) < POINTS, (case, ours)
        assert (found["protocol"]["matching"] == "identity") == want["hungarian_is_identity_where_present"]
        if f"{case}.predictions" in arrays:
            ours, theirs = np.concatenate(predicted), arrays[f"{case}.predictions"].reshape(-1, *predicted[0].shape[1:])
            assert ((ours == theirs).mean((1, 2)) >= PIXELS).all(), case


def test_the_rarest_patches_are_those_that_were_sampled():
    want, arrays = golden_of("drawn").read("hummingbird")
    side = want["results"]["voc_bounded"]["input_size"]
    train = open_voc(DRAWN / "data/voc").content.train.by_name()
    labels = [nearest_labels(torch.from_numpy(train.read_labels(i).copy()), (side, side)) for i in range(len(train))]
    labels = torch.stack(labels)
    counts = shares(torch.where(labels == 255, 0, labels), (side // 16, side // 16), 21).flatten(1, 2)
    sampled = arrays["voc_bounded.sampled"]
    found = rarest(counts, torch.from_numpy(arrays["voc_bounded.uniform"]), sampled.shape[1])
    assert np.array_equal(found.numpy(), sampled)


def test_augmented_memories_differ_by_seed_and_are_near_the_official_spread(tmp_path):
    place = golden_of("drawn")
    results = place.read("hummingbird")[0]["results"]
    want, encoder = results["voc_augmented"], place.network(tmp_path, "hummingbird")
    values = (f"memory_size={want['memory_size']}", f"passes={want['augmentation_epoch']}")
    values += (f"size={results['voc_plain']['input_size']}",)
    runs = [run_task("hummingbird_voc", encoder, place.data["voc"], *values, seed=s) for s in (0, 1, 2, 0)]
    found = [one["metrics"]["mIoU"] for one in runs]
    assert found[0] == found[3]
    assert len(set(found)) == 3
    assert abs(np.mean(found[:3]) - want["mean"]) < 4 * want["std"]  # three draws of each: no equality


def test_the_square_is_of_whole_cells_of_a_users_own_network(monkeypatch):
    monkeypatch.setattr("selfpatch_bench.benchmarks.tasks.hummingbird.SIZE", 40)

    def features(module, images, blocks):
        map = torch.nn.functional.avg_pool2d(module(images), 12)
        return map.mean((2, 3)), [map for _ in blocks]

    encoder = wrap(torch.nn.Conv2d(3, 4, 1), features, mean=0.5, std=0.5, strides=(12,), name="cells")
    found = run_task("hummingbird_voc", encoder, golden_of("drawn").data["voc"], "passes=1")
    assert found["protocol"]["size"] == 36


# --- Its parts


@pytest.mark.parametrize(("keys", "k"), [(5, 30), (64, 3), (1000, 30), (5000, 7), (4097, 30)])
def test_the_search_is_exact(keys, k, monkeypatch):
    monkeypatch.setattr("selfpatch_bench.benchmarks.tasks._segmentation.search.SCORES", 1 << 18)  # several blocks
    noise = torch.Generator().manual_seed(keys)
    queries, bank = (torch.randn(n, 8, generator=noise) for n in (300, keys))
    value, at = nearest(queries, bank, k)
    wanted = (queries @ bank.T).topk(min(k, keys), dim=1)
    assert torch.equal(at, wanted.indices)
    assert torch.allclose(value, wanted.values, atol=1e-6)


def test_shares_count_the_pixels_of_each_class():
    labels = torch.zeros(1, 4, 6, dtype=torch.uint8)
    labels[0, :2, 4:] = 3
    labels[0, 3, 0] = 1
    found = shares(labels, (2, 3), 4)
    assert found.sum(-1).eq(4).all()
    assert found[0, 0, 2].tolist() == [0, 0, 0, 4]
    assert found[0, 1, 0].tolist() == [3, 1, 0, 0]


def test_matching_gives_each_class_one_of_its_own():
    counts = np.array([[0, 9, 0], [8, 0, 1], [0, 0, 0]])
    mapping = matched(counts)
    assert mapping.tolist() == [1, 0, 2]
    assert ious(renamed(counts, mapping)).tolist() == [1, 8 / 9, 0]
    truth, predicted = np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0])
    assert confusion(truth, predicted, 2, 255).tolist() == [[1, 1], [0, 1]]


def test_a_cut_lies_within_the_picture_and_its_labels_go_with_it(tmp_path):
    draws = np.random.default_rng(0)
    cuts = [random_cut(draws, 60, 100, AREA) for _ in range(200)]
    assert all(t >= 0 and t + h <= 60 and left >= 0 and left + w <= 100 for t, left, h, w in cuts)
    assert len(set(cuts)) > 50

    class Half:
        def read(self, i):
            image = np.zeros((40, 60, 3), np.uint8)
            image[:, 30:] = 255
            return image

        def read_labels(self, i):
            return (self.read(i)[..., 0] > 0).astype(np.uint8)

    for i in range(5):
        image, labels = augmented(Half(), 32, (0, 0), i)
        inside = (image.mean(0) > 0.9) | (image.mean(0) < 0.1)
        assert ((image.mean(0) > 0.5).byte() == labels)[inside].all()


def test_published_variants_change_nothing_and_others_do():
    task = get_task("hummingbird_voc:mem1024e4")
    values, changed, _ = task.parse(SimpleNamespace(overrides=[]))
    assert (values.memory_size, changed) == (10_240_000, {})
    assert task.published == (("hummingbird_voc", "hbird_mem1024e4"),)
    assert task.parse(SimpleNamespace(overrides=["memory_size=102400"]))[1] == {"memory_size": 102400}
    other = get_task("hummingbird_voc:std225")
    assert other.published == ()
    assert other.parse(SimpleNamespace(overrides=[]))[1] == {"std": [0.229, 0.224, 0.225]}


# --- Data


def test_cityscapes_ids_become_train_ids(tmp_path):
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder, ending, mode in (("leftImg8bit", "leftImg8bit", None), ("gtFine", "gtFine_labelIds", "L")):
            place = tmp_path / folder / split / "town"
            place.mkdir(parents=True)
            pixels = noise.integers(0, 255, (4, 6, 3), np.uint8) if mode is None else np.full((4, 6), 24, np.uint8)
            if mode and split == "val":
                pixels[0] = [0, 7, 33, 26, 4, 255]
            Image.fromarray(pixels).save(place / f"town_000_{ending}.png")
    data = open_cityscapes(tmp_path)
    assert data.differs == "1 of 500 images, 1 of 2975 training images"
    assert data.content.train.read_labels(0)[0, 0] == 11
    assert data.content.val.read_labels(0)[0].tolist() == [255, 0, 18, 13, 255, 255]
    label = tmp_path / "gtFine/val/town/town_000_gtFine_labelIds.png"
    Image.fromarray(np.full((4, 6), 40, np.uint8)).save(label)
    with pytest.raises(UserError, match="label id 40"):
        open_cityscapes(tmp_path)
    Image.fromarray(np.full((4, 6), 4, np.uint8)).save(label)
    with pytest.raises(UserError, match="no pixel that is judged"):
        open_cityscapes(tmp_path)


def test_voc_says_what_is_wrong(tmp_path):
    root = tmp_path / "VOC2012"
    shutil.copytree(DRAWN / "data/voc/VOC2012", root)
    assert open_voc(tmp_path).fingerprint == open_voc(root).fingerprint == open_voc(DRAWN / "data/voc").fingerprint
    name = (root / "ImageSets/Segmentation/val.txt").read_text().split()[0]
    label = root / f"SegmentationClass/{name}.png"
    wrong = np.asarray(Image.open(label)).copy()
    wrong[0, 0] = 40
    Image.fromarray(wrong).save(label)
    with pytest.raises(UserError, match=f"{name}.png: label 40; labels go from 0 to 20"):
        open_voc(root)
    for one in (root / "SegmentationClass").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(one)), 255)).save(one)
    with pytest.raises(UserError, match="has no pixel that is judged, and no other of"):
        open_voc(root)
    label.unlink()
    with pytest.raises(UserError, match=f"{name}.png: is missing; val.txt names it"):
        open_voc(root)
    shutil.rmtree(root / "SegmentationClassAug")
    with pytest.raises(UserError, match="no SegmentationClassAug"):
        open_voc(root)
