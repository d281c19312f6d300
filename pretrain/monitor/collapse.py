"""Signs of collapse: numbers for the log, and three rules that say them in words in the second half of a run.

A network has collapsed when it gives the same output whatever the image: the KL divergence of student and teacher goes
to 0, with the teacher's entropy at 0 (one prototype takes all) or at log K (Caron et al., Emerging Properties in
Self-Supervised Vision Transformers, ICCV 2021, section 5.3), or the image vectors lose their dimensions one by one.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..model.backbone import Tokens
from ..step import Learner, Trainer

ROWS = 64  # images of a global batch that the rank is taken over
PATIENCE = 3  # lines of the log in a row that make a sign


def effective_rank(x: Tensor) -> float:
    """Vectors [n, D] -> between 1 (all are multiples of one) and min(n, D).

    exp of the entropy of the normalised singular values (Garrido et al., RankMe, ICML 2023), in float64. Not centred:
    of vectors that are all the same, centring would leave rounding, which has full rank. NaN where x is not finite.
    """
    x = x.cpu().double()
    if not torch.isfinite(x).all():
        return float("nan")
    values = torch.linalg.svdvals(x)
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 1.0


def with_centre(learner: Learner) -> dict[str, nn.Module]:
    """The objectives that have a `centre` [..., K] of their outputs, by name."""
    named = learner.objectives.items()
    return {n: o for n, o in named if isinstance(getattr(o, "centre", None), Tensor) and o.centre.ndim}


class Collapse:
    """Numbers that show a collapse, taken in passing from the step's own forward pass.

    rank: `effective_rank` of the teacher's image vectors of the first images of the global batch.
    OBJECTIVE.centre_norm: mean norm of the rows of that objective's centre, if it has one.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, learner, loop = trainer, trainer.learner, trainer.cfg.loop
        self.network = learner.teacher
        self.centred = with_centre(learner)
        self.images = min(ROWS, loop.batch)
        self.share = loop.batch // trainer.parts  # images of a micro-step
        self.first = trainer.ranks.rank * loop.accumulation * self.share  # this process's first image of the batch
        backbone, size = self.network.backbone, trainer.cfg.views.specs()[trainer.cfg.views.groups()[0][0]].size
        self.grid = size // learner.patch, size // learner.patch
        self.prefix = getattr(backbone, "num_prefix_tokens", 0)
        self.armed, self.kept = False, []
        trunk = backbone.blocks if isinstance(backbone.blocks, nn.Module) else backbone.layers
        trunk.register_forward_hook(self._keep)

    def outputs(self) -> dict[str, int]:
        """Objective -> K, the length of its outputs."""
        return {name: objective.centre.shape[-1] for name, objective in self.centred.items()}

    def arm(self, wanted: bool) -> None:
        """Before a step: whether `numbers` will be asked for after it."""
        self.armed, self.kept = wanted, []

    def _keep(self, _module, _inputs, out: Tensor) -> None:
        """The trunk's tokens of the first view [rows, ..., D], of images that are among the first of the batch."""
        if self.armed and out.shape[1:-1].numel() - self.prefix == self.grid[0] * self.grid[1]:
            begin = self.first + len(self.kept) * self.share
            count = max(0, min(self.share, self.images - begin))
            self.kept.append(out[:count].detach().clone())  # a copy: the rest of the activation is let go

    @torch.no_grad()
    def numbers(self) -> dict[str, float | Tensor]:
        """After a step that was armed, in every process: the numbers for the log."""
        centres = {n: o.centre for n, o in self.centred.items()}
        norms = {f"{n}.centre_norm": c.reshape(-1, c.shape[-1]).norm(dim=-1).mean() for n, c in centres.items()}
        if not self.kept:
            return norms
        raw, self.kept, self.armed = torch.cat(self.kept), [], False
        # Outside of autocast, whose cache of weights would otherwise keep some that were cast without a graph.
        raw = raw.flatten(1, -2).to(next(self.network.parameters()).dtype)
        whole = raw.new_zeros(self.images, raw.shape[-1])
        if len(raw):
            cls = raw[:, 0] if self.network.backbone.cls_token is not None else None
            vectors = self.network.image(Tokens(cls, raw[:, self.prefix :], self.grid))
            whole[self.first : self.first + len(vectors)] = vectors
        return norms | {"rank": effective_rank(self.trainer.ranks.add({"vectors": whole})["vectors"])}


class Signs:
    """Warnings from the lines of a log: each is given once, when PATIENCE lines in a row show it in the second half.

    Nothing but the lines' numbers counts: a resumed run that looks at the lines before its own warns as the whole one.
    """

    def __init__(self, outputs: Mapping[str, int], steps: int):
        """outputs: K of every objective with prototypes. steps: of the run."""
        self.top = {name: math.log(k) for name, k in outputs.items() if k > 1}
        self.half = steps / 2
        self.best = 0.0  # highest rank so far
        self.streak: dict[str, int] = {}  # rule -> lines in a row that it holds for
        self.given: set[str] = set()

    def look(self, line: Mapping) -> list[str]:
        """A line of the log -> its warnings."""
        if "loss" not in line:
            return []
        self.best = max(self.best, line.get("rank") or 0.0)
        if line["step"] <= self.half:
            return []
        held = {**self.entropy(line), **self.alike(line), **self.rank(line)}
        self.streak = {rule: self.streak.get(rule, 0) + 1 for rule in held}
        new = [rule for rule, count in self.streak.items() if count >= PATIENCE and rule not in self.given]
        self.given.update(new)
        return [held[rule] for rule in new]

    def entropy(self, line: Mapping) -> dict[str, str]:
        """The teacher's output is the same for all images: a single prototype, or uniform over all of them."""
        found = {}
        for name, top in self.top.items():
            if (h := line.get(f"{name}.entropy")) is None:
                continue
            at = f"entropy {h:.4g} of at most log K = {top:.4g} nats"
            if h < 0.01 * top:
                found[f"{name} single"] = (
                    f"{name}: the teacher gives all weight to a single prototype for each image ({at}): if it is the "
                    "same one for all, this is a collapse; a higher teacher temperature or a stronger centring works "
                    "against it"
                )
            elif h > 0.995 * top:
                found[f"{name} uniform"] = (
                    f"{name}: the teacher's output is nearly uniform ({at}): it does not tell images apart; a lower "
                    "teacher temperature works against it"
                )
        return found

    def alike(self, line: Mapping) -> dict[str, str]:
        """The keys of a contrast are the same for all images."""
        return {
            key: f"{key.removesuffix('.alike')}: the keys of different images are nearly the same (length of the mean "
            f"key {value:.4f} of at most 1): the network may be collapsing"
            for key, value in line.items()
            if key.endswith(".alike") and value is not None and value > 0.98
        }

    def rank(self, line: Mapping) -> dict[str, str]:
        """The image vectors have lost dimensions: one is left, or less than a third of what there was."""
        rank = line.get("rank")
        if rank is None or rank >= max(1.1, self.best / 3):
            return {}
        return {
            "rank": f"image vectors of different images become alike: the effective rank of a batch is {rank:.3g}, it "
            f"was {self.best:.3g}: the network may be collapsing"
        }
