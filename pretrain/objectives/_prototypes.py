"""What the objectives over prototypes share: temperatures, the centre, and the log's numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .. import optim
from ..common.ranges import bounded
from ..model.heads import PrototypeHead
from . import Net, Objective, Step
from ._soft_cross_entropy import CentredSoftmax, CrossEntropy


@dataclass
class PrototypeConfig:
    """Options of an objective over prototypes; the defaults are those of facebookresearch/dino 7c446df."""

    # Name of the projection head.
    head: str = "head"
    # Prototypes: the width of its output.
    outputs: int = bounded(65536, at_least=1, at_most=2**24)
    # Width of the hidden layers of its MLP.
    hidden: int = bounded(2048, at_least=1, at_most=2**16)
    # Width of what the last layer takes.
    bottleneck: int = bounded(256, at_least=1, at_most=2**16)
    # Keep the gain of the last layer at 1.
    norm_last_layer: bool = True
    # Temperature of the student's softmax.
    student_temperature: float = bounded(0.1, above=0)
    # Temperature of the teacher's softmax.
    teacher_temperature: float = bounded(0.04, above=0)
    # The same in the first epoch, from which it is reached linearly.
    teacher_temperature_start: float = bounded(0.04, above=0)
    # Epochs of that warm-up.
    teacher_temperature_epochs: int = bounded(0, at_least=0, at_most=10**6)
    # Momentum of the running mean of the teacher's outputs.
    centre_momentum: float = bounded(0.9, at_least=0, at_most=1)


def head_factory(cfg: PrototypeConfig) -> Callable[[int], nn.Module]:
    """dim -> the head that the options describe"""
    return partial(
        PrototypeHead,
        outputs=cfg.outputs,
        hidden=cfg.hidden,
        bottleneck=cfg.bottleneck,
        norm_last_layer=cfg.norm_last_layer,
    )


class PrototypeObjective(Objective):
    """Base: a centre [1, K], the teacher's temperature, and the bookkeeping of both."""

    def __init__(self, cfg: PrototypeConfig, net: Net):
        super().__init__(cfg, net)
        self.register_buffer("centre", torch.zeros(1, cfg.outputs))
        self.softmax, self.cross_entropy = CentredSoftmax(), CrossEntropy(cfg.student_temperature)

    @torch.no_grad()
    def targets(self, logits: Tensor, step: Step, row: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        """Teacher logits [..., K] -> softmax((logits - centre) / temperature) [..., K] and its entropies [...] in nats,
        at least float32. row: which of the centre's, where there are several; for each place of the axis before K."""
        c = self.cfg
        start, epochs = c.teacher_temperature_start, c.teacher_temperature_epochs
        temperature = optim.warm_up(start, c.teacher_temperature, epochs, step.epoch)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return self.softmax(logits, self.centre[row], torch.full((), temperature, dtype=dtype, device=logits.device))

    @staticmethod
    def stats(loss: Tensor, entropy: Tensor, images: int, centre_sum: Tensor, centre_rows) -> dict[str, Tensor]:
        """The stats of a share of `images`, with mean loss and mean teacher entropy; KL is what is left of the loss.
        centre_sum, centre_rows: sum and number of the teacher's outputs, [K] and one or, where there are several
        centres, [C, K] and [C, 1]."""
        loss = loss.detach()
        return {
            "entropy": entropy * images,
            "kl": (loss - entropy) * images,
            "images": loss.new_full((), images),
            "centre_sum": centre_sum.view(-1, centre_sum.shape[-1]),
            "centre_rows": centre_rows.to(loss) if isinstance(centre_rows, Tensor) else loss.new_full((), centre_rows),
        }

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move the centre; -> teacher entropy and KL divergence (nats), means over the step's images."""
        mean = (stats["centre_sum"] / stats["centre_rows"]).to(self.centre.dtype)
        self.centre.mul_(self.cfg.centre_momentum).add_(mean, alpha=1 - self.cfg.centre_momentum)
        return {name: stats[name] / stats["images"] for name in ("entropy", "kl")}
