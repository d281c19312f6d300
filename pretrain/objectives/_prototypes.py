"""What the objectives over prototypes share: soft cross-entropy, temperatures, the centre, and the log's numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .. import optim
from ..common.ranges import bounded
from ..model.heads import PrototypeHead
from . import Step

CHUNK = {True: 2**18, False: 2**26}  # elements to work on at a time: on a CPU, elsewhere


@dataclass
class PrototypeConfig:
    """Options of an objective over prototypes; the defaults are those of facebookresearch/dino 7c446df.

    head: name of the projection head. outputs, hidden, bottleneck: its widths. norm_last_layer: the last layer's gain
    stays 1. teacher_temperature is reached linearly from teacher_temperature_start within the first
    teacher_temperature_epochs epochs. centre_momentum: of the running mean of the teacher's outputs.
    """

    head: str = "head"
    outputs: int = bounded(65536, at_least=1, at_most=2**24)
    hidden: int = bounded(2048, at_least=1, at_most=2**16)
    bottleneck: int = bounded(256, at_least=1, at_most=2**16)
    norm_last_layer: bool = True
    student_temperature: float = bounded(0.1, above=0)
    teacher_temperature: float = bounded(0.04, above=0)
    teacher_temperature_start: float = bounded(0.04, above=0)
    teacher_temperature_epochs: int = bounded(0, at_least=0, at_most=10**6)
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


class PrototypeObjective(nn.Module):
    """Base: a centre [1, K], the teacher's temperature, and the bookkeeping of both."""

    def __init__(self, cfg: PrototypeConfig):
        super().__init__()
        self.cfg = cfg
        self.register_buffer("centre", torch.zeros(1, cfg.outputs))

    def temperature(self, step: Step) -> float:
        """The teacher's temperature in that epoch."""
        c = self.cfg
        start, epochs = c.teacher_temperature_start, c.teacher_temperature_epochs
        return optim.warm_up(start, c.teacher_temperature, epochs, step.epoch)

    def log_targets(self, logits: Tensor, step: Step, row: Tensor | int = 0) -> Tensor:
        """Teacher logits [..., K] -> log softmax((logits - centre) / temperature), at least float32; row: which of the
        centre's, for those that have several."""
        kind = torch.promote_types(logits.dtype, torch.float32)
        return ((logits.to(kind) - self.centre[row].to(kind)) / self.temperature(step)).log_softmax(-1)

    @staticmethod
    def stats(loss: Tensor, entropy: Tensor, images: int, centre_sum: Tensor, centre_rows: int) -> dict[str, Tensor]:
        """The stats of a share of `images`, with mean loss and mean teacher entropy; KL is what is left of the loss."""
        loss = loss.detach()
        return {
            "entropy": entropy * images,
            "kl": (loss - entropy) * images,
            "images": loss.new_tensor(images),
            "centre_sum": centre_sum.reshape(1, -1),
            "centre_rows": loss.new_tensor(centre_rows),
        }

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move the centre; -> teacher entropy and KL divergence (nats), means over the step's images."""
        mean = (stats["centre_sum"] / stats["centre_rows"]).to(self.centre.dtype)
        self.centre.mul_(self.cfg.centre_momentum).add_(mean, alpha=1 - self.cfg.centre_momentum)
        return {name: stats[name] / stats["images"] for name in ("entropy", "kl")}


def cross_entropy(
    logits: Tensor,
    targets: Callable[[int, int], Tensor],
    temperature: float,
    mass: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum over rows of weight_r * CE(target_r, softmax(logits_r / temperature)).

    logits [R, K]; targets(a, b) -> rows a..b of the targets, [b - a, K] in at least float32, each summing to `mass`
    (several teacher views may be added up: CE is linear in the target); weight [R]. -> scalar, at least float32.

    Works in chunks of rows and makes the gradient on the way, softmax - target, so that one buffer of the logits' own
    dtype is all that lives until the backward pass, instead of several float32 copies of [R, K].
    """
    return _CrossEntropy.apply(logits, targets, temperature, mass, weight)


class _CrossEntropy(torch.autograd.Function):
    # The gradient's buffer holds values of order 1, to which float16 is kind; small factors follow in float32.

    @staticmethod
    def forward(ctx, logits, targets, temperature, mass, weight):
        kind = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros((), dtype=kind, device=logits.device)
        ctx.buffer = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        ctx.temperature = temperature
        with torch.autocast(logits.device.type, enabled=False):
            for a, b in chunks(logits):
                log_p = (logits[a:b].to(kind) / temperature).log_softmax(-1)
                q = targets(a, b)
                rows = -(q * log_p).sum(-1)
                total += (rows if weight is None else rows * weight[a:b]).sum()
                if ctx.buffer is not None:
                    difference = log_p.exp_().mul_(mass).sub_(q)
                    ctx.buffer[a:b] = difference if weight is None else difference.mul_(weight[a:b, None])
        return total

    @staticmethod
    def backward(ctx, grad):
        buffer, ctx.buffer = ctx.buffer, None
        if buffer is None:
            raise RuntimeError("the gradient of this cross-entropy has been handed out already; compute the loss again")
        scale = grad / ctx.temperature
        for a, b in chunks(buffer):
            buffer[a:b] = buffer[a:b].to(scale.dtype) * scale
        return buffer, None, None, None, None


def chunks(x: Tensor) -> list[tuple[int, int]]:
    """Row ranges of x [R, K]: as many elements as stay in a CPU's cache, or as keep a GPU busy."""
    size = max(1, CHUNK[x.device.type == "cpu"] // x.shape[1])
    return [(a, min(a + size, len(x))) for a in range(0, len(x), size)]
