"""Label masks as the DAVIS tools keep them: one 8-bit index per pixel in a PNG with the PASCAL-VOC/DAVIS palette."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ...pretrain.data.decode import Unreadable, open_picture, read_picture

MANY_THIN = 8  # labels without a 3x3 of their own: more than small objects explain
VOID = 255  # "do not judge" in indexed annotations, and "the object" in binary ones: `datasets` decides per sequence
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UNREADABLE = (Unreadable, OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@cache
def davis_palette() -> np.ndarray:
    """Colours of the labels, uint8 [256, 3] RGB (read-only).

    The rule of the PASCAL VOC devkit's colour map: bits 0, 3, 6 of the index are the highest bits of red, from the top
    down, bits 1, 4, 7 those of green, bits 2, 5 those of blue.
    """
    index, colours = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(7, -1, -1):
        for channel in range(3):
            colours[:, channel] |= ((index >> channel & 1) << bit).astype(np.uint8)
        index = index >> 3
    colours.flags.writeable = False
    return colours


def _damage(data: bytes) -> str | None:
    """What is wrong with a PNG's chunks (None: nothing). Pillow lets a wrong IDAT checksum and a lost end pass."""
    if not data.startswith(_SIGNATURE):
        return "it is empty" if not data else "it is no PNG file"
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        chunk, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the checksum of its {chunk.decode('latin-1')} chunk is wrong"
        if chunk == b"IEND":
            return None
        at = end
    return "it is truncated"


def _from_colours(rgb: np.ndarray, name: Path | str) -> np.ndarray:
    """Labels uint8 [H, W] of a painted mask uint8 [H, W, 3]; white, which the palette lacks, is 255."""
    weights = np.array([1 << 16, 1 << 8, 1])
    colours, inverse = np.unique(rgb.astype(np.int32) @ weights, return_inverse=True)
    known = {0xFFFFFF: VOID} | {colour: i for i, colour in enumerate((davis_palette() @ weights).tolist())}
    for colour in colours.tolist():
        if colour not in known:
            painted = (colour >> 16, colour >> 8 & 255, colour & 255)
            raise UserError(f"{name}: colour {painted} is not in the DAVIS palette; save masks as indexed PNGs")
    return np.array([known[c] for c in colours.tolist()], np.uint8)[inverse].reshape(rgb.shape[:2])


def read_bytes(path: Path | str) -> bytes:
    """The whole file of a mask. UserError naming it, also for what is no regular file, or larger than any picture."""
    try:
        return read_picture(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def decode_labels(data: bytes, name: Path | str) -> tuple[np.ndarray, str]:
    """Labels uint8 [H, W] of a PNG file's bytes, as `read_mask` gives them, and Pillow's mode of the file; `name` is
    for the message."""
    if damage := _damage(data):
        raise UserError(f"{name}: cannot be read as a mask: {damage}")
    try:
        with open_picture(io.BytesIO(data), ["PNG"]) as image:
            mode, pixels = image.mode, np.array(image)
    except _UNREADABLE as error:
        raise UserError(f"{name}: cannot be read as a mask: {error}") from None
    clear = pixels[..., -1] == 0 if mode in ("RGBA", "LA") else False
    if mode == "1":
        pixels = pixels * np.uint8(255)
    elif mode in ("RGB", "RGBA"):
        pixels = _from_colours(pixels[..., :3], name)
    elif mode == "LA":
        pixels = np.ascontiguousarray(pixels[..., 0])
    if mode in ("RGBA", "LA") and pixels[clear].any():
        label = pixels[clear].max()
        raise UserError(f"{name}: label {label} in transparent pixels: is the mask in alpha? Save labels as the values")
    if pixels.ndim != 2:
        raise UserError(f"{name}: a mask needs one channel, this is a PNG of mode {mode}")
    if pixels.max() > 255 or pixels.min() < 0:
        raise UserError(f"{name}: value {pixels.max()} in a mask of mode {mode}; labels are 0 to 255")
    return pixels.astype(np.uint8, copy=False), mode


def read_mask(path: Path | str) -> np.ndarray:
    """Labels of a PNG, uint8 [H, W].

    Indexed files give their indices whatever their palette is, 8- and 16-bit grey files their values, 1-bit grey files
    0 and 255, painted (RGB) files the index of each colour in the DAVIS palette, white being 255.
    UserError naming the file: unreadable, truncated, a wrong checksum, a colour outside the palette, a value above 255,
    labels in transparent pixels.
    """
    return decode_labels(read_bytes(path), path)[0]


def edge_labels(labels: np.ndarray) -> list[int]:
    """The labels (void aside) of uint8 [H, W] that look like greys of a smoothed edge instead of objects.

    Nine tenths of such a label's pixels have, within the 3x3 around them, both a lower and a higher label. Where
    MANY_THIN labels or more have no 3x3 of their own (noise, as JPEG leaves it), these count too.
    """
    square = np.ones((3, 3), np.uint8)
    lowest, highest = cv2.erode(labels, square), cv2.dilate(labels, square)
    between, whole = (lowest < labels) & (labels < highest), lowest == highest
    pixels, inner, own = (np.bincount(some.ravel(), minlength=256) for some in (labels, labels[between], labels[whole]))
    there = [label for label in range(1, VOID) if pixels[label]]
    thin = [label for label in there if not own[label]]
    noise = thin if len(thin) >= MANY_THIN else ()
    return [label for label in there if inner[label] >= 0.9 * pixels[label] or label in noise]


def why_grey(looked: Iterable[Mapping], highest: int | None = None) -> str:
    """Why label images look like pictures of grey values instead of labels, in words; '' where they do not.

    looked: what `files.look_at_mask` says of each (of a sequence, or of a whole set). highest: the labels should be 1
    to this, and most of them occur; None: any may be absent.
    """
    looked = list(looked)
    found = {label for one in looked for label in one["labels"]} - {0, VOID}
    inner = {label for one in looked for label in set(one["labels"]) - set(one.get("edges", ()))}
    edges, labels = found - inner, sorted(found if highest is None else found & {*range(1, highest + 1)})
    if len(found) > 1 and 2 * len(edges) >= len(found):
        return f"{len(edges)} of {len(found)} labels occur only between others, like the greys of smoothed edges"
    if highest is None or 2 * len(labels) >= highest:
        return ""
    shown = ", ".join(map(str, labels[:4])) + (" ..." if len(labels) > 4 else "")
    greys = (davis_palette()[1 : len(labels) + 1] @ np.array([0.299, 0.587, 0.114])).round()
    palette = ", which are the DAVIS palette's first colours in grey" if labels == sorted(greys.tolist()) else ""
    return f"of the labels 1 to {highest} there {'is' if len(labels) == 1 else 'are'} only {shown}{palette}"


def write_mask(path: Path | str, labels: np.ndarray) -> None:
    """Write labels uint8 [H, W] as an indexed PNG with the DAVIS palette.

    A killed process leaves the old file or the whole new one (temporary name, rename). There is no fsync: masks can be
    computed again, a run writes thousands, and after a power cut `read_mask` refuses a damaged one.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels must be uint8 [H, W], not {labels.dtype} {list(labels.shape)}")
    path = Path(path)
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(davis_palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: image.save(file, format="PNG", compress_level=3), sync=False)
