"""J and F by the plain formula on full frames, one object at a time: what `benchmarks/metrics/jf.py` must equal.

Formula: davisvideochallenge/davis2017-evaluation, commit ac7c43f, `davis2017/metrics.py` and `utils.py`.
`python tests/helpers/reference_jf.py > tests/golden/jf.json` writes the small golden again.
"""

import json
import math

import cv2
import numpy as np


def disk(radius: int) -> np.ndarray:
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2).astype(np.uint8)


def dilate_by_offsets(boundary: np.ndarray, radius: int) -> np.ndarray:
    """Dilation by its definition: the union of copies moved by every offset of the disk. Slow, shares no code."""
    h, w = boundary.shape
    padded = np.pad(boundary, radius)
    result = np.zeros_like(boundary)
    for y, x in np.argwhere(disk(radius)):
        result |= padded[y : y + h, x : x + w]
    return result


def dilate_by_opencv(boundary: np.ndarray, radius: int) -> np.ndarray:
    """The official way."""
    return cv2.dilate(boundary.astype(np.uint8), disk(radius)).astype(bool)


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    union = np.sum(prediction | truth)
    return float(np.sum(prediction & truth) / union) if union else 1.0


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Where the right, lower or lower right neighbour differs; the last row and column know one neighbour only."""
    result = np.zeros_like(mask)
    corner = mask[:-1, :-1]
    result[:-1, :-1] = (corner != mask[:-1, 1:]) | (corner != mask[1:, :-1]) | (corner != mask[1:, 1:])
    result[-1, :-1] = mask[-1, :-1] != mask[-1, 1:]
    result[:-1, -1] = mask[:-1, -1] != mask[1:, -1]
    return result


def boundary_measure(prediction, truth, bound=0.008, dilate=dilate_by_opencv) -> float:
    radius = int(bound) if bound >= 1 else math.ceil(bound * np.linalg.norm(truth.shape))
    ours, theirs = boundary_map(prediction), boundary_map(truth)
    n_ours, n_theirs = np.sum(ours), np.sum(theirs)
    if n_ours == 0 and n_theirs == 0:
        precision, recall = 1.0, 1.0
    elif n_ours == 0:
        precision, recall = 1.0, 0.0
    elif n_theirs == 0:
        precision, recall = 0.0, 1.0
    else:
        precision = float(np.sum(ours & dilate(theirs, radius)) / n_ours)
        recall = float(np.sum(theirs & dilate(ours, radius)) / n_theirs)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def frame_scores(prediction, truth, objects, bound=0.008, dilate=dilate_by_opencv):
    """J [objects], F [objects] of label maps [H, W]."""
    pairs = [(prediction == label, truth == label) for label in range(1, objects + 1)]
    f = [boundary_measure(*pair, bound, dilate) for pair in pairs]
    return np.array([region_similarity(*pair) for pair in pairs]), np.array(f)


def blobs(rng: np.random.Generator, shape, labels: int, smooth: float) -> np.ndarray:
    """A random label map uint8 [H, W] with `labels` labels and background; the larger `smooth`, the rounder."""
    noise = rng.standard_normal((labels + 1, *shape)).astype(np.float32)
    if smooth:
        noise = np.stack([cv2.GaussianBlur(n, (0, 0), smooth) for n in noise])
    return noise.argmax(0).astype(np.uint8)


def small_golden() -> dict:
    """A sequence of 9 frames of 30x40 with 3 objects and the void label, rows as strings ('v' is void)."""
    rng, frames = np.random.default_rng(0), []
    moved = blobs(rng, (60, 80), 3, 4.0)
    for i in range(9):
        truth, prediction = moved[i : i + 30, 2 * i : 2 * i + 40].copy(), moved[i : i + 30, i : i + 40].copy()
        prediction[rng.random(prediction.shape) < 0.01 * i] = 0
        if i == 4:
            truth[truth == 2] = 0  # an object that disappears
        if i == 5:
            truth[truth == 3], prediction[prediction == 3] = 0, 0  # and one that the prediction leaves out too
        if i == 6:
            truth[:3] = 255
        frames.append((prediction, truth))
    scores = [frame_scores(p, t, 3, bound=2, dilate=dilate_by_offsets) for p, t in frames[1:-1]]
    j, f = (np.array(x).T.tolist() for x in zip(*scores, strict=True))
    letters = np.array([*"0123", *"?" * 251, "v"])
    return {
        "source": "tests/helpers/reference_jf.py, which equals the official evaluator's recorded values",
        "objects": 3,
        "bound": 2,
        "frames": [
            {"prediction": ["".join(row) for row in letters[p]], "truth": ["".join(row) for row in letters[t]]}
            for p, t in frames
        ],
        "J_per_frame": j,
        "F_per_frame": f,
    }


if __name__ == "__main__":
    print(json.dumps(small_golden(), indent=1))
