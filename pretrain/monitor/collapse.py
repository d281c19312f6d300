"""Signs of collapse in the numbers of the log, said in plain words.

A network has collapsed when it gives the same output whatever the image: the KL divergence of student and teacher goes
to 0, with the teacher's entropy at 0 (one prototype takes all) or at log K (Caron et al., Emerging Properties in
Self-Supervised Vision Transformers, ICCV 2021, section 5.3), or the image vectors lose their dimensions one by one.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..model.backbone import Tokens
from ..step import Trainer

ROWS = 64  # images of a global batch that the rank is taken over
PATIENCE = 3  # lines of the log in a row that make a sign, and that end it
GRACE = 100, 2000  # a network begins uniform: the first epoch is not judged, but no fewer and no more steps than these
RISING = 10  # lines of the log


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


class Collapse:
    """The numbers that only show a collapse, and the words for it.

    rank: `effective_rank` of the teacher's image vectors of the first images of the global batch, taken in passing from
    the step's own forward pass. OBJECTIVE.centre_norm: mean norm of the rows of that objective's centre. Any objective
    with a `centre` [..., K] has them, and log K as the largest entropy; none is known by name.
    """

    def __init__(self, trainer: Trainer, steps_per_epoch: int):
        self.trainer, learner = trainer, trainer.learner
        self.network = learner.teacher
        named = learner.objectives.items()
        self.centred = {n: o for n, o in named if isinstance(getattr(o, "centre", None), Tensor) and o.centre.ndim}
        self.signs = Signs({n: o.centre.shape[-1] for n, o in self.centred.items()}, steps_per_epoch)
        backbone, grid = self.network.backbone, trainer.cfg.views.specs()[trainer.cfg.views.groups()[0][0]].size
        self.grid = grid // learner.patch, grid // learner.patch
        self.prefix = getattr(backbone, "num_prefix_tokens", 0)
        self.share = trainer.cfg.loop.batch // trainer.parts
        self.first = trainer.ranks.rank * trainer.cfg.loop.accumulation * self.share
        self.armed, self.kept = False, []
        trunk = backbone.blocks if isinstance(backbone.blocks, torch.nn.Module) else backbone.layers
        trunk.register_forward_hook(self._keep)

    @property
    def images(self) -> int:
        """Of which vectors are taken."""
        return min(ROWS, self.trainer.cfg.loop.batch)

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
            found = self.network.image(Tokens(cls, raw[:, self.prefix :], self.grid))
            whole[self.first : self.first + len(found)] = found
        whole = self.trainer.ranks.add({"vectors": whole})["vectors"]
        return norms | {"rank": effective_rank(whole)}

    def replay(self, lines: Sequence[Mapping]) -> None:
        """Lines of the log before a resumed run's: what they showed has been said."""
        for line in lines:
            self.look(line)

    def look(self, line: Mapping) -> list[str]:
        """A line of the log -> what it shows that has not been said yet."""
        return self.signs.look(line) if "loss" in line else []


class Signs:
    """What the lines of a log show, one after the other; nothing but their numbers counts, so that a resumed run says
    what the whole one would have said. outputs: K of every objective with prototypes."""

    def __init__(self, outputs: Mapping[str, int], steps_per_epoch: int):
        self.top = {name: math.log(k) for name, k in outputs.items() if k > 1}
        self.grace = min(max(steps_per_epoch, GRACE[0]), GRACE[1])
        self.said: set[str] = set()
        self.streak: dict[str, int] = {}
        self.lowest: dict[str, float] = {}  # norm of a centre
        self.recent: dict[str, deque] = {}
        self.ranks, self.best = deque(maxlen=PATIENCE), 0.0

    def look(self, line: Mapping) -> list[str]:
        """The signs that this line completes, each once until it is over."""
        if line["step"] <= self.grace:
            return []
        return [text for kind, on, text in self._signs(line) if self._begins(kind, on)]

    def _begins(self, kind: str, on: bool | None) -> bool:
        """on: whether the line shows the sign (None: neither that nor that it is over)."""
        if on is None or on == (kind in self.said):
            self.streak[kind] = 0
            return False
        self.streak[kind] = self.streak.get(kind, 0) + 1
        if self.streak[kind] < PATIENCE:
            return False
        self.streak[kind] = 0
        (self.said.add if on else self.said.discard)(kind)
        return on

    def _signs(self, line: Mapping) -> Iterator[tuple[str, bool | None, str]]:
        for name, top in self.top.items():
            if (h := line.get(f"{name}.entropy")) is not None:
                yield from self._entropy(name, h, line.get(f"{name}.kl"), top)
            if (norm := line.get(f"{name}.centre_norm")) is not None:
                yield self._centre(name, norm)
        for key, value in line.items():
            if key.endswith(".alike") and value is not None:
                text = f"{key.removesuffix('.alike')}: the keys of different images are nearly the same "
                text += f"(length of the mean key {value:.4f} of at most 1): the network may be collapsing"
                yield key, _switch(value > 0.98, value < 0.95), text
        if line.get("rank") is not None:
            yield self._rank(line["rank"])

    def _entropy(self, name: str, h: float, kl: float | None, top: float) -> Iterator[tuple[str, bool | None, str]]:
        at = f"entropy {h:.4g} of at most log K = {top:.4g} nats"
        one = f"{name}: the teacher gives all weight to a single prototype for each image ({at}): if it is the same "
        one += "one for all, this is a collapse; a higher teacher temperature or a stronger centring works against it"
        yield f"{name} low", _switch(h < 0.01 * top, h > 0.02 * top), one
        flat, agree = h > 0.995 * top, kl is not None and kl < 0.005 * top
        over = h < 0.99 * top
        same = f"{name}: collapse: the teacher's output is uniform and the student gives the same, whatever the image "
        same += f"({at}, KL divergence {0 if kl is None else kl:.2g}); a lower teacher temperature works against it"
        yield f"{name} same", _switch(flat and agree, over or (kl is not None and kl > 0.01 * top)), same
        text = f"{name}: the teacher's output is nearly uniform ({at}): it does not tell images apart; a lower teacher "
        yield f"{name} uniform", _switch(flat and not agree, over), text + "temperature works against it"

    def _centre(self, name: str, norm: float) -> tuple[str, bool | None, str]:
        low = self.lowest[name] = min(norm, self.lowest.get(name, norm))
        recent = self.recent.setdefault(name, deque(maxlen=RISING))
        rising = len(recent) == RISING and norm >= max(recent)
        recent.append(norm)
        text = f"{name}: the norm of the centre keeps growing (now {norm:.3g}, it was {low:.3g}): the outputs drift to "
        text += "one value for all images; a lower learning rate or norm_last_layer=true works against it"
        return f"{name} centre", _switch(norm > 5 * low and rising, norm < 4 * low), text

    def _rank(self, rank: float) -> tuple[str, bool | None, str]:
        self.ranks.append(rank)
        if len(self.ranks) == PATIENCE:  # a single line is no record
            self.best = max(self.best, min(self.ranks))
        text = f"image vectors of different images become alike: the effective rank of a batch is {rank:.3g}, it was "
        text += f"{self.best:.3g}: the network may be collapsing"
        on = rank < 1.1 or rank < self.best / 3
        return "rank", _switch(on, rank > 1.2 and rank > self.best / 2), text


def _switch(on: bool, off: bool) -> bool | None:
    """Two thresholds, so that what hovers at one of them is not said again and again."""
    return True if on else False if off else None
