"""Milliseconds per frame of J and F against the plain formula, at 480x854, in one run. `python tests/perf/perf_jf.py`

The plain formula (helpers/reference_jf.py) works on full frames and dilates with OpenCV as the official evaluator does.
Both are timed in turns, frame by frame, and each frame's best round counts, so that other load spoils neither.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
import reference_jf as plain
from selfpatch_bench.benchmarks.metrics import jf

SHAPE = (480, 854)
ROUNDS, FRAMES = 9, 12


def ellipses(axes: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames (prediction, truth) with one moving ellipse of these half axes per label and a ragged prediction."""
    rng, frames = np.random.default_rng(0), []
    for i in range(FRAMES):
        truth = np.zeros(SHAPE, np.uint8)
        for label, (a, b) in enumerate(axes, 1):
            centre = (SHAPE[1] * label // (len(axes) + 1) + 3 * i, SHAPE[0] // 2 - 2 * i)
            cv2.ellipse(truth, centre, (a, b), 20 * label, 0, 360, label, -1)
        noise = cv2.GaussianBlur(rng.standard_normal((2, *SHAPE)).transpose(1, 2, 0), (0, 0), 6) * 60
        x, y = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0]))
        moved = (x + noise[..., 0]).astype(np.float32), (y + noise[..., 1]).astype(np.float32)
        frames.append((cv2.remap(truth, *moved, cv2.INTER_NEAREST), truth))
    return frames


def milliseconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - start)


def main():
    cases = {
        "one small object": [(40, 25)],
        "one object": [(170, 100)],
        "one large object": [(400, 210)],
        "three objects": [(100, 70), (60, 120), (90, 50)],
    }
    print(f"{'480x854, ms per frame':24}{'J':>7}{'F':>7}{'plain':>9}{'fast':>9}{'ratio':>8}")
    for name, axes in cases.items():
        frames, n = ellipses(axes), len(axes)
        for pair in frames:
            fast, slow = jf.frame_scores(*pair, n), plain.frame_scores(*pair, n)
            assert np.array_equal(fast, slow), f"{name}: the scores differ"
        times = [
            [(milliseconds(plain.frame_scores, *p, n), milliseconds(jf.frame_scores, *p, n)) for _ in range(ROUNDS)]
            for p in frames
        ]
        (j, f), (a, b) = (x.mean() for x in fast), np.min(times, axis=1).mean(0)
        print(f"{name:24}{j:7.2f}{f:7.2f}{a:9.2f}{b:9.2f}{a / b:8.1f}")


if __name__ == "__main__":
    main()
