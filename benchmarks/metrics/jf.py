"""DAVIS-2017 region similarity J and boundary measure F, equal to the official evaluator bit for bit.

Source: davisvideochallenge/davis2017-evaluation, commit ac7c43f (`davis2017/metrics.py`, `utils.py`, `evaluation.py`),
semi-supervised task. Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016, section 5.

An object is scored on its bounding box only: a dilated boundary is never looked at outside the box of both.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

from ...pretrain.common.errors import UserError

BOUND = 0.008  # width of the tolerance band, as a part of the image diagonal
VOID = 255  # annotators' "do not know"; the official semi-supervised evaluation turns it into background


def frame_scores(
    prediction: np.ndarray, truth: np.ndarray, objects: int, bound: float = BOUND
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every object of one frame.

    Args:
        prediction: uint8 [H, W], labels 0 (background) to `objects`.
        truth: uint8 [H, W], labels; void (255) and labels above `objects` (not in the first mask) are background.
        objects: number of objects of the sequence: the largest label of its first annotation, void aside.
        bound: radius of the disk that boundary pixels are matched within: a part of the image diagonal if below 1
            (rounded up), else whole pixels.
    Returns:
        (J, F), float64 [objects] each; entry i belongs to label i + 1. J: intersection over union of the masks, 1 where
        both are empty; F: harmonic mean of the precision and recall of the boundary pixels.
    Raises:
        UserError: the sizes differ, or the prediction has a label above `objects`. The caller names the file.
    """
    if prediction.shape != truth.shape:
        sizes = ["x".join(map(str, labels.shape)) for labels in (prediction, truth)]
        raise UserError(f"the prediction is {sizes[0]}, the annotation {sizes[1]} (height x width): they must be equal")
    if not 1 <= objects < VOID:
        raise UserError(f"{objects} objects to score: the first mask must hold labels from 1 to {VOID - 1}")
    if (highest := int(prediction.max(initial=0))) > objects:
        raise UserError(
            f"the prediction has label {highest}, but the sequence's first mask has {objects} object(s): "
            f"labels 0 to {objects} are allowed"
        )
    radius = bound_radius(truth.shape, bound)
    prediction, truth = _crop(prediction, truth)
    scores = np.empty((2, objects))
    for i in range(objects):
        pair = (prediction == i + 1).view(np.uint8), (truth == i + 1).view(np.uint8)
        scores[:, i] = _mask_scores(*(_crop(*pair) if objects > 1 else pair), radius)
    return scores[0], scores[1]


def statistics(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, recall (part of the frames above 0.5) and decay (first minus last quarter) of per-frame scores [frames].

    As official, quarters share their end frames. Official bin edges are uint8 and wrap beyond 256 frames; these do not
    (DAVIS-2017's longest validation sequence has 104).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise UserError(f"statistics need at least one frame's score, got shape {values.shape}")
    edges = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return {
        "mean": float(np.mean(values)),
        "recall": float(np.mean(values > 0.5)),
        "decay": float(np.mean(first) - np.mean(last)),
    }


def summarize(scores: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Per-object summary of the scored frames' (J [objects], F [objects]), in order, first and last frame left out.

    Returns:
        {"1": {"J": statistics, "F": statistics, "J_per_frame": [...], "F_per_frame": [...]}, "2": ...}
    """
    if not len(scores):
        raise UserError("no frame to score: the first and the last frame do not count, so a sequence needs three")
    j, f = np.array(scores, np.float64).transpose(1, 2, 0)  # [objects, frames] each
    return {
        str(label): {"J": statistics(a), "F": statistics(b), "J_per_frame": a.tolist(), "F_per_frame": b.tolist()}
        for label, (a, b) in enumerate(zip(j, f, strict=True), 1)
    }


def global_scores(sequences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Means over all objects of all sequences, in percent at full precision.

    Args:
        sequences: {sequence: result of `summarize`}.
    Returns:
        JF_m (mean of J_m and F_m), J_m, J_recall, J_decay, F_m, F_recall, F_decay.
    """
    objects = [scores for sequence in sequences.values() for scores in sequence.values()]
    if not objects:
        raise UserError("no sequence to average over")
    result = {
        f"{metric}_{name}": 100 * float(np.mean([scores[metric][key] for scores in objects]))
        for metric in ("J", "F")
        for name, key in (("m", "mean"), ("recall", "recall"), ("decay", "decay"))
    }
    return {"JF_m": (result["J_m"] + result["F_m"]) / 2, **result}


def bound_radius(shape: tuple[int, int], bound: float = BOUND) -> int:
    """The disk's radius in pixels for images of `shape` (H, W): 8 at 480x854. `bound` as for `frame_scores`."""
    if not (0 < bound < 1 or (bound >= 1 and float(bound).is_integer())):
        near = f"; nearest: {int(bound)} or {int(bound) + 1}" if 1 <= bound < float("inf") else ""
        raise UserError(f"bound={bound}: give a part of the diagonal between 0 and 1, or whole pixels{near}")
    return int(bound if bound >= 1 else np.ceil(bound * np.linalg.norm(shape)))


def _crop(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks on the bounding box of their union plus one pixel on every side that the image has.

    That pixel holds the boundary left of and above the object, and makes the box's own border empty wherever it is not
    the image's, which is the condition under which `_boundary` may take it for the image's.
    """
    x, y, w, h = cv2.boundingRect(cv2.bitwise_or(prediction, truth))
    box = np.s_[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1]  # a single pixel if both are empty
    return prediction[box], truth[box]


def _mask_scores(prediction: np.ndarray, truth: np.ndarray, radius: int) -> tuple[float, float]:
    """J and F of two masks, uint8 [h, w] of 0 and 1 as `_crop` leaves them."""
    union = cv2.countNonZero(prediction | truth)
    j = cv2.countNonZero(prediction & truth) / union if union else 1.0
    boundaries = _boundary(prediction), _boundary(truth)
    n_prediction, n_truth = map(cv2.countNonZero, boundaries)
    if not n_prediction or not n_truth:
        # One boundary alone has no match: precision and recall are 1 and 0, F is 0. Two absent ones agree.
        return j, float(n_prediction == n_truth)
    precision = _near(*boundaries, radius) / n_prediction
    recall = _near(*boundaries[::-1], radius) / n_truth
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels uint8 [h, w]: those whose right, lower or lower right neighbour differs.

    The official special cases for the last row and column are those of an image that repeats them once.
    """
    more = cv2.copyMakeBorder(mask, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
    return (mask ^ more[:-1, 1:]) | (mask ^ more[1:, :-1]) | (mask ^ more[1:, 1:])


def _near(boundary: np.ndarray, other: np.ndarray, radius: int) -> int:
    """Number of pixels of a boundary that the other one covers, dilated by the disk dx^2 + dy^2 <= radius^2."""
    if radius <= 20:
        covered = cv2.dilate(other, _disk(radius))
    else:  # slower for small disks, but as fast for any; float32 distances are exact enough for radii below 2048
        distance = cv2.distanceTransform(1 - other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        covered = (distance <= radius).view(np.uint8)
    return cv2.countNonZero(boundary & covered)


@cache
def _disk(radius: int) -> np.ndarray:
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
