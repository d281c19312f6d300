"""Copy detection on INRIA Copydays: how high the original of a changed picture stands among all others.

Source: facebookresearch/dino 7c446df, eval_copy_detection.py. Features are the image vector beside the generalised mean
of the last block's patch tokens, of pictures squeezed to a square.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pretrain.common.ranges import bounded, one_of
from ..datasets.retrieval.copydays import COPIES, Copies, open_copydays
from ..metrics.ranking import average_precision
from . import Data, Flag, Metric, Task, TaskConfig
from ._protocol import check_patch


@dataclass
class Protocol:
    """The protocol's values.

    size: side in pixels of the square that a picture is squeezed to. power: of the generalised mean; gem_floor: tokens'
    numbers below it are raised to it. first: so many of the ranking count. eigen_floor: of whitening, part of the
    largest eigenvalue. centred: whitening by second moments about the mean. precision: float32 or bf16.
    """

    size: int = bounded(320, at_least=1, at_most=8192)
    power: float = bounded(4.0, above=0)
    gem_floor: float = bounded(1e-6, above=0)
    first: int = bounded(20, at_least=1)
    eigen_floor: float = bounded(1e-5, above=0, at_most=1)
    centred: bool = False
    precision: str = one_of("float32", "bf16")


@dataclass(frozen=True)
class Squeeze:
    """A picture -> a square, its ratio not kept: Pillow's bicubic."""

    side: int

    @property
    def key(self) -> list:
        return ["square", self.side]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BICUBIC))


class Copydays(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the pictures and the folders beside them. Raises UserError that names what is wrong."""
        return open_copydays(cfg.root, cfg.distractors, cfg.whitening, cfg.limit)

    def check_card(self, values: Protocol, card: dict) -> None:
        """Pictures of at least a patch."""
        check_patch("size", values.size, card)

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Vectors of all pictures (from the cache where they are known), rankings, average precisions."""
        import torch
        import torch.nn.functional as F

        from ._features import effective, of_sets
        from ._retrieval import TokenAndGem, Whitening

        p, data = cfg.protocol, cfg.data.content
        extract = TokenAndGem(p.power, p.gem_floor, encoder.card.class_token)
        beside = {"distractors": data.distractors, "whitening": data.whitening}
        beside = {what: pictures for what, pictures in beside.items() if pictures is not None}
        sets = [data.originals, *(block.pictures for block in data.blocks[1:]), *beside.values()]
        originals, *found = of_sets(encoder, cfg, sets, extract, extract.name, Squeeze(p.size))
        queries = [originals[: len(data.blocks[0].pictures)], *found[: len(data.blocks) - 1]]
        more = dict(zip(beside, found[len(queries) - 1 :], strict=True))
        database = torch.cat([originals, more.get("distractors", originals[:0])])
        if "whitening" in more:
            turn = Whitening(more["whitening"], p.eigen_floor, p.centred)
            database, queries = turn(database), [turn(x) for x in queries]
        database = F.normalize(database, dim=1)
        scores = {
            f"mAP_{block.name.replace('/', '_')}": _precisions(F.normalize(x, dim=1), database, block, p.first)
            for block, x in zip(data.blocks, queries, strict=True)
        }
        facts = {what: {"pictures": len(one), "fingerprint": one.fingerprint} for what, one in beside.items()}
        facts |= {"readout": encoder.card.readout, "features": extract.name, "database": len(database)}
        own = {} if encoder.card.class_token else {"id": f"{self.protocol_id}-gem"}
        return {
            "metrics": {name: float(np.mean(one)) for name, one in scores.items()},
            "parts": {"queries": scores},
            "protocol": effective(encoder, p.size) | facts | own,
        }


def _precisions(queries, database, block: Copies, first: int) -> list[float]:
    """Average precision in percent of each query of a block, unit vectors [q, D], in a database [n, D]."""
    ranked = (queries @ database.T).topk(min(first, len(database)), dim=1).indices.numpy()
    found = (np.flatnonzero(np.isin(row, right)) for row, right in zip(ranked, block.positives, strict=True))
    counts = map(len, block.positives)
    return [100 * average_precision(ranks, count) for ranks, count in zip(found, counts, strict=True)]


TASK = Copydays(
    version=1,
    protocol_id="copydays-dino-v1",
    protocol=Protocol,
    metrics=tuple(Metric(f"mAP_{n.replace('/', '_')}") for n in ("strong", *COPIES, "original")),  # deterministic
    dataset="copydays",
    kind="retrieval",
    cost="2 min",
    published=(("copydays", "copydays_strong_10k_distractors", "mAP_strong", "mAP"),),
    needs=("image", "patches"),
    seeded=False,
    flags=(
        Flag("distractors", Path, "Folder of further pictures to search in (published: 10,000 of YFCC100M)."),
        Flag("whitening", Path, "Folder of pictures to learn whitening from (published: 20,000 of YFCC100M)."),
    ),
    variants={"centred": {"centred": True}},
)
