"""SERE: how the patches, and how the channels, of a view relate to one another is as the teacher has it in other views.

Source: MCG-NKU/SERE e20f37f, main_sere.py and models/; Li et al., SERE: Exploring Feature Self-Relation for
Self-Supervised Transformer, TPAMI 2023. It is the two self-relation terms alone; the published method adds them to
`dino` and `ibot`, both times (4 - spatial - channel) / 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.ranges import bounded
from ..geometry import overlap_grid, sampling
from ..model.batchnorm import BatchNorm
from . import HeadSpec, Net, Spec, Step
from ._prototypes import CHUNK


@dataclass
class Config:
    """spatial, channel: weights of the two terms (the README's alpha and beta). *_temperature: the teacher's; the
    student's are 1. samples: points along each side of the overlap of two global views, local_samples of a local and a
    global one. border: what lies beyond a crop's edge: "zeros", as in the official code, which halves samples on the
    edge, or "repeat" the outermost patches. no_overlap: pairs of views without any count as "constant" terms without
    gradient, as in the official code, or "drop" them from an image's mean."""

    spatial: float = bounded(0.2, at_least=0, at_most=10**6)
    channel: float = bounded(0.5, at_least=0, at_most=10**6)
    spatial_temperature: float = bounded(0.5, above=0)
    channel_temperature: float = bounded(0.1, above=0)
    samples: int = bounded(13, at_least=2, at_most=1000)
    local_samples: int = bounded(6, at_least=2, at_most=1000)
    border: str = "zeros"
    no_overlap: str = "constant"


class RelationHead(nn.Module):
    """Raw patches [M, N, D] -> features to relate [M, N, D]: batch normalisation and ReLU; for the student (`predict`)
    then a linear layer without bias, and both again. Statistics are those of all rows of a call, over all processes.
    Initialised as the framework does."""

    def __init__(self, dim: int, predict: bool):
        super().__init__()
        self.projection = nn.Sequential(BatchNorm(dim), nn.ReLU())
        self.predictor = nn.Sequential()
        if predict:
            self.predictor = nn.Sequential(nn.Linear(dim, dim, bias=False), BatchNorm(dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.projection(x))


class Objective(nn.Module):
    """Means over pairs (t, v), t global, v != t, images and rows of CE(softmax(R_t / tau), softmax(R_v)).

    spatial: R = X X^T / sqrt(d) for every attention head, X its d features at points of the views' overlap; a row is a
    point. channel: R = X^T X / N of all N patches; a row is a channel.
    """

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        for name, valid in (("border", ("zeros", "repeat")), ("no_overlap", ("constant", "drop"))):
            if getattr(cfg, name) not in valid:
                raise UserError(f"objective sere: {name}={getattr(cfg, name)}: it is {' or '.join(valid)}")
        if not cfg.spatial + cfg.channel:
            raise UserError("objective sere: the weights spatial and channel must not both be 0")
        if sum(net.counts) < 2:
            raise UserError("objective sere compares views with one another: it needs two at least")
        head = HeadSpec(
            partial(RelationHead, predict=True),
            "raw",
            teacher_factory=partial(RelationHead, predict=False),
            per_group=True,
            teacher_groups="global",
        )
        return Spec({n: head for n in ("spatial", "channel") if getattr(cfg, n)}, bn_scope="group")

    def __init__(self, cfg: Config, net: Net):
        super().__init__()
        self.cfg, self.grids, self.heads = cfg, net.grids, net.heads
        self.pairs = net.counts[0] * (sum(net.counts) - 1)

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, stats = {}, {}
        images = groups[0].x.shape[1]
        for name, term in (("spatial", self.spatial), ("channel", self.channel)):
            weight = getattr(self.cfg, name)
            if weight:
                mean = term([s[name] for s in student], teacher[0][name], groups) / images
                losses[name] = weight * mean
                stats[f"{name}_sum"] = mean.detach() * images
        first = next(iter(losses.values()))
        return losses, stats | {"images": first.detach().new_tensor(images)}

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """-> the terms before their weights."""
        return {f"{n}_loss": stats[f"{n}_sum"] / stats["images"] for n in ("spatial", "channel") if f"{n}_sum" in stats}

    def channel(self, student: list[Tensor], teacher: Tensor, groups) -> Tensor:
        """Sum over images. student: per group [V, B, n, D]; teacher [G, B, N, D]."""
        count, tau = len(teacher), self.cfg.channel_temperature
        seen, scale = teacher.permute(1, 0, 3, 2), 1 / (teacher.shape[2] * tau)  # [B, G, D, N]

        def every(a: int, b: int) -> Tensor:  # a local view has all global ones as its targets
            return relation(seen[a:b], scale).softmax(-1).sum(1, keepdim=True)

        def others(a: int, b: int) -> Tensor:
            p = relation(seen[a:b], scale).softmax(-1)
            return p.sum(1, keepdim=True) - p if count > 2 else p.flip(1)

        total = 0.0
        for g, q in enumerate(student):
            mass = count if g else count - 1
            if mass:
                rows = q.permute(1, 0, 3, 2)
                total = total + relation_cross_entropy(rows, every if g else others, 1 / q.shape[2], mass)
        return total / (self.pairs * teacher.shape[3])

    def spatial(self, student: list[Tensor], teacher: Tensor, groups) -> Tensor:
        """Sum over images. student: per group [V, B, n, D]; teacher [G, B, N, D]."""
        found = [self.aligned(q, teacher, groups, g) for g, q in enumerate(student)]
        found = [x for x in found if x is not None]
        valid = sum(v.sum(1) for *_, v in found)  # [B]: pairs that overlap
        width = teacher.shape[3] // self.heads
        total = 0.0
        for q, z, overlap in found:

            def targets(a: int, b: int, z=z) -> Tensor:
                return relation(z[a:b], width**-0.5 / self.cfg.spatial_temperature).softmax(-1)

            share = 1 / (q.shape[2] * self.heads)
            weight = torch.full_like(overlap, share / self.pairs)
            if self.cfg.no_overlap == "drop":
                weight = overlap * share / valid.clamp(min=1)[:, None]
            weight = weight.repeat_interleave(self.heads, 1)
            total = total + relation_cross_entropy(q, targets, width**-0.5, 1.0, weight)
        return total

    def aligned(self, student: Tensor, teacher: Tensor, groups, g: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Student's views [V, B, n, D] of group g and the teacher's [G, B, N, D], sampled where they overlap.

        -> [B, P * H, s * s, d] each, for P pairs and H attention heads, and whether the pairs overlap [B, P] (1 or 0).
        None if there are no pairs.
        """
        pairs = [(t, v) for t in range(len(teacher)) for v in range(len(student)) if g or v != t]
        if not pairs:
            return None
        (a, b), images = (groups[0], groups[g]), teacher.shape[1]
        boxes = [
            torch.cat(x) for x in zip(*((a.box[t], a.flip[t], b.box[v], b.flip[v]) for t, v in pairs), strict=True)
        ]
        *grids, valid = overlap_grid(*boxes, self.cfg.local_samples if g else self.cfg.samples)
        made = []
        for x, side, hw, grid in ((student, 1, self.grids[g], grids[1]), (teacher, 0, self.grids[0], grids[0])):
            # Where nothing overlaps all points are alike, zeros or a repeated corner: even relations, no gradient.
            matrix = sampling(grid, hw, self.cfg.border == "repeat", x.dtype)
            parts, views = matrix.split(images), x.unbind()
            points = [part @ views[pair[side]] for part, pair in zip(parts, pairs, strict=True)]  # [B, s * s, D] each
            made.append(torch.stack(points, 1).unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(1, 2))
        kind = torch.promote_types(student.dtype, torch.float32)
        return *made, valid.view(-1, images).t().to(kind)


def relation(x: Tensor, scale: float) -> Tensor:
    """Features [..., n, f] -> scaled products of all pairs of rows [..., n, n], at least float32."""
    y = x @ x.transpose(-1, -2)
    return y.to(torch.promote_types(y.dtype, torch.float32)) * scale


def relation_cross_entropy(
    features: Tensor, targets: Callable[[int, int], Tensor], scale: float, mass: float, weight: Tensor | None = None
) -> Tensor:
    """Sum over images, blocks and rows of weight * CE(target row, softmax(row of features features^T * scale)).

    features [B, P, n, f]; targets(a, b) -> rows of images a..b, [b - a, P or 1, n, n], each summing to `mass`; weight
    [B, P] -> scalar, at least float32. Relations are made some images at a time, and the gradient on the way: what
    lives until the backward pass is of the features' size, linear in n.
    """
    return _RelationCrossEntropy.apply(features, targets, scale, mass, weight)


class _RelationCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, targets, scale, mass, weight):
        kind = torch.promote_types(features.dtype, torch.float32)
        total = torch.zeros((), dtype=kind, device=features.device)
        buffer = torch.empty(features.shape, dtype=kind, device=features.device) if ctx.needs_input_grad[0] else None
        images, blocks, rows = features.shape[:3]
        step = max(1, CHUNK[features.device.type == "cpu"] // (blocks * rows**2))
        for a in range(0, images, step):
            x, q = features[a : a + step], targets(a, min(a + step, images))
            log_p = relation(x, scale).log_softmax(-1)
            w = None if weight is None else weight[a : a + step, :, None, None]
            every = q * log_p
            total -= (every if w is None else every * w).sum()
            if buffer is not None:
                difference = log_p.exp_().mul_(mass).sub_(q)
                made = (difference + difference.transpose(-1, -2)).to(x.dtype) @ x
                buffer[a : a + step] = made if w is None else made * w  # small factors in float32
        ctx.buffer, ctx.scale, ctx.kind = buffer, scale, features.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        buffer, ctx.buffer = ctx.buffer, None
        if buffer is None:
            raise RuntimeError("the gradient of this cross-entropy has been handed out already; compute the loss again")
        return buffer.mul_(grad * ctx.scale).to(ctx.kind), None, None, None, None
