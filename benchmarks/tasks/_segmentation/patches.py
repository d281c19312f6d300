"""Patches with the labels of their pixels, and classifiers on them (facebookresearch/capi 98b4fa1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ....pretrain.common.errors import UserError
from ...datasets.segmentation import Labelled
from .. import TaskConfig
from .dense import as_tensor, batches, patches
from .search import nearest

ROWS = 1024  # patches that vote at a time


@dataclass(frozen=True)
class Set:
    """features float32 [n, D] and labels uint8 [n, pixels] of patches, picture after picture, `each` of one."""

    features: Tensor
    labels: np.ndarray
    each: int

    def take(self, pictures: np.ndarray) -> "Set":
        """Those of some pictures, in their order."""
        at = (pictures[:, None] * self.each + np.arange(self.each)).reshape(-1)
        return Set(self.features[torch.from_numpy(at)], self.labels[at], self.each)

    def joined(self, other: "Set") -> "Set":
        return Set(torch.cat([self.features, other.features]), np.concatenate([self.labels, other.labels]), self.each)


def patches_of(encoder, cfg: TaskConfig, pictures: Labelled, progress: Callable[[int], None]) -> Set:
    """Of all pictures, squeezed to a square by Pillow: bicubic, labels by the nearest. What is left of a patch at the
    right and bottom is no part of it."""
    side, features, labels, done = cfg.protocol.size, [], [], 0

    def read(i: int) -> tuple[Tensor, Tensor]:
        picture = Image.fromarray(pictures.read(i)).resize((side, side), Image.Resampling.BICUBIC)
        found = Image.fromarray(pictures.read_labels(i)).resize((side, side), Image.Resampling.NEAREST)
        return as_tensor(picture), torch.from_numpy(np.array(found))

    mean, std = encoder.card.mean, encoder.card.std
    for images, some in batches(read, len(pictures)):
        found = patches(encoder, images, cfg, mean, std).cpu()
        b, h, w, _ = found.shape
        high, wide = (min(encoder.strides[-1], side // count) for count in (h, w))
        inside = some[:, : h * high, : w * wide].view(b, h, high, w, wide)
        features.append(found.flatten(0, 2))
        labels.append(inside.permute(0, 1, 3, 2, 4).reshape(b * h * w, -1).numpy())
        done += len(images)
        progress(done)
    return Set(torch.cat(features), np.concatenate(labels), h * w)


def standardised(train: Set, *others: Set) -> list[Set]:
    """Each dimension of the features with mean 0 and deviation 1 on the training part, in float64."""
    values = train.features.double()
    mean, std = values.mean(0), values.std(0, correction=0)
    std = torch.where(std == 0, 1.0, std)
    return [replace(one, features=((one.features.double() - mean) / std).float()) for one in (train, *others)]


def most_frequent(labels: Tensor, dim: int) -> Tensor:
    """The most frequent value along a dimension; of several the smallest."""
    return labels.mode(dim).values


def _usable(train: Set, ignored: list[int], every: int) -> tuple[Tensor, Tensor]:
    """Features and pixels' labels of every so manieth patch, without those whose most frequent label is ignored. Raises
    UserError where none is left."""
    features, labels = train.features[::every], torch.from_numpy(train.labels[::every])
    keep = ~torch.isin(most_frequent(labels, 1), torch.tensor(ignored, dtype=labels.dtype))
    if not keep.any():
        raise UserError(f"none of the {len(keep)} training patches is of a class that is judged")
    return features[keep], labels[keep]


class Neighbours:
    """For each k and distance the most frequent label of the k nearest patches, pixel by pixel."""

    def __init__(self, protocol, train: Set, ignored: list[int], device: str):
        self.features, self.labels = _usable(train, ignored, protocol.every)
        self.type = torch.bfloat16 if protocol.search == "bf16" else torch.float32
        self.ks, self.device, self.known = protocol.k, device, {}
        self.names = [f"k={k} {distance}" for k in protocol.k for distance in ("cosine", "L2")]

    def predict(self, test: Set, name: str) -> np.ndarray:
        """uint8 [n, pixels]"""
        k, distance = name.removeprefix("k=").split()
        key = id(test), distance
        if key not in self.known:
            queries, keys = (self._prepared(x, distance, i == 0) for i, x in enumerate((test.features, self.features)))
            self.known[key] = nearest(queries, keys, max(self.ks))[1].cpu()
        voters = self.known[key][:, : int(k)]
        return torch.cat([most_frequent(self.labels[some], 1) for some in voters.split(ROWS)]).numpy()

    def _prepared(self, features: Tensor, distance: str, queries: bool) -> Tensor:
        """Vectors whose products fall as the distances rise: of L2, a b - |b|^2 / 2."""
        features = features.to(self.device)
        if distance == "cosine":
            return F.normalize(features, dim=1).to(self.type)
        more = torch.ones_like(features[:, :1]) if queries else -features.square().sum(1, keepdim=True) / 2
        return torch.cat([features, more], 1).to(self.type)


class Regressions:
    """For each C a multinomial logistic regression on the patches' most frequent label: L2 penalty, a bias that is not
    penalised, by L-BFGS of memory 5. A patch's label is that of all its pixels."""

    def __init__(self, protocol, train: Set, ignored: list[int], device: str):
        features, labels = _usable(train, ignored, protocol.every)
        self.classes, targets = most_frequent(labels, 1).unique(return_inverse=True)
        self.features = torch.cat([features, torch.ones_like(features[:, :1])], 1).double().to(device)
        self.targets, self.protocol, self.device = targets.to(device), protocol, device
        self.names, self.fitted = [f"C={c:g}" for c in protocol.c], {}

    def predict(self, test: Set, name: str) -> np.ndarray:
        """uint8 [n, pixels]"""
        if name not in self.fitted:
            self.fitted[name] = self._fit(self.protocol.c[self.names.index(name)])
        weights = self.fitted[name]
        scores = test.features.double().to(self.device) @ weights[:-1] + weights[-1]
        best = self.classes[scores.argmax(1).cpu()]
        return best[:, None].expand(-1, test.labels.shape[1]).numpy()

    def _fit(self, c: float) -> Tensor:
        """Weights [D + 1, classes], the bias last."""
        from scipy.optimize import minimize

        n, shape = len(self.targets), (self.features.shape[1], len(self.classes))

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = torch.from_numpy(flat.reshape(shape)).to(self.device)
            logits = (self.features @ weights).log_softmax(1)
            some = -logits.gather(1, self.targets[:, None]).mean()
            gap = logits.exp().scatter_add_(1, self.targets[:, None], -torch.ones_like(self.targets[:, None]).double())
            slope = self.features.T @ gap / n
            penalised = weights.clone()
            penalised[-1] = 0
            total = some + penalised.square().sum() / (2 * c * n)
            return float(total), (slope + penalised / (c * n)).cpu().numpy().reshape(-1)

        options = {
            "maxiter": self.protocol.iterations,
            "gtol": self.protocol.tol,
            "maxcor": 5,
            "ftol": 0.0,
            "maxls": 50,
        }
        found = minimize(loss, np.zeros(shape).reshape(-1), jac=True, method="L-BFGS-B", options=options)
        return torch.from_numpy(found.x.reshape(shape)).to(self.device)
