"""k-NN classification of frozen image vectors: a vote of the nearest training images, weighted by exp(cosine / T).

Source: facebookresearch/dino 7c446df, eval_knn.py. Any data set of class folders, train/ and val/.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...pretrain.common.errors import UserError
from ..datasets.imagenet import ClassSet, open_classes
from ..metrics.significance import pack
from . import Config, Data, Metric, Task
from ._features import Crop, effective, features, image_vector


@dataclass
class Protocol:
    """The protocol's values.

    k: neighbours that vote in `top1`; other_k: further numbers, reported as `top1_k10` and so on. Of fewer training
    images all vote; the record then has the numbers in force. temperature: of the cosine. resize, crop: pixels of the
    shorter side, and of the centre that is used. precision: float32 or bf16.
    """

    k: int = 20
    other_k: list[int] = field(default_factory=lambda: [10, 100, 200])
    temperature: float = 0.07
    resize: int = 256
    crop: int = 224
    precision: str = "float32"


TASK = Task(
    version=2,
    protocol_id="knn-dino-v1",
    protocol=Protocol,
    metrics=(Metric("top1"), Metric("top5")),  # deterministic: no band of noise
    dataset="imagenet",
    published=(("imagenet_knn", "knn20_T0.07"), ("imagenet_knn", "knn_dino_protocol")),
    needs="image vector",
    seeded=False,
)


def check(cfg: Config) -> Data:
    """Open the data set. Raises UserError that names the folder or the value that is wrong."""
    p = cfg.protocol
    check_images(cfg)
    if min([p.k, *p.other_k]) < 1 or not 0 < p.temperature < math.inf:
        raise UserError(f"k={p.k} other_k={p.other_k} temperature={p.temperature}: must all be numbers above 0")
    data = open_classes(cfg.root, cfg.limit)
    found = data.as_data()
    return replace(found, notes=found.notes + few([p.k, *p.other_k], len(data.train)))


def check_data(root: Path) -> Data:
    """The data set alone, without a word about k."""
    return open_classes(root).as_data()


def few(ks: list[int], train: int) -> list[str]:
    """A note for the user where there are fewer training images than neighbours that should vote."""
    more = [str(k) for k in dict.fromkeys(ks) if k > train]
    return [f"k={', '.join(more)}: there are only {train} training images, and all of them vote"] if more else []


def check_images(cfg: Config) -> None:
    """What all tasks on class folders share. Raises UserError."""
    p = cfg.protocol
    if cfg.masks is not None or cfg.list_file is not None:
        raise UserError("--masks and --list are for videos, not for class folders")
    if p.precision not in ("float32", "bf16"):
        raise UserError(f"precision={p.precision}: it is float32 or bf16")
    if not 1 <= p.crop <= p.resize:
        raise UserError(f"resize={p.resize} crop={p.crop}: the crop must fit into the resized picture")


@torch.inference_mode()
def vote(
    train: Tensor, labels: Tensor, val: Tensor, classes: int, ks: list[int], temperature: float, step: int = 256
) -> dict[int, Tensor]:
    """For every k the best classes of every validation image, best first: {k: int64 [n, min(5, k)]}.

    As official, top 5 is counted over no more classes than neighbours. train [m, D], val [n, D]: L2-normalised; labels
    [m]. A k above m is m. `step` validation images are done at a time.
    """
    ks = {k: min(k, len(train)) for k in ks}
    ranked: dict[int, list[Tensor]] = {k: [] for k in ks}
    for some in val.split(step):
        cosine, nearest = (some @ train.T).topk(max(ks.values()), dim=1)
        # The nearest gets weight 1, as only ratios count: at a low temperature exp(cosine / T) is beyond float32. Far
        # ones keep some weight, in float64: a class with a vote comes before those without.
        weights = ((cosine.double() - cosine[:, :1]) / temperature).exp().clamp_min(torch.finfo(torch.float64).tiny)
        votes = labels[nearest]
        for k, used in ks.items():
            scores = weights.new_zeros(len(some), classes).scatter_add_(1, votes[:, :used], weights[:, :used])
            # The official sort, unstable: it decides which classes without a vote fill up the five.
            ranked[k].append(scores.sort(1, descending=True).indices[:, : min(5, used)].cpu())
    return {k: torch.cat(parts) for k, parts in ranked.items()}


def accuracies(ranked: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Best classes [n, 5 or fewer] -> whether the first, and any of them, is right: bool [n] each."""
    hit = (ranked == labels[:, None]).numpy()
    return hit[:, 0], hit.any(1)


def by_class(right: np.ndarray, split, classes: list[str]) -> dict[str, float | None]:
    """Per cent right of every class; None for one without images."""
    labels = split.labels
    return {n: 100 * float(right[labels == i].mean()) if (labels == i).any() else None for i, n in enumerate(classes)}


def extract_all(encoder, cfg: Config, data: ClassSet, extract, what: str) -> list[Tensor]:
    """Features of train/ and val/, with progress."""
    total, before, found = len(data.train) + len(data.val), 0, []
    for split in (data.train, data.val):

        def progress(done: int, split=split, before=before):
            cfg.progress(before + done, total, f"{split.name} {done}/{len(split)}")

        crop, p = Crop(cfg.protocol.resize, cfg.protocol.crop), cfg.protocol
        found.append(features(encoder, split, extract, what, crop, cfg.device, p.precision, progress))
        before += len(split)
    return found


def run(encoder, cfg: Config, out: Path) -> dict:
    """Features of all images (from the cache where they are known), votes, accuracies."""
    p, data = cfg.protocol, cfg.data.content
    train, val = (F.normalize(x, dim=1) for x in extract_all(encoder, cfg, data, image_vector, "image vector"))
    place = torch.device(cfg.device)
    labels = torch.from_numpy(data.train.labels).to(place)
    ranked = vote(train.to(place), labels, val.to(place), len(data.classes), [p.k, *p.other_k], p.temperature)
    metrics, correct = {}, {}
    for k, best in ranked.items():
        first, five = accuracies(best, torch.from_numpy(data.val.labels))
        for name, right in (("top1", first), ("top5", five)):
            key = name if k == p.k else f"{name}_k{k}"
            metrics[key] = 100 * float(right.mean())
            correct[key] = pack(right)
    right = accuracies(ranked[p.k], torch.from_numpy(data.val.labels))[0]
    parts = {"images": len(data.val), "correct": correct, "classes": by_class(right, data.val, data.classes)}
    in_force = effective(encoder, p.crop) | {"readout": encoder.card.readout}
    if few([p.k, *p.other_k], len(train)):
        in_force |= {"k": min(p.k, len(train)), "other_k": [min(k, len(train)) for k in p.other_k]}
    return {"metrics": metrics, "parts": parts, "protocol": in_force}
