"""Pictures with their labels: scaled, cut and mirrored together, changed in colour; draws by (seed, epoch, picture)."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as T

from ...datasets.segmentation import IGNORED, Labelled
from .dense import as_tensor, nearest_labels

RATIO = (3 / 4, 4 / 3)
Pair = tuple[Tensor, Tensor]


def random_cut(
    draws: np.random.Generator, height: int, width: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a cut by torchvision's rule (RandomResizedCrop.get_params).

    Areas may be larger than the picture; those do not fit, and after ten draws the largest central cut of a ratio in
    RATIO is taken.
    """
    for _ in range(10):
        pixels = height * width * draws.uniform(*area)
        ratio = math.exp(draws.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws.integers(height - h + 1)), int(draws.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def squeezed_to(pictures: Labelled, i: int, size: int, grid: int) -> Pair:
    """Picture i at size x size, and its labels: by Pillow's nearest to the same, then as a tensor to grid x grid."""
    picture = Image.fromarray(pictures.read(i)).resize((size, size), Image.Resampling.BILINEAR)
    labels = Image.fromarray(pictures.read_labels(i)).resize((size, size), Image.Resampling.NEAREST)
    return as_tensor(picture), nearest_labels(torch.from_numpy(np.array(labels)), (grid, grid))


def cut_and_mirrored(
    pictures: Labelled, i: int, size: int, grid: int, area: tuple[float, float], flip: float, seed: tuple[int, int]
) -> Pair:
    """The same of a random cut of picture i, mirrored with probability `flip`."""
    draws = np.random.default_rng([*seed, i])
    picture, labels = Image.fromarray(pictures.read(i)), Image.fromarray(pictures.read_labels(i))
    top, left, h, w = random_cut(draws, picture.height, picture.width, area)
    box = (left, top, left + w, top + h)
    picture = picture.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    labels = labels.crop(box).resize((size, size), Image.Resampling.NEAREST)
    if draws.random() < flip:
        picture, labels = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (picture, labels))
    return as_tensor(picture), nearest_labels(torch.from_numpy(np.array(labels)), (grid, grid))


def scaled(pictures: Labelled, i: int, shorter: int, reduce_zero: bool) -> Pair:
    """Picture i with its shorter side brought to so many pixels, float [3, H, W] in 0..1, and its labels at their own
    size. reduce_zero: label 0 is not judged, and the others are one less."""
    picture = Image.fromarray(pictures.read(i))
    size = scaled_size(picture.height, picture.width, shorter)
    return as_tensor(picture.resize(size[::-1], Image.Resampling.BILINEAR)), read_labels(pictures, i, reduce_zero)


def scaled_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """As facebookresearch/dinov3 rounds it (FixedSideResize)."""
    if height > width:
        return int(shorter * height / width + 0.5), shorter
    return shorter, int(shorter * width / height + 0.5)


def read_labels(pictures: Labelled, i: int, reduce_zero: bool) -> Tensor:
    """uint8 [H, W], what is not judged being 255"""
    labels = pictures.read_labels(i)
    return torch.from_numpy(np.where(labels == 0, IGNORED, labels - 1) if reduce_zero else np.array(labels)).byte()


def upper_left(pictures: Labelled, i: int, side: int, reduce_zero: bool) -> Pair:
    """The upper left cut of side x side of a picture whose shorter side is as long."""
    image, labels = scaled(pictures, i, side, reduce_zero)
    return image[:, :side, :side], nearest_labels(labels, image.shape[1:])[:side, :side]


def distorted(
    pictures: Labelled,
    i: int,
    side: int,
    sizes: tuple[float, float],
    most: float,
    reduce_zero: bool,
    seed: tuple[int, int],
) -> Pair:
    """A training picture by DINOv3's recipe (eval/segmentation/transforms.py).

    Its shorter side is side * u, u uniform in `sizes`; a cut of side x side, drawn up to ten times more until no class
    has `most` of what is judged in it; mirrored half the time; brightness, contrast, saturation and hue changed, each
    half the time. What lacks of the square has no value: NaN in the picture, label 255.
    """
    draws = np.random.default_rng([*seed, i])
    picture = Image.fromarray(pictures.read(i))
    size = scaled_size(picture.height, picture.width, int(side * draws.uniform(*sizes)))
    labels = nearest_labels(read_labels(pictures, i, reduce_zero), size)
    pixels = np.array(picture.resize(size[::-1], Image.Resampling.BILINEAR))
    rows, columns = _cut(draws, labels.numpy(), side, most)
    pixels, labels = pixels[rows, columns], labels[rows, columns]
    if draws.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels.flip(1)
    image = torch.from_numpy(_recoloured(draws, pixels)).permute(2, 0, 1).float().div_(255)
    lacks = (0, side - image.shape[2], 0, side - image.shape[1])
    pad = torch.nn.functional.pad
    return pad(image, lacks, value=torch.nan), pad(labels, lacks, value=IGNORED)


def _cut(draws: np.random.Generator, labels: np.ndarray, side: int, most: float) -> tuple[slice, slice]:
    for _ in range(11):
        starts = [int(draws.integers(max(length - side, 0) + 1)) for length in labels.shape]
        rows, columns = (slice(start, start + side) for start in starts)
        counts = np.bincount(labels[rows, columns].reshape(-1), minlength=256)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most:
            break
    return rows, columns


def _recoloured(draws: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> the same in mmseg's order, with torchvision's saturation and hue; hue goes round the whole
    circle."""

    def scaled_by(pixels: np.ndarray, factor: float, more: float) -> np.ndarray:
        return np.clip(pixels.astype(np.float32) * factor + more, 0, 255).astype(np.uint8)

    def half() -> bool:
        return draws.random() < 0.5

    def contrast(pixels: np.ndarray) -> np.ndarray:
        return scaled_by(pixels, draws.uniform(0.5, 1.5), 0) if half() else pixels

    if half():
        pixels = scaled_by(pixels, 1, draws.uniform(-32, 32))
    first = half()
    pixels = contrast(pixels) if first else pixels
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if half():
        image = T.adjust_saturation(image, draws.uniform(0.5, 1.5))
    if half():
        image = T.adjust_hue(image, draws.uniform(-0.5, 0.5))
    pixels = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels if first else contrast(pixels))
