"""SelfPatch: every patch predicts the teacher's prototypes of its most similar neighbours, summarised.

Source: alinlab/SelfPatch 81aef14, main_selfpatch.py: DINOLoss and its patch term; Yun et al., Patch-Level
Representation Learning for Self-Supervised Vision Transformers, CVPR 2022, section 3. It is the patch objective alone;
the published method adds 0.1 of it to `dino`.
"""

from dataclasses import dataclass

from torch import Tensor

from ..common.ranges import bounded
from . import HeadSpec, Net, Spec, Step
from ._neighbours import NeighbourConfig
from ._prototypes import PrototypeConfig, PrototypeObjective, head_factory


@dataclass
class Config(NeighbourConfig, PrototypeConfig):
    """Options of SelfPatch's term, alinlab/SelfPatch 81aef14."""

    # Name of the patches' head.
    head: str = "p_head"
    # Prototypes: the width of its output.
    outputs: int = bounded(4096, at_least=1, at_most=2**24)


class Objective(PrototypeObjective):
    """Mean over views, images and patches i of CE(softmax((t_i - centre) / tau_t), s_i / tau_s), of the same view.

    s_i: head of the student's own patch; t_i: head of the teacher's summary of the neighbours of patch i.
    """

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        head = HeadSpec(head_factory(cfg), "patch", teacher_input=cfg.aggregated(net, "selfpatch"), groups=cfg.views)
        return Spec({cfg.head: head}, teacher_views=cfg.views)

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        name = self.cfg.head
        pairs = [(s[name], t[name]) for s, t in zip(student, teacher, strict=True) if t and name in t]
        views = sum(len(s) for s, _ in pairs)
        loss, entropy, centre_sum, rows = 0.0, 0.0, 0.0, 0
        for s, t in pairs:  # [V, B, N, K] each; every view weighs the same, however many patches it has
            p, entropies = self.targets(t, step)
            loss = loss + len(s) / views * self.cross_entropy(p, s).mean()
            entropy = entropy + len(s) / views * entropies.mean()
            centre_sum, rows = centre_sum + t.sum((0, 1, 2), dtype=p.dtype), rows + entropies.numel()
        images = pairs[0][0].shape[1]
        return {"patch": loss}, self.stats(loss, entropy, images, centre_sum, rows)
