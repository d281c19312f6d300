"""SERE: how the patches, and how the channels, of a view relate to one another is as the teacher has it in other views.

Source: MCG-NKU/SERE e20f37f, main_sere.py and models/; Li et al., SERE: Exploring Feature Self-Relation for
Self-Supervised Transformer, TPAMI 2023. It is the two self-relation terms alone; the published method adds them to
`dino` and `ibot`, both times (4 - spatial - channel) / 2.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.ranges import bounded, one_of
from ..geometry import overlap_grid, sampling
from ..model.batchnorm import BatchNorm
from . import HeadSpec, Net, Spec, Step, check_two_views
from . import Objective as Base
from ._soft_cross_entropy import CrossEntropy


@dataclass
class Config:
    """Options of SERE, MCG-NKU/SERE e20f37f."""

    # Weight of the spatial term (the README's alpha).
    spatial: float = bounded(0.2, at_least=0, at_most=10**6)
    # Weight of the channel term (the README's beta).
    channel: float = bounded(0.5, at_least=0, at_most=10**6)
    # Temperature of the teacher's spatial relations; the student's is 1.
    spatial_temperature: float = bounded(0.5, above=0)
    # Temperature of the teacher's channel relations; the student's is 1.
    channel_temperature: float = bounded(0.1, above=0)
    # Points along each side of the overlap of two global views.
    samples: int = bounded(13, at_least=2, at_most=1000)
    # The same for a local and a global view.
    local_samples: int = bounded(6, at_least=2, at_most=1000)
    # Beyond a crop's edge: zeros, as in the official code (they halve samples on the edge) | repeat (the patches).
    border: str = one_of("zeros", "repeat")
    # Pairs of views without any: constant (terms without gradient, as in the official code) | drop (from the mean).
    no_overlap: str = one_of("constant", "drop")


def relation_head(dim: int, predict: bool) -> nn.Module:
    """Raw patches [M, N, D] -> features to relate [M, N, D]: batch normalisation and ReLU; for the student (`predict`)
    then a linear layer without bias, and both again. Statistics are those of all rows of a call, over all processes.
    Initialised as the framework does."""
    parts = {"projection": nn.Sequential(BatchNorm(dim), nn.ReLU()), "predictor": nn.Sequential()}
    if predict:
        parts["predictor"] = nn.Sequential(nn.Linear(dim, dim, bias=False), BatchNorm(dim), nn.ReLU())
    return nn.Sequential(OrderedDict(parts))


class Objective(Base):
    """Means over pairs (t, v), t global, v != t, images and rows of CE(softmax(R_t / tau), softmax(R_v)).

    spatial: R = X X^T / sqrt(d) for every attention head, X its d features at points of the views' overlap; a row is a
    point. channel: R = X^T X / N of all N patches; a row is a channel.
    """

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        if not cfg.spatial + cfg.channel:
            raise UserError("objective sere: the weights spatial and channel must not both be 0")
        check_two_views("sere", net)
        head = HeadSpec(
            partial(relation_head, predict=True),
            "raw",
            teacher_factory=partial(relation_head, predict=False),
            per_group=True,
            teacher_groups="global",
        )
        return Spec({n: head for n in ("spatial", "channel") if getattr(cfg, n)}, bn_scope="group")

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg, net)
        self.grids, self.heads, self.pairs = net.grids, net.heads, net.pairs
        self.cross_entropy = CrossEntropy()

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, stats = {}, {}
        images = groups[0].x.shape[1]
        for name, term in (("spatial", self.spatial), ("channel", self.channel)):
            if weight := getattr(self.cfg, name):
                mean = term([s[name] for s in student], teacher[0][name], groups) / images
                losses[name] = weight * mean
                stats |= {f"{name}_sum": mean.detach() * images, "images": mean.detach().new_full((), images)}
        return losses, stats

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """-> the terms before their weights."""
        return {f"{n}_loss": stats[f"{n}_sum"] / stats["images"] for n in ("spatial", "channel") if f"{n}_sum" in stats}

    def channel(self, student: list[Tensor], teacher: Tensor, groups) -> Tensor:
        """Sum over images. student: per group [V, B, n, D]; teacher [G, B, N, D]."""
        scale = 1 / (teacher.shape[2] * self.cfg.channel_temperature)
        p = relation(teacher.transpose(2, 3), scale).softmax(-1)  # [G, B, D, D]
        every, loss = p.sum(0), 0.0
        for g, q in enumerate(student):
            own = relation(q.transpose(2, 3), 1 / q.shape[2])  # [V, B, D, D]
            targets = every if g else every - p  # a global view is not compared with itself
            loss = loss + self.cross_entropy(targets, own).sum()
        return loss / (self.pairs * teacher.shape[3])

    def spatial(self, student: list[Tensor], teacher: Tensor, groups) -> Tensor:
        """Sum over images. student: per group [V, B, n, D]; teacher [G, B, N, D]."""
        scale = (teacher.shape[3] // self.heads) ** -0.5
        terms, overlaps = [], []
        for g, views in enumerate(student):
            if g == 0 and len(views) == 1:  # no other view in the group
                continue
            z, q, overlap = self.aligned(views, teacher, groups, g)
            p = relation(z, scale / self.cfg.spatial_temperature).softmax(-1)
            terms.append(self.cross_entropy(p, relation(q, scale)).mean((2, 3)))  # over heads and points: [P, B]
            overlaps.append(overlap)
        loss, overlap = torch.cat(terms), torch.cat(overlaps)  # [pairs, B]
        if self.cfg.no_overlap == "drop":
            return (loss * overlap / overlap.sum(0).clamp(min=1)).sum()
        return loss.sum() / self.pairs

    def aligned(self, student: Tensor, teacher: Tensor, groups, g: int) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher's views [G, B, N, D] and student's [V, B, n, D] of group g, sampled where they overlap.

        -> the teacher's and the student's features [P, B, H, s * s, d], for P pairs and H attention heads, and whether
        the pairs overlap [P, B] (1 or 0).
        """
        pairs = [(t, v) for t in range(len(teacher)) for v in range(len(student)) if g or v != t]
        a, b, (t, v) = groups[0], groups[g], zip(*pairs, strict=True)
        boxes = (chosen(x, at).flatten(0, 1) for x, at in ((a.box, t), (a.flip, t), (b.box, v), (b.flip, v)))
        *grids, valid = overlap_grid(*boxes, self.cfg.local_samples if g else self.cfg.samples)
        features = []
        for x, hw, grid in (
            (chosen(teacher, t), self.grids[0], grids[0]),
            (chosen(student, v), self.grids[g], grids[1]),
        ):
            # Where nothing overlaps all points are alike, zeros or a repeated corner: even relations, no gradient.
            matrix = sampling(grid, hw, self.cfg.border == "repeat", x.dtype).unflatten(0, x.shape[:2])
            features.append((matrix @ x).unflatten(-1, (self.heads, -1)).transpose(2, 3))
        return *features, valid.view(x.shape[:2])


def chosen(x: Tensor, views: Sequence[int]) -> Tensor:
    """x[views], without a list of indices that has to be copied to the device."""
    return torch.stack([x[v] for v in views])


def relation(x: Tensor, scale: float) -> Tensor:
    """Features [..., n, f] -> scaled products of all pairs of rows [..., n, n], at least float32."""
    y = x @ x.transpose(-1, -2)
    return y.to(torch.promote_types(y.dtype, torch.float32)) * scale
