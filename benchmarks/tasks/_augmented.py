"""Features of augmented training images, which are drawn anew in every epoch: random crops, mirrored half of the time.

As facebookresearch/dino 7c446df, eval_linear.py, has them: torchvision's RandomResizedCrop and RandomHorizontalFlip.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...pretrain.data import pixels
from ...pretrain.data.views import Views, ViewSpec, draw_all
from . import TaskConfig
from ._features import BATCH, Extract, Replicas, ahead


@contextmanager
def augmented(encoder, extract: Extract, cfg: TaskConfig) -> Iterator:
    """A stream for `_probe.train`, of the training images of a ClassSet (cfg.data.content)."""
    side, split = cfg.protocol.crop, cfg.data.content.train
    views = Views([ViewSpec(1, side, (0.08, 1.0), interpolation="bilinear", jitter_p=0, gray_p=0, blur_p=0)])
    labels, cores = torch.from_numpy(split.labels), os.cpu_count() or 1

    def load(epoch: int, numbers: Tensor) -> Tensor:
        images = np.empty((len(numbers), 3, side, side), np.uint8)
        for i, out in zip(numbers.tolist(), images, strict=True):
            photo = split.read(i)
            [view] = draw_all(views, *photo.shape[:2], cfg.seed, epoch, i)
            pixels.apply(view, photo, out=out)
        return torch.from_numpy(images)

    with (
        ThreadPoolExecutor(cores) as threads,
        Replicas(encoder, extract, cfg.device, cfg.protocol.precision) as replicas,
    ):

        def stream(steps: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            parts = [part for step in steps for part in step.split(BATCH)]
            images = ahead(partial(threads.submit, load, epoch), parts, 2 * cores)
            features = ahead(replicas.submit, images, 2 * len(replicas.places))
            for step in steps:
                joint = torch.cat([next(features) for _ in step.split(BATCH)])
                yield joint.to(cfg.device), labels[step].to(cfg.device)

        yield stream
