"""Segmentation by classifiers on single patches, as CAPI evaluates: k nearest neighbours, or logistic regression.

Source: facebookresearch/capi 98b4fa1, eval_segmentation.py. Pictures are squeezed to a square and scored there. What is
chosen (k and the distance, or the penalty) is chosen on a tenth of the training pictures; then all of them are used.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.common.ranges import bounded, bounds, one_of
from ..datasets.segmentation import IGNORED
from ..datasets.segmentation.sets import OPEN
from ..metrics.segmentation import confusion, ious
from . import Data, Metric, Task, TaskConfig
from ._protocol import check_patch

FEWEST = 10  # training pictures: a tenth of them is held out


@dataclass
class Knn:
    """The protocol's values.

    size: side in pixels of the square. k: numbers of neighbours to choose from; with cosine or L2 distance. every: only
    each so manieth patch is learnt from. precision: of the network; search: of the products, float32 or bf16.
    """

    size: int = bounded(224, at_least=1, at_most=8192)
    k: list[int] = field(default_factory=lambda: [1, 3, 10, 30], metadata=bounds(at_least=1))
    every: int = bounded(1, at_least=1)
    precision: str = one_of("float32", "bf16")
    search: str = one_of("float32", "bf16")


@dataclass
class Logreg:
    """The protocol's values.

    size: side in pixels of the square. c: weights of the data against the penalty, to choose from. iterations, tol: of
    L-BFGS. every: only each so manieth patch is learnt from. precision: of the network, float32 or bf16.
    """

    size: int = bounded(224, at_least=1, at_most=8192)
    c: list[float] = field(
        default_factory=lambda: [float(f"{10**x:.6g}") for x in np.linspace(-6, 5, 8)], metadata=bounds(above=0)
    )
    iterations: int = bounded(1000, at_least=1)
    tol: float = bounded(1e-12, above=0)
    every: int = bounded(1, at_least=1)
    precision: str = one_of("float32", "bf16")


class Patches(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the pictures and label maps. Raises UserError that names what is wrong."""
        found = OPEN[self.dataset](cfg.root, cfg.limit)
        if (count := len(found.content.train)) < FEWEST:
            raise UserError(
                f"{found.root}: {count} training pictures; a tenth is held out, so that {FEWEST} are needed"
            )
        return found

    def check_card(self, values, card: dict) -> None:
        """Pictures of at least a patch, and something to choose from."""
        check_patch("size", values.size, card)
        if [] in (given := vars(values)).values():
            name = next(name for name, value in given.items() if value == [])
            raise UserError(f"{name}=[]: at least one value is needed to choose from")

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Patches of all pictures, the choice, the fit, the validation pictures once."""
        from ._features import effective
        from ._segmentation.patches import Neighbours, Regressions, patches_of, standardised

        p, data = cfg.protocol, cfg.data.content
        ignored = sorted({data.ignored, IGNORED})
        total, sets = len(data.train) + len(data.val), []
        for before, pictures in ((0, data.train), (len(data.train), data.val)):

            def progress(done: int, before=before, name=pictures.name) -> None:
                cfg.progress(before + done, total, f"{name} {done}")

            sets.append(patches_of(encoder, cfg, pictures, progress))
        order = np.random.RandomState(cfg.seed).permutation(len(data.train))
        held, kept = order[: len(order) // 10], order[len(order) // 10 :]
        fitted, held, test = standardised(sets[0].take(kept), sets[0].take(held), sets[1])
        family = Neighbours if isinstance(p, Knn) else Regressions
        choose = family(p, fitted, ignored, cfg.device)
        held_out = ((name, _score(choose.predict(held, name), held.labels, ignored)) for name in choose.names)
        tried = {name: 100 * float(_mean(counts)) for name, counts in held_out}
        best = max(tried, key=tried.get)
        final = family(p, fitted.joined(held), ignored, cfg.device)
        counts = _score(final.predict(test, best), test.labels, ignored)
        metrics = {"mIoU": 100 * float(_mean(counts)), "pixel_accuracy": 100 * float(np.trace(counts) / counts.sum())}
        there, each = counts.sum(0) + counts.sum(1) > 0, ious(counts)
        classes = {name: 100 * float(each[i]) if there[i] else None for i, name in enumerate(data.names)}
        return {
            "metrics": metrics,
            "parts": {"classes": classes, "tried": tried},
            "protocol": effective(encoder, p.size) | {"chosen": best},
        }


def _score(predicted: np.ndarray, labels: np.ndarray, ignored: list[int]) -> np.ndarray:
    """Confusion [256, 256] of the pixels of patches, both uint8 [n, pixels]. A pixel for which a neighbour votes with
    an ignored label is a mistake, in a class of its own."""
    return confusion(np.where(np.isin(labels, ignored), IGNORED, labels), predicted, 256, IGNORED)


def _mean(counts: np.ndarray) -> float:
    """Over the classes that occur in truth or prediction; 0 where no pixel is judged, as the held out tenth may be."""
    there = counts.sum(0) + counts.sum(1) > 0
    return ious(counts)[there].mean() if there.any() else 0.0


def _task(kind: str, protocol: type, dataset: str) -> Patches:
    return Patches(
        version=1,
        protocol_id=f"seg-{kind}",
        protocol=protocol,
        metrics=(Metric("mIoU", noise=None), Metric("pixel_accuracy", noise=None)),
        dataset=dataset,
        kind="segmentation",
        cost="minutes" if kind == "knn" else "1 h",
        published=(("ade20k_patches", f"seg-{kind}"),) if dataset == "ade20k" else (),
    )


KINDS = {"knn": Knn, "logreg": Logreg}
TASKS = {f"seg_{kind}": _task(kind, protocol, "ade20k") for kind, protocol in KINDS.items()}
TASKS |= {f"seg_{kind}_voc": _task(kind, protocol, "voc2012") for kind, protocol in KINDS.items()}
