"""Confusion of classes and what is computed from it. Pure functions on counts."""

import numpy as np


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """Pixels of each pair (true class, predicted class), int64 [classes, classes]. truth, predicted: labels of any
    shape; pixels whose truth is `ignored`, or no class, are left out."""
    truth, predicted = (np.asarray(x).reshape(-1).astype(np.int64) for x in (truth, predicted))
    judged = (truth != ignored) & (truth < classes) & (predicted < classes)
    pairs = truth[judged] * classes + predicted[judged]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def overlaps(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of every true class with every predicted one, float64 [classes, classes]; 0 where neither
    occurs."""
    counts = np.asarray(counts, np.float64)
    union = counts.sum(1)[:, None] + counts.sum(0)[None] - counts
    return counts / np.maximum(union, 1e-8)


def ious(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, float64 [classes]; 0 for one that occurs nowhere."""
    return np.diag(overlaps(counts)).copy()


def occurring(counts: np.ndarray) -> np.ndarray:
    """Classes of the truth, bool [classes]"""
    return np.asarray(counts).sum(1) > 0


def matched(counts: np.ndarray) -> np.ndarray:
    """Which true class each predicted class is taken for where all get one of their own and the sum of the overlaps is
    largest (Hungarian matching), int64 [classes].

    Source: vpariza/open-hummingbird-eval 5e79da2, hbird/utils/eval_metrics.py.
    """
    from scipy.optimize import linear_sum_assignment

    true, predicted = linear_sum_assignment(1.0 - overlaps(counts))
    mapping = np.zeros(len(counts), np.int64)
    mapping[predicted] = true
    return mapping


def renamed(counts: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """The confusion where predicted class p is called mapping[p]."""
    found = np.zeros_like(counts)
    np.add.at(found.T, mapping, np.asarray(counts).T)
    return found
