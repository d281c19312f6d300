"""Objects' outlines as COCO writes them, polygons and run lengths: whether they are whole, and where they lie."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from ....pretrain.common.errors import UserError, shorten

LONGEST = 10**6  # pixels of a picture's side; no sum of run lengths overflows with that
_NOWHERE = (np.nan,) * 4


def look_at_polygons(shapes: Sequence[list[list]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of N objects, each a list of polygons [x, y, x, y ...]:

    left, top, right and bottom of its polygons [N, 4] (nan: none that is usable); whether a polygon has fewer than
    three corners or half a corner [N]; how many are usable [N]. ValueError(index, what is wrong): no numbers, or no
    finite ones.
    """
    lengths = np.array([len(polygon) for shape in shapes for polygon in shape], np.int64)
    owner = np.repeat(np.arange(len(shapes)), [len(shape) for shape in shapes])
    flat = list(chain.from_iterable(chain.from_iterable(shapes)))
    values = _finite(flat)
    if values is None:
        raise _not_finite(shapes)
    usable = (lengths >= 6) & (lengths % 2 == 0)
    found = np.empty((len(shapes), 4))
    found[:, :2], found[:, 2:] = np.inf, -np.inf
    if usable.any():
        corners = values[np.repeat(usable, lengths)].reshape(-1, 2)
        starts = np.concatenate([[0], np.cumsum(lengths[usable] // 2)[:-1]])
        np.minimum.at(found[:, :2], owner[usable], np.minimum.reduceat(corners, starts))
        np.maximum.at(found[:, 2:], owner[usable], np.maximum.reduceat(corners, starts))
    found[~np.isfinite(found)] = np.nan
    count = np.bincount(owner[usable], minlength=len(shapes))
    return found, np.bincount(owner[~usable], minlength=len(shapes)) > 0, count


def _finite(values: list) -> np.ndarray | None:
    """As float64 [N]; None unless all are finite numbers."""
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        return None
    return array if np.isfinite(array).all() else None


def _not_finite(shapes: Sequence[list[list]]) -> ValueError:
    for index, shape in enumerate(shapes):
        for polygon in shape:
            if _finite(polygon) is None:
                value = next(v for v in polygon if _finite([v]) is None)
                return ValueError(index, f"{shorten(repr(value), 40)} in a polygon; finite numbers are needed")
    raise AssertionError("all of them are finite")


def look_at_runs(shape: dict) -> tuple[tuple[int, int], Sequence[float]]:
    """Of run lengths {size, counts}: size (H, W); left, top, right and bottom of what they cover (nan: nothing).

    Nothing of that size is allocated. UserError saying what is wrong: no size, counts that are neither whole numbers
    nor COCO's compressed text, or that do not add up to the picture's pixels (the readers in C would write behind it).
    """
    size, counts = shape.get("size"), shape.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int and 0 < s <= LONGEST for s in size):
        raise UserError(f"run lengths of size {shorten(size, 60)}; it is [height, width]")
    height, width = size
    if isinstance(counts, str | list) and len(counts) > 8 * (height * width + 1):  # a number has at most 8 characters
        raise UserError(f"run lengths of {len(counts):,} parts, in a picture of {height}x{width} pixels")
    if isinstance(counts, str):
        runs = read_compressed(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        runs = np.array(counts if max(counts, default=0) <= height * width else [-1], np.int64)
    else:
        raise UserError("run lengths without counts")
    if (runs.size and (runs.min() < 0 or runs.max() > height * width)) or (total := int(runs.sum())) != height * width:
        found = (
            f"add up to {total}"
            if runs.size and runs.min() >= 0 <= height * width >= runs.max()
            else "are out of range"
        )
        raise UserError(f"run lengths that {found}, in a picture of {height}x{width} = {height * width} pixels")
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts] - 1
    if not starts.size:
        return (height, width), _NOWHERE
    rows = (starts % height).min(), (ends % height).max() + 1
    if (starts // height != ends // height).any():  # from one column to the next: past its foot and its head
        rows = 0, height
    return (height, width), (starts[0] // height, rows[0], ends[-1] // height + 1, rows[1])


def read_compressed(text: str) -> np.ndarray:
    """Run lengths int64 of COCO's compressed text (cocoapi, maskApi.c: rleFrString): six bits a character, of which
    five count and one says that the number goes on; from the fourth number on, differences to the last but one.

    UserError: other characters, a number that is cut or longer than 40 bits.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    last = codes & 32 == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise UserError("run lengths in a text that is not COCO's compressed form")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if place.max() >= 8:
        raise UserError("run lengths in a text that is not COCO's compressed form")
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= (codes[ends] & 16 > 0).astype(np.int64) << 5 * (place[ends] + 1)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
