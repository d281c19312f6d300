"""SelfPatch's patch pairs under MoBY's loss, with negatives or without: a RECONSTRUCTION.

The SelfPatch poster prints MoBY + SelfPatch with and without negatives in the patch objective; neither the official
repository nor any text that is at hand says what these are. Here a patch of the student finds the teacher's summary of
its most similar neighbours, of the same view, as MoBY's images find each other: projector and predictor of their own,
shaped as MoBY's. It is the patch objective alone; moby_selfpatch adds it to `moby`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.views import hashed
from . import Net, Spec, Step
from ._contrast import ContrastObjective, Queues, info_nce, unit
from ._neighbours import NeighbourConfig
from .moby import Config as MobyConfig
from .moby import heads

_PICK = 0x7069636B  # apart from the keys of other draws


@dataclass
class Config(NeighbourConfig, MobyConfig):
    """Options of SelfPatch's term on MoBY; the rest as in `moby`."""

    # Name of the patches' head on both sides.
    projector: str = "patch_projector"
    # Name of the patches' head that stands on the student's projector.
    predictor: str = "patch_predictor"
    # Contrast with a queue (temperature; queue: its length), else 2 - 2 cos.
    negatives: bool = True


class Objective(ContrastObjective):
    """Mean over views, images and patches i of 2 - 2 q_i . y_i, or of CE(first, [q_i . y_i, q_i . Q] / tau).

    q_i: unit output of the student's predictor for its own patch; y_i: unit output of the teacher's projector for its
    summary of the neighbours of patch i. Q: one queue, fed with one random y of every image and view.
    """

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        patch_heads = heads(cfg, cfg.views, input="patch", teacher_input=cfg.aggregated(net, "moby_patch"))
        return Spec(patch_heads, teacher_views=cfg.views, bn_scope="view")

    def __init__(self, cfg: Config, net: Net):
        super().__init__(cfg, net)
        if cfg.negatives:
            self.queues = Queues(1, cfg.outputs, cfg.queue)

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cfg = self.cfg
        pairs = [
            (unit(s[cfg.predictor]), unit(t[cfg.projector]))
            for s, t in zip(student, teacher, strict=True)
            if t and cfg.projector in t
        ]
        views = sum(len(q) for q, _ in pairs)
        loss, positive = 0.0, 0.0
        for queries, keys in pairs:  # [V, B, N, C] each
            q, k = queries.flatten(0, 2), keys.flatten(0, 2)
            near = (q * k).sum()
            total = info_nce(q, k, self.queues.keys[0], cfg.temperature) if cfg.negatives else 2 * (len(q) - near)
            loss = loss + total * (len(queries) / views / len(q))  # every view weighs the same
            positive = positive + near.detach()
        stats = self.stats(positive, torch.cat([k.flatten(0, 2) for _, k in pairs]))
        if cfg.negatives:
            chosen = [step.in_batch(one_each(k, step, g)) for g, (_, k) in enumerate(pairs)]
            stats["keys"] = torch.cat(chosen).flatten(0, 1)[None]
        return {"patch": loss}, stats


def one_each(keys: Tensor, step: Step, group: int) -> Tensor:
    """keys [V, B, N, C] -> one random patch of every view and image [V, B, C].

    Drawn for the whole batch by the step's number, so that it does not matter which process has which images.
    """
    views, images, patches = keys.shape[:3]
    stream = torch.Generator().manual_seed(hashed(_PICK, step.index, group) >> 1)
    pick = torch.randint(patches, (views, step.parts * images), generator=stream)
    pick = pick[:, step.part * images : (step.part + 1) * images, None, None]
    if keys.device.type == "cuda":  # from pinned memory: nobody waits for the copy
        pick = pick.pin_memory().to(keys.device, non_blocking=True)
    return keys.gather(2, pick.expand(-1, -1, 1, keys.shape[3])).squeeze(2)
