"""Features of labelled images, computed once for a network and kept.

Kept by what decides them: the network's fingerprint and card, the preprocessing, what is extracted, and the images.
They come in chunks, so that an interrupted extraction goes on where it stopped.
"""

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError, naming
from ...pretrain.common.machine import cache_folder
from ..datasets.pictures import Pictures
from . import TaskConfig, make_key

CHUNK = 8192  # images of a file; also the most that an interruption costs
BATCH = 64


@dataclass(frozen=True)
class Crop:
    """Preprocessing for evaluation: shorter side to `resize` (bicubic), then the centre of `crop` x `crop` pixels.

    DINO's scripts have it so (facebookresearch/dino 7c446df, eval_knn.py, eval_linear.py). resize None: in DINO's
    proportion, 256 to 224, but a picture whose shorter side is no longer than `crop` is not cut there: it is brought to
    `crop`, which leaves one of that size as it is.
    """

    resize: int | None = 256
    crop: int = 224

    @property
    def key(self) -> list:
        """What tells it from other preprocessings, as JSON has it."""
        return [self.resize, self.crop]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [crop, crop, 3]"""
        side = self.resize
        if side is None:
            side = self.crop if min(image.shape[:2]) <= self.crop else round(self.crop * 256 / 224)
        picture = resize(Image.fromarray(image), side, InterpolationMode.BICUBIC)
        return np.asarray(center_crop(picture, self.crop))


def effective(encoder, crop: int) -> dict:
    """What the card decides about a picture of `crop` x `crop` pixels, for the record.

    mean and std; pos_rule: how a ViT's positions are made; size_rule: how a ResNet or Swin takes that size.
    """
    facts = {"mean": list(encoder.card.mean), "std": list(encoder.card.std)}
    if not encoder.card.staged:
        return facts | {"pos_rule": encoder.pos_rule((crop, crop))}
    return facts | {"size_rule": encoder.size_rule((crop, crop))}


Extract = Callable[[torch.nn.Module, Tensor], Tensor]


class Prepare(Protocol):
    """What a network sees of a picture."""

    @property
    def key(self) -> list:
        """What tells it from other preprocessings, as JSON has it."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 of the size that the network sees"""


T = TypeVar("T")


def image_vector(encoder, images: Tensor) -> Tensor:
    """Normalised images [B, 3, S, S] -> the card's image vector [B, D]"""
    return encoder(images).image


