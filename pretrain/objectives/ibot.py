"""iBOT: masked patches of a view predict the teacher's prototypes of the same patches, unmasked.

Source: bytedance/ibot da316d8, main_ibot.py: iBOTLoss; as SERE uses it: MCG-NKU/SERE e20f37f, main_sere.py. Zhou et
al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022. It is the patch term alone; the published method
adds it to `dino`, whose image vectors of global views come from the masked input too.
"""

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from ..common.errors import UserError
from ..common.ranges import bounded
from ..model.heads import PrototypeHead, WeightNormLinear
from . import HeadSpec, Net, Spec, Step
from ._prototypes import PrototypeConfig, PrototypeObjective, head_factory


@dataclass
class Config(PrototypeConfig):
    """Options of the patches' term."""

    # Name of the patches' head.
    head: str = "patch_head"
    # Prototypes, where it has its own.
    outputs: int = bounded(8192, at_least=1, at_most=2**24)
    # Name of the head whose module the patches go through too, that of `dino` (null: a head of their own).
    shares: str | None = "head"
    # Share its MLP only, with prototypes of their own.
    own_last_layer: bool = False


class DerivedHead(PrototypeHead):
    """The MLP of another prototype head under prototypes of its own."""

    def __init__(self, other: PrototypeHead, outputs: int, norm_last_layer: bool):
        nn.Module.__init__(self)
        self.mlp = other.mlp
        self.last_layer = WeightNormLinear(other.last_layer.weight_v.shape[1], outputs, norm_last_layer)


class Objective(PrototypeObjective):
    """Mean over global views and images of the mean over masked patches i of CE(softmax((t_i - centre) / tau_t),
    s_i / tau_s), which is 0 for an empty mask. The centre is that of all patches of the global views, masked or not."""

    @staticmethod
    def spec(cfg: Config, net: Net) -> Spec:
        if not net.masks:
            raise UserError("objective ibot: the views come without masks: set views.mask.kind=block")
        if cfg.own_last_layer and cfg.shares is None:
            raise UserError("objective ibot: own_last_layer=true is about a head that is shared, and shares=null")
        head = HeadSpec(head_factory(cfg), "masked", teacher_input="patch", shares=cfg.shares, groups="global")
        if cfg.own_last_layer:
            derive = partial(DerivedHead, outputs=cfg.outputs, norm_last_layer=cfg.norm_last_layer)
            head = replace(head, derive=derive)
        return Spec({cfg.head: head}, needs_mask=True)

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        c, mask = self.cfg, groups[0].mask.flatten(0, 1).flatten(1)  # [V * B, N]
        logits, every = student[0][c.head], teacher[0][c.head].flatten(0, 2)  # [R, K], [V * B * N, K]
        if every.shape[1] != self.centre.shape[1]:
            given = f"{every.shape[1]} of the head {c.shares} that it shares"
            raise UserError(f"objective ibot: outputs={c.outputs} has to be the {given}; or set own_last_layer=true")
        p, entropy = self.targets(every[groups[0].masked()], step)  # [R, K], [R]
        masked = mask.sum(1)
        weight = (1 / (masked.clamp(min=1) * len(mask)).to(p)).repeat_interleave(masked, output_size=len(p))
        loss = (weight * self.cross_entropy(p, logits)).sum()
        images, centre_sum = groups[0].x.shape[1], every.sum(0, dtype=p.dtype)
        stats = self.stats(loss, (weight * entropy).sum(), images, centre_sum, len(every))
        # In the log, entropy and divergence are means over the views that have a mask.
        return {"patch": loss}, stats | {"images": images * (masked > 0).to(p).mean()}

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().update(stats | {"images": stats["images"].clamp(min=1e-6)})
