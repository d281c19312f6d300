"""Objectives: what a student learns from its teacher. ONE FILE = ONE OBJECTIVE.

A module `NAME.py` here (or in `objectives/` of a plug-in folder) is the objective NAME. It defines a dataclass `Config`
of options with defaults, and a class `Objective`, best a subclass of the one below, which states the contract. The
trainer knows nothing else, in particular no name of a method.

A `Spec` declares the heads that an objective wants, by name. A head on both sides starts equal and follows by EMA, as
does every parameter whose *name* exists in both networks; its input and module may differ between the sides (SelfPatch:
the student's own patches, the teacher's aggregated ones). An objective that reads a head that another one declares
takes the head's name as an option and leaves it out of its spec. Objectives of weight 0 are not built, and neither are
their heads.

Batch statistics, where a head has them, are those of one micro-step over all processes (model/batchnorm.py): gradient
accumulation is no larger batch to such a method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

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

    @property
    def pairs(self) -> int:
        """Number of pairs of views (t, v), t global and v any other view."""
        return self.counts[0] * (sum(self.counts) - 1)


@dataclass(frozen=True)
class Step:
    """Where a run is. index: optimiser steps taken so far. epoch: 0-based. part: which of the `parts` equal shares of
    the global batch (processes times micro-steps) is at hand."""

    index: int = 0
    epoch: int = 0
    part: int = 0
    parts: int = 1

    def in_batch(self, rows: Tensor) -> Tensor:
        """rows [V, B, C] of this share of the batch -> [V, parts * B, C] with zeros in place of the other shares':
        summed over micro-steps and processes it is the gathered batch, in its order."""
        count = rows.shape[1]
        whole = rows.new_zeros(len(rows), self.parts * count, rows.shape[2])
        whole[:, self.part * count : (self.part + 1) * count] = rows
        return whole


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


class Objective(nn.Module):
    """One objective. cfg: its `Config`; net: a `Net`.

    Its own parameters (a predictor) are trained, decayed, clipped and saved like the student's; its buffers (a centre,
    a queue) are saved.
    """

    @staticmethod
    def spec(cfg, net: Net) -> Spec:
        """What the objective needs. Raises UserError for options that cannot work."""
        raise NotImplementedError

    def __init__(self, cfg, net: Net):
        super().__init__()
        self.cfg = cfg

    def forward(self, student, teacher, groups, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """-> losses, stats.

        student, teacher: per group a dict from head name to output, [V, B, K] of an image head, [V, B, N, K] of a patch
        head; a teacher's entry is None for a group that no objective wants it to see, and carries no graph. groups: the
        views, one entry per size (data/group.py): x [V, B, 3, S, S], box [V, B, 4], flip [V, B], mask [V, B, h, w] or
        None. Group 0 holds the global views; views are numbered through the groups in order.
        losses: named scalars with gradient, means over the images at hand; the objective's weight times their sum joins
        the total. stats: detached *sums and counts* over the images at hand, nothing else, because they are added up
        over micro-steps and processes before `update` sees them; all in the dtype of the losses.
        """
        raise NotImplementedError

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move centres and queues, once per optimiser step, after the EMA; -> 0-dim tensors for the log."""
        return {}


def check_two_views(objective: str, net: Net) -> None:
    """Raise UserError where there is a single view."""
    if sum(net.counts) < 2:
        raise UserError(f"objective {objective} compares views with one another: it needs two at least")


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
