"""Segmentation by retrieval (Hummingbird): each patch takes the labels of its nearest patches in the training pictures.

Source: vpariza/open-hummingbird-eval 5e79da2, version 2.0, with an exact search in the place of ScaNN's. Pictures are
squeezed to a square and scored there. The number is that of a Hungarian matching between predicted and true classes,
over all classes; those without matching stand beside it.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ...pretrain.common.card import IMAGENET_STD
from ...pretrain.common.ranges import bounded, bounds, one_of
from ..datasets.segmentation import LabelledSet
from ..datasets.segmentation.sets import OPEN, TASK_NAMES
from ..metrics.segmentation import confusion, ious, matched, occurring, renamed
from . import Data, Metric, Task, TaskConfig
from ._protocol import check_channels, check_patch, normalisation

SIZE = 512  # pixels, where the protocol says none: so many whole patches as fit
OFFICIAL_STD = (0.229, 0.224, 0.255)  # 0.255 for blue is a slip of the official code, and part of the protocol
MEMORY = 102_400  # patches: 1024 * 10^2, the smallest of the published three


@dataclass
class Protocol:
    """The protocol's values.

    size: side in pixels of the square; None: 512 rounded down to whole patches. memory_size: patches that are kept of
    all training pictures, as many of each; None: all of them. passes: over the training pictures. augment: whether they
    are changed in colour and cut. neighbours: patches that give their labels. temperature: of the cosine. mean, std:
    None: the card's (and blue 0.255 for ImageNet's). precision: of the network; search: of the products, float32 or
    bf16.
    """

    size: int | None = bounded(None, at_least=1, at_most=8192)
    memory_size: int | None = bounded(MEMORY, at_least=1)
    passes: int = bounded(2, at_least=1)
    augment: bool = True
    neighbours: int = bounded(30, at_least=1)
    temperature: float = bounded(0.02, above=0)
    mean: list[float] | None = field(default=None, metadata=bounds(at_least=0, at_most=1))
    std: list[float] | None = field(default=None, metadata=bounds(above=0, at_most=1))
    precision: str = one_of("float32", "bf16")
    search: str = one_of("float32", "bf16")


class Hummingbird(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the pictures and label maps. Raises UserError that names what is wrong."""
        return OPEN[self.dataset](cfg.root, cfg.limit)

    def check_card(self, values: Protocol, card: dict) -> None:
        """Pictures of whole patches, a mean and a std for each channel."""
        check_patch("size", values.size or SIZE, card, whole=values.size is not None)
        check_channels(values)

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Fill the memory, look up every patch of the validation pictures, count pixels."""
        from PIL import Image

        from ._segmentation.dense import batches, squeezed
        from ._segmentation.memory import Memory

        p, data = cfg.protocol, cfg.data.content
        train, val = data.train.by_name(), data.val.by_name()
        cell = encoder.strides[-1]
        memory = Memory(
            encoder, cfg, data.classes, p.size or SIZE // cell * cell, *normalisation(encoder.card, p, OFFICIAL_STD)
        )
        total = p.passes * len(train) + len(val)
        memory.fill(train, lambda done: cfg.progress(done, total, f"memory {done}/{total - len(val)}"))
        counts = np.zeros((data.classes, data.classes), np.int64)
        done, read = total - len(val), partial(squeezed, val, memory.side, Image.Resampling.BILINEAR)
        for images, labels in batches(read, len(val)):
            counts += confusion(labels.numpy(), memory.predict(images), data.classes, data.ignored)
            done += len(images)
            cfg.progress(done, total, f"val {done - total + len(val)}/{len(val)}")
        metrics, parts, matching = scores(counts, data)
        return {"metrics": metrics, "parts": parts, "protocol": memory.in_force() | {"matching": matching}}


def scores(counts: np.ndarray, data: LabelledSet) -> tuple[dict, dict, str]:
    """Confusion [classes, classes] -> metrics in percent, a record's parts, and the matching in words."""
    mapping, there = matched(counts), occurring(counts)
    after = ious(renamed(counts, mapping))
    plain = ious(counts)
    metrics = {
        "mIoU": 100 * float(after.mean()),
        "mIoU_identity": 100 * float(plain.mean()),
        "mIoU_present": 100 * float(plain[there].mean()),
        "pixel_accuracy": 100 * float(np.trace(counts) / counts.sum()),
    }
    others = [i for i in np.flatnonzero(there) if mapping[i] != i]
    matching = f"{len(others)} of {int(there.sum())} classes taken for others" if others else "identity"
    classes = {name: 100 * float(x) if seen else None for name, x, seen in zip(data.names, plain, there, strict=True)}
    return metrics, {"classes": classes, "matching": {data.names[i]: data.names[mapping[i]] for i in others}}, matching


def _task(name: str) -> Hummingbird:
    return Hummingbird(
        version=1,
        protocol_id="hummingbird-v2",
        protocol=Protocol,
        # The patches of a bounded memory are drawn: on 40 pictures 13.6 with a deviation of 1.0 over three seeds, and
        # less on the whole sets.
        metrics=tuple(Metric(m, noise=None) for m in ("mIoU", "mIoU_identity", "mIoU_present", "pixel_accuracy")),
        dataset=TASK_NAMES[name],
        kind="segmentation",
        cost="minutes",
        published=((f"hummingbird_{name}", "hbird_mem1024e2"),),
        variants={
            "mem1024e3": {"memory_size": 10 * MEMORY},
            "mem1024e4": {"memory_size": 100 * MEMORY},
            "std225": {"std": list(IMAGENET_STD)},
        },
        published_variants={f"mem1024e{n}": ((f"hummingbird_{name}", f"hbird_mem1024e{n}"),) for n in (3, 4)},
    )


TASKS = {f"hummingbird_{name}": _task(name) for name in TASK_NAMES}
