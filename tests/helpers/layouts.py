"""The published layouts of the shared folder, and how equal features must be."""

import json
from pathlib import Path

import numpy as np

from conftest import SHARED, shared_cases
from selfpatch_bench.benchmarks.checkpoints import FORMATS

# Right code is at 6e-7 in float32 (another order of the same sums); a norm eps of 1e-5 for 1e-6 shows at 1e-5.
PARITY = 3e-6


def relative(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def layouts(family: str = "") -> list:
    """Layout files whose plug-in exists here; of one family, or of all."""
    known = FORMATS.scan()
    files = [(p, json.loads(p.values[0].read_text())) for p in shared_cases("checkpoints/layouts/*.json")]
    return [p for p, layout in files if layout["plugin"] in known and family in ("", layout["arch"]["family"])]


def tiny(layout: dict) -> tuple[Path, dict]:
    """The small file of a layout and the card fields that it does not state itself."""
    path = next(SHARED / "checkpoints" / f for f in layout["tiny"]["files"] if not f.endswith((".npz", ".json")))
    arch = layout["tiny"]["arch"]
    return path, {k: arch[k] for k in ("heads", "mean", "std")}
