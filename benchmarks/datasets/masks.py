"""Label masks as the DAVIS tools keep them: one 8-bit index per pixel in a PNG with the PASCAL-VOC/DAVIS palette."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError

VOID = 255  # "do not judge" in indexed annotations, and "the object" in binary ones: `datasets` decides per sequence
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@cache
def _palette() -> np.ndarray:
    index, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(7, -1, -1):
        for channel in range(3):
            colours[:, channel] |= (index >> channel & 1) << bit
        index = index >> 3
    colours = colours.astype(np.uint8)
    colours.flags.writeable = False
    return colours


def davis_palette() -> np.ndarray:
    """Colours of the labels, uint8 [256, 3] RGB (read-only).

    The rule of the PASCAL VOC devkit's colour map: bits 0, 3, 6 of the index are the highest bits of red, from the top
    down, bits 1, 4, 7 those of green, bits 2, 5 those of blue.
    """
    return _palette()


def _damage(data: bytes) -> str | None:
    """What is wrong with a PNG's chunks (None: nothing). Pillow lets a wrong IDAT checksum and a lost end pass."""
    if not data.startswith(_SIGNATURE):
        return "it is empty" if not data else "it is no PNG file"
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the checksum of its {kind.decode('latin-1')} chunk is wrong"
        if kind == b"IEND":
            return None
        at = end
    return "it is truncated"


def _from_colours(rgb: np.ndarray, name: Path | str) -> np.ndarray:
    """Labels uint8 [H, W] of a painted mask uint8 [H, W, 3]; white, which the palette lacks, is 255."""
    packed = rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
    colours, inverse = np.unique(packed, return_inverse=True)
    known = {int(r) << 16 | int(g) << 8 | int(b): i for i, (r, g, b) in enumerate(davis_palette())} | {0xFFFFFF: VOID}
    labels = []
    for colour in colours.tolist():
        if colour not in known:
            painted = (colour >> 16, colour >> 8 & 255, colour & 255)
            raise UserError(f"{name}: colour {painted} is not in the DAVIS palette; save masks as indexed PNGs")
        labels.append(known[colour])
    return np.array(labels, np.uint8)[inverse].reshape(packed.shape)


def decode_mask(data: bytes, name: Path | str) -> np.ndarray:
    """Labels uint8 [H, W] of a PNG file's bytes; `name` is for the message. See `read_mask`."""
    if damage := _damage(data):
        raise UserError(f"{name}: cannot be read as a mask: {damage}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, pixels = image.mode, np.array(image)
    except _UNREADABLE as error:
        raise UserError(f"{name}: cannot be read as a mask: {error}") from None
    if mode in ("P", "L"):
        return pixels
    if mode == "1":
        return pixels.astype(np.uint8) * 255
    if mode in ("RGB", "RGBA"):
        return _from_colours(pixels[..., :3], name)
    if mode == "LA":
        return np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim != 2:
        raise UserError(f"{name}: a mask needs one channel, this is a PNG of mode {mode}")
    if pixels.max() > 255 or pixels.min() < 0:
        raise UserError(f"{name}: value {pixels.max()} in a mask of mode {mode}; labels are 0 to 255")
    return pixels.astype(np.uint8)


def read_mask(path: Path | str) -> np.ndarray:
    """Labels of a PNG, uint8 [H, W].

    Indexed files give their indices whatever their palette is, 8- and 16-bit grey files their values, 1-bit grey files
    0 and 255, painted (RGB) files the index of each colour in the DAVIS palette, white being 255.
    UserError naming the file: unreadable, truncated, a wrong checksum, a colour outside the palette, a value above 255.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return decode_mask(data, path)


def write_mask(path: Path | str, labels: np.ndarray) -> None:
    """Write labels uint8 [H, W] as an indexed PNG with the DAVIS palette.

    A killed process leaves the old file or the whole new one (temporary name, rename). There is no fsync: masks can be
    made again, a run writes thousands, and after a power cut `read_mask` refuses a damaged one.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels must be uint8 [H, W], not {labels.dtype} {list(labels.shape)}")
    path = Path(path)
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(davis_palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: image.save(file, format="PNG", compress_level=3), sync=False)


def binary_to_object(labels: np.ndarray) -> np.ndarray:
    """A binary annotation (0/255, any shape) as one object: 255 -> 1, the rest 0, uint8."""
    return (labels == VOID).astype(np.uint8)
