"""k-NN classification of frozen image vectors: a vote of the nearest training images, weighted by exp(cosine / T).

Source: facebookresearch/dino 7c446df, eval_knn.py. Any data set of class folders, train/ and val/.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...pretrain.common.ranges import bounded, bounds, one_of
from . import Data, Metric, TaskConfig
from ._classes import ClassTask, scores


@dataclass
class Protocol:
    """The protocol's values.

    k: neighbours that vote in `top1`; other_k: further numbers, reported as `top1_k10` and so on. Of fewer training
    images all vote; the record then has the numbers in force. temperature: of the cosine. resize, crop: pixels of the
    shorter side, and of the centre that is used; resize none: for small pictures (tasks/_features.py, Crop), which
    DINO's 256 to 224 would cut. precision: float32 or bf16.
    """

    k: int = bounded(20, at_least=1)
    other_k: list[int] = field(default_factory=lambda: [10, 100, 200], metadata=bounds(at_least=1))
    temperature: float = bounded(0.07, above=0)
    resize: int | None = 256
    crop: int = bounded(224, at_least=1, at_most=8192)
    precision: str = one_of("float32", "bf16")


class KNN(ClassTask):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the data set, and say where there are fewer images than neighbours."""
        found = super().check(cfg)
        ks = [cfg.protocol.k, *cfg.protocol.other_k]
        return replace(found, notes=found.notes + few(ks, len(found.content.train)))

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Features of all images (from the cache where they are known), votes, accuracies."""
        import torch
        import torch.nn.functional as F

        from ._features import effective, image_vector, of_both_splits
        from ._vote import vote

        p, data, place = cfg.protocol, cfg.data.content, torch.device(cfg.device)
        found = of_both_splits(encoder, cfg, image_vector, "image vector")
        train, val = (F.normalize(x, dim=1).to(place) for x in found)
        labels, ks = torch.from_numpy(data.train.labels).to(place), [p.k, *p.other_k]
        ranked = vote(train, labels, val, len(data.classes), ks, p.temperature)
        metrics, parts = scores({"" if k == p.k else f"_k{k}": best for k, best in ranked.items()}, data)
        in_force = effective(encoder, p.crop) | {"readout": encoder.card.readout}
        if max(ks) > len(train):
            in_force |= {"k": min(p.k, len(train)), "other_k": [min(k, len(train)) for k in p.other_k]}
        return {"metrics": metrics, "parts": parts, "protocol": in_force}


def few(ks: list[int], train: int) -> list[str]:
    """A note for the user where there are fewer training images than neighbours that should vote."""
    more = [str(k) for k in dict.fromkeys(ks) if k > train]
    return [f"k={', '.join(more)}: there are only {train} training images, and all of them vote"] if more else []


TASK = KNN(
    version=2,
    protocol_id="knn-dino-v1",
    protocol=Protocol,
    metrics=(Metric("top1"), Metric("top5")),  # deterministic: no band of noise
    dataset="imagenet",
    kind="classification",
    published=(("imagenet_knn", "knn20_T0.07"), ("imagenet_knn", "knn_dino_protocol")),
    needs=("image",),
    seeded=False,
)
