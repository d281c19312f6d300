"""Student, teacher and objectives of a configuration as one module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import optim
from ..config import OBJECTIVES, Config
from ..data.group import Group, normalise
from ..objectives import HeadSpec, Net, Step, merge
from .backbone import build_backbone, check_size
from .network import Network, own_stream
from .precision import cast_weights

ROWS = 64  # images of a global batch whose image vectors the log is about


class Learner(nn.Module):
    """Student, teacher and objectives of a configuration as one module with a single forward.

    DDP wraps it whole, so that no head is left without gradient by accident.
    `learner(groups, step)` -> (total, losses, stats): the weighted sum to call backward on, every term detached under
    OBJECTIVE.TERM, and detached sums under OBJECTIVE.STAT to be added over micro-steps and processes; `images`: the
    teacher's image vectors of the first views of the batch's first ROWS images [n, D], zeros in place of other shares'.
    Parameters: `student.*` and `objectives.*` (trained), `teacher.*` (no gradient).
    Raises UserError for a configuration that cannot be built.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        layout = cfg.views.groups()
        sizes = [cfg.views.specs()[views[0]].size for views in layout]
        with torch.device("meta"):  # sizes and heads, without memory for the weights
            backbone = build_backbone(cfg.network, sizes[0])
        for size in sizes:
            check_size(backbone, size)
        patch = backbone.stride
        net = Net(
            backbone.num_features,
            cfg.network.readout,
            backbone.cls_token is not None,
            tuple(len(views) for views in layout),
            tuple((size // patch, size // patch) for size in sizes),
            backbone.blocks[-1].attn.num_heads,
            cfg.views.mask.kind != "none",
        )
        self.patch = patch
        active = [e for e in cfg.objectives if e.weight]
        classes = {e.name: OBJECTIVES.get(e.name).module.Objective for e in active}
        self.weights = {e.name: e.weight for e in active}
        spec = merge({e.name: classes[e.name].spec(e.options, net) for e in active})
        # No objective can have a head of this name; it gives the image vectors as they are.
        images = HeadSpec(lambda dim: nn.Identity(), "image", side="teacher", groups="global")
        spec = replace(spec, heads={**spec.heads, "image": images})
        self.teacher_views = spec.teacher_views
        self.student, self.teacher = (
            Network(cfg.network, spec, side, sizes[0], len(sizes), cfg.seed) for side in ("student", "teacher")
        )
        self.teacher.requires_grad_(False)
        self.teacher_weights: dict[str, Tensor] = {}  # that stand for its own, see cast_teacher
        self.objectives = nn.ModuleDict()
        for entry in active:
            with own_stream(cfg.seed, f"objectives.{entry.name}"):
                self.objectives[entry.name] = classes[entry.name](entry.options, net)
        self.ema = optim.Ema(self.student, self.teacher)
        self.ema.copy()

    def forward(self, groups: Sequence[Group], step: Step) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        groups = [self.normalised(g) for g in groups]
        with torch.no_grad():
            seen = groups if self.teacher_views == "all" else [groups[0], *[None] * (len(groups) - 1)]
            teacher = functional_call(self.teacher, self.teacher_weights, (seen,))
        student = self.student(groups)
        total, losses = 0.0, {}
        stats = {"images": step.in_batch(teacher[0]["image"][:1])[0, :ROWS]}
        for name, objective in self.objectives.items():
            terms, own_stats = objective(student, teacher, groups, step)
            total = total + self.weights[name] * sum(terms.values())
            losses |= {f"{name}.{k}": v.detach() for k, v in terms.items()}
            stats |= {f"{name}.{k}": v.detach() for k, v in own_stats.items()}
        return total, losses, stats

    @contextmanager
    def cast_teacher(self, dtype: torch.dtype | None) -> Iterator[None]:
        """For the micro-steps of a step under autocast to `dtype`: the teacher's weights are cast once for all of them.
        Autocast itself keeps the casts of weights with a gradient only, and those of one forward pass."""
        self.teacher_weights = cast_weights(self.teacher, dtype) if dtype else {}
        try:
            yield
        finally:
            self.teacher_weights = {}

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that the optimiser changes, with their names: the student's, and the objectives' own."""
        own = [(f"objectives.{name}", p) for name, p in self.objectives.named_parameters()]
        return [(name, p) for name, p in [*self.student.named_parameters(), *own] if p.requires_grad]

    def normalised(self, group: Group) -> Group:
        """uint8 pixels -> what the networks take; others pass."""
        if group.x.dtype != torch.uint8:
            return group
        dtype = next(self.student.parameters()).dtype
        return replace(group, x=normalise(group.x, self.cfg.data.mean, self.cfg.data.std, dtype))

    @torch.no_grad()
    def finish_step(
        self, stats: dict[str, Tensor], momentum: float, left_out: Tensor | None = None
    ) -> dict[str, Tensor]:
        """After the optimiser's step: EMA, then the objectives' updates from the added-up stats; -> numbers for the log
        under OBJECTIVE.NAME, 0-dim tensors. left_out: float32, 0-dim on the device; where it is 1 nothing changes."""
        self.ema.update(momentum, left_out)
        kept = [] if left_out is None else optim.copies(self.objectives.buffers())
        numbers = {}
        for name, objective in self.objectives.items():
            own = {k.removeprefix(f"{name}."): v for k, v in stats.items() if k.startswith(f"{name}.")}
            numbers |= {f"{name}.{k}": v for k, v in (objective.update(own) or {}).items()}
        optim.put_back(kept, left_out)
        return numbers
