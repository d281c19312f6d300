"""DINO: image vectors of all views predict the teacher's prototypes of the other global views.

Source: facebookresearch/dino 7c446df, main_dino.py: DINOLoss; as SelfPatch uses it: alinlab/SelfPatch 81aef14,
main_selfpatch.py.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..common.errors import UserError
from . import HeadSpec, Net, Spec, Step
from ._prototypes import PrototypeConfig, PrototypeObjective, cross_entropy, head_factory


@dataclass
class Config(PrototypeConfig):
    """centre_views: "global", the views that are targets, or "all", as in SelfPatch: the teacher then sees all."""

    centre_views: str = "global"


class Objective(PrototypeObjective):
    """Mean over pairs (t, v), t global, v != t, of CE(softmax((z_t - centre) / tau_t), z_v / tau_s)."""

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        if cfg.centre_views not in ("global", "all"):
            raise UserError(f"objective dino: centre_views={cfg.centre_views}: it is global or all")
        if sum(net.counts) < 2:
            raise UserError("objective dino compares views with one another: it needs two at least")
        head = HeadSpec(head_factory(cfg), teacher_groups=cfg.centre_views)
        return Spec({cfg.head: head}, teacher_views=cfg.centre_views)

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg)
        self.pairs = net.counts[0] * (sum(net.counts) - 1)

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        head, tau = self.cfg.head, self.cfg.student_temperature
        with torch.no_grad():
            log_p = self.log_targets(teacher[0][head], step)  # [G, B, K]
            p = log_p.exp()
            count, images = p.shape[:2]
            entropy = -(p * log_p).sum(-1).mean()
            del log_p
            seen = [t[head] for t in (teacher if self.cfg.centre_views == "all" else teacher[:1])]
            centre_sum = sum(t.sum((0, 1), dtype=p.dtype) for t in seen)
            every = p.sum(0)  # [B, K]: the targets of a local view, added up
            others = torch.stack([p[[t for t in range(count) if t != v]].sum(0) for v in range(count)]).flatten(0, 1)
        total = 0.0
        for g, out in enumerate(student):
            logits = out[head].flatten(0, 1)  # [V * B, K]
            if g:
                total = total + cross_entropy(logits, partial(repeat, every), tau, count)
            elif count > 1:
                total = total + cross_entropy(logits, lambda a, b: others[a:b], tau, count - 1)
        loss = total / (images * self.pairs)
        rows = sum(t.shape[0] * t.shape[1] for t in seen)
        return {"image": loss}, self.stats(loss, entropy, images, centre_sum, rows)


def repeat(x: Tensor, a: int, b: int) -> Tensor:
    """Rows a..b of x [B, K] repeated without end."""
    return x[torch.arange(a, b, device=x.device) % len(x)]
