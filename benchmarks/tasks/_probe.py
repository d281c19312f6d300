"""Linear classifiers on frozen features, trained as by DINO's eval_linear.py (facebookresearch/dino 7c446df)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ...pretrain.common.reading.state import load_state
from . import TaskConfig, make_key

BASE_BATCH = 256  # learning rates are for so many images a step


@dataclass(frozen=True)
class Plan:
    """epochs, images a step, seed; learning rates: one classifier is trained for each, side by side."""

    epochs: int
    batch: int
    seed: int
    rates: tuple[float, ...]


class Probe(nn.Module):
    """R linear classifiers that see the same features: [B, D] -> [R, B, classes].

    Weights start at N(0, 0.01), equal for all, biases at 0. SGD with momentum 0.9 and no weight decay; each rate is
    scaled by batch / 256 and falls to 0 in a cosine, once an epoch.
    """

    def __init__(self, dim: int, classes: int, plan: Plan):
        super().__init__()
        noise = torch.Generator().manual_seed(plan.seed)
        one = torch.randn(classes, dim, generator=noise) * 0.01
        self.weight = nn.Parameter(one.expand(len(plan.rates), -1, -1).clone())
        self.bias = nn.Parameter(torch.zeros(len(plan.rates), classes))
        self.plan = plan
        self.momentum = [torch.zeros_like(p) for p in (self.weight, self.bias)]

    def forward(self, features: Tensor) -> Tensor:
        return torch.einsum("bd,rcd->rbc", features, self.weight) + self.bias[:, None]

    def step(self, features: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """One SGD step of every classifier on its own mean cross-entropy; -> losses [R], of before the step."""
        scores = self(features)
        rates, count, classes = scores.shape
        each = F.cross_entropy(scores.reshape(-1, classes), labels.repeat(rates), reduction="none")
        losses = each.view(rates, count).mean(1)
        gradients = torch.autograd.grad(losses.sum(), (self.weight, self.bias))
        fall = (1 + math.cos(math.pi * epoch / self.plan.epochs)) / 2
        lr = losses.new_tensor(self.plan.rates) * (fall * self.plan.batch / BASE_BATCH)
        with torch.no_grad():
            for parameter, gradient, speed in zip((self.weight, self.bias), gradients, self.momentum, strict=True):
                speed.mul_(0.9).add_(gradient)
                parameter.sub_(lr.view(-1, *[1] * (parameter.ndim - 1)) * speed)
        return losses.detach()

    @torch.no_grad()
    def top(self, features: Tensor) -> Tensor:
        """Best classes, best first: int64 [R, n, min(5, classes)]"""
        k = min(5, self.bias.shape[1])
        return torch.cat([self(some).topk(k, dim=2).indices for some in features.split(4096)], 1)

    def to(self, device):
        """Parameters and momentum."""
        super().to(device)
        self.momentum = [m.to(device) for m in self.momentum]
        return self

    def save(self, path: Path, epoch: int, key: str) -> None:
        """State after `epoch` epochs; key says what it belongs to."""
        state = {"weight": self.weight.detach(), "bias": self.bias.detach(), "momentum": self.momentum}
        write_atomic(path, lambda file: torch.save(state | {"epoch": epoch, "key": key}, file))

    def resume(self, path: Path, key: str) -> int:
        """Take over the state of an interrupted run; -> epochs that are done, 0 where there is none of that key."""
        try:
            state = load_state(path)
        except UserError:  # there is none, or it is damaged: the epochs are made again
            return 0
        if not isinstance(state, dict) or state.get("key") != key:
            return 0
        with torch.no_grad():
            self.weight.copy_(state["weight"])
            self.bias.copy_(state["bias"])
        self.momentum = [m.to(self.weight.device) for m in state["momentum"]]
        return state["epoch"]


def order(count: int, plan: Plan, epoch: int) -> list[Tensor]:
    """Image numbers of an epoch's steps, shuffled by (seed, epoch); the last step may be smaller."""
    noise = torch.Generator().manual_seed(plan.seed * 1_000_003 + epoch)
    return list(torch.randperm(count, generator=noise).split(plan.batch))


def train(
    probe: Probe,
    count: int,
    stream: Callable[[list[Tensor], int], Iterator[tuple[Tensor, Tensor]]],
    file: Path,
    key: str,
    progress: Callable[[float, str], None],
) -> None:
    """All epochs that are not done yet. stream(image numbers of every step, epoch) yields (features, labels) of each.

    file: where the state is kept after every epoch, for an interrupted run with the same `key`. Raises UserError for a
    loss that is finite at no learning rate.
    """
    for epoch in range(probe.resume(file, key), probe.plan.epochs):
        steps = order(count, probe.plan, epoch)
        for number, (features, labels) in enumerate(stream(steps, epoch), 1):
            losses = probe.step(features, labels, epoch)
            finite = losses[losses.isfinite()]
            if not len(finite):
                raise UserError(f"epoch {epoch + 1}: the loss is not finite at any learning rate: give a lower one")
            text = f"epoch {epoch + 1}/{probe.plan.epochs} loss {float(finite.min()):.3f}"
            progress(epoch + number / len(steps), text)
        probe.save(file, epoch + 1, key)


def fit(cfg: TaskConfig, what, dim: int, rates: tuple[float, ...], stream, out: Path, progress) -> Probe:
    """A probe for each rate, trained on a ClassSet's training images by the values of a protocol (linear.Frozen).

    what: the features (_joined.Joined), `dim` wide. stream, progress: see `train`. out: the task's folder.
    """
    p, data = cfg.protocol, cfg.data.content
    probe = Probe(dim, len(data.classes), Plan(p.epochs, p.batch, cfg.seed, rates)).to(cfg.device)
    key = make_key({"p": asdict(p), "what": what.name, "seed": cfg.seed})
    train(probe, len(data.train), stream, out / "probe.pt", key, progress)
    return probe
