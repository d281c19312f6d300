"""Pictures of detections and of segmentations beside the ground truth, from arrays; mm/evaluation/ has those of mm."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.utils import draw_bounding_boxes

from .masks import paint
from .sheet import FOOT, GAP, INK, PAPER, save, sheet, write_text

IGNORED = 255
LEAST = 0.3  # score of a detection that is painted
NAMES = 12  # classes whose names stand below a segmentation


@dataclass(frozen=True)
class Objects:
    """Objects of one picture. boxes: float [n, 4], left, top, right, bottom in pixels; labels: int [n], indices of the
    class names; masks: bool [n, H, W]; scores: float [n]; crowd: bool [n], regions in which nothing is judged."""

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def pick(self, which: np.ndarray) -> "Objects":
        """Those at the indices (or where true), in their order."""
        parts = (self.boxes, self.labels, self.masks, self.scores, self.crowd)
        return Objects(*(None if part is None else np.asarray(part)[which] for part in parts))


@cache
def palette() -> np.ndarray:
    """Colours uint8 [256, 3] RGB; 0 is black and stands for nothing. DAVIS's palette, all bright, would repeat itself
    from the eighth on: here the hues turn by the golden angle, and their strength and brightness change in steps."""
    k = np.arange(255)
    hue = np.mod(k * 0.6180339887 + 0.02, 1) * 360
    strength, light = np.choose(k % 3, (0.9, 0.5, 0.95)), np.choose(k // 2 % 3, (1.0, 0.9, 0.62))
    hsv = np.stack([hue, strength, light], 1).astype(np.float32)[None]
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255
    return np.vstack([np.zeros((1, 3)), rgb.round()]).astype(np.uint8)


def _fit(image: np.ndarray, width: int) -> tuple[tuple[int, int], np.ndarray]:
    """(W, H) of a panel and the picture at that size."""
    h, w = image.shape[:2]
    size = (width, max(1, round(h * width / w)))
    how = cv2.INTER_AREA if width < w else cv2.INTER_CUBIC
    return size, cv2.resize(image, size, interpolation=how)


def _painted(
    picture: np.ndarray,
    objects: Objects,
    classes: Sequence[str],
    factor: tuple[float, float],
    truth: Objects | None = None,
) -> Image.Image:
    """Masks, boxes and names of objects over a picture, the last one on top; outlines of `truth` over the masks.

    factor: from pixels of the objects to those of the picture.
    """
    w, h = picture.shape[1::-1]
    numbers = np.arange(len(objects.labels)) % 250 + 1
    labels = np.zeros((h, w), np.uint8)
    if objects.masks is not None:
        for number, mask in zip(numbers, objects.masks, strict=True):
            labels[cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0] = number
    painted = paint(picture, labels, palette(), 0.5)
    if truth is not None:
        _outline(painted, truth, factor)
    boxes = np.asarray(objects.boxes, float).reshape(-1, 4) * (*factor, *factor)
    # The rim lies within the box; a box of no extent, as untrained networks predict them, still is one pixel.
    first, last = (np.clip(corner, 0, (w - 1, h - 1)) for corner in (boxes[:, :2], boxes[:, 2:] - 1))
    names = [str(classes[int(k)]) for k in objects.labels]
    if objects.crowd is not None:
        names = [f"{name} (crowd)" if crowd else name for name, crowd in zip(names, objects.crowd, strict=True)]
    if objects.scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, objects.scores, strict=True)]
    if names:
        colours = list(map(tuple, palette()[numbers].tolist()))
        boxes, pixels = np.hstack([first, np.maximum(first, last)]), torch.from_numpy(painted).permute(2, 0, 1)
        drawn = draw_bounding_boxes(pixels, torch.from_numpy(boxes), names, colours, fill_labels=True)
        painted = drawn.permute(1, 2, 0).numpy()
    return Image.fromarray(painted)


def detections(
    image: np.ndarray,
    truth: Objects,
    found: Objects,
    classes: Sequence[str],
    out: Path | str,
    title: str,
    most: int = 20,
    width: int = 480,
) -> Path:
    """Write a PNG of the ground truth (left) and the detections over it (right); returns its path.

    image: uint8 RGB [H, W, 3]; truth, found: in its pixels. Only detections with a score of at least LEAST are
    painted, the `most` best of them. On the right, the ground truth is the white outline: that of the masks, or of the
    boxes where there are none. Each panel is `width` pixels wide.
    """
    size, picture = _fit(image, width)
    factor = size[0] / image.shape[1], size[1] / image.shape[0]
    scores = np.asarray(found.scores)
    order = np.argsort(scores, kind="stable")
    found = found.pick(order[scores[order] >= LEAST][-most:])
    left = _painted(picture, truth, classes, factor)
    right = _painted(picture, found, classes, factor, truth)
    shown = f"{len(found.labels)} of {_count(len(scores), 'detection')}, score from {LEAST:g}"
    panels = [(f"ground truth: {_count(len(truth.labels), 'object')}", left), (f"{shown}; white: ground truth", right)]
    return save(sheet(panels, 2, 2, title, ""), out, format="PNG")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _outline(picture: np.ndarray, objects: Objects, factor: tuple[float, float]) -> None:
    """Draw white outlines of objects, with a dark rim so that they show on bright ground."""
    size = picture.shape[1::-1]
    if objects.masks is not None:
        masks = [cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for m in objects.masks]
        lines = [line for m in masks for line in cv2.findContours(m, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]]
    else:
        boxes = np.asarray(objects.boxes, float).reshape(-1, 4) * (*factor, *factor)
        lines = [np.array([[a, b], [c, b], [c, d], [a, d]]).round().astype(np.int32) for a, b, c, d in boxes]
    for colour, thick in ((INK, 3), (PAPER, 1)):
        cv2.drawContours(picture, lines, -1, colour, thick)


def segmentation(
    image: np.ndarray,
    truth: np.ndarray,
    found: np.ndarray,
    classes: Sequence[str],
    out: Path | str,
    title: str,
    width: int = 360,
) -> Path:
    """Write a PNG of the picture, its ground truth and the segmentation side by side; returns its path.

    image: uint8 RGB [H, W, 3]; truth, found: [H, W], indices of the class names, 255 where nothing is judged (left
    unpainted). Below stand the colours and names of the NAMES largest classes.
    """
    size, picture = _fit(image, width)
    judged = truth != IGNORED
    right = (
        f"{100 * (truth == found)[judged].mean():.1f} % of the pixels right" if judged.any() else "nothing is judged"
    )
    panels = [("picture", Image.fromarray(picture))]
    for text, labels in (("ground truth", truth), ("prediction", found)):
        shifted = ((labels.astype(np.int64) + 1) % 256).astype(np.uint8)  # 255 becomes 0, which is not painted
        small = cv2.resize(shifted, size, interpolation=cv2.INTER_NEAREST)
        panels.append((text, Image.fromarray(paint(picture, small, palette(), 0.65))))
    seen = np.bincount(np.concatenate([truth[judged], found[found != IGNORED]]).astype(np.int64))
    largest = [k for k in np.argsort(-seen, kind="stable") if seen[k]][:NAMES]
    columns = 3 * max(1, width // 180)
    rows = -(-len(largest) // columns)
    whole = sheet(panels, 3, 3, title, right, rows * FOOT)
    draw = ImageDraw.Draw(whole)
    for n, k in enumerate(largest):
        x = GAP + n % columns * ((whole.width - GAP) // columns)
        y = whole.height - (rows - n // columns) * FOOT
        draw.rectangle((x, y, x + 12, y + 12), fill=tuple(palette()[int(k) + 1].tolist()))
        write_text(draw, (x + 18, y + 6), str(classes[int(k)]).strip()[:22], 12, fill=INK, anchor="lm")
    return save(whole, out, format="PNG")
