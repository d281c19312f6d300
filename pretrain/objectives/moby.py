"""MoBY: image vectors of a view find the other view's key among a queue of former keys.

Source: SwinTransformer/Transformer-SSL 4510de1, models/moby.py; Xie et al., Self-Supervised Learning with Swin
Transformers, 2021. The update of the target before its keys are made is schedule.ema_shift=1.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..common.ranges import bounded
from ..model.heads import BatchNormMlp
from . import HeadSpec, Net, Spec, Step, check_two_views
from ._contrast import ContrastObjective, Queues, info_nce, unit


@dataclass
class Config:
    """Options of a contrast with a queue; the defaults are those of SwinTransformer/Transformer-SSL 4510de1."""

    # Name of the head on both sides.
    projector: str = "projector"
    # Name of the head that stands on the student's projector.
    predictor: str = "predictor"
    # Width of the hidden layers of both MLPs.
    hidden: int = bounded(4096, at_least=1, at_most=2**16)
    # Width of the outputs of both.
    outputs: int = bounded(256, at_least=1, at_most=2**16)
    # Layers of the projector.
    projector_layers: int = bounded(2, at_least=1, at_most=100)
    # Layers of the predictor.
    predictor_layers: int = bounded(2, at_least=1, at_most=100)
    # Keys kept of each global view.
    queue: int = bounded(4096, at_least=1, at_most=2**24)
    # Temperature of the softmax.
    temperature: float = bounded(0.2, above=0)


class Objective(ContrastObjective):
    """Mean over pairs (t, v), t global, v != t, of the mean over images of CE(first, [q_v . k_t, q_v . Q_t] / tau).

    q_v: unit output of the student's predictor; k_t: unit output of the teacher's projector; Q_t: the queue of the keys
    of view t. The official loss of two views is the sum of its two pairs: weight 2.
    """

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        check_two_views("moby", net)
        return Spec(heads(cfg, teacher_groups="global"), bn_scope="view")

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg, net)
        self.pairs = net.pairs
        self.queues = Queues(net.counts[0], cfg.outputs, cfg.queue)

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        keys = unit(teacher[0][self.cfg.projector])  # [G, B, C]
        queries = [q for out in student for q in unit(out[self.cfg.predictor])]  # of each view, [B, C]
        loss, positive = 0.0, keys.new_zeros(())
        for v, query in enumerate(queries):
            for t, key in enumerate(keys):
                if t != v:
                    loss = loss + info_nce(query, key, self.queues.keys[t], self.cfg.temperature)
                    positive = positive + (query.detach() * key).sum() * len(keys) / self.pairs
        stats = self.stats(positive, keys) | {"keys": step.in_batch(keys)}
        return {"image": loss / (self.pairs * keys.shape[1])}, stats


def heads(cfg, groups: str = "all", **projector) -> dict[str, HeadSpec]:
    """The projector of both sides, with these fields of its HeadSpec, and the predictor on the student's."""
    mlp = partial(BatchNormMlp, hidden=cfg.hidden, outputs=cfg.outputs)
    above = partial(mlp, layers=cfg.predictor_layers)
    return {
        cfg.projector: HeadSpec(partial(mlp, layers=cfg.projector_layers), groups=groups, **projector),
        cfg.predictor: HeadSpec(above, cfg.projector, side="student", groups=groups),
    }
