"""Linear classification on frozen features with augmented training images, as DINO evaluates.

Source: facebookresearch/dino 7c446df, eval_linear.py. Any data set of class folders, train/ and val/. For many learning
rates at once on features that are computed only once: task linear_sweep.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...pretrain.common.errors import UserError
from ...pretrain.data import pixels
from ...pretrain.data.views import Views, ViewSpec, draw_all
from ..datasets.imagenet import ClassSet, open_classes
from ..metrics.significance import pack
from . import Config, Data, Metric, Task, make_key
from ._features import BATCH, Crop, Replicas, ahead, effective, features, image_vector
from ._probe import Plan, Probe, train
from .knn import accuracies, by_class, check_images


@dataclass
class Frozen:
    """What both linear tasks share.

    blocks: how many of the last blocks' class tokens, after the final norm, are joined; avgpool: join the mean of the
    last block's patch tokens as well. Null: 4 (or all there are) and no below a width of 768, else 1 and yes. Without a
    class token the image vector is used, and the protocol is `linear-image`. batch: images a step. resize, crop: for
    validation; crop: also the side of the training views. precision: of the network.
    """

    blocks: int | None = None
    avgpool: bool | None = None
    epochs: int = 100
    batch: int = 1024
    resize: int = 256
    crop: int = 224
    precision: str = "float32"


@dataclass
class Protocol(Frozen):
    """The protocol's values; lr: for 256 images a step."""

    lr: float = 0.001


TASK = Task(
    version=1,
    protocol_id="linear-dino-v1",
    protocol=Protocol,
    # The script prints the best of all epochs, which looks at the validation set; top1 here is the last epoch's.
    metrics=(Metric("top1", noise=0.1), Metric("top5", noise=0.1)),
    dataset="imagenet",
    published=(("imagenet_linear", "linear_100ep_frozen"), ("imagenet_linear", "linear_dino_protocol")),
    needs="class tokens or image vector",
)


def check(cfg: Config) -> Data:
    """Open the data set. Raises UserError that names the folder or the value that is wrong."""
    check_probe(cfg)
    if cfg.protocol.lr <= 0:
        raise UserError(f"lr={cfg.protocol.lr}: must be above 0")
    return open_classes(cfg.root, cfg.limit).as_data()


def check_probe(cfg: Config) -> None:
    """What both linear tasks share. Raises UserError."""
    check_images(cfg)
    p = cfg.protocol
    for name in ("blocks", "epochs", "batch"):
        if (value := getattr(p, name)) is not None and value < 1:
            raise UserError(f"{name}={value}: at least 1")


@dataclass(frozen=True)
class Joined:
    """What the classifier sees: the class tokens of the last `blocks` blocks and, with avgpool, the mean patch token,
    all after the final norm; blocks 0: the image vector."""

    blocks: int
    avgpool: bool

    def __call__(self, encoder, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> [B, D * (blocks + avgpool)]"""
        if not self.blocks:
            return image_vector(encoder, images)
        depth = encoder.card.depth
        raw = encoder.tokens(images, list(range(depth - self.blocks, depth)))
        normed = [encoder.vit.norm(raw[b]) for b in range(depth - self.blocks, depth)]
        pooled = [normed[-1][:, encoder.prefix :].mean(1)] if self.avgpool else []
        return torch.cat([*(x[:, 0] for x in normed), *pooled], 1)

    @property
    def name(self) -> str:
        if not self.blocks:
            return "image vector"
        return f"class tokens of {self.blocks} blocks" + (" and mean patch token" if self.avgpool else "")


def joined(card, p) -> Joined:
    """The features for this network. Raises UserError for more blocks than it has."""
    if card.family != "vit" or not card.class_token:
        if p.blocks is not None or p.avgpool is not None:
            raise UserError("blocks and avgpool are for networks with a class token; this one gives its image vector")
        return Joined(0, False)
    small = card.dim < 768
    blocks, avgpool = p.blocks or min(4 if small else 1, card.depth), (not small) if p.avgpool is None else p.avgpool
    if blocks > card.depth:
        raise UserError(f"blocks={blocks}: the network has {card.depth}")
    return Joined(blocks, avgpool)


def run(encoder, cfg: Config, out: Path) -> dict:
    """Train one classifier on views of the training images, and test it on the centres of the validation images."""
    p, data, what = cfg.protocol, cfg.data.content, joined(encoder.card, cfg.protocol)
    view = ViewSpec(1, p.crop, (0.08, 1.0), interpolation="bilinear", jitter_p=0, gray_p=0, blur_p=0)
    views, cores = Views([view]), os.cpu_count() or 1
    total = p.epochs * len(data.train) + len(data.val)

    def load(picks: list[int], epoch: int) -> Tensor:
        made = []
        for i in picks:
            image = data.train.read(i)
            [drawn] = draw_all(views, *image.shape[:2], cfg.seed, epoch, i)
            made.append(np.empty((3, p.crop, p.crop), np.uint8))
            pixels.apply(drawn, image, out=made[-1])
        return torch.from_numpy(np.stack(made))

    with ThreadPoolExecutor(cores) as threads, Replicas(encoder, what, cfg.device, p.precision) as replicas:

        def stream(steps: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            parts = [part for step in steps for part in step.split(BATCH)]
            images = ahead((partial(load, part.tolist(), epoch) for part in parts), threads, 2 * cores)
            for step in steps:
                running = deque(replicas.submit(next(images)) for _ in step.split(BATCH))
                joint = torch.cat([job.result() for job in running])
                yield joint.to(cfg.device), labels[step].to(cfg.device)

        labels = torch.from_numpy(data.train.labels)
        plan = Plan(p.epochs, p.batch, cfg.seed, (p.lr,))
        dim = encoder.card.dim * (what.blocks + what.avgpool) if what.blocks else len(_vector(encoder, p.crop))
        probe = Probe(dim, len(data.classes), plan).to(cfg.device)

        def progress(epochs: float, text: str) -> None:
            cfg.progress(epochs * len(data.train), total, text)

        key = make_key({"p": dataclasses.asdict(p), "what": what.name, "seed": cfg.seed})
        train(probe, len(data.train), stream, out / "probe.pt", key, progress)

    def seen(done: int) -> None:
        cfg.progress(p.epochs * len(data.train) + done, total, f"val {done}/{len(data.val)}")

    val = features(encoder, data.val, what, what.name, Crop(p.resize, p.crop), cfg.device, p.precision, seen)
    best = probe.top(val.to(cfg.device)).cpu()[0]
    return result(encoder, data, what, best, p.crop)


@torch.inference_mode()
def _vector(encoder, side: int) -> Tensor:
    device = next(encoder.parameters()).device
    return image_vector(encoder, torch.zeros(1, 3, side, side, device=device))[0]


def result(encoder, data: ClassSet, what: Joined, best: Tensor, crop: int) -> dict:
    """Best classes [n, 5] of the validation images, crop x crop pixels each -> what a task's `run` returns."""
    first, five = accuracies(best, torch.from_numpy(data.val.labels))
    flags = {"top1": first, "top5": five}
    in_force = effective(encoder, crop) | {"features": what.name}
    if not what.blocks:
        in_force |= {"id": "linear-image-v1", "readout": encoder.card.readout}
    return {
        "metrics": {name: 100 * float(right.mean()) for name, right in flags.items()},
        "parts": {
            "images": len(data.val),
            "correct": {name: pack(right) for name, right in flags.items()},
            "classes": by_class(first, data.val, data.classes),
        },
        "protocol": in_force,
    }
