"""DINO: image vectors of all views predict the teacher's prototypes of the other global views.

Source: facebookresearch/dino 7c446df, main_dino.py: DINOLoss; as SelfPatch uses it: alinlab/SelfPatch 81aef14,
main_selfpatch.py.
"""

from dataclasses import dataclass

from torch import Tensor

from ..common.ranges import one_of
from . import HeadSpec, Net, Spec, Step, check_two_views
from ._prototypes import PrototypeConfig, PrototypeObjective, head_factory


@dataclass
class Config(PrototypeConfig):
    """Options of DINO."""

    # Views that the centre is of: global, those that are targets | all, as in SelfPatch: the teacher then sees all.
    centre_views: str = one_of("global", "all")


class Objective(PrototypeObjective):
    """Mean over pairs (t, v), t global, v != t, of CE(softmax((z_t - centre) / tau_t), z_v / tau_s)."""

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        check_two_views("dino", net)
        head = HeadSpec(head_factory(cfg), teacher_groups=cfg.centre_views)
        return Spec({cfg.head: head}, teacher_views=cfg.centre_views)

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg, net)
        self.pairs = net.pairs

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        head = self.cfg.head
        p, entropy = self.targets(teacher[0][head], step)  # [G, B, K], [G, B]
        every, loss = p.sum(0), 0.0
        for g, out in enumerate(student):
            targets = every if g else every - p  # a global view is not compared with itself
            loss = loss + self.cross_entropy(targets, out[head]).sum()
        images = p.shape[1]
        loss = loss / (images * self.pairs)
        seen = [t[head] for t in (teacher if self.cfg.centre_views == "all" else teacher[:1])]
        centre_sum = sum(t.sum((0, 1), dtype=p.dtype) for t in seen)
        rows = sum(t.shape[0] * t.shape[1] for t in seen)
        return {"image": loss}, self.stats(loss, entropy.mean(), images, centre_sum, rows)
