"""Pictures of masks over frames: a contact sheet and an animation per sequence."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..datasets.files import read_frame
from ..datasets.masks import VOID, davis_palette, read_mask
from .sheet import INK, PAPER, save, sheet, write_text


def _labels(path: Path) -> np.ndarray:
    """Labels to paint, uint8 [H, W]: a mask of 0 and 255 only is one object, any other 255 is left unpainted."""
    labels = read_mask(path)
    is_void = labels == VOID
    if is_void.any():
        labels[is_void] = int(labels[~is_void].max(initial=0) == 0)
    return labels


def paint(picture: np.ndarray, labels: np.ndarray, colours: np.ndarray, strength: float, rim: float = 0):
    """Labels uint8 [H, W] over a picture uint8 RGB [H, W, 3]: in their colours [256, 3], pure at edges. 0 is left as
    it is, but for a dark line of strength `rim` around everything. -> uint8 [H, W, 3]"""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    least, most, painted = cv2.erode(labels, cross), cv2.dilate(labels, cross), labels > 0
    weight = np.where(painted, np.where(least != most, 1, strength), np.where(most > 0, rim, 0)).astype(np.float32)
    mixed = picture + (np.asarray(colours, np.float32)[labels] - picture) * weight[..., None]
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def overlay(frame: np.ndarray, labels: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Labels uint8 [H, W] over a frame uint8 RGB [H, W, 3]: palette colours, each object with a bright and a dark rim.

    The palette's dark colours (half of full scale) are brightened to full scale: over a picture they all look black.
    """
    palette = davis_palette().astype(np.float32)
    palette *= 255 / np.maximum(palette.max(1, keepdims=True), 1)
    return paint(frame, labels, palette, strength, rim=0.6)


def _tile(frame: Path, mask: Path, width: int) -> np.ndarray:
    """One overlay at most `width` pixels wide, uint8 RGB; sides are even."""
    picture, labels = read_frame(frame), _labels(mask)
    h, w = labels.shape
    width = min(width, w) // 2 * 2
    size = (width, max(2, round(h * width / w / 2) * 2))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return overlay(picture, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST))


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, max(2, most))).round().astype(int)).tolist()


def _paired(frames: Sequence[Path], masks: Sequence[Path]) -> None:
    if not frames or len(frames) != len(masks):
        raise ValueError(f"{len(frames)} frames and {len(masks)} masks: as many as each other are needed, at least one")


def contact_sheet(frames: Sequence[Path], masks: Sequence[Path], out: Path | str, title: str) -> Path:
    """Write a PNG of up to eight frames, evenly from the first to the last, with their masks; returns its path.

    frames, masks: files in order, a mask a frame. title: the sequence's name. Tiles are at most 320 pixels wide; one
    frame is in memory at a time. UserError (from the readers) naming a file that cannot be read.
    """
    _paired(frames, masks)
    chosen = _spread(len(frames), 8)
    panels = ((Path(frames[i]).stem, Image.fromarray(_tile(Path(frames[i]), Path(masks[i]), 320))) for i in chosen)
    whole = sheet(panels, len(chosen), min(4, len(chosen)), title, f"{len(frames)} frames")
    return save(whole, out, format="PNG")


def animation(
    frames: Sequence[Path], masks: Sequence[Path], out: Path | str, width: int = 480, rate: float = 12, most: int = 120
) -> Path:
    """Write an endless animated WebP of the masks over the frames, at `rate` frames a second; returns its path.

    At most `width` pixels wide and `most` frames long (a longer video is thinned out evenly, at its own speed): the
    encoder holds all frames, 0.4 MB each at 480x270. UserError (from the readers) naming a file that cannot be read.
    """
    _paired(frames, masks)
    chosen = _spread(len(frames), most)
    film = []
    for i in chosen:
        tile = Image.fromarray(_tile(Path(frames[i]), Path(masks[i]), width))
        how = {"fill": PAPER, "stroke_width": 2, "stroke_fill": INK}
        write_text(ImageDraw.Draw(tile), (8, 6), Path(frames[i]).stem, 13, **how)
        film.append(tile)
    length = round(1000 / rate * len(frames) / len(chosen))
    how = {"duration": length, "loop": 0, "quality": 75, "method": 2}
    return save(film[0], out, format="WEBP", save_all=True, append_images=film[1:], **how)
