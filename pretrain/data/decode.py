"""The bytes of a picture file -> its pixels: one rule for pretraining and for every evaluation.

Pixels are the stored ones, as torchvision's ImageFolder reads them: an orientation tag in a JPEG or PNG turns nothing.
Whatever has more than 8 bits is scaled to 8, or refused where its range is unknown.
"""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from ..common.errors import UserError, shorten
from ..common.reading.regular import open_regular

VARIABLE = "SELFPATCH_MAX_PIXELS"  # the environment variable that sets another limit
MAX_PIXELS = 100_000_000  # of one picture: 300 MB as RGB; ImageNet's largest has 60 million
ORIENTATION = 0x0112  # EXIF's tag
_RGB = getattr(cv2, "IMREAD_COLOR_RGB", None)  # since OpenCV 4.11
_FLAGS = (cv2.IMREAD_COLOR if _RGB is None else _RGB) | cv2.IMREAD_IGNORE_ORIENTATION


class Unreadable(Exception):
    """One image cannot be read; the message says why."""


def max_pixels() -> int:
    """The most pixels that one picture may have. UserError for a variable that is no number."""
    text = os.environ.get(VARIABLE, "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise UserError(f"{VARIABLE}={shorten(text)}: must be a whole number of at least 1")
    return int(text or MAX_PIXELS)


def check_pixels(width: int, height: int) -> None:
    """Unreadable for a picture that is too large; asked before anything is decoded."""
    if width * height > (limit := max_pixels()):
        raise Unreadable(f"{width}x{height} pixels (WxH) are more than {limit:,}; {VARIABLE} sets another limit")


def open_picture(file: BinaryIO, formats: Sequence[str] | None = None) -> Image.Image:
    """Pillow's picture of an open file, its header read, its size checked. Unreadable, and whatever Pillow raises."""
    if Image.MAX_IMAGE_PIXELS:  # Pillow refuses what has twice as many, so that its limit must not be below ours
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=formats)
        except Image.DecompressionBombError:
            raise Unreadable(f"it has far more than {max_pixels():,} pixels; {VARIABLE} sets another limit") from None
    check_pixels(*image.size)
    return image


def open_file(path: str | os.PathLike) -> BinaryIO:
    """A picture's file, opened. OSError, also for what is no regular file, or larger than any picture of `max_pixels`
    with four channels of 16 bits."""
    return open_regular(path, most=8 * max_pixels() + (1 << 20))


def read_picture(path: str | os.PathLike) -> bytes:
    """The whole file of a picture; as `open_file`."""
    with open_file(path) as file:
        return file.read()


def decode(data: bytes) -> np.ndarray:
    """The bytes of a picture file -> uint8 RGB [H, W, 3], as Pillow's `.convert("RGB")` gives it; alpha is dropped.

    16-bit grey is divided by 257, floating-point grey in 0..1 multiplied by 255. Unreadable where Pillow would raise,
    for other ranges, and for pictures above `max_pixels`.
    """
    # OpenCV decodes usual JPEGs to the same numbers faster; some of its versions fill up truncated ones in silence, so
    # anything without an end marker is Pillow's, and so are unusual channels and depths.
    header = _jpeg_header(data) if data[-2:] == b"\xff\xd9" else None
    if header and header[2] in (1, 3):
        check_pixels(*header[:2])
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
        except cv2.error:
            image = None
        if image is not None:
            return image if _RGB is not None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on palettes, metadata and large pictures
            with open_picture(io.BytesIO(data)) as image:
                return _to_rgb(image)
    except (Unreadable, UserError):
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on damaged files
        reason = "no picture format that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise Unreadable(reason if data else "the file is empty") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of an opened picture. Pillow's own conversion cuts 16-bit and floating-point values at 255."""
    mode = image.mode
    if (mode.startswith("I;16") and mode != "I;16S") or (mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.array(image).astype(np.uint32) + 128) // 257
    elif mode == "F":
        values = np.array(image)
        if not (values.min() >= 0 and values.max() <= 1):  # also where one is not a number
            raise Unreadable(f"floating-point values from {values.min():g} to {values.max():g}; only 0 to 1 is known")
        grey = np.rint(values * 255)
    elif mode == "I" or mode == "I;16S":
        raise Unreadable("32-bit or signed whole numbers, whose range is not known; save it with 8 or 16 bits")
    else:
        return np.array(image.convert("RGB"))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def orientation(image: Image.Image) -> int:
    """The orientation that an opened picture's EXIF block asks for, 1 to 8; 1 without one."""
    try:
        value = Image.Image.getexif(image).get(ORIENTATION, 1)  # a PNG's own method decodes all of the picture
    except Exception:  # whatever a damaged EXIF block makes Pillow raise
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def note_on_turned(read: Callable[[int], bytes], count: int, most: int = 1000) -> list[str]:
    """[what to say] where orientation tags ask for other pictures than the stored pixels, else [].

    read(i): the bytes of picture i of `count`; of more than `most`, so many are looked at, spread evenly.
    """
    looked = sorted({i * count // min(count, most) for i in range(min(count, most))})
    turned = sum(_is_turned(read, i) for i in looked)
    of = f"{len(looked)} pictures" if len(looked) == count else f"{len(looked)} pictures looked at"
    return [f"the orientation tags of {turned} of {of} are ignored: the stored pixels count"] if turned else []


def _is_turned(read: Callable[[int], bytes], i: int) -> bool:
    try:
        with open_picture(io.BytesIO(read(i)), ["JPEG", "PNG"]) as image:
            return orientation(image) > 1
    except Exception:  # what cannot be read is said where it is decoded
        return False


def _jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, channels) of an 8-bit JPEG from its frame header; None for anything else."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return (width, height, data[at + 9]) if data[at + 4] == 8 else None
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
