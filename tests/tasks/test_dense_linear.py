"""Linear segmentation of frozen patches: equal to DINOv3's and NeCo's code, and gone on with where it was stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from frozen import BOTH, golden_of, only_ade, only_voc, run_task
from selfpatch_bench.benchmarks.datasets.segmentation import Labelled
from selfpatch_bench.benchmarks.tasks import dense_linear
from selfpatch_bench.benchmarks.tasks._segmentation import segmenter as _segmenter
from selfpatch_bench.benchmarks.tasks._segmentation.segmenter import by_epoch, in_order, slide
from selfpatch_bench.benchmarks.tasks._segmentation.views import distorted, scaled_size

# Losses and weights after so many steps: float32 sums in another order, which each step adds to. Labels: pixels where
# two classes tie to the last digit.
STEPS, PIXELS, POINTS = 1e-4, 0.999, 0.01
FIRST = 8  # official steps with a warm-up of 5 that are made again
NAMES = {"batchnorm_layer": "norm.", "conv": "conv.", "weight": "conv.weight", "bias": "conv.bias"}


def head_state(arrays: dict, prefix: str) -> dict[str, torch.Tensor]:
    """Official weights `init.*` or `final.*` under our names."""
    found = {}
    for key, value in arrays.items():
        kind, _, name = key.partition(".")
        if kind == prefix:
            layer, dot, rest = name.partition(".")
            found[NAMES[layer] + rest if dot else NAMES[layer]] = torch.from_numpy(np.array(value))
    return found


@pytest.fixture
def heads(monkeypatch):
    """head class name, official arrays -> a list that gets (head, losses) of what is trained from `init.*`. first: only
    so many steps are made, and what is evaluated is the official `final.*`."""

    def begin(kind: str, arrays: dict, first: int | None = None) -> list:
        trained, plain, fit = [], getattr(_segmenter, kind).__init__, _segmenter.fit

        def start(self, *arguments):
            plain(self, *arguments)
            self.load_state_dict(head_state(arrays, "init"))

        def keep(head, optimiser, course, *arguments):
            evaluate = course.evaluate

            def of_final(step: int) -> dict:
                head.load_state_dict(head_state(arrays, "final"))
                return evaluate(step)

            if first:
                course = replace(course, steps=first, every=first, evaluate=of_final)
            found = fit(head, optimiser, course, *arguments)
            trained.append((head, found[0]))
            return found

        monkeypatch.setattr(getattr(_segmenter, kind), "__init__", start)
        monkeypatch.setattr(_segmenter, "fit", keep)
        return trained

    return begin


def check_losses(losses: list[float], want: dict) -> None:
    assert losses == pytest.approx([step["loss"] for step in want["steps"][: len(losses)]], rel=STEPS)


def check_training(trained: list, want: dict, arrays: dict) -> None:
    [(head, losses)] = trained
    assert len(losses) == len(want["steps"])
    check_losses(losses, want)
    state = head.state_dict()
    for name, value in head_state(arrays, "final").items():
        error = (state[name] - value).abs().max() / value.abs().max().clamp_min(1e-12)
        assert error < STEPS, (name, error)


@BOTH
def test_448_equals_the_official_code(golden, heads, tmp_path):
    place = golden_of(golden)
    want, arrays = place.read("seg_linear_448")
    trained = heads("Conv", arrays)
    steps, rates = want["steps"], [step["lr"] for step in want["steps"]]
    epochs, count = 5, len(want["train"])
    drop = next(i for i, rate in enumerate(rates) if rate < rates[0]) * epochs // len(steps)
    values = ("augment=false", f"epochs={epochs}", f"batch={-(-count * epochs // len(steps))}", f"lr={rates[0]}")
    encoder = place.network(tmp_path, "seg_linear_448")
    data = only_voc(place.data["voc"], want["train"], want["val"], tmp_path / "voc")
    found = run_task("voc_linear_448", encoder, data, *values, f"drop_at={drop}", out=tmp_path)
    check_training(trained, want, arrays)
    assert abs(found["metrics"]["mIoU"] - want["mIoU"]) < POINTS


@BOTH
def test_dinov3_s_equals_the_official_code(golden, heads, tmp_path):
    """Of 16 official steps of 512 pixels and 150 classes the warm-up's, the highest rate's and one of the fall: each
    loss is that of the weights which the steps before it left."""
    place = golden_of(golden)
    want, arrays = place.read("seg_linear")
    trained = heads("NormConv", arrays, first=FIRST)
    rates = [step["lr"] for step in want["steps"]]
    values = ("augment=false", f"steps={len(rates)}", "batch=2", "lr=0.02", "warmup=5", "dropout=0")
    encoder = place.network(tmp_path, "seg_linear")
    data = only_ade(place.data["ade"], want["train"], want["val"], tmp_path / "ade")
    found = run_task("ade20k_linear", encoder, data, *values, f"every={len(rates)}", out=tmp_path)
    ours = [dense_linear.rate(step, 0.02, 5, len(rates)) for step in range(len(rates))]
    assert ours == pytest.approx(rates, rel=1e-6)
    [(_, losses)] = trained
    assert len(losses) == FIRST
    check_losses(losses, want)
    assert abs(found["metrics"]["mIoU_last"] - want["mIoU"]) < POINTS
    assert abs(found["metrics"]["aAcc"] - want["metrics"]["aAcc"]) < POINTS
    assert abs(found["metrics"]["mAcc"] - want["metrics"]["acc"]) < POINTS
    each = {i: x for i, x in enumerate(found["parts"]["classes"].values()) if x is not None}
    assert each == pytest.approx({int(i): x for i, x in want["IoU_per_class"].items()}, abs=POINTS)
    for step, rate in want["learning_rates"]["config_40000"].items():
        assert dense_linear.rate(int(step), 1e-3, 1500, 40_000) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("task", ["voc_linear_448", "ade20k_linear"])
def test_an_interrupted_training_goes_on_exactly(task, tmp_path, monkeypatch):
    place = golden_of("drawn")
    short = task == "voc_linear_448"
    encoder = place.network(tmp_path, "seg_linear")
    own = ("epochs=3", "batch=8", "grid=20") if short else ("steps=6", "batch=2", "every=2", "stride=48")
    values = ("size=64", *own)
    data = place.data["voc" if short else "ade"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_task(task, encoder, data, *values, out=tmp_path / "a")
    steps, fit = [], _segmenter.fit

    def stop(head, optimiser, course, file, key, progress):
        def counted(step, text):
            steps.append(step)
            if len(steps) == 3:
                raise KeyboardInterrupt
            progress(step, text)

        return fit(head, optimiser, course, file, key, counted)

    monkeypatch.setattr(_segmenter, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        run_task(task, encoder, data, *values, out=tmp_path / "b")
    rest = run_task(task, encoder, data, *values, out=tmp_path / "b")
    assert steps == [1, 2, 3, 3, 4, 5, 6]  # from the last state, of step 2
    assert (rest["metrics"], rest["parts"]) == (whole["metrics"], whole["parts"])
    states = [torch.load(tmp_path / name / "head.pt") for name in "ab"]
    assert all(torch.equal(states[0]["head"][k], states[1]["head"][k]) for k in states[0]["head"])


# --- Its parts


def test_every_picture_is_seen_once_in_an_epoch():
    numbers = in_order(5, 2, seed=3)
    seen = [i for step in range(5) for i in numbers(step)[1]]  # two epochs
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]
    steps = [by_epoch(5, 2)(step) for step in range(4)]
    assert steps == [(0, [0, 1]), (0, [2, 3]), (0, [4]), (1, [0, 1])]


def test_a_new_head_is_as_wide_as_the_official_one():
    """NeCo leaves torch's own start: uniform, up to 1 / sqrt(dim)."""
    official = head_state(golden_of("drawn").read("seg_linear_448")[1], "init")
    ours = _segmenter.Conv(official["conv.weight"].shape[1], 21, 100).state_dict()
    for name, value in official.items():
        assert ours[name].std() == pytest.approx(float(value.std()), rel=0.3), name
        assert ours[name].abs().max() == pytest.approx(float(value.abs().max()), rel=0.3), name


