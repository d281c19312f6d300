"""A mask as COCO's annotations say it: polygons along the edges of its pixels, or run lengths. Both are exact."""

import numpy as np


def outlines(mask: np.ndarray) -> list[np.ndarray] | None:
    """Closed outlines of a mask bool [H, W] along the edges of its pixels, each float [n, 2] of (x, y); None if the
    mask has a hole, which polygons cannot say. The COCO API turns them back into exactly this mask.
    """
    inside = np.pad(mask, 1)
    here = inside[1:-1, 1:-1]
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> directions, the mask on the right-hand side
    for (dy, dx), (y0, x0), way in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (0, 1), (0, 1)),
        ((1, 0), (1, 1), (-1, 0)),
        ((0, -1), (1, 0), (0, -1)),
    ):
        outside = inside[1 + dy : inside.shape[0] - 1 + dy, 1 + dx : inside.shape[1] - 1 + dx]
        for y, x in np.argwhere(here & ~outside).tolist():
            ways.setdefault((x + x0, y + y0), []).append(way)
    found = []
    while ways:
        start = at = next(iter(ways))
        corners, way = [], None
        while at != start or way is None:
            ahead = ways[at]
            # Where two pixels touch at a corner, turn right: each of them keeps an outline of its own.
            turn = ahead.index((-way[1], way[0])) if way and len(ahead) > 1 else 0
            new = ahead.pop(turn)
            if not ahead:
                del ways[at]
            if new != way:
                corners.append(at)
            at, way = (at[0] + new[0], at[1] + new[1]), new
        points = np.array(corners, float)
        x, y = points.T
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:  # runs the other way round
            return None
        found.append(points)
    return found


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask bool [H, W]: columns from the left, beginning with the outside."""
    flat = np.concatenate(([False], mask.T.ravel(), [False]))
    change = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate(([0], change, [mask.size])))
    return {"counts": counts[: len(counts) - (counts[-1] == 0)].tolist(), "size": list(mask.shape)}
