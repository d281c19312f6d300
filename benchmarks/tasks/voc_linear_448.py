"""Linear segmentation of VOC 2012 as Leopart and NeCo report it: a 1x1 convolution on frozen patches at 448 pixels.

Source: vpariza/NeCo 3932160, experiments/linear_segmentation/linear_finetune.py, configs/pascal/neco-dino.yml. Scores
are counted at 100 x 100.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...pretrain.common.ranges import bounded, one_of
from ..datasets.segmentation.voc import open_voc
from ..metrics.segmentation import confusion, ious
from . import Data, Metric, Task, TaskConfig, make_key
from ._protocol import check_patch

AREA, FLIP = (0.8, 1.0), 0.5  # of a training picture's cut
FALL = 0.1  # of the rate, after epoch `drop_at`


@dataclass
class Protocol:
    """The protocol's values.

    size: side in pixels of the square. grid: side of the map that is classified and scored. epochs, batch: pictures a
    step. lr: until `drop_at` epochs are done, a tenth of it from there on. augment: whether training pictures are cut
    and mirrored. precision: of the network, float32 or bf16.
    """

    size: int = bounded(448, at_least=1, at_most=8192)
    grid: int = bounded(100, at_least=1, at_most=2048)
    epochs: int = bounded(25, at_least=1)
    batch: int = bounded(128, at_least=1)
    lr: float = bounded(0.01, above=0)
    drop_at: int = bounded(20, at_least=1)
    momentum: float = bounded(0.9, at_least=0, at_most=1)
    decay: float = bounded(1e-4, at_least=0)
    augment: bool = True
    precision: str = one_of("float32", "bf16")


class Linear448(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the pictures and label maps. Raises UserError that names what is wrong."""
        return open_voc(cfg.root, cfg.limit)

    def check_card(self, values: Protocol, card: dict) -> None:
        """Pictures of at least a patch."""
        check_patch("size", values.size, card)

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Train the head, predict the validation pictures, count."""
        import torch

        from ._features import effective
        from ._segmentation.dense import batches
        from ._segmentation.segmenter import Conv, Course, by_epoch, fit
        from ._segmentation.views import cut_and_mirrored, squeezed_to

        p, data = cfg.protocol, cfg.data.content
        torch.manual_seed(cfg.seed)
        features = partial(_features, encoder, cfg)
        dim = features(torch.zeros(1, 3, p.size, p.size)).shape[1]
        head = Conv(dim, data.classes, p.grid).to(cfg.device)
        each = -(-len(data.train) // p.batch)
        plain = partial(squeezed_to, size=p.size, grid=p.grid)

        def load(i: int, epoch: int):
            if not p.augment:
                return plain(data.train, i)
            return cut_and_mirrored(data.train, i, p.size, p.grid, AREA, FLIP, (cfg.seed, epoch))

        course = Course(
            steps=p.epochs * each,
            numbers=by_epoch(len(data.train), p.batch),
            load=load,
            features=features,
            rate=lambda step: p.lr * (FALL if step // each >= p.drop_at else 1),
            every=each,
            seed=cfg.seed,
        )
        optimiser = torch.optim.SGD(head.parameters(), lr=p.lr, momentum=p.momentum, weight_decay=p.decay)
        total = course.steps * p.batch + len(data.val)
        key = make_key(
            {"protocol": asdict(p), "seed": cfg.seed, "data": cfg.data.fingerprint, "net": encoder.fingerprint}
        )
        fit(head, optimiser, course, out / "head.pt", key, lambda step, text: cfg.progress(step * p.batch, total, text))
        counts, done = np.zeros((data.classes, data.classes), np.int64), total - len(data.val)
        for images, labels in batches(partial(plain, data.val), len(data.val)):
            with torch.inference_mode():
                best = head(features(images)).argmax(1)
            counts += confusion(labels.numpy(), best.cpu().numpy(), data.classes, data.ignored)
            done += len(images)
            cfg.progress(done, total, f"val {done - total + len(data.val)}/{len(data.val)}")
        each_class = ious(counts)
        metrics = {
            "mIoU": 100 * float(each_class.mean()),
            "pixel_accuracy": 100 * float(np.trace(counts) / counts.sum()),
        }
        parts = {"classes": {name: 100 * float(x) for name, x in zip(data.names, each_class, strict=True)}}
        return {"metrics": metrics, "parts": parts, "protocol": effective(encoder, p.size)}


def _features(encoder, cfg: TaskConfig, images):
    from ._segmentation.dense import patches

    return patches(encoder, images, cfg, encoder.card.mean, encoder.card.std).permute(0, 3, 1, 2)


TASK = Linear448(
    version=1,
    protocol_id="seg-linear-448",
    protocol=Protocol,
    metrics=(Metric("mIoU", noise=None), Metric("pixel_accuracy", noise=None)),
    dataset="voc2012",
    kind="segmentation",
    cost="25 min",
    published=(("voc_linear_seg", "seg-linear-448"),),
)
