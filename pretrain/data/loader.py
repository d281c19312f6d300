"""Batches of views for training. What is in the batch of (epoch, step) depends on the seed and the data only: not on
the number of workers or ranks, nor on where a run was resumed."""

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..common.errors import UserError
from ..common.processes import context
from .group import Group
from .images import ImageSource, Unreadable
from .masks import draw_mask
from .pixels import apply, pre_resize
from .views import Views, draw_all, permutation

log = logging.getLogger(__name__)
_ORDER = 0x6F72646572  # apart from the keys of views


@dataclass
class Batch:
    """A micro-batch: B images, one rank's share of the global batch of a step, or of its micro-steps one's.

    groups: one Group per view size, x uint8; index int64 [B]: number of the image whose pixels are here (a
    replacement's own, see `bad`); names: as the source calls them; bad: (number, name, reason) of the images that
    should have been here and could not be read.
    """

    groups: list[Group]
    index: Tensor
    names: list[str]
    epoch: int
    step: int
    bad: list[tuple[int, str, str]] = field(default_factory=list)

    def to(self, device, non_blocking: bool = False) -> "Batch":
        return replace(self, groups=[g.to(device, non_blocking) for g in self.groups])

    def pin_memory(self) -> "Batch":
        return replace(self, groups=[g.pin_memory() for g in self.groups])


class Mover:
    """Takes batches to the device. To a GPU they go from page-locked memory on a stream of their own, while the device
    computes what it was given before; only what it is given afterwards waits for them."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        if self.stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.stream):
            moved = batch.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        return replace(moved, groups=[g.used_on(computing) for g in moved.groups])


@dataclass
class _Failure:
    """An exception on its way from a worker; raised in the main process as one line."""

    message: str
    trace: str | None = None  # of what is not the user's fault


def steps_per_epoch(images: int, batch: int) -> int:
    """Whole global batches in an epoch; the images left over wait for another epoch's order."""
    return images // batch


