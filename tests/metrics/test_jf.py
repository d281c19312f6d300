"""J and F equal the plain formula bit for bit and the official evaluator's recorded values."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import reference_jf as plain
from conftest import REPO, SHARED, golden_cases, shared_cases
from official_runs import videos_of
from selfpatch_bench.benchmarks.metrics import jf
from selfpatch_bench.pretrain.common.errors import UserError

TESTS = REPO / "tests"
OFFICIAL = 1e-9  # the recorded values are float64; those of golden/*/scores.json per frame are rounded to 9 digits


def _scores(frames, objects, bound=jf.BOUND):
    """Scores of a sequence: of all frames but the first and the last."""
    return jf.summarize([jf.frame_scores(*pair, objects, bound) for pair in frames[1:-1]])


def _f(prediction, truth, bound=jf.BOUND):
    """F of two masks."""
    return jf.frame_scores(prediction.view(np.uint8), truth.view(np.uint8), 1, bound)[1][0]


def _j(prediction, truth):
    return jf.frame_scores(prediction.view(np.uint8), truth.view(np.uint8), 1)[0][0]


# ---------------------------------------------------------------- the plain formula, bit for bit


def test_the_references_dilation_is_the_official_one():
    rng = np.random.default_rng(0)
    for radius in (1, 2, 5, 8, 18):
        boundary = rng.random((40, 61)) < 0.01
        assert np.array_equal(plain.dilate_by_offsets(boundary, radius), plain.dilate_by_opencv(boundary, radius))


def _pairs(seed: int):
    """(prediction, truth, objects, bound): round and ragged label maps of any size, related, shifted or unrelated."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        shape = tuple(rng.integers(1, 150, 2) if rng.random() < 0.7 else rng.integers(1, 6, 2))
        objects, smooth = int(rng.integers(1, 4)), rng.choice([0, 1, 3, 8.0])
        truth = plain.blobs(rng, shape, objects, smooth)
        if rng.random() < 0.5:
            prediction = np.roll(truth, tuple(rng.integers(-4, 5, 2)), (0, 1))
        else:
            prediction = plain.blobs(rng, shape, objects, smooth)
        yield prediction, truth, objects, rng.choice([0.008, 0.02, 0.1, 0.45, 1, 2, 8, 17, 40])


@pytest.mark.parametrize("seed", range(6))
def test_random_frames_equal_the_plain_formula(seed):
    for prediction, truth, objects, bound in _pairs(seed):
        ours = jf.frame_scores(prediction, truth, objects, bound)
        reference = plain.frame_scores(prediction, truth, objects, bound, plain.dilate_by_offsets)
        assert np.array_equal(ours, reference), (truth.shape, objects, bound)


