"""Linear classification on features that are computed once, at many learning rates side by side: minutes, not days.

The optimiser is that of task linear (facebookresearch/dino 7c446df, eval_linear.py); the training images are not
augmented but cropped like the validation images. As in published sweeps, the rate that is best on the validation set
counts, so these numbers stand beside no published column.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.ranges import bounds
from . import Data, Metric, TaskConfig
from ._classes import accuracies, scores
from .linear import Frozen, LinearTask


@dataclass
class Protocol(Frozen):
    """The protocol's values; rates: learning rates for 256 images a step."""

    rates: list[float] = field(
        default_factory=lambda: [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], metadata=bounds(above=0)
    )


class LinearSweep(LinearTask):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the data set."""
        if not cfg.protocol.rates:
            raise UserError("rates=[]: at least one learning rate")
        return super().check(cfg)

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Features (from the cache where they are known), a classifier for every rate, the best one's accuracies."""
        import torch

        from ._features import of_both_splits
        from ._joined import joined
        from ._probe import fit

        p, data, what = cfg.protocol, cfg.data.content, joined(encoder.card, cfg.protocol)
        train, val = (x.to(cfg.device) for x in of_both_splits(encoder, cfg, what, what.name))
        labels = torch.from_numpy(data.train.labels).to(cfg.device)

        def stream(steps, epoch):
            for step in steps:
                yield train[step.to(cfg.device)], labels[step.to(cfg.device)]

        def progress(epochs: float, text: str) -> None:
            cfg.progress(epochs, p.epochs, text)

        probe = fit(cfg, what, train.shape[1], tuple(p.rates), stream, out, progress)
        ranked = probe.top(val).cpu()
        top1 = [100 * float(accuracies(best, data.val.labels)[0].mean()) for best in ranked]
        chosen = max(range(len(top1)), key=top1.__getitem__)
        metrics, parts = scores({"": ranked[chosen]}, data)
        parts["rates"] = {str(rate): value for rate, value in zip(p.rates, top1, strict=True)}
        return {
            "metrics": metrics,
            "parts": parts,
            "protocol": what.in_force(encoder, p.crop) | {"lr": p.rates[chosen]},
        }


TASK = LinearSweep(
    version=1,
    protocol_id="linear-sweep-v1",
    protocol=Protocol,
    metrics=(Metric("top1", noise=0.1), Metric("top5", noise=0.1)),
    dataset="imagenet",
    kind="classification",
    needs=("image", "blocks"),
)
