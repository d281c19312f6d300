"""Patch features of labelled pictures that are squeezed to a square, and the labels beside them; never kept on disk."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ....pretrain.common.errors import UserError
from ...datasets.segmentation import Labelled
from .. import TaskConfig
from .._features import ahead

BATCH = 8  # pictures a pass: of 512 pixels they hold as many tokens as 40 of 224

Read = Callable[[int], tuple[Tensor, Tensor]]


def squeezed(pictures: Labelled, side: int, resample: Image.Resampling, i: int) -> tuple[Tensor, Tensor]:
    """Picture i and its labels at side x side: float [3, side, side] in 0..1, resampled by Pillow and antialiased;
    uint8 [side, side], the nearest as torch has it (source index floor(i * scale))."""
    picture = Image.fromarray(pictures.read(i)).resize((side, side), resample)
    return as_tensor(picture), nearest_labels(torch.from_numpy(np.array(pictures.read_labels(i))), (side, side))


def as_tensor(picture: Image.Image) -> Tensor:
    """float [3, H, W] in 0..1"""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W] -> uint8 of `size`"""
    return F.interpolate(labels[None, None], size=size, mode="nearest")[0, 0]


def batches(read: Read, count: int, batch: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures float [B, 3, H, W] and labels uint8 [B, H, W] in order, read ahead by threads. read: of one number."""
    cores = os.cpu_count() or 1

    def load(numbers: range) -> tuple[Tensor, Tensor]:
        images, labels = zip(*map(read, numbers), strict=True)
        return torch.stack(images), torch.stack(labels)

    with ThreadPoolExecutor(cores) as threads:
        numbers = (range(i, min(i + batch, count)) for i in range(0, count, batch))
        yield from ahead(partial(threads.submit, load), numbers, cores + 1)


@torch.inference_mode()
def patches(encoder, images: Tensor, cfg: TaskConfig, mean, std) -> Tensor:
    """Pictures in 0..1 -> the last block's patch features after the norm, float32 [B, h, w, D] on the device. Raises
    UserError where they are not finite."""
    images = images.to(cfg.device)
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (mean, std))
    with torch.autocast(torch.device(cfg.device).type, torch.bfloat16, enabled=cfg.protocol.precision == "bf16"):
        found = encoder.patch_maps((images - mean) / std)[0]
    found = found.float().permute(0, 2, 3, 1)
    if not torch.isfinite(found).all():
        raise UserError("the network gives features that are not finite")
    return found


def shares(labels: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """Labels uint8 [B, H, W] -> pixels of each class in every patch of an h x w grid, int16 [B, h, w, classes]. Raises
    UserError where the grid does not divide the picture."""
    b, height, width = labels.shape
    h, w = grid
    if height % h or width % w:
        raise UserError(f"the network has {h}x{w} patches for {height}x{width} pixels, which do not divide into them")
    inside = labels.view(b, h, height // h, w, width // w).permute(0, 1, 3, 2, 4).reshape(b * h * w, -1)
    found = torch.zeros(b * h * w, classes, dtype=torch.int16, device=labels.device)
    found.scatter_add_(1, inside.long(), torch.ones_like(inside, dtype=torch.int16))
    return found.view(b, h, w, classes)
