"""PW-Self: class token and patches of all views predict the teacher's prototypes of the same place in another view.

Source: alijavidani/Local_Global_Representation_Learning 7eeff8c, patch_wise_dino.py: DINOLoss; Javidani et al.,
Patch-Wise Self-Supervised Visual Representation Learning: A Fine-Grained Approach, arXiv 2310.18651.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import UserError
from ..geometry import match
from . import HeadSpec, Net, Spec, Step
from ._prototypes import PrototypeConfig, PrototypeObjective, cross_entropy, head_factory


@dataclass
class Config(PrototypeConfig):
    """centre: of the teacher's outputs at every "position", as in the official code; one for class tokens and one for
    patches ("kind"); or one of all tokens ("prototype")."""

    centre: str = "position"


class Objective(PrototypeObjective):
    """Mean over pairs (t, v), t global, v != t, images, and pairs of tokens (i, j) of CE(softmax((t_i - centre_i) /
    tau_t), v_j / tau_s): the class tokens, and the patches that geometry.match finds."""

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        if cfg.centre not in ("position", "kind", "prototype"):
            raise UserError(f"objective pwself: centre={cfg.centre}: it is position, kind or prototype")
        if sum(net.counts) < 2:
            raise UserError("objective pwself compares views with one another: it needs two at least")
        return Spec({cfg.head: HeadSpec(head_factory(cfg), "tokens")})

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg)
        self.grids = net.grids
        self.pairs = net.counts[0] * (sum(net.counts) - 1)
        tokens = 1 + net.grids[0][0] * net.grids[0][1]
        count = {"position": tokens, "kind": 2, "prototype": 1}[cfg.centre]
        self.register_buffer("row", torch.arange(tokens).clamp(max=count - 1), persistent=False)  # of a token's centre
        self.register_buffer("centre", torch.zeros(count, cfg.outputs))

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        head = self.cfg.head
        seen = teacher[0][head]  # [G, B, 1 + N, K]
        images = seen.shape[1]
        kind = torch.promote_types(seen.dtype, torch.float32)
        tokens, centre = seen.flatten(0, 2), self.row.repeat(len(seen) * images)
        loss, entropy = 0.0, torch.zeros((), dtype=kind, device=seen.device)
        for g, out in enumerate(student):
            logits = out[head]  # [V, B, 1 + n, K]
            source, weight = self.partners(groups, g)
            targets = Targets(self, tokens, centre, source, weight.to(kind), step)
            total = cross_entropy(logits.flatten(0, 2), targets, self.cfg.student_temperature, weight=targets.mass)
            loss = loss + total / (images * self.pairs)
            entropy = entropy + targets.entropy / (images * self.pairs)
        sums = seen.sum((0, 1), dtype=kind)  # [1 + N, K]
        stats = self.stats(loss, entropy, images, sums, len(seen) * images)
        rows = torch.bincount(self.row, minlength=len(self.centre)).to(kind) * len(seen) * images
        centre_sum = torch.zeros_like(self.centre, dtype=kind).index_add_(0, self.row, sums)
        return {"tokens": loss}, stats | {"centre_sum": centre_sum, "centre_rows": rows[:, None]}

    @torch.no_grad()
    def partners(self, groups, g: int) -> tuple[Tensor, Tensor]:
        """For every teacher's view and every token of the views of group g, in view-major order: the number of the
        teacher's token [G, B, 1 + N] at the same place, and the weight of the pair, 1 / (pairs of these two views), 0
        for no pair. [G, V * B * (1 + n)] each. A token has one partner in another view at most."""
        a, b = groups[0], groups[g]
        count, views, images = len(a.box), len(b.box), a.box.shape[1]
        box_a, flip_a = (x[:, None].expand(count, views, *x.shape[1:]).flatten(0, 2) for x in (a.box, a.flip))
        box_b, flip_b = (x.expand(count, *x.shape).flatten(0, 2) for x in (b.box, b.flip))
        i, j, valid = match(box_a, flip_a, self.grids[0], box_b, flip_b, self.grids[g])
        width = 1 + self.grids[g][0] * self.grids[g][1]
        weight = (valid.double() / valid.sum(1, keepdim=True)).view(count, views, -1)
        if g == 0:  # no view is compared with itself
            weight = weight * ~torch.eye(count, dtype=torch.bool, device=weight.device)[:, :, None]
        j = torch.where(valid, j, width)  # padding goes to a place of its own, which is cut off
        partner, share = (
            x.new_zeros(len(i), width + 1).scatter_(1, j, x)[:, :-1].view(count, views, images, width)
            for x in (i, weight.view(len(i), -1))
        )
        image = torch.arange(count * images, device=i.device).view(count, 1, images, 1)
        return (image * len(self.row) + partner).flatten(1), share.flatten(1)


class Targets:
    """For student tokens, R = V * B * (1 + n) rows: the targets from all teacher's views, averaged by weight; adds up
    their entropy, times weight, on the way.

    tokens [G * B * (1 + N), K]: the teacher's logits; centre [G * B * (1 + N)]: row of the centre for each; source,
    weight [G, R]: which of them belong to a row. mass [R]: sum of the weights.
    """

    def __init__(
        self, objective: Objective, tokens: Tensor, centre: Tensor, source: Tensor, weight: Tensor, step: Step
    ):
        self.objective, self.step, self.tokens, self.centre = objective, step, tokens, centre
        self.source, self.weight, self.mass = source, weight, weight.sum(0)
        self.entropy = 0.0

    @torch.no_grad()
    def __call__(self, a: int, b: int) -> Tensor:
        mixed = 0.0
        for source, weight in zip(self.source[:, a:b], self.weight[:, a:b, None], strict=True):
            if not weight.any():
                continue
            log_p = self.objective.log_targets(self.tokens[source], self.step, self.centre[source])
            p = log_p.exp()
            self.entropy = self.entropy - (p * log_p * weight).sum()
            mixed = mixed + p * weight
        if isinstance(mixed, float):  # rows without a partner
            return self.weight.new_zeros(b - a, self.tokens.shape[1])
        return mixed / self.mass[a:b, None].clamp(min=torch.finfo(self.mass.dtype).tiny)
