"""k-NN on class folders with any function of pixels, for scripts that compare networks in one process."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures
from selfpatch_bench.benchmarks.tasks._features import Crop
from selfpatch_bench.benchmarks.tasks._vote import vote
from selfpatch_bench.pretrain.config import Config
from selfpatch_bench.pretrain.data.group import normalise
from selfpatch_bench.pretrain.model.backbone import tokens

NEIGHBOURS, TEMPERATURE = 20, 0.07


def image_vectors(network) -> Callable[[Tensor], Tensor]:
    """pixels [B, 3, S, S] -> image vectors [B, D] of a network of pretraining."""
    return lambda x: network.image(tokens(network.backbone, x))


@torch.inference_mode()
def top1(image: Callable[[Tensor], Tensor], root: Path, cfg: Config, size: int, most: int, device="cpu") -> float:
    """Top-1 in % of val/ by train/: the centre square of `size` pixels, the shorter side resized to it.

    most: about so many pictures of each split, evenly spaced.
    """
    data, crop, found = open_classes(root), Crop(size, size), []
    for split in (data.train, data.val):
        numbers = range(0, len(split), max(1, len(split) // most))
        vectors = []
        for start in range(0, len(numbers), 250):
            rows = [torch.from_numpy(crop(split.read(i)).copy()) for i in numbers[start : start + 250]]
            x = normalise(torch.stack(rows).permute(0, 3, 1, 2).to(device), cfg.data.mean, cfg.data.std)
            vectors.append(F.normalize(image(x).float(), dim=1).cpu())
        found.append((torch.cat(vectors), torch.from_numpy(split.labels)[list(numbers)]))
    (train, labels), (val, wanted) = found
    best = vote(train, labels, val, len(data.classes), [NEIGHBOURS], TEMPERATURE)[NEIGHBOURS][:, 0]
    return 100 * float((best == wanted).float().mean())


def drawn_classes(folder: Path, train: int = 400, val: int = 200, side: int = 64, classes: int = 5) -> Path:
    """train/ and val/ of drawn pictures."""
    # One drawing for both: its seed decides which classes there are.
    for i, path in enumerate(
        sorted(make_pictures(folder / "all", train + val, (side, side), classes=classes).rglob("*.jpg"))
    ):
        in_val = (i + 1) * val // (train + val) > i * val // (train + val)  # evenly among them
        place = folder / ("val" if in_val else "train") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    return folder
