"""Objectives: what a student learns from its teacher. ONE FILE = ONE OBJECTIVE.

A module `NAME.py` here (or in `objectives/` of a plug-in folder) is the objective NAME. It defines a dataclass `Config`
of options with defaults, and

    class Objective(nn.Module):
        @staticmethod
        def spec(cfg, net) -> Spec                  # what it needs; raises UserError for options that cannot work
        def __init__(self, cfg, net)                # its buffers: centre, queue
        def forward(self, student, teacher, groups, step) -> (losses, stats)
        def update(self, stats) -> dict             # after every optimiser step

`cfg` is a `Config`, `net` a `Net`. The trainer knows nothing else, in particular no name of a method.

* `groups`: the views, one entry per size (methods.md 7.1): x [V, B, 3, S, S], box [V, B, 4], flip [V, B], mask
  [V, B, h, w] or None. Group 0 holds the global views; all other groups are local ones. Views are numbered through the
  groups in order.
* `student`, `teacher`: per group a dict from head name to output, [V, B, K] for an image head and [V, B, N, K] for a
  patch head; a teacher entry is None for a group that no objective wants it to see. Teacher outputs carry no graph.
* `step`: a `Step`.
* `losses`: named scalars with gradient, means over the images at hand; the objective's weight times their sum joins the
  total. `stats`: detached *sums and counts* over the images at hand, nothing else, because they are added up over
  micro-steps and processes before `update` sees them; all in the dtype of the losses.
* `update(stats)` is called once per optimiser step, after the EMA; it moves centres and queues, and returns 0-dim
  tensors for the log (teacher entropy, KL ...).

`spec` declares heads by name. `HeadSpec.side` says which network owns the head; one on both sides starts equal and
follows by EMA, as does every parameter whose *name* exists in both networks. `input` may differ between the two sides
(SelfPatch: the student's own patches, the teacher's aggregated ones), and so may the module (`teacher_factory`). An
objective that reads a head that another one declares takes the head's name as an option and leaves it out of its spec.
Objectives of weight 0 are not built, and neither are their heads.

How the other methods fit (numbers in methods.md 3-5, 7.3):

* iBOT (`ibot.py`): `needs_mask=True` gives the student's backbone a `masked_embed`, which the teacher lacks, so EMA by
  name skips it; groups carry masks, which only the student applies. The class token's term is `dino`; the patch head
  has groups="global", input "masked" on the student and "patch" on the teacher, whose centre is over all patches, and
  `shares` the module of dino's head. Row weights 1 / #masked: `weight` of `_prototypes.cross_entropy`.
* SERE (`sere.py`): two relation heads with input "raw" and `per_group=True` (own instances for global and local
  views), factory with predictor for the student, `teacher_factory` without; `bn_scope="group"`. Boxes and flips of the
  groups give the sampling grids (geometry.overlap_grid); features are sampled first, then multiplied.
* PW-Self (`pwself.py`): one prototype head with input "tokens"; geometry.match of the groups' boxes gives the rows, the
  centre [1+N, K] is a buffer, its sums are [1+N, K] stats.
* MoBY (`moby.py`): head "projector" on both sides with input "image", head "predictor" on the student with
  input "projector" (a head may stand on another head); `bn_scope="view"`: batch statistics per view. Queues are
  buffers. Keys must be gathered, not added: the stat is a tensor of zeros for the whole global batch into which a
  process writes the rows of its own share, `step.part` of `step.parts`; the sum over micro-steps and processes is then
  the gathered batch. EMA before the keys: schedule.ema_shift=1.
* SelfPatch on MoBY (`moby_patch.py`): the same two heads for patches, the teacher's on the `Aggregated` neighbours.

Batch statistics over processes are our own all-reduced count, mean and M2, inside the head's module (batchnorm.py);
they are those of one micro-step, so that gradient accumulation is no larger batch to a method that has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..common.errors import UserError

INPUTS = ("image", "patch", "raw", "tokens", "masked")


@dataclass(frozen=True)
class Net:
    """What an objective may know of the networks and views.

    dim, readout (token | class_attention | mean), class_token: of the backbone. counts: views per group, global first.
    grids: patch grid (h, w) per group. heads: attention heads of the backbone's last block. masks: whether the views
    come with masks.
    """

    dim: int
    readout: str
    class_token: bool
    counts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    heads: int = 1
    masks: bool = False


@dataclass(frozen=True)
class Step:
    """Where a run is. index: optimiser steps taken so far. epoch: 0-based. part: which of the `parts` equal shares of
    the global batch (processes times micro-steps) is at hand."""

    index: int = 0
    epoch: int = 0
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Aggregated:
    """Input of a head: for every patch, a summary of its k most similar neighbours (SelfPatch, section 3).

    radius, wrap: see geometry.neighbours. pool: "class_attention" runs the readout's blocks on them, "mean" averages
    them and applies the readout's norm.
    """

    k: int = 4
    radius: int | str = 1
    wrap: bool = True
    pool: str = "class_attention"


@dataclass(frozen=True)
class HeadSpec:
    """A head. factory(dim) -> module taking rows [R, D] (or, where batch statistics or grids matter, see bn_scope).

    input: "image" [M, D], "patch" [M, N, D] normed, "raw" [M, N, D] un-normed, "tokens" [M, 1+N, D] normed image vector
    and patches, "masked" [R, D] the normed patches that the mask hides (rows in its row-major order over [V, B, h, w];
    the output is [R, K]), an `Aggregated` [M, N, D], or the name of another head, whose output it takes.
    side: student | teacher | both. teacher_factory, teacher_input: where the teacher's differ.
    shares: name of a head declared before, whose module this one is, with another input; with `derive`, what that
    makes of the module (a head of its own that shares a part). per_group: an instance for every group. groups: all |
    global, the views it is applied to; teacher_groups where that differs on the teacher.
    bn_scope: None (no batch statistics: all rows of all views go through in one call, as [R, D]), "group" (a call per
    group, with the input's own shape) or "view" (a call per view, likewise). None: the objective's.
    """

    factory: Callable[[int], nn.Module]
    input: str | Aggregated = "image"
    side: str = "both"
    teacher_factory: Callable[[int], nn.Module] | None = None
    teacher_input: str | Aggregated | None = None
    shares: str | None = None
    derive: Callable[[nn.Module], nn.Module] | None = None
    per_group: bool = False
    groups: str = "all"
    teacher_groups: str | None = None
    bn_scope: str | None = None

    def on(self, side: str) -> "HeadSpec | None":
        """What holds on that side (factory, input and groups are its own), or None if the head is not there."""
        if self.side not in ("both", side):
            return None
        if side == "student":
            return self
        return replace(
            self,
            factory=self.teacher_factory or self.factory,
            input=self.input if self.teacher_input is None else self.teacher_input,
            groups=self.teacher_groups or self.groups,
        )


@dataclass(frozen=True)
class Spec:
    """What one objective, or all together, need.

    teacher_views: "global" | "all", what the teacher must see. needs_mask: the student replaces masked patches.
    bn_scope: None | "group" | "view", see HeadSpec.
    """

    heads: Mapping[str, HeadSpec] = field(default_factory=dict)
    teacher_views: str = "global"
    needs_mask: bool = False
    bn_scope: str | None = None


def merge(specs: Mapping[str, Spec]) -> Spec:
    """The needs of several objectives together. Raises UserError when two declare a head of the same name."""
    heads: dict[str, HeadSpec] = {}
    for label, spec in specs.items():
        for name, head in spec.heads.items():
            if name in heads:
                raise UserError(f"objective {label}: there is a head {name} already; give it another name (head=...)")
            if name in INPUTS or not name.isidentifier():
                raise UserError(f"objective {label}: a head cannot be called {name}")
            heads[name] = replace(head, bn_scope=head.bn_scope or spec.bn_scope)
    return Spec(
        heads,
        "all" if any(s.teacher_views == "all" for s in specs.values()) else "global",
        any(s.needs_mask for s in specs.values()),
    )
