"""Whether boxes are what COCO's are, left, top, width and height in pixels: by their pictures and their outlines."""

from collections.abc import Callable

import numpy as np

from ....pretrain.common.errors import UserError

SLACK = 0.02  # of a side, beside a pixel or two: rounding, and outlines drawn by hand
MANY = 0.1  # of the boxes: more are no accident
FAR = 10  # times the longer side
ENOUGH = 20  # boxes, for what only their distribution shows


def _corners(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], 1)


def _centre(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, 2:]], 1)


def _pixels(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    return box * np.tile(size[:, ::-1], 2)


# How else four numbers are written: boxes [N, 4], sizes [N, 2] (H, W) -> left, top, width, height in pixels [N, 4]
READINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "left, top, right, bottom": _corners,
    "centre, width and height": _centre,
    "top, left, height, width": lambda box, size: box[:, [1, 0, 3, 2]],
    "top, left, bottom, right": lambda box, size: _corners(box[:, [1, 0, 3, 2]], size),
    "shares of the picture (0 to 1)": _pixels,
    "shares of the picture, left, top, right, bottom": lambda box, size: _corners(_pixels(box, size), size),
    "shares of the picture, centre, width and height": lambda box, size: _centre(_pixels(box, size), size),
}


def check_boxes(boxes: np.ndarray, outlines: np.ndarray, sizes: np.ndarray, ids: np.ndarray) -> list[str]:
    """Notes on boxes that look wrong, with their numbers. UserError where so many do that the set is another one.

    boxes: [N, 4] as the file has them. outlines: [N, 4] left, top, right, bottom of the annotations' polygons or run
    lengths, nan where there are none. sizes: [N, 2] (H, W) of their pictures. ids: [N] of the annotations.
    """
    use = (boxes[:, 2:] > 0).all(1)
    boxes, outlines, sizes, ids = boxes[use], outlines[use], sizes[use].astype(float), ids[use]
    if not len(boxes):
        return []
    _refuse_other_readings(boxes, outlines, sizes, ids)
    _refuse_shares(boxes, outlines, ids)
    notes, count = [], len(boxes)
    beyond = _beyond(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), sizes)
    if (out := beyond > 0).any():
        text = f"{_of(out, ids, 'boxes')} leave their pictures, by up to {beyond.max():.0f} pixels"
        as_corners = (boxes[:, 2:] >= boxes[:, :2]).all(1) & (_beyond(boxes, sizes) == 0)
        if as_corners.all() and out.mean() >= 0.25:
            raise UserError(f"{text}, but none as left, top, right, bottom; COCO's are left, top, width, height")
        if out.mean() > 0.5:
            raise UserError(f"{text}; boxes are left, top, width, height in pixels of the picture as it is stored")
        notes.append(text)
    elif count >= ENOUGH and (share := ((boxes[:, :2] + boxes[:, 2:]) / sizes[:, ::-1]).max(0)).max() <= 0.5:
        where = f"{100 * share[0]:.0f} % of the width and {100 * share[1]:.0f} % of the height"
        notes.append(f"none of {count} boxes goes beyond {where}: are they in pixels of these pictures?")
    known = np.isfinite(outlines).all(1)
    outside = np.where(known, _beyond(outlines, sizes), 0)
    if (far := outside > FAR * sizes.max(1)).any():  # the readers in C allocate by the distance between two corners
        raise UserError(f"outlines of {_of(far, ids, 'objects')} reach far out of their pictures, by {outside.max():g}")
    if (far := outside > 0).any():
        notes.append(f"outlines of {_of(far, ids, 'objects')} leave their pictures")
    if (odd := known & (_overlap(boxes, outlines) < 0.5)).any():
        notes.append(f"{_of(odd, ids, 'boxes')} are not where their outlines are")
    return notes


def _of(which: np.ndarray, ids: np.ndarray, things: str) -> str:
    """'3 of 80 boxes (annotation 7 first)'"""
    return f"{which.sum()} of {len(which)} {things} (annotation {ids[which.argmax()]} first)"


def _refuse_other_readings(boxes: np.ndarray, outlines: np.ndarray, sizes: np.ndarray, ids: np.ndarray) -> None:
    """UserError where many boxes do not fit their outlines as COCO's, but as another reading."""
    known = np.isfinite(outlines).all(1)
    odd = known & ~_fit(boxes, outlines)
    if not odd.any():
        return
    fits = {name: odd & _fit(read(boxes, sizes), outlines) for name, read in READINGS.items()}
    name = max(fits, key=lambda name: fits[name].sum())
    if fits[name].sum() >= MANY * known.sum():
        text = f"{_of(fits[name], ids, 'boxes')} fit their outlines as {name}"
        raise UserError(f"{text}; COCO's are left, top, width, height in pixels")


def _refuse_shares(boxes: np.ndarray, outlines: np.ndarray, ids: np.ndarray) -> None:
    """UserError where many boxes or outlines lie within 0 and 1."""
    for values, things in ((boxes, "boxes"), (outlines, "outlines")):
        shares = (values >= 0).all(1) & (values <= 1 + 1e-6).all(1) & (values % 1 > 0).any(1)
        if shares.mean() >= MANY:
            raise UserError(f"{_of(shares, ids, things)} lie within 0 and 1, shares of the picture; COCO's are pixels")


def _fit(boxes: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """[N] whether every side of the boxes (left, top, width, height) is where the outline's is."""
    sides = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    longer = (outlines[:, 2:] - outlines[:, :2]).max(1)
    slack = np.minimum(2 + SLACK * longer, longer / 4)  # of a small object the two pixels could be everything
    return (np.abs(sides - outlines) <= slack[:, None]).all(1)


def _beyond(sides: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[N] how far left, top, right, bottom lie outside of the picture, in pixels; 0 within rounding."""
    limits = sizes[:, ::-1]
    far = np.maximum(-sides[:, :2], sides[:, 2:] - limits)
    return np.where(far > 1 + SLACK * limits, far, 0).max(1)


def _overlap(boxes: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """[N] intersection over union of the boxes and the outlines' boxes; nan where there is no outline."""
    left = np.maximum(boxes[:, :2], outlines[:, :2])
    right = np.minimum(boxes[:, :2] + boxes[:, 2:], outlines[:, 2:])
    both = np.clip(right - left, 0, None).prod(1)
    return both / (boxes[:, 2:].prod(1) + (outlines[:, 2:] - outlines[:, :2]).prod(1) - both)
