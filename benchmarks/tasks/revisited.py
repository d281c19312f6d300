"""Image retrieval on Revisited Oxford and Paris: how high the pictures of a query's building stand among all others.

Source: facebookresearch/dino 7c446df, eval_image_retrieval.py, with the Easy setup of filipradenovic/revisitop be39832.
As there, queries are whole pictures (variant `cropped`: their boxes alone, revisitop's own rule), Oxford is seen at 224
pixels and Paris at 512 in three scales.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pretrain.common.ranges import bounded, one_of
from ..datasets.retrieval.revisited import Relevant, open_revisited
from ..metrics.ranking import average_precision, places, precision_at
from . import Data, Metric, Task, TaskConfig
from ._protocol import check_patch

FIRST = (1, 5, 10)  # ranks at which precision is told
# Of each setup: what is relevant, and what is taken from the ranking.
SETUPS = {"E": (("easy",), ("junk", "hard")), "M": (("easy", "hard"), ("junk",)), "H": (("hard",), ("junk", "easy"))}


@dataclass
class Oxford:
    """The protocol's values.

    size: the longer side in pixels that a picture has at most. multiscale: the mean of three sizes' vectors. cropped:
    of a query only its box is seen. precision: float32 or bf16.
    """

    size: int = bounded(224, at_least=1, at_most=8192)
    multiscale: bool = False
    cropped: bool = False
    precision: str = one_of("float32", "bf16")


@dataclass
class Paris(Oxford):
    """The same values; Paris is seen larger, in three scales."""

    size: int = bounded(512, at_least=1, at_most=8192)
    multiscale: bool = True


@dataclass(frozen=True)
class Thumbnail:
    """A picture whose longer side is at most `longest`, its ratio kept, by Pillow's `thumbnail`: it shrinks by whole
    numbers first where it shrinks by 4 or more, and has its own way of rounding the shorter side."""

    longest: int

    @property
    def key(self) -> list:
        return ["longest", self.longest]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        picture = Image.fromarray(image)
        picture.thumbnail((self.longest, self.longest), Image.Resampling.LANCZOS)
        return np.asarray(picture)


class Revisited(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the pictures and the list of what is relevant. Raises UserError that names what is wrong."""
        return open_revisited(self.name, cfg.root, cfg.limit)

    def check_card(self, values: Oxford, card: dict) -> None:
        """Pictures of at least a patch."""
        check_patch("size", values.size // 2 if values.multiscale else values.size, card)

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Vectors of all pictures (from the cache where they are known), rankings, average precisions."""
        import torch.nn.functional as F

        from ._features import effective, image_vector, of_sets
        from ._retrieval import multi_scale

        p, data = cfg.protocol, cfg.data.content
        queries = data.queries.cropped([one.box for one in data.relevant]) if p.cropped else data.queries
        extract, what = (
            (multi_scale, "image vector of three scales") if p.multiscale else (image_vector, "image vector")
        )
        found = of_sets(encoder, cfg, (data.database, queries), extract, what, Thumbnail(p.size))
        database, queries = (F.normalize(x, dim=1) for x in found)
        ranked = (queries @ database.T).argsort(1, descending=True).numpy()
        metrics, parts = scores(ranked, data.relevant)
        facts = effective(encoder, p.size) | {"readout": encoder.card.readout, "features": what}
        return {"metrics": metrics, "parts": parts, "protocol": facts}


def scores(ranked: Iterable[np.ndarray], relevant: list[Relevant]) -> tuple[dict, dict]:
    """Rankings [q, n] of the database for each query -> metrics in percent, and a record's parts: the average precision
    of each query, None where nothing is relevant in that setup. Such queries are left out of the means."""
    metrics, queries = {}, {}
    for setup, (wanted, unwanted) in SETUPS.items():
        precisions, at = [], {k: [] for k in FIRST}
        for ranking, one in zip(ranked, relevant, strict=True):
            right, junk = (np.concatenate([getattr(one, kind) for kind in kinds]) for kinds in (wanted, unwanted))
            precisions.append(None)
            if len(right):
                ranks = places(ranking, right, junk)
                precisions[-1] = 100 * average_precision(ranks, len(right))
                for k in FIRST:
                    at[k].append(100 * precision_at(ranks, k))
        queries[f"mAP_{setup}"] = precisions
        if known := [value for value in precisions if value is not None]:
            metrics[f"mAP_{setup}"] = float(np.mean(known))
            metrics |= {f"mP@{k}_{setup}": float(np.mean(values)) for k, values in at.items()}
    return metrics, {"queries": queries}


def _task(name: str, protocol: type) -> Revisited:
    return Revisited(
        version=1,
        protocol_id=f"{name}-dino-v1",
        protocol=protocol,
        metrics=tuple(Metric(f"{what}_{s}") for what in ("mAP", *(f"mP@{k}" for k in FIRST)) for s in SETUPS),
        dataset=name,
        kind="retrieval",
        cost="10 min" if protocol is Paris else "1 min",
        published=tuple((f"{name}_{s.lower()}", "retrieval_offtheshelf", f"mAP_{s}", "mAP") for s in "MH"),
        needs=("image",),
        seeded=False,
        variants={"cropped": {"cropped": True}},
    )


TASKS = {"roxford5k": _task("roxford5k", Oxford), "rparis6k": _task("rparis6k", Paris)}
