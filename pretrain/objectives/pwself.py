"""PW-Self: class token and patches of all views predict the teacher's prototypes of the same place in another view.

Source: alijavidani/Local_Global_Representation_Learning 7eeff8c, patch_wise_dino.py: DINOLoss; Javidani et al.,
Patch-Wise Self-Supervised Visual Representation Learning: A Fine-Grained Approach, arXiv 2310.18651.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.ranges import one_of
from ..geometry import match
from . import HeadSpec, Net, Spec, Step, check_two_views
from ._prototypes import PrototypeConfig, PrototypeObjective, head_factory


@dataclass
class Config(PrototypeConfig):
    """Options of PW-Self."""

    # Of the teacher's outputs: position (one for each, as officially) | kind (class token, patches) | prototype (one).
    centre: str = one_of("position", "kind", "prototype")


class Objective(PrototypeObjective):
    """Mean over pairs (t, v), t global, v != t, images, and pairs of tokens (i, j) of CE(softmax((t_i - centre_i) /
    tau_t), v_j / tau_s): the class tokens, and the patches that geometry.match finds."""

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        check_two_views("pwself", net)
        return Spec({cfg.head: HeadSpec(head_factory(cfg), "tokens")})

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg, net)
        self.grids, self.pairs = net.grids, net.pairs
        tokens = 1 + net.grids[0][0] * net.grids[0][1]
        count = {"position": tokens, "kind": 2, "prototype": 1}[cfg.centre]
        self.register_buffer("row", torch.arange(tokens).clamp(max=count - 1), persistent=False)  # of a token's centre
        self.register_buffer("tokens", torch.bincount(self.row, minlength=count), persistent=False)  # of a centre
        self.register_buffer("centre", torch.zeros(count, cfg.outputs))

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        seen = teacher[0][self.cfg.head]  # [G, B, 1 + N, K]
        count, images = seen.shape[:2]
        p, entropies = (x.flatten(0, 2) for x in self.targets(seen, step, self.row))
        loss, entropy = 0.0, 0.0
        for g, out in enumerate(student):
            source, weight = self.partners(groups, g, p.dtype)
            mixed = F.embedding_bag(source, p, mode="sum", per_sample_weights=weight)  # of all teacher's views
            loss = loss + self.cross_entropy(mixed, out[self.cfg.head].flatten(0, 2)).sum()
            entropy = entropy + (weight * entropies[source]).sum()
        loss, entropy = (x / (images * self.pairs) for x in (loss, entropy))
        sums = seen.sum((0, 1), dtype=p.dtype)  # [1 + N, K]
        centre_sum = torch.zeros_like(self.centre, dtype=p.dtype).index_add_(0, self.row, sums)
        rows = self.tokens.to(p) * count * images
        return {"tokens": loss}, self.stats(loss, entropy, images, centre_sum, rows[:, None])

    @torch.no_grad()
    def partners(self, groups, g: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """For every token of the views of group g [V, B, 1 + n] and every teacher's view: the number of the teacher's
        token [G, B, 1 + N] at the same place, and the weight of the pair, 1 / (pairs of these two views), 0 for no
        pair. [V * B * (1 + n), G] each. A token has one partner in another view at most."""
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
        return (image * len(self.row) + partner).flatten(1).T, share.flatten(1).T.to(dtype)
