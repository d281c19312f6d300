"""Student, teacher and objectives as one module with a single forward.

The trainer (and DDP around it) sees only this: no head is left without gradient by accident, and no method has a name.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .config import OBJECTIVES, Config
from .data.group import Group, normalise
from .model.backbone import build_backbone, check_size, set_fused_attention
from .model.network import Network, own_stream
from .objectives import Net, Step, merge
from .optim import Ema


class Learner(nn.Module):
    """What a configuration describes.

    `learner(groups, step)` -> (total, losses, stats): the weighted sum to call backward on, every part detached under
    OBJECTIVE.PART, and detached sums under OBJECTIVE.STAT to be added over micro-steps and processes. Parameters:
    `student.*` (trained), `teacher.*` (no gradient), `objectives.*` (buffers).
    Raises UserError for a configuration that cannot be built.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        layout = cfg.views.groups()
        sizes = [cfg.views.specs()[views[0]].size for views in layout]
        with torch.device("meta"):
            plan = build_backbone(
                cfg.network.backbone,
                cfg.network.image_size or sizes[0],
                cfg.network.class_token,
                overrides=cfg.network.overrides,
            )
        for size in sizes:
            check_size(plan, size)
        patch = plan.stride
        net = Net(
            plan.num_features,
            cfg.network.readout,
            plan.cls_token is not None,
            tuple(len(views) for views in layout),
            tuple((size // patch, size // patch) for size in sizes),
            plan.blocks[-1].attn.num_heads,
            cfg.views.mask.kind != "none",
        )
        self.patch = patch
        active = [e for e in cfg.objectives if e.weight]
        kinds = {e.name: OBJECTIVES.get(e.name).module.Objective for e in active}
        self.weights = {e.name: e.weight for e in active}
        spec = merge({e.name: kinds[e.name].spec(e.options, net) for e in active})
        self.teacher_views = spec.teacher_views
        self.student, self.teacher = (
            Network(cfg.network, spec, side, sizes[0], len(sizes), cfg.seed) for side in ("student", "teacher")
        )
        self.teacher.requires_grad_(False)
        self.objectives = nn.ModuleDict()
        for entry in active:
            with own_stream(cfg.seed, f"objectives.{entry.name}"):
                self.objectives[entry.name] = kinds[entry.name](entry.options, net)
        self.ema = Ema(self.student, self.teacher)
        self.ema.copy()

    def forward(self, groups: Sequence[Group], step: Step) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        groups = [self.normalised(g) for g in groups]
        with torch.no_grad():
            seen = groups if self.teacher_views == "all" else [groups[0], *[None] * (len(groups) - 1)]
            teacher = self.teacher(seen)
        student = self.student(groups)
        total, losses, stats = 0.0, {}, {}
        for name, objective in self.objectives.items():
            parts, sums = objective(student, teacher, groups, step)
            total = total + self.weights[name] * sum(parts.values())
            losses |= {f"{name}.{k}": v.detach() for k, v in parts.items()}
            stats |= {f"{name}.{k}": v.detach() for k, v in sums.items()}
        return total, losses, stats

    def normalised(self, group: Group) -> Group:
        """uint8 pixels -> what the networks take; others pass."""
        if group.x.dtype != torch.uint8:
            return group
        kind = next(self.student.parameters()).dtype
        return replace(group, x=normalise(group.x, self.cfg.data.mean, self.cfg.data.std, kind))

    @torch.no_grad()
    def finish_step(self, stats: dict[str, Tensor], momentum: float) -> dict[str, Tensor]:
        """After the optimiser's step: EMA, then the objectives' updates from the added-up stats; -> numbers for the log
        under OBJECTIVE.NAME, 0-dim tensors."""
        self.ema.update(momentum)
        found = {}
        for name, objective in self.objectives.items():
            own = {k.removeprefix(f"{name}."): v for k, v in stats.items() if k.startswith(f"{name}.")}
            found |= {f"{name}.{k}": v for k, v in (objective.update(own) or {}).items()}
        return found

    def set_attention(self, device: str, low_precision: bool, fused: bool | None = None) -> None:
        """Choose the attention kernels for a device type ("cpu", "cuda") and precision; `fused` overrules."""
        if fused is None:
            fused = device != "cpu" or not low_precision
        set_fused_attention([self.student, self.teacher], fused)
