"""What the tasks on labelled images share: class folders, train/ and val/, and accuracies with their parts."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from ..metrics.significance import pack
from . import Data, Task, TaskConfig
from ._protocol import check_patch


class ClassTask(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open the data set. Raises UserError that names the folder or the value that is wrong."""
        from ..datasets.imagenet import open_classes

        p = cfg.protocol
        if p.resize is not None and p.crop > p.resize:
            raise UserError(f"resize={p.resize} crop={p.crop}: the crop must fit into the resized picture")
        return open_classes(cfg.root, cfg.limit).as_data()

    def check_card(self, values, card: dict) -> None:
        """Pictures of at least a patch."""
        check_patch("crop", values.crop, card)

    def check_data(self, root: Path) -> Data:
        """The data set alone, without a word about the protocol."""
        return ClassTask.check(self, TaskConfig(self.protocol(), root=root))


def accuracies(ranked, labels) -> tuple[np.ndarray, np.ndarray]:
    """Best classes [n, 5 or fewer] of images with these labels [n], as arrays or CPU tensors -> whether the first, and
    any of them, is right: bool [n] each."""
    hit = np.asarray(ranked) == np.asarray(labels)[:, None]
    return hit[:, 0], hit.any(1)


def scores(rankings: Mapping[str, object], data) -> tuple[dict, dict]:
    """Best classes [n, 5 or fewer] of the validation images of a ClassSet -> metrics in percent, and a record's parts.

    rankings: by what follows `top1` in the names of their metrics; '' is the one that the parts per class are of, which
    are None for a class without images.
    """
    labels, correct = data.val.labels, {}
    for suffix, ranked in rankings.items():
        correct[f"top1{suffix}"], correct[f"top5{suffix}"] = accuracies(ranked, labels)
    metrics = {name: 100 * float(right.mean()) for name, right in correct.items()}
    of = {name: correct["top1"][labels == i] for i, name in enumerate(data.classes)}
    return metrics, {
        "images": len(data.val),
        "correct": {name: pack(right) for name, right in correct.items()},
        "classes": {name: 100 * float(right.mean()) if right.size else None for name, right in of.items()},
    }
