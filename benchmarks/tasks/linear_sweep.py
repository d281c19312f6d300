"""Linear classification on features that are computed once, at many learning rates side by side: minutes, not days.

The optimiser is that of task linear (facebookresearch/dino 7c446df, eval_linear.py); the training images are not
augmented but cropped like the validation images. As in published sweeps, the rate that is best on the validation set
counts, so these numbers stand beside no published column.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...pretrain.common.errors import UserError
from ..datasets.imagenet import open_classes
from . import Config, Data, Metric, Task, make_key
from ._probe import Plan, Probe, train
from .knn import accuracies, extract_all
from .linear import Frozen, check_probe, joined, result


@dataclass
class Protocol(Frozen):
    """The protocol's values; rates: learning rates for 256 images a step."""

    rates: list[float] = field(default_factory=lambda: [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])


TASK = Task(
    version=1,
    protocol_id="linear-sweep-v1",
    protocol=Protocol,
    metrics=(Metric("top1", noise=0.1), Metric("top5", noise=0.1)),
    dataset="imagenet",
    needs="class tokens or image vector",
)


def check(cfg: Config) -> Data:
    """Open the data set. Raises UserError that names the folder or the value that is wrong."""
    check_probe(cfg)
    if not cfg.protocol.rates or min(cfg.protocol.rates) <= 0:
        raise UserError(f"rates={cfg.protocol.rates}: at least one, all above 0")
    return open_classes(cfg.root, cfg.limit).as_data()


def run(encoder, cfg: Config, out: Path) -> dict:
    """Features (from the cache where they are known), a classifier for every rate, the best one's accuracies."""
    p, data, what = cfg.protocol, cfg.data.content, joined(encoder.card, cfg.protocol)
    found = [x.to(cfg.device) for x in extract_all(encoder, cfg, data, what, what.name)]
    labels = torch.from_numpy(data.train.labels).to(cfg.device)

    def stream(steps: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in steps:
            yield found[0][step.to(cfg.device)], labels[step.to(cfg.device)]

    def progress(epochs: float, text: str) -> None:
        cfg.progress(epochs, p.epochs, text)

    probe = Probe(found[0].shape[1], len(data.classes), Plan(p.epochs, p.batch, cfg.seed, tuple(p.rates)))
    key = make_key({"p": dataclasses.asdict(p), "what": what.name, "seed": cfg.seed})
    train(probe.to(cfg.device), len(data.train), stream, out / "probe.pt", key, progress)
    ranked = probe.top(found[1]).cpu()
    truth = torch.from_numpy(data.val.labels)
    top1 = [100 * float(accuracies(best, truth)[0].mean()) for best in ranked]
    chosen = max(range(len(top1)), key=top1.__getitem__)
    made = result(encoder, data, what, ranked[chosen], p.crop)
    made["parts"]["rates"] = {str(rate): value for rate, value in zip(p.rates, top1, strict=True)}
    made["protocol"]["lr"] = p.rates[chosen]
    made["protocol"].pop("id", None)  # the features are named; the protocol is this one either way
    return made
