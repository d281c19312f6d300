"""The memory of labelled patches that Hummingbird searches (vpariza/open-hummingbird-eval 5e79da2, hbird_eval.py)."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as T

from ...datasets.segmentation import IGNORED, Labelled
from .. import TaskConfig
from .._features import effective
from .dense import as_tensor, batches, patches, shares, squeezed
from .search import nearest
from .views import random_cut

JITTER, CHANCE = 0.1, 0.5  # of brightness, contrast, saturation and hue, each
AREA = (0.5, 2.0)  # of a training picture's cut


class Memory:
    """Unit vectors of patches with the shares of the classes in them. fill, then predict. side: of the square."""

    def __init__(self, encoder, cfg: TaskConfig, classes: int, side: int, mean: list[float], std: list[float]):
        self.encoder, self.cfg, self.classes = encoder, cfg, classes
        self.side, self.mean, self.std = side, mean, std
        self.keys = self.labels = None

    def fill(self, pictures: Labelled, progress: Callable[[int], None]) -> None:
        """progress(done): pictures so far, of all passes."""
        p, done, chosen = self.cfg.protocol, 0, []
        draws = torch.Generator().manual_seed(self.cfg.seed)
        each = None if p.memory_size is None else max(1, p.memory_size // (len(pictures) * p.passes))
        for number in range(p.passes):
            read = partial(squeezed, pictures, self.side, Image.Resampling.BILINEAR)
            if p.augment:
                read = partial(augmented, pictures, self.side, (self.cfg.seed, number))
            for images, labels in batches(read, len(pictures)):
                found = patches(self.encoder, images, self.cfg, self.mean, self.std)
                grid = found.shape[1:3]
                counts = shares(torch.where(labels == IGNORED, 0, labels), grid, self.classes)
                vectors, counts = found.flatten(1, 2), counts.flatten(1, 2)
                if each is not None:
                    at = rarest(counts, uniform(counts, draws), each)
                    vectors = vectors.gather(1, at.to(vectors.device)[:, :, None].expand(-1, -1, vectors.shape[2]))
                    counts = counts.gather(1, at[:, :, None].expand(-1, -1, self.classes))
                vectors = vectors / vectors.norm(dim=2, keepdim=True)
                chosen.append((vectors.flatten(0, 1).to(self._type()), counts.flatten(0, 1)))
                done += len(images)
                progress(done)
        self.keys = torch.cat([vectors for vectors, _ in chosen])
        self.labels = torch.cat([counts for _, counts in chosen]).to(self.keys.device)

    def _type(self) -> torch.dtype:
        return torch.bfloat16 if self.cfg.protocol.search == "bf16" else torch.float32

    @torch.inference_mode()
    def predict(self, images: Tensor) -> np.ndarray:
        """Pictures in 0..1, float [B, 3, S, S] -> classes of their pixels, int64 [B, S, S]"""
        p = self.cfg.protocol
        found = patches(self.encoder, images, self.cfg, self.mean, self.std)
        b, h, w, _ = found.shape
        queries = F.normalize(found.flatten(0, 2), dim=1).to(self.keys.dtype)
        cosines, at = nearest(queries, self.keys, p.neighbours)
        weights = (cosines.float() / p.temperature).softmax(1)
        counts = self.labels[at].float()
        soft = (weights[:, :, None] * counts / counts.sum(2, keepdim=True)).sum(1)
        soft = soft.view(b, h, w, -1).permute(0, 3, 1, 2)
        return F.interpolate(soft, size=images.shape[-2:], mode="bilinear").argmax(1).cpu().numpy()

    def in_force(self) -> dict:
        """What the card decides, and the memory's size, for the record."""
        facts = {"size": self.side, "memory": len(self.keys), "mean": self.mean, "std": self.std}
        return effective(self.encoder, self.side) | facts


def uniform(counts: Tensor, draws: torch.Generator) -> Tensor:
    """A number in 0..1 for each patch, float32 [B, n], from one stream for all pictures in order."""
    return torch.rand(counts.shape[:2], generator=draws)


def rarest(counts: Tensor, numbers: Tensor, each: int) -> Tensor:
    """The patches to keep of each picture: int64 [B, min(each, n)].

    counts: pixels of each class in every patch, [B, n, classes]. numbers [B, n]: uniform draws. A patch's score is the
    sum, over the classes in it, of the number of the picture's patches that have the class, times its draw; those with
    the smallest scores are kept, so that rare classes are.
    """
    there = (counts > 0).float()
    score = torch.einsum("bpc,bc->bp", there, there.sum(1)) * numbers
    return score.topk(min(each, score.shape[1]), dim=1, largest=False).indices


def augmented(pictures: Labelled, side: int, seed: tuple[int, int], i: int) -> tuple[Tensor, Tensor]:
    """Picture i in other colours and cut, and its labels: as `squeezed`. seed: of the run, and which pass.

    The official code cuts and resizes the normalised picture, which makes no difference: both are linear.
    """
    draws = np.random.default_rng([*seed, i])
    picture = Image.fromarray(pictures.read(i))
    for change in (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation):
        if draws.random() < CHANCE:
            picture = change(picture, draws.uniform(1 - JITTER, 1 + JITTER))
    if draws.random() < CHANCE:
        picture = T.adjust_hue(picture, draws.uniform(-JITTER, JITTER))
    image, labels = as_tensor(picture), torch.from_numpy(np.array(pictures.read_labels(i)))
    top, left, height, width = random_cut(draws, *labels.shape, AREA)
    image = T.resize(image[:, top : top + height, left : left + width], [side, side], antialias=True)
    labels = labels[None, top : top + height, left : left + width]
    return image, T.resize(labels, [side, side], T.InterpolationMode.NEAREST)[0]
