"""Which patches are hidden from the student: block masks, drawn per view from numbers of its own."""

import math
from collections.abc import Iterator
from itertools import count

import numpy as np

from .views import Mask, uniforms

_KEY = 0x6D61736B  # apart from the keys of views
_TRIES = 10


def draw_mask(mask: Mask, h: int, w: int, *key: int) -> np.ndarray:
    """The hidden patches of one view, bool [h, w]; key = (seed, epoch, image, view), or (seed, step, view).

    Rectangles of an area between (min(h, w) // 3)^2 and what is left to hide, smaller than the grid on both sides, are
    placed one after the other; each must hide something new, but not more than is left, and gets ten tries. Source:
    bytedance/ibot da316d8, loader.py: ImageFolderMask.
    """
    numbers = stream(*key)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(numbers)

    choice = int(next(numbers) * len(mask.ratio))
    ratio, spread = mask.ratio[choice], mask.spread[choice]
    wanted = uniform(ratio - spread, ratio + spread) * h * w
    least, hidden = (min(h, w) // 3) ** 2, np.zeros((h, w), dtype=bool)
    low, high = math.log(mask.aspect[0]), math.log(mask.aspect[1])
    done = misses = 0
    while done < wanted and misses < _TRIES:
        misses += 1
        area, aspect = uniform(least, wanted - done), math.exp(uniform(low, high))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < h and width < w:
            top, left = int(uniform(0, h - height + 1)), int(uniform(0, w - width + 1))
            place = hidden[top : top + height, left : left + width]
            new = place.size - int(place.sum())
            if 0 < new <= wanted - done:
                place[:] = True
                done, misses = done + new, 0
    return hidden


def stream(*key: int) -> Iterator[float]:
    """Uniform numbers in [0, 1) without end."""
    for block in count():
        yield from uniforms(1, *key, _KEY, block)[0].tolist()
