"""Segmentation by classifiers on patches: equal to CAPI's code (logistic regression: scikit-learn's), both goldens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from frozen import BOTH, golden_of, only_voc, run_task
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.datasets.segmentation.voc import open_voc
from selfpatch_bench.benchmarks.tasks import TaskConfig, seg_patches
from selfpatch_bench.benchmarks.tasks._segmentation import patches
from selfpatch_bench.benchmarks.tasks._segmentation.patches import Set, most_frequent, standardised
from selfpatch_bench.benchmarks.tasks.seg_patches import Knn

# Neighbours are equal but for ties; a convex problem that two solvers end at a little apart.
PIXELS, KNN, LOGREG = 0.999, 0.01, 0.5


@BOTH
def test_it_equals_the_official_code(golden, tmp_path, monkeypatch):
    place = golden_of(golden)
    want, arrays = place.read("seg_patches")
    encoder, results, predicted = place.network(tmp_path, "seg_patches"), want["results"], {}
    for kind in ("Neighbours", "Regressions"):
        plain = getattr(patches, kind).predict

        def keep(self, test, name, plain=plain, kind=kind):
            predicted[kind] = plain(self, test, name)
            return predicted[kind]

        monkeypatch.setattr(getattr(patches, kind), "predict", keep)
    found = run_task("seg_knn_voc", encoder, place.data["voc"])
    assert found["metrics"]["mIoU"] == pytest.approx(100 * results["labels_knn_mIoU"], abs=KNN)
    assert found["metrics"]["pixel_accuracy"] == pytest.approx(100 * results["labels_knn_acc"], abs=KNN)
    for name, value in found["parts"]["tried"].items():
        k, distance = name.removeprefix("k=").split()
        official = results[f"hparam_fitting.knn.mIoU_num_neighbors={k}_distance={distance}"]
        assert value == pytest.approx(100 * official, abs=KNN), name
    assert (predicted["Neighbours"] == arrays["knn"].reshape(predicted["Neighbours"].shape)).mean() >= PIXELS

    grid = [float(key.partition("C=")[2].partition("_")[0]) for key in results if "logreg.mIoU_C=" in key]
    values = (f"c=[{','.join(map(str, grid))}]", "every=3", "tol=1e-8")
    found = run_task("seg_logreg_voc", encoder, place.data["voc"], *values)
    assert found["protocol"]["chosen"] == f"C={want['logreg_C']:g}"
    assert found["metrics"]["mIoU"] == pytest.approx(100 * results["labels_logreg_mIoU"], abs=LOGREG)
    same = predicted["Regressions"][:, 0].reshape(arrays["logreg_patches"].shape) == arrays["logreg_patches"]
    assert same.mean() > 0.99


def test_what_is_left_of_a_patch_is_no_part_of_it(tmp_path):
    place = golden_of("drawn")
    pictures = open_voc(place.data["voc"]).content.val
    pictures = replace(pictures, images=pictures.images[:1], labels=pictures.labels[:1])
    cfg = TaskConfig(Knn(size=47), device="cpu")
    found = patches.patches_of(place.network(tmp_path, "seg_patches"), cfg, pictures, lambda done: None)
    whole = np.array(Image.fromarray(pictures.read_labels(0)).resize((47, 47), Image.Resampling.NEAREST))
    assert found.each == 4  # 2 x 2 patches of 16 pixels
    assert np.array_equal(found.labels[3], whole[16:32, 16:32].reshape(-1))


def test_ties_go_to_the_smaller_label():
    assert most_frequent(torch.tensor([[7, 3, 7, 3], [1, 1, 9, 9]], dtype=torch.uint8), 1).tolist() == [3, 1]


def test_the_training_part_alone_sets_the_scale():
    def some(values):
        return Set(torch.tensor(values), np.zeros((len(values), 4), np.uint8), 1)

    train, other = standardised(some([[0.0, 5.0], [2.0, 5.0]]), some([[4.0, 6.0]]))
    assert train.features.tolist() == [[-1, 0], [1, 0]]
    assert other.features.tolist() == [[3, 1]]


def test_pictures_that_are_not_judged():
    counts = seg_patches._score(np.full((2, 4), 3, np.uint8), np.full((2, 4), 255, np.uint8), [255])
    assert seg_patches._mean(counts) == 0  # of the held out tenth; a choice is made still
    train = Set(torch.zeros(2, 3), np.full((2, 4), 255, np.uint8), 1)
    with pytest.raises(UserError, match="none of the 2 training patches is of a class that is judged"):
        patches.Neighbours(Knn(), train, [255], "cpu")


def test_a_tenth_of_too_few_pictures_is_none(tmp_path):
    voc = golden_of("drawn").data["voc"]
    names = (voc / "VOC2012/ImageSets/Segmentation/trainaug.txt").read_text().split()
    few = only_voc(voc, names[:4], names[4:6], tmp_path / "few")
    with pytest.raises(UserError, match=r"lacks|4 training pictures|is missing"):
        run_task("seg_knn_voc", None, few)