def test_windows_cover_a_picture_and_are_averaged():
    """A score that is a pixel's own value is the same whatever window sees it."""
    image = torch.rand(1, 3, 50, 83)
    found = slide(lambda part: part, image, 32, 21, (50, 83))
    assert torch.equal(found, image.argmax(1)[0])
    assert torch.equal(slide(lambda part: part, image, 16, 40, (50, 83)), found)  # a stride beyond the window
    small = slide(lambda part: part, image[..., :20, :20], 32, 21, (20, 20))
    assert torch.equal(small, image[..., :20, :20].argmax(1)[0])


def test_sizes_are_rounded_as_by_the_official_code():
    assert scaled_size(300, 400, 512) == (512, 683)
    assert scaled_size(400, 300, 512) == (683, 512)
    assert scaled_size(300, 300, 256) == (256, 256)


def test_a_training_view_keeps_labels_and_pixels_together():
    class Halves(Labelled):
        def read(self, i):
            image = np.full((40, 70, 3), 30, np.uint8)
            image[:, 35:] = 220
            return image

        def read_labels(self, i):
            return np.where(self.read(i)[..., 0] > 100, 2, 1).astype(np.uint8)

    pictures, padded = Halves("x", [], []), 0
    for i in range(12):
        image, labels = distorted(pictures, i, 48, (0.5, 2.0), 0.75, True, (0, 0))
        assert image.shape == (3, 48, 48)
        assert set(labels.unique().tolist()) <= {0, 1, 255}
        assert torch.equal(image.isnan().all(0), labels == 255)
        inside = labels != 255
        padded += bool((~inside).any())
        for k in (0, 1):
            values = image.mean(0)[inside & (labels == k)]
            assert len(values) < 50 or (values - values.median()).abs().mean() < 0.05  # one half, but for its border
    assert 0 < padded < 12
