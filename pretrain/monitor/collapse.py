"""Signs of collapse: numbers for the log, and three rules that say them in words from the half of a run on.

A network has collapsed when it gives the same output whatever the image: the KL divergence of student and teacher goes
to 0, with the teacher's entropy at 0 (one prototype takes all) or at log K (Caron et al., Emerging Properties in
Self-Supervised Vision Transformers, ICCV 2021, section 5.3), or the image vectors lose their dimensions one by one.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..model.learner import Learner

PATIENCE = 3  # lines of the log in a row that make a sign
LOW = 1 / 3  # of the highest rank so far: less is a sign by itself


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


def centres(learner: Learner) -> dict[str, Tensor]:
    """The `centre` [..., K] of the outputs of every objective that has one, by the objective's name."""
    found = {name: getattr(objective, "centre", None) for name, objective in learner.objectives.items()}
    return {name: centre for name, centre in found.items() if isinstance(centre, Tensor) and centre.ndim}


def numbers(learner: Learner, images: Tensor) -> dict[str, float | Tensor]:
    """For the log. rank: `effective_rank` of `images`, the teacher's image vectors (step.Outcome).
    OBJECTIVE.centre_norm: mean norm of the rows of that objective's centre, if it has one."""
    norms = {f"{n}.centre_norm": c.reshape(-1, c.shape[-1]).norm(dim=-1).mean() for n, c in centres(learner).items()}
    return norms | {"rank": effective_rank(images)}


class Signs:
    """Warnings from the lines of a log: each is given once, when PATIENCE lines in a row show it, from the half on.

    Every line counts, from the first on: the highest rank and the first norms of the centres are what later ones are
    held against, and a sign that the lines before the half show is given at the half. (It waits so long because a
    network begins uniform.) Nothing but the lines' numbers counts: a resumed run that looks at the lines before its own
    warns as the whole one.
    """

    def __init__(self, outputs: Mapping[str, int], steps: int):
        """outputs: K of every objective with prototypes. steps: of the run."""
        self.top = {name: math.log(k) for name, k in outputs.items() if k > 1}
        self.half = steps / 2
        self.best = 0.0  # highest rank so far
        self.first: dict[str, float] = {}  # objective -> norm of its centre in the first line that has one
        self.streak: dict[str, int] = {}  # rule -> lines in a row that it holds for
        self.given: set[str] = set()

    def look(self, line: Mapping) -> list[str]:
        """A line of the log -> its warnings."""
        if "loss" not in line:
            return []
        self.best = max(self.best, line.get("rank") or 0.0)
        for name in self.top:
            if norm := line.get(f"{name}.centre_norm"):
                self.first.setdefault(name, norm)
        held = {**self.entropy(line), **self.alike(line), **self.rank(line)}
        self.streak = {rule: self.streak.get(rule, 0) + 1 for rule in held}
        if line["step"] < self.half:
            return []
        new = [rule for rule, count in self.streak.items() if count >= PATIENCE and rule not in self.given]
        self.given.update(new)
        return [held[rule] for rule in new]

    def shares(self, line: Mapping) -> dict[str, float]:
        """OBJECTIVE.entropy_share: the teacher's entropy over log K, 0 a single prototype and 1 uniform."""
        found = {f"{name}.entropy_share": (line.get(f"{name}.entropy"), top) for name, top in self.top.items()}
        return {key: h / top for key, (h, top) in found.items() if h is not None}

    def low(self, line: Mapping, share: float = LOW) -> bool:
        """Whether the image vectors have fewer dimensions than this share of the most so far, or just one."""
        rank = line.get("rank")
        return rank is not None and rank < max(1.1, share * self.best)

    def entropy(self, line: Mapping) -> dict[str, str]:
        """The teacher's output is the same for all images: a single prototype, or uniform over all of them.

        Where the rank has fallen too, the network is what gives the same for all, and no temperature mends that.
        """
        found, fallen = {}, self.low(line, 0.5)
        for name, top in self.top.items():
            if (h := line.get(f"{name}.entropy")) is None:
                continue
            at = f"entropy {h:.4g} of at most log K = {top:.4g} nats"
            if h < 0.01 * top:
                found[f"{name} single"] = (
                    f"{name}: the teacher gives all weight to a single prototype for each image ({at}): if it is the "
                    "same one for all, this is a collapse; "
                    + (self.advice(line) if fallen else "a higher teacher temperature works against it")
                )
            elif h > 0.995 * top:
                found[f"{name} uniform"] = (
                    f"{name}: the teacher's output is nearly uniform ({at}): it does not tell images apart; "
                    + (self.advice(line) if fallen else "a lower teacher temperature works against it")
                )
        return found

    def alike(self, line: Mapping) -> dict[str, str]:
        """The keys of a contrast are the same for all images."""
        return {
            key: f"{key.removesuffix('.alike')}: the keys of different images are nearly the same (length of the mean "
            f"key {value:.4f} of at most 1): the network may be collapsing; {self.advice(line)}"
            for key, value in line.items()
            if key.endswith(".alike") and value is not None and value > 0.98
        }

    def rank(self, line: Mapping) -> dict[str, str]:
        """The image vectors have lost dimensions: one is left, or less than a third of what there was."""
        if not self.low(line):
            return {}
        return {
            "rank": f"image vectors of different images become alike: the effective rank of a batch is "
            f"{line['rank']:.3g}, it was {self.best:.3g}: the network may be collapsing; {self.advice(line)}"
        }

    def advice(self, line: Mapping) -> str:
        """What works against a network that gives the same for all images."""
        norms = [
            f"{name}'s from {first:.3g} to {norm:.3g}"
            for name, first in self.first.items()
            if (norm := line.get(f"{name}.centre_norm")) is not None
        ]
        slower = "a slower teacher (schedule.ema nearer to 1) or a lower schedule.lr"
        if not norms:
            return f"{slower} works against it"
        return f"{slower} works against it, or a faster centre (a lower centre_momentum; its norm: {', '.join(norms)})"
