"""A prediction and its annotation, read where they are scored. Nothing here imports torch: processes start fast."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..datasets.davis import Sequence, read_result


def annotation(sequence: Sequence, i: int) -> Sequence:
    """The sequence with only annotation i: all that a scoring process needs of it."""
    return replace(sequence, frames=[], masks=[sequence.masks[i]])


def read_pair(prediction: np.ndarray | Path, one: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [H, W] of a prediction (an array, or a mask file of any method) and of its annotation.

    Raises UserError for an unreadable file.
    """
    if not isinstance(prediction, np.ndarray):
        prediction = read_result(prediction, one.objects)
    return prediction, one.truth(0)
