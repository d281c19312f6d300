"""Linear heads on frozen patch features: training that can be interrupted, and predicting whole pictures."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....pretrain.common.atomic import write_atomic
from ....pretrain.common.errors import UserError
from ....pretrain.common.reading.state import load_state
from ...datasets.segmentation import IGNORED
from .._features import ahead

Images = tuple[Tensor, Tensor]  # pictures [B, 3, H, W], labels [B, H, W]


class Conv(nn.Module):
    """A 1x1 convolution on features that are resized to `grid` x `grid` first (vpariza/NeCo 3932160,
    experiments/linear_segmentation/linear_finetune.py)."""

    def __init__(self, dim: int, classes: int, grid: int):
        super().__init__()
        self.conv, self.grid = nn.Conv2d(dim, classes, 1), grid

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, h, w] -> scores [B, classes, grid, grid]"""
        return self.conv(F.interpolate(features, size=(self.grid, self.grid), mode="bilinear"))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the judged pixels; labels [B, grid, grid]"""
        return F.cross_entropy(self(features), labels.long(), ignore_index=IGNORED)


class NormConv(nn.Module):
    """Dropout of whole channels, batch norm, a 1x1 convolution (facebookresearch/dinov3 6876159,
    eval/segmentation/models/heads/linear_head.py)."""

    def __init__(self, dim: int, classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.norm, self.conv = nn.BatchNorm2d(dim), nn.Conv2d(dim, classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, h, w] -> scores [B, classes, h, w]"""
        return self.conv(self.norm(self.dropout(features)))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at the labels' size [B, H, W]: the sum over the judged pixels by the number of all pixels."""
        # With the classes side by side in memory a CPU needs a third less time for the sums over them.
        scores = self(features).contiguous(memory_format=torch.channels_last)
        scores = F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        scores, labels = scores.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        return F.cross_entropy(scores, labels.long(), ignore_index=IGNORED, reduction="sum") / labels.numel()


@dataclass
class Course:
    """How a head is trained.

    steps: how many. numbers(step): the pictures of one, and how often all have been seen before. load(i, epoch): a
    picture [3, H, W] in 0..1 and its labels [H, W]. features(images): frozen, [B, D, h, w] on the device. rate(step):
    learning rate. every: steps between two states on disk, and two calls of `evaluate(step)`, whose numbers are kept
    with the state. seed: of the dropout.
    """

    steps: int
    numbers: Callable[[int], tuple[int, list[int]]]
    load: Callable[[int, int], Images]
    features: Callable[[Tensor], Tensor]
    rate: Callable[[int], float]
    every: int
    seed: int
    evaluate: Callable[[int], dict] = field(default=lambda step: {})


def in_order(count: int, batch: int, seed: int | None) -> Callable[[int], tuple[int, list[int]]]:
    """`Course.numbers` of an endless stream over all pictures, shuffled anew each time by (seed, epoch); None: as they
    are."""

    @lru_cache(2)  # of the many steps of an epoch
    def order(epoch: int) -> list[int]:
        if seed is None:
            return list(range(count))
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()

    def numbers(step: int) -> tuple[int, list[int]]:
        first, last = step * batch // count, ((step + 1) * batch - 1) // count
        stream = [i for epoch in range(first, last + 1) for i in order(epoch)]
        start = step * batch - first * count
        return first, stream[start : start + batch]

    return numbers


def by_epoch(count: int, batch: int) -> Callable[[int], tuple[int, list[int]]]:
    """`Course.numbers` of epochs whose last step may be smaller, in the list's order: NeCo's loader of VOC does not
    shuffle (data/VOCdevkit/vocdata.py)."""
    each = -(-count // batch)

    def numbers(step: int) -> tuple[int, list[int]]:
        epoch, at = divmod(step, each)
        return epoch, list(range(at * batch, min((at + 1) * batch, count)))

    return numbers


def fit(
    head: nn.Module,
    optimiser: torch.optim.Optimizer,
    course: Course,
    file: Path,
    key: str,
    progress: Callable[[int, str], None],
) -> tuple[list[float], list[dict]]:
    """Train a head; -> the losses of the steps made here, and what `evaluate` gave each time.

    file: where the state is kept, for an interrupted run with the same `key`. Raises UserError for a loss that is not
    finite.
    """
    step, found = _resume(head, optimiser, file, key)
    losses: list[float] = []
    device = next(head.parameters()).device
    for images, labels in _stream(course, range(step, course.steps)):
        head.train()
        for group in optimiser.param_groups:
            group["lr"] = course.rate(step)
        features = course.features(images)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(course.seed * 1_000_003 + step)
            loss = head.loss(features.clone(), labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if losses[-1] != losses[-1] or abs(losses[-1]) == float("inf"):
            raise UserError(f"the loss is {losses[-1]} at step {step + 1}: the learning rate may be too high")
        step += 1
        if step % course.every == 0 or step == course.steps:
            head.eval()
            found.append({"step": step} | course.evaluate(step))
            state = {"head": head.state_dict(), "optimiser": optimiser.state_dict(), "found": found}
            write_atomic(file, partial(torch.save, state | {"step": step, "key": key}))
        progress(step, f"step {step}/{course.steps} loss {losses[-1]:.3f}")
    head.eval()
    return losses, found


def _resume(head: nn.Module, optimiser, file: Path, key: str) -> tuple[int, list[dict]]:
    """Take over the state of an interrupted run; -> steps that are done, and what was evaluated."""
    try:
        state = load_state(file)
    except UserError:  # there is none, or it is damaged: the steps are made again
        return 0, []
    if not isinstance(state, dict) or state.get("key") != key:
        return 0, []
    head.load_state_dict(state["head"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["found"]


def _stream(course: Course, steps: range) -> Iterator[Images]:
    """The pictures and labels of each step, read ahead by threads."""
    cores = os.cpu_count() or 1

    def load(step: int) -> Images:
        epoch, numbers = course.numbers(step)
        images, labels = zip(*(course.load(i, epoch) for i in numbers), strict=True)
        return torch.stack(images), torch.stack(labels)

    with ThreadPoolExecutor(cores) as threads:
        yield from ahead(partial(threads.submit, load), steps, cores + 1)


@torch.inference_mode()
def slide(scores: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, size: tuple[int, int]) -> Tensor:
    """A picture [1, 3, H, W] -> classes int64 [size], from windows whose scores are summed and divided by how many
    cover a pixel; the last windows are moved inside (dinov3/eval/segmentation/inference.py).

    scores: of a window [1, 3, h, w] at any resolution, [1, C, h', w'].
    """
    height, width = image.shape[-2:]
    total = count = None
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            part = image[:, :, top : top + window, left : left + window]
            some = F.interpolate(scores(part), size=part.shape[-2:], mode="bilinear", align_corners=False)
            if total is None:
                total = some.new_zeros(1, some.shape[1], height, width)
                count = some.new_zeros(1, 1, height, width)
            total[:, :, top : top + part.shape[-2], left : left + part.shape[-1]] += some
            count[:, :, top : top + part.shape[-2], left : left + part.shape[-1]] += 1
    whole = F.interpolate(total / count, size=size, mode="bilinear", align_corners=False)
    return whole.softmax(1).argmax(1)[0]


def _starts(length: int, window: int, stride: int) -> list[int]:
    stride = min(stride, window)  # a longer one would leave pixels that no window sees
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]