def _steps(images: int, seed: int, epochs: range, start_step: int, batch: int, shares: int, mine: range):
    """The work list: (epoch, step, image numbers) of `mine` among the equal shares of each batch, in order."""
    count = steps_per_epoch(images, batch)
    for epoch in epochs:
        order = permutation(images, _ORDER, seed, epoch)[: count * batch].reshape(count, shares, batch // shares)
        for step in range(start_step if epoch == epochs[0] else 0, count):
            for share in mine:
                yield epoch, step, order[step, share]


class _Work(Dataset):
    """(epoch, step, image numbers) -> Batch, or the _Failure that stopped it."""

    def __init__(self, source: ImageSource, views: Views, seed: int, batch: int, patch: int | None):
        self.source, self.views, self.seed, self.patch = source, views, seed, patch
        self.steps = steps_per_epoch(len(source), batch)
        self.known_bad: dict[int, str] = {}

    def __getitem__(self, item) -> Batch | _Failure:
        try:
            return self._make(*item)
        except UserError as error:
            return _Failure(str(error))
        except Exception as error:
            epoch, step, numbers = item
            where = f"epoch {epoch}, step {step}, images {numbers[0]} ... {numbers[-1]}"
            return _Failure(f"making views failed at {where}: {type(error).__name__}: {error}", traceback.format_exc())

    def _make(self, epoch: int, step: int, numbers: np.ndarray) -> Batch:
        specs, layout = self.views.specs(), self.views.groups()
        pixels = [torch.empty(len(g), len(numbers), 3, *[specs[g[0]].size] * 2, dtype=torch.uint8) for g in layout]
        draw = cache(partial(draw_all, self.views, patch=self.patch))  # a batch that shares its draws draws once
        index, bad, keys, drawn = [], [], [], []
        for b, number in enumerate(numbers.tolist()):
            number, image = self._read(number, bad)
            image = pre_resize(image, self.views.pre_resize)
            index.append(number)
            shared = self.views.share == "batch"
            keys.append((self.seed, epoch * self.steps + step) if shared else (self.seed, epoch, number))
            drawn.append(draw(*image.shape[:2], *keys[b]))
            for x, members in zip(pixels, layout, strict=True):
                for v, view in enumerate(members):
                    apply(drawn[b][view], image, out=x[v, b].numpy())
        groups = [
            Group(
                x,
                torch.tensor([[views[view].box for views in drawn] for view in members], dtype=torch.float32),
                torch.tensor([[views[view].flip for views in drawn] for view in members]),
            )
            for x, members in zip(pixels, layout, strict=True)
        ]
        if self.views.mask.kind != "none":
            side = specs[layout[0][0]].size // self.patch
            masks = [[draw_mask(self.views.mask, side, side, *key, view) for key in keys] for view in layout[0]]
            groups[0].mask = torch.from_numpy(np.array(masks))
        return Batch(groups, torch.tensor(index), [self.source.name(i) for i in index], epoch, step, bad)

    def _read(self, number: int, bad: list) -> tuple[int, np.ndarray]:
        """The image, or in place of one that cannot be read the next that can."""
        allowed = _allowed(self.source)
        for _ in range(allowed + 1):
            number %= len(self.source)
            try:
                if number not in self.known_bad:
                    return number, self.source.read(number)
            except Unreadable as error:
                self.known_bad[number] = " ".join(str(error).split())
            bad.append((number, self.source.name(number), self.known_bad[number]))
            number += 1
        raise _too_many(self.source, {n: name for n, name, _ in bad}, self.known_bad[number - 1])


def _allowed(source: ImageSource) -> int:
    """Images that may be unreadable: 1 %."""
    return len(source) // 100


def _too_many(source: ImageSource, bad: dict[int, str], reason: str) -> UserError:
    names = ", ".join(list(bad.values())[:3])
    return UserError(
        f"{source.where}: {len(bad)} of {len(source)} images cannot be read, more than 1 %: {names}"
        f"{' ...' if len(bad) > 3 else ''} (last: {reason}); repair or remove them"
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # torch's threads are set to one by the DataLoader
    # The main process decides when to stop: a Ctrl-C, torchrun's SIGTERM or a scheduler's signal goes to the whole
    # process group, and the main process may still want to finish its step and save.
    os.setpgid(0, 0)
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # drops one that the group got while this process was started
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # A worker's parent is the fork server, which outlives a killed main process as long as any worker lives.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def batches(
    source: ImageSource,
    views: Views,
    *,
    seed: int,
    batch: int,
    epoch: int = 0,
    epochs: int | None = None,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulation: int = 1,
    workers: int = 0,
    pin: bool = False,
    prefetch: int = 2,
    patch: int | None = None,
) -> Iterator[Batch]:
    """This rank's micro-batches, `accumulation` a step, from (epoch, start_step) to the end of epoch `epochs` - 1
    (default: of `epoch`).

    batch is the global batch, a multiple of world times accumulation. workers: processes that read and augment ahead,
    `prefetch` micro-batches each; 0 does it in this process. pin: page-locked memory for copies to a GPU. patch: side
    of the network's patches, for views with masks or with colours of their own for every patch. Skipped steps cost
    nothing. A damaged image is replaced by the next one and named in one warning; more than 1 % of them end in a
    UserError, as does anything that fails in a worker. Closing the iterator ends the workers.
    """
    views.check()
    if views.mask.kind != "none" or views.unit == "patch":
        uneven = [s.size for s in views.specs() if not patch or s.size % patch]
        if uneven:
            raise UserError(f"views of {uneven[0]} pixels with patches of {patch}: the patch must divide the size")
    shares = world * accumulation
    if batch < 1 or batch % shares:
        of = f"the {world} processes" + (f" times {accumulation} micro-steps" if accumulation > 1 else "")
        raise UserError(f"batch={batch}: must be a positive multiple of {of}")
    if batch > len(source):
        raise UserError(
            f"{source.where}: {len(source)} images are fewer than one batch of {batch}; give a smaller batch"
        )
    epochs = range(epoch, epoch + 1 if epochs is None else epochs)
    return _batches(
        source,
        DataLoader(
            _Work(source, views, seed, batch, patch),
            batch_size=None,
            sampler=_steps(
                *(len(source), seed, epochs, start_step, batch, shares),
                range(rank * accumulation, (rank + 1) * accumulation),
            ),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            # Forks of a server that has imported what they need and run nothing.
            multiprocessing_context=context(preload=__name__) if workers else None,
            worker_init_fn=_start_worker if workers else None,
            pin_memory=pin,
            generator=torch.Generator(),  # else the loader takes a number from the global stream, and a resume differs
        ),
    )


def _batches(source: ImageSource, loader: DataLoader) -> Iterator[Batch]:
    bad: dict[int, str] = {}
    try:
        for item in loader:
            if isinstance(item, _Failure):
                raise UserError(item.message, status=2 if item.trace is None else 1) from (
                    RuntimeError(item.trace) if item.trace else None
                )
            for number, name, reason in item.bad:
                if number not in bad:
                    log.warning("%s: %s cannot be read and is skipped: %s", source.where, name, reason)
                bad[number] = name
            if len(bad) > _allowed(source):
                raise _too_many(source, bad, item.bad[-1][2])
            yield item
    except (RuntimeError, OSError, EOFError) as error:  # what fails in a worker comes as a _Failure: this is its death
        if not loader.num_workers:
            raise
        raise UserError(
            f"a data worker died: {error}; usual causes: memory, /dev/shm or the limit of open files too small; "
            "fewer workers need less",
            status=1,
        ) from error
