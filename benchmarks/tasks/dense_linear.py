"""Linear segmentation of frozen patches as DINOv3 evaluates them: batch norm and a 1x1 convolution on the last block.

Source: facebookresearch/dinov3 6876159, eval/segmentation. ADE20K is the official task; VOC 2012 and Cityscapes follow
the same settings ("reconstructed": no official file for them exists). The official number is the best of the
evaluations on the test set itself, `mIoU_best`; `mIoU_last` is that of the trained head.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...pretrain.common.ranges import bounded, one_of
from ..datasets.segmentation import IGNORED
from ..datasets.segmentation.sets import OPEN, TASK_NAMES
from ..metrics.segmentation import confusion, ious
from . import Data, Metric, Task, TaskConfig, make_key
from ._protocol import check_patch

SIZES, MOST = (0.5, 2.0), 0.75  # of a training picture's shorter side; of one class in a cut


@dataclass
class Protocol:
    """The protocol's values.

    size: shorter side of a validation picture, side of a training cut and of a window. stride: of the windows; at most
    their side is used. steps, batch: of the training. lr, warmup: the rate and the steps in which it rises. decay: of
    all weights. dropout: of the features' channels. every: steps between two evaluations. augment: whether training
    pictures are changed and shuffled; else their upper left cuts are taken in turn. precision: of the network, float32
    or bf16.
    """

    size: int = bounded(512, at_least=1, at_most=8192)
    stride: int = bounded(341, at_least=1)
    steps: int = bounded(40_000, at_least=1)
    batch: int = bounded(16, at_least=1)
    lr: float = bounded(1e-3, above=0)
    warmup: int = bounded(1500, at_least=1)
    decay: float = bounded(1e-3, at_least=0)
    dropout: float = bounded(0.1, at_least=0, at_most=1)
    every: int = bounded(5000, at_least=1)
    augment: bool = True
    precision: str = one_of("float32", "bf16")


def rate(step: int, lr: float, warmup: int, steps: int) -> float:
    """The learning rate of a step, from 0 (WarmupOneCycleLR of eval/segmentation/schedulers.py).

    Linear up to `warmup`, falling linearly at the same time, then a cosine that begins at the full rate. The official
    loop makes no step of the schedule after its first one: the second step has the first's rate.
    """
    t = max(step - 1, 0)
    if t < warmup:
        return lr * (1 - (1 - t / warmup) * (1 - 1e-6)) * (1 - t / steps)
    return lr / 2 * (1 + math.cos(math.pi * (t + 1) / steps))


class DenseLinear(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the pictures and label maps. Raises UserError that names what is wrong."""
        return OPEN[self.dataset](cfg.root, cfg.limit)

    def check_card(self, values: Protocol, card: dict) -> None:
        """Pictures of at least a patch."""
        check_patch("size", values.size, card)

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Train the head, evaluating it now and then; a head that was trained before goes on where it was."""
        import torch

        from ._features import effective
        from ._segmentation.segmenter import Course, NormConv, fit, in_order
        from ._segmentation.views import distorted, upper_left

        p, data = cfg.protocol, cfg.data.content
        classes = data.classes - (data.ignored == 0)  # a class 0 that is not judged is none
        torch.manual_seed(cfg.seed)
        features = partial(_features, encoder, cfg)
        head = NormConv(features(torch.zeros(1, 3, p.size, p.size)).shape[1], classes, p.dropout).to(cfg.device)
        total = p.steps * p.batch + math.ceil(p.steps / p.every) * len(data.val)

        def load(i: int, epoch: int):
            zero = data.ignored == 0
            if not p.augment:
                return upper_left(data.train, i, p.size, zero)
            return distorted(data.train, i, p.size, SIZES, MOST, zero, (cfg.seed, epoch))

        def evaluate(step: int) -> dict:
            before = step * p.batch + (math.ceil(step / p.every) - 1) * len(data.val)
            counts = np.zeros((classes, classes), np.int64)
            for i in range(len(data.val)):
                counts += _count(head, features, data, i, p, cfg.device)
                cfg.progress(before + i + 1, total, f"step {step}, val {i + 1}/{len(data.val)}")
            return scores(counts)

        def progress(step: int, text: str) -> None:
            cfg.progress(step * p.batch + step // p.every * len(data.val), total, text)

        course = Course(
            steps=p.steps,
            numbers=in_order(len(data.train), p.batch, cfg.seed if p.augment else None),
            load=load,
            features=features,
            rate=partial(rate, lr=p.lr, warmup=p.warmup, steps=p.steps),
            every=p.every,
            seed=cfg.seed,
            evaluate=evaluate,
        )
        optimiser = torch.optim.AdamW(head.parameters(), lr=p.lr, weight_decay=p.decay)
        key = make_key(
            {"protocol": asdict(p), "seed": cfg.seed, "data": cfg.data.fingerprint, "net": encoder.fingerprint}
        )
        _, found = fit(head, optimiser, course, out / "head.pt", key, progress)
        last, best = found[-1], max(one["mIoU"] for one in found)
        names = data.names[1:] if data.ignored == 0 else data.names
        metrics = {"mIoU_best": best, "mIoU_last": last["mIoU"], "aAcc": last["aAcc"], "mAcc": last["mAcc"]}
        parts = {
            "classes": dict(zip(names, last["classes"], strict=True)),
            "evaluations": [{"step": one["step"], "mIoU": one["mIoU"]} for one in found],
        }
        return {"metrics": metrics, "parts": parts, "protocol": effective(encoder, p.size)}


def _features(encoder, cfg: TaskConfig, images):
    """Pictures in 0..1, without value (NaN) where they were padded: those are 0 once they are normalised."""
    import torch

    from ._segmentation.dense import patches

    mean, std = encoder.card.mean, encoder.card.std
    filled = torch.where(images.isnan(), torch.tensor(mean).view(3, 1, 1), images)
    return patches(encoder, filled, cfg, mean, std).permute(0, 3, 1, 2)


def _count(head, features, data, i: int, p: Protocol, device: str) -> np.ndarray:
    """Confusion of one validation picture at its own size."""
    import torch

    from ._segmentation.segmenter import slide
    from ._segmentation.views import scaled

    image, labels = scaled(data.val, i, p.size, data.ignored == 0)
    with torch.inference_mode():
        best = slide(lambda part: head(features(part)), image[None], p.size, p.stride, labels.shape)
    return confusion(labels.numpy(), best.cpu().numpy(), head.conv.out_channels, IGNORED)


def scores(counts: np.ndarray) -> dict:
    """Confusion -> mIoU over the classes that occur in truth or prediction, accuracy of pixels and of classes, and the
    overlap of each class (None: it occurs nowhere), in percent."""
    each, truth = ious(counts), counts.sum(1)
    there = truth + counts.sum(0) > 0
    recall = np.diag(counts)[truth > 0] / truth[truth > 0]
    return {
        "mIoU": 100 * float(each[there].mean()),
        "aAcc": 100 * float(np.trace(counts) / counts.sum()),
        "mAcc": 100 * float(recall.mean()),
        "classes": [100 * float(x) if seen else None for x, seen in zip(each, there, strict=True)],
    }


def _task(name: str) -> DenseLinear:
    published = (("ade20k_linear", "seg-linear-dinov3", "mIoU_best", "mIoU"),) if name == "ade20k" else ()
    return DenseLinear(
        version=1,
        protocol_id="seg-linear-dinov3" + "-reconstructed" * (name != "ade20k"),
        protocol=Protocol,
        metrics=tuple(Metric(m, noise=None) for m in ("mIoU_best", "mIoU_last", "aAcc", "mAcc")),
        dataset=TASK_NAMES[name],
        kind="segmentation",
        cost="1.5 h",
        published=published,
    )


TASKS = {f"{name}_linear": _task(name) for name in TASK_NAMES}
