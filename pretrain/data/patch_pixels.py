"""The colours of a view changed patch by patch, each as if it were an image, all patches at once.

The semantics are Pillow's, applied to every patch alone: contrast goes away from the patch's own mean, blur repeats the
patch's own border. Bounds to Pillow are those of pixels.py.
"""

import cv2
import numpy as np

from .views import OPERATIONS, PatchColours


def recolour(image: np.ndarray, colours: PatchColours) -> np.ndarray:
    """uint8 RGB [S, S, 3] -> the same with each patch's colours changed as drawn."""
    p, n = colours.size, image.shape[0] // colours.size
    x = np.ascontiguousarray(image.reshape(n, p, n, p, 3).swapaxes(1, 2)).reshape(n * n, p, p, 3)
    for turn in range(4):
        for k, name in enumerate(OPERATIONS):
            change(x, colours.order[:, turn] == k, _JITTER[name], colours.factors[:, k])
    change(x, colours.gray, lambda part: luma(part)[..., None])
    change(x, colours.blur > 0, blur, colours.blur)
    change(x, colours.solarize < 256, solarize, colours.solarize)
    return x.reshape(n, n, p, p, 3).swapaxes(1, 2).reshape(image.shape)


def change(x: np.ndarray, chosen: np.ndarray, step, *values: np.ndarray) -> None:
    """Apply a step to some of the patches."""
    at = np.flatnonzero(chosen)
    if len(at):
        x[at] = step(x[at], *(v[at, None, None, None] for v in values))


def luma(x: np.ndarray) -> np.ndarray:
    """uint8 [n, p, p, 3] -> uint8 [n, p, p]"""
    return cv2.cvtColor(x.reshape(-1, *x.shape[2:]), cv2.COLOR_RGB2GRAY).reshape(x.shape[:-1])


def blend(x: np.ndarray, other: np.ndarray | float, factor: np.ndarray) -> np.ndarray:
    """Away from `other`, in float32 and truncated."""
    other = np.float32(other)
    blended = x.astype(np.float32)
    blended -= other
    blended *= factor.astype(np.float32)
    blended += other
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def brightness(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return blend(x, 0.0, factor)


def contrast(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    mean = np.floor(luma(x).mean((1, 2), keepdims=True, dtype=np.float64) + 0.5)
    return blend(x, mean[..., None], factor)


def saturation(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return blend(x, luma(x)[..., None], factor)


def hue(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """See pixels.hue."""
    hsv = cv2.cvtColor(x.reshape(-1, *x.shape[2:]), cv2.COLOR_RGB2HSV_FULL).reshape(x.shape)
    hsv[..., 0] += ((factor[..., 0] * 255).astype(int) - 1).astype(np.uint8)  # wraps around
    return cv2.cvtColor(hsv.reshape(-1, *x.shape[2:]), cv2.COLOR_HSV2RGB_FULL).reshape(x.shape)


def extended_box(radius: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's Gaussian blur is three extended box filters (Gwosdek et al., SSVM 2011): the number of whole pixels on
    either side of a pixel, and the weight of the one beyond them."""
    variance = np.square(radius) / 3
    inner = ((np.sqrt(12 * variance + 1) - 1) / 2).astype(int)
    return inner, (2 * inner + 1) * (inner * (inner + 1) - 3 * variance) / (6 * (variance - (inner + 1) ** 2))


def blur(x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Pillow's GaussianBlur along each axis, as one matrix a patch."""
    n, size = len(x), x.shape[1]
    inner, edge = extended_box(radius.reshape(n))
    box = np.zeros((n, size, size))
    rows = np.arange(size)
    for offset in range(-int(inner.max()) - 1, int(inner.max()) + 2):
        value = np.where(abs(offset) <= inner, 1.0, np.where(abs(offset) == inner + 1, edge, 0.0))
        box[:, rows, np.clip(rows + offset, 0, size - 1)] += (value / (2 * inner + 1 + 2 * edge))[:, None]
    matrix = np.linalg.matrix_power(box, 3).astype(np.float32)
    for _ in range(2):  # along the rows, and with the axes exchanged along the columns
        x = (matrix @ x.reshape(n, size, -1).astype(np.float32)).reshape(n, size, size, 3).swapaxes(1, 2)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def solarize(x: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return x ^ ((x >= threshold.astype(np.uint8)) * np.uint8(255))  # 255 - x


_JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