def _special_masks(shape: tuple[int, int]):
    h, w = shape
    masks = {"empty": np.zeros(shape, bool), "full": np.ones(shape, bool)}
    for name, box in {
        "top left pixel": np.s_[0, 0],
        "bottom right pixel": np.s_[h - 1, w - 1],
        "bottom left pixel": np.s_[h - 1, 0],
        "inner pixel": np.s_[h // 2, w // 2],
        "top row": np.s_[0],
        "last row": np.s_[h - 1],
        "first column": np.s_[:, 0],
        "last column": np.s_[:, w - 1],
        "all but the last column": np.s_[:, : w - 1],
        "lower half": np.s_[h // 2 :],
        "right half": np.s_[:, w // 2 :],
        "middle": np.s_[h // 4 : h // 2 + 1, w // 4 : w // 2 + 1],
    }.items():
        masks[name] = np.zeros(shape, bool)
        masks[name][box] = True
    return masks


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (1, 64), (7, 55), (12, 62)])
def test_special_masks_equal_the_plain_formula(shape):
    masks = _special_masks(shape)
    for a, prediction in masks.items():
        for b, truth in masks.items():
            for bound in (0.008, 2, 9):
                f = plain.boundary_measure(prediction, truth, bound, plain.dilate_by_offsets)
                assert _f(prediction, truth, bound) == f, (a, b, bound)
            assert _j(prediction, truth) == plain.region_similarity(prediction, truth), (a, b)


def test_full_size_frames_equal_the_plain_formula():
    rng = np.random.default_rng(1)
    for shape in ((480, 854), (600, 800)):
        truth = plain.blobs(rng, shape, 4, 25.0)
        prediction = np.where(rng.random(shape) < 0.001, 0, np.roll(truth, (5, -9), (0, 1))).astype(np.uint8)
        assert np.array_equal(jf.frame_scores(prediction, truth, 4), plain.frame_scores(prediction, truth, 4))


def test_empty_masks():
    empty, full, some = np.zeros((20, 30), bool), np.ones((20, 30), bool), np.eye(20, 30, dtype=bool)
    assert _j(empty, empty) == 1
    assert _j(empty, some) == _j(some, empty) == 0
    assert _f(empty, empty) == 1
    assert _f(empty, some) == _f(some, empty) == 0
    assert _f(full, empty) == 1  # a full mask has no boundary: the official measure cannot tell


def test_radius():
    assert [jf.bound_radius(s) for s in ((480, 854), (480, 910), (1080, 1920), (1, 9))] == [8, 9, 18, 1]
    assert jf.bound_radius((600, 800)) == 8  # 0.008 x 1000 exactly: not rounded up to 9
    assert jf.bound_radius((480, 854), 3) == 3
    for bound in (0, -1, 2.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="bound="):
            jf.bound_radius((480, 854), bound)


def test_huge_radii():
    """A pixel at x in an image of one row has two boundary pixels, x - 1 and x."""
    prediction, truth = np.zeros((1, 13000), bool), np.zeros((1, 13000), bool)
    prediction[0, 10] = True
    for distance, f in ((5999, 1), (6000, 1), (6001, 0.5), (6002, 0)):
        truth[:] = False
        truth[0, 10 + distance] = True
        assert _f(prediction, truth, 6000) == f
    for x in range(0, 400, 7):
        prediction, truth = np.zeros((2, 3, 400), bool)
        prediction[1, 200], truth[2, x] = True, True
        assert _f(prediction, truth, 10**6) == 1  # larger than the image: everything matches


def test_read_only_input():
    frame = np.asarray(Image.fromarray(np.eye(20, 33, dtype=np.uint8)))  # Pillow's view cannot be written to
    assert not frame.flags.writeable
    assert np.array_equal(jf.frame_scores(frame, frame, 1), [[1], [1]])


def test_void_and_late_labels_are_background():
    truth = np.zeros((40, 50), np.uint8)
    truth[10:20, 10:20], truth[20:30, 10:20], truth[:5] = 1, 255, 7
    prediction = np.where(truth == 7, 0, np.minimum(truth, 1)).astype(np.uint8)  # takes the void for the object
    j, f = jf.frame_scores(prediction, truth, 1)
    assert j[0] == 0.5
    assert f[0] == plain.boundary_measure(prediction == 1, truth == 1) < 1


# ---------------------------------------------------------------- statistics


def test_statistics():
    values = np.linspace(0.95, 0.05, 10)  # edges of the quarters: 0, 2, 5, 7, 9
    first, last = values[:3].mean(), values[7:].mean()
    assert jf.statistics(values) == {
        "mean": pytest.approx(0.5, abs=1e-15),
        "recall": 0.5,
        "decay": pytest.approx(first - last, abs=1e-15),
    }
    assert jf.statistics([0.5, 0.5])["recall"] == 0  # strictly above
    assert jf.statistics([0.7]) == {"mean": 0.7, "recall": 1, "decay": 0}
    assert jf.statistics([0.75, 0.25]) == {"mean": 0.5, "recall": 0.5, "decay": 0.5}
    assert jf.statistics([1, 0.5, 0])["decay"] == 0.75  # edges 0, 1, 1, 2, 2: the official 1e-10 rounds halves up
    long = np.repeat([1.0, 0.0], 200)  # official uint8 bin edges wrap here and give no number
    assert jf.statistics(long)["decay"] == 1


def test_global_scores_average_over_objects_not_sequences():
    def scores(j, f):
        return {"J": {"mean": j, "recall": 1.0, "decay": 0.1}, "F": {"mean": f, "recall": 0.5, "decay": -0.1}}

    result = jf.global_scores({"a": {"1": scores(0.9, 0.8), "2": scores(0.6, 0.2)}, "b": {"1": scores(0.0, 0.2)}})
    assert result == pytest.approx(
        {"JF_m": 45, "J_m": 50, "J_recall": 100, "J_decay": 10, "F_m": 40, "F_recall": 50, "F_decay": -10}, abs=1e-12
    )


# ---------------------------------------------------------------- recorded values


def _check_object(ours: dict, recorded: dict):
    for metric in ("J", "F"):
        assert ours[f"{metric}_per_frame"] == pytest.approx(recorded[f"{metric}_per_frame"], abs=OFFICIAL, rel=0)
        assert ours[metric] == pytest.approx(recorded[metric], abs=OFFICIAL, rel=0)


def _golden_frames(golden: dict) -> list:
    values = {"v": 255, **{str(i): i for i in range(4)}}
    return [
        tuple(np.array([[values[c] for c in row] for row in frame[k]], np.uint8) for k in ("prediction", "truth"))
        for frame in golden["frames"]
    ]


def test_small_golden():
    golden = json.loads((TESTS / "golden" / "jf.json").read_text())
    scores = _scores(_golden_frames(golden), golden["objects"], golden["bound"])
    assert list(scores) == ["1", "2", "3"]
    assert [s["J_per_frame"] for s in scores.values()] == golden["J_per_frame"]
    assert [s["F_per_frame"] for s in scores.values()] == golden["F_per_frame"]
    assert golden["J_per_frame"][1][3] == 0  # the case with an object that disappears is there


def _labels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def _truths(folder: Path, frames: int | None = None) -> tuple[list[np.ndarray], list[str], int]:
    """Label maps, file names, number of objects; masks of 0 and 255 only are one object."""
    paths = sorted(folder.glob("*.png"))[:frames]
    truths = [_labels(p) for p in paths]
    objects = int(truths[0].max(initial=0, where=truths[0] != jf.VOID))
    if not objects:
        truths, objects = [(t > 0).astype(np.uint8) for t in truths], 1
    return truths, [p.name for p in paths], objects


@pytest.mark.shared
@pytest.mark.parametrize("path", shared_cases("golden/davis_jf_*.json"))
def test_official_scores_of_a_methods_binary_masks(path):
    method, scored = path.stem.removeprefix("davis_jf_"), 0
    for folder in sorted(SHARED.glob(f"data/*/{method}_results")):
        for sequence, recorded in json.loads(path.read_text()).items():
            if not (folder / sequence).is_dir():
                continue
            truths, names, objects = _truths(folder.parent / "Annotations" / "480p" / sequence)
            predictions = [(_labels(folder / sequence / name) > 0).astype(np.uint8) for name in names]
            ours = _scores(list(zip(predictions, truths, strict=True)), objects)
            _check_object(ours["1"], recorded)
            scored += 1
    if not scored:
        pytest.skip(f"no masks below {SHARED}/data/*/{method}_results")


@pytest.mark.parametrize("path", golden_cases("*/scores.json"))
def test_official_scores_of_propagated_masks(path, tmp_path):
    golden = json.loads(path.read_text())
    annotations = videos_of(golden, tmp_path) / "Annotations/480p"
    results = {}
    for sequence, recorded in golden["sequences"].items():
        truths, names, objects = _truths(annotations / sequence, recorded["frames"])
        predictions = [_labels(path.parent / "masks" / sequence / name) for name in names]
        results[sequence] = _scores(list(zip(predictions, truths, strict=True)), objects)
        assert list(results[sequence]) == list(recorded["objects"])
        for label, scores in recorded["objects"].items():
            _check_object(results[sequence][label], scores)
    ours = jf.global_scores(results)
    names = {"J_M": "J_m", "J_R": "J_recall", "J_D": "J_decay", "F_M": "F_m", "F_R": "F_recall", "F_D": "F_decay"}
    for theirs, name in {**names, "JF_M": "JF_m"}.items():
        assert ours[name] / 100 == pytest.approx(golden["global"][theirs], abs=OFFICIAL, rel=0)


# ---------------------------------------------------------------- mistakes


def test_clear_errors():
    mask = np.zeros((4, 5), np.uint8)
    with pytest.raises(UserError, match=r"prediction is 4x5, the annotation 5x4"):
        jf.frame_scores(mask, mask.T, 1)
    for label in (3, 255):
        mask[2, 2] = label
        with pytest.raises(UserError, match=f"label {label}, but .* 2 object"):
            jf.frame_scores(mask, np.zeros_like(mask), 2)
    with pytest.raises(UserError, match="0 objects"):
        jf.frame_scores(mask, mask, 0)
    for empty in (lambda: jf.statistics([]), lambda: jf.summarize([])):
        with pytest.raises(UserError, match="frame"):
            empty()
    with pytest.raises(UserError, match="no sequence"):
        jf.global_scores({})