class Replicas:
    """Copies of a network that share the work; use it in a `with` statement.

    device: `cuda` stands for every GPU there is, any other name for itself. precision: float32 or bf16 (autocast).
    """

    def __init__(self, encoder, extract: Extract, device: str, precision: str):
        self.places, self.extract, self.precision = devices(device), extract, precision
        several = len(self.places) > 1
        self.networks = [copy.deepcopy(encoder).to(d) if several else encoder for d in self.places]
        self.threads = [ThreadPoolExecutor(1) for _ in self.places]
        self.next = 0

    def submit(self, images: Tensor, first: str = "") -> Future:
        """Images uint8 or float [B, 3, S, S], not normalised -> a future of features float32 [B, D] on the CPU. first:
        the first one's file, which a UserError of the network names."""
        number = self.next
        self.next = (number + 1) % len(self.places)
        return self.threads[number].submit(self._compute, number, images, first)

    @torch.inference_mode()
    def _compute(self, number: int, images: Tensor, first: str) -> Tensor:
        place, network = self.places[number], self.networks[number]
        with naming(first), torch.autocast(torch.device(place).type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.extract(network, network.normalise(images.to(place))).float().cpu()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pool in self.threads:
            pool.shutdown(cancel_futures=True)


def devices(device: str) -> list[str]:
    """`cuda` stands for every GPU there is, any other name for itself."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]


def ahead(submit: Callable[[T], Future], items: Iterable[T], count: int) -> Iterator[Tensor]:
    """Results of `submit(item)` in order, up to `count` of them being computed while the caller is busy."""
    coming, items = deque(), iter(items)
    coming.extend(map(submit, islice(items, count)))
    while coming:
        coming.extend(map(submit, islice(items, 1)))
        yield coming.popleft().result()


def features(
    encoder,
    split: Pictures,
    extract: Extract,
    what: str | None,
    cfg: TaskConfig,
    progress: Callable[[int], None] = lambda done: None,
    prepare: Prepare | None = None,
) -> Tensor:
    """Features of a whole split, float32 [n, D] on the CPU.

    extract: (encoder, normalised images [B, 3, H, W]) -> [B, D], called `what` in the cache; without a name they are
    kept nowhere. cfg: its device, and its protocol's precision. prepare: makes of a picture what the network sees;
    None: Crop of the protocol's resize and crop. progress(done): images so far. Raises UserError for an image that
    cannot be read, or features that are not finite.
    """
    prepare = prepare or Crop(cfg.protocol.resize, cfg.protocol.crop)
    precision = cfg.protocol.precision
    folder = None
    if what is not None:
        if not split.fingerprint:
            raise ValueError(f"{split.name}: which images these are is not known yet: their content was not read")
        parts = {
            "fingerprint": encoder.fingerprint,
            "card": encoder.card.as_dict(),
            "images": split.fingerprint,
            "what": what,
            "crop": prepare.key,
            "precision": precision,
            "version": 1,
        }
        folder = cache_folder() / "features" / make_key(parts)
    cores, chunks = os.cpu_count() or 1, []

    def load(numbers: range) -> list[tuple[list[int], Tensor]]:
        """Pictures [B, 3, H, W] of each size that occurs, with their numbers."""
        groups: dict[tuple, list] = {}
        for i in numbers:
            image = prepare(split.read(i))
            groups.setdefault(image.shape, []).append((i, image))
        found = (tuple(zip(*group, strict=True)) for group in groups.values())
        return [(list(some), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)) for some, images in found]

    with ThreadPoolExecutor(cores) as threads, Replicas(encoder, extract, cfg.device, precision) as replicas:
        for start in range(0, len(split), CHUNK):
            numbers = range(start, min(start + CHUNK, len(split)))
            file = folder and folder / f"{start:08d}-{numbers.stop:08d}.npy"
            if not file or (chunk := _read(file, len(numbers))) is None:
                batches = (numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH))
                loaded = ahead(partial(threads.submit, load), batches, cores + 1)
                order, parts, done = [], [], 0

                def submit(group: tuple[list[int], Tensor], order=order) -> Future:
                    order.extend(group[0])
                    return replicas.submit(group[1], f"{split.source.where}/{split.file(group[0][0])}")

                for part in ahead(submit, chain.from_iterable(loaded), 2 * len(replicas.places)):
                    parts.append(part)
                    done += len(part)
                    progress(start + done)
                chunk = torch.empty(len(numbers), parts[0].shape[1])
                chunk[torch.tensor(order) - start] = torch.cat(parts)
                if not torch.isfinite(chunk).all():
                    raise UserError(f"{split.source.where}: the network gives features that are not finite")
                if file:
                    _write(file, chunk)
            chunks.append(chunk)
            progress(numbers.stop)
    return torch.cat(chunks)


def of_sets(
    encoder, cfg: TaskConfig, sets: Sequence[Pictures], extract: Extract, what: str | None, prepare=None
) -> list[Tensor]:
    """`features` of several sets of pictures one after the other, with progress."""
    total, before, found = sum(map(len, sets)), 0, []
    for some in sets:

        def progress(done: int, some=some, before=before):
            cfg.progress(before + done, total, f"{some.name} {done}/{len(some)}")

        found.append(features(encoder, some, extract, what, cfg, progress, prepare))
        before += len(some)
    return found


def of_both_splits(encoder, cfg: TaskConfig, extract: Extract, what: str | None) -> list[Tensor]:
    """`of_sets` of train/ and val/ of a ClassSet, cfg.data.content."""
    return of_sets(encoder, cfg, (cfg.data.content.train, cfg.data.content.val), extract, what)


def _read(file: Path, count: int) -> Tensor | None:
    """A chunk of an earlier run; None if it is absent or damaged."""
    try:
        stored = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(stored) if stored.ndim == 2 and len(stored) == count else None


def _write(file: Path, chunk: Tensor) -> None:
    """Keep a chunk; a cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, lambda handle: np.save(handle, chunk.numpy()), sync=False)
    except (OSError, UserError):
        pass
