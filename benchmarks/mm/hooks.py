"""Hooks and data parts of mmengine's loops: exact resume, safe checkpoints, progress.

A run that is killed and goes on gives the same numbers as one that was never stopped, on GPUs up to the order of
additions: the order of the images depends on the seed and the epoch, an image's augmentation on (seed, epoch, image),
dropout on (seed, iteration, process).
"""

import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import CheckpointLoader
from torch.utils.data import Dataset, Sampler

from ...pretrain.common.errors import UserError
from ...pretrain.common.reading.state import load_state
from .training import LAST, write_json

SCHEME = "selfpatch-own:"  # paths with it are read by `read_own`, not by mmengine's loader


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """mmengine's sampler `inner` (a config), for RepeatableDataset: image i of n is number e n + i in epoch e."""

    def __init__(self, dataset, inner: Mapping, seed: int | None = None):
        self.dataset = dataset
        self.inner = DATA_SAMPLERS.build(dict(inner), default_args={"dataset": dataset, "seed": seed})
        self.endless, self.skipped = isinstance(self.inner, InfiniteSampler), 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[int]:
        rank, world = get_dist_info()
        n = len(self.dataset)
        for i, index in enumerate(self.inner):
            epoch = ((self.skipped + i) * world + rank) // n if self.endless else self.inner.epoch
            yield epoch * n + index

    def set_epoch(self, epoch: int) -> None:
        self.inner.set_epoch(epoch)

    def skip(self, count: int) -> None:
        """Go on after `count` images of this process (mmengine calls it when an iteration-based run is resumed)."""
        self.inner.skip(count)
        self.skipped = count


@DATASETS.register_module()
class RepeatableDataset(Dataset):
    """The data set `dataset` (a config), with NumPy's and Python's random numbers fixed for every image and epoch."""

    def __init__(self, dataset: Mapping, seed: int):
        self.dataset, self.seed = DATASETS.build(dict(dataset)), seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int):
        epoch, index = divmod(number, len(self))
        seed = _seed(self.seed, epoch, index)
        np.random.seed(seed)  # mm's transforms draw from the global generators
        random.seed(seed)
        return self.dataset[index]

    def get_data_info(self, number: int) -> dict:
        """For mmdet's batch sampler, which asks for the shape of an image by the sampler's number."""
        return self.dataset.get_data_info(number % len(self))

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


def without_classes(value):
    """Tensors, numbers, texts and their containers, of whatever class, as Python's own; other values as their text."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {without_classes(k): without_classes(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [without_classes(v) for v in value]
        return tuple(items) if type(value) is tuple else items
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    return str(value)


@HOOKS.register_module()
class LatestCheckpoint(CheckpointHook):
    """mmengine's hook of checkpoints, which keeps the latest one only, as OUT/last.pth.

    The file holds tensors, numbers, texts, lists and dicts alone, so that it can be read without unpickling arbitrary
    classes, and takes the place of its predecessor when it is complete.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}  # only mm's log uses it
        for key in list(checkpoint):
            checkpoint[key] = without_classes(checkpoint[key])

    def _save_checkpoint(self, runner) -> None:
        folder, name = Path(runner.work_dir), f".{LAST}.saving"
        runner.save_checkpoint(str(folder), name, by_epoch=self.by_epoch)
        if get_dist_info()[0] == 0:
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
            os.replace(folder / name, folder / LAST)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def read_own(filename: str, map_location=None, **_):
    """A checkpoint of `LatestCheckpoint`. mmengine's own loader would unpickle whatever a file asks for; this one takes
    no other class, should somebody else have put the file into the results' folder."""
    path = filename.removeprefix(SCHEME)
    try:
        return load_state(path)
    except UserError as error:
        raise UserError(f"{error}; nothing can be resumed from it: remove it to begin again") from None


@HOOKS.register_module()
class SeedOfIteration(Hook):
    """Fixes torch's random numbers (dropout) of each iteration, in each process."""

    priority = "VERY_LOW"

    def __init__(self, seed: int):
        self.seed = seed

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        torch.manual_seed(_seed(self.seed, runner.iter, runner.rank))


@HOOKS.register_module()
class Progress(Hook):
    """Writes the progress for the parent, about once a second; ends a run whose loss is not finite.

    path: of the file. accumulate: micro-batches for a step.
    """

    priority = "VERY_LOW"

    def __init__(self, path: str, accumulate: int = 1):
        self.path, self.accumulate = Path(path), accumulate
        self.last, self.steps, self.tests = 0.0, 0, 0

    def before_run(self, runner) -> None:
        self.tests = len(runner.test_loop.dataloader)

    def before_train(self, runner) -> None:
        self.steps = runner.max_iters

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        if self._due(done == self.steps):
            loss = outputs["loss"].item() if outputs and "loss" in outputs else math.nan
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of iteration {done} is not finite: a lower learning rate or amp=off may help"
                )
            micro = f" ({self.accumulate} for a step)" if self.accumulate > 1 else ""
            self._write(runner, done, f"iteration {done}/{self.steps}{micro}, loss {loss:.4g}")

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._due(batch_idx + 1 == self.tests):
            self._write(runner, self.steps + batch_idx + 1, f"evaluating {batch_idx + 1}/{self.tests}")

    def _due(self, always: bool) -> bool:
        now = time.monotonic()
        if now - self.last < 1 and not always:
            return False
        self.last = now
        return True

    def _write(self, runner, done: int, text: str) -> None:
        if runner.rank == 0:
            write_json(self.path, {"done": done, "total": self.steps + self.tests, "text": text})
