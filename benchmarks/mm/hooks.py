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
from .job import LAST, PROGRESS, write_json

SCHEME = "selfpatch-own:"  # paths with it are read by `read_own`, not by mmengine's loader


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Draw(int):
    """An image's index that knows in which epoch it was drawn."""

    epoch = 0


def draw(index: int, epoch: int) -> Draw:
    number = Draw(index)
    number.epoch = epoch
    return number


@DATA_SAMPLERS.register_module()
class NumberedSampler(Sampler):
    """mmengine's sampler `inner` (a config), whose indices are `Draw`s; for RepeatableDataset."""

    def __init__(self, dataset, inner: Mapping, seed: int | None = None):
        self.dataset = dataset
        self.inner = DATA_SAMPLERS.build(dict(inner), default_args={"dataset": dataset, "seed": seed})
        self.endless, self.skipped = isinstance(self.inner, InfiniteSampler), 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Draw]:
        rank, world = get_dist_info()
        for i, index in enumerate(self.inner):
            epoch = ((self.skipped + i) * world + rank) // len(self.dataset) if self.endless else self.inner.epoch
            yield draw(index, epoch)

    def set_epoch(self, epoch: int) -> None:
        self.inner.set_epoch(epoch)

    def skip(self, count: int) -> None:
        """Go on after `count` images of this process (mmengine calls it when an iteration-based run is resumed)."""
        self.inner.skip(count)
        self.skipped = count


@DATASETS.register_module()
class RepeatableDataset(Dataset):
    """The data set `dataset` (a config), with NumPy's and Python's random numbers fixed for every `Draw`."""

    def __init__(self, dataset: Mapping, seed: int):
        self.dataset, self.seed = DATASETS.build(dict(dataset)), seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        number = _seed(self.seed, getattr(index, "epoch", 0), int(index))
        np.random.seed(number)  # mm's transforms draw from the global generators
        random.seed(number)
        return self.dataset[int(index)]

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


def plain(value):
    """Tensors, numbers, texts and containers of them, of whatever class, as plain ones; other values as their text."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else [plain(v) for v in value]
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    return str(value)


@HOOKS.register_module()
class PlainCheckpoint(CheckpointHook):
    """mmengine's hook of checkpoints, which keeps the latest one only, as OUT/last.pth.

    The file holds tensors and plain containers alone, so that it can be read without unpickling arbitrary classes, and
    takes the place of its predecessor when it is complete.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}  # only mm's log uses it
        for key in list(checkpoint):
            checkpoint[key] = plain(checkpoint[key])

    def _save_checkpoint(self, runner) -> None:
        folder, name = Path(runner.work_dir), f".{LAST}.saving"
        runner.save_checkpoint(str(folder), name, by_epoch=self.by_epoch)
        if get_dist_info()[0] == 0:
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
            os.replace(folder / name, folder / LAST)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        """The last checkpoint is evaluated, as the protocols say."""


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def read_own(filename: str, map_location=None, **_):
    """A state that `PlainCheckpoint` saved, on the CPU: whoever takes it over moves it. mmengine's own loader would
    unpickle whatever a file asks for, should somebody else have put the file into the results' folder."""
    path = filename.removeprefix(SCHEME)
    try:
        return load_state(path)
    except UserError as error:
        raise UserError(f"{error}; nothing can be resumed from it: remove it to begin again") from None


@HOOKS.register_module()
class Report(Hook):
    """Progress for the parent in `out`; fixes torch's random numbers of each iteration; ends a run whose loss is lost.

    tests: batches of the evaluation that comes after the training.
    """

    priority = "VERY_LOW"

    def __init__(self, out: str, seed: int, tests: int = 0, accumulate: int = 1):
        self.path, self.seed, self.tests, self.accumulate = Path(out) / PROGRESS, seed, tests, accumulate
        self.last, self.steps = 0.0, 0

    def before_train(self, runner) -> None:
        self.steps = runner.max_iters

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        torch.manual_seed(_seed(self.seed, runner.iter, runner.rank))

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

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._due():
            self._write(runner, runner.iter, f"iteration {runner.iter}/{self.steps}, validating: batch {batch_idx + 1}")

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._due(batch_idx + 1 == self.tests):
            self._write(runner, self.steps + batch_idx + 1, f"evaluating {batch_idx + 1}/{self.tests}")

    def _due(self, always: bool = False) -> bool:
        now = time.monotonic()
        if now - self.last < 1 and not always:
            return False
        self.last = now
        return True

    def _write(self, runner, done: int, text: str) -> None:
        if runner.rank == 0:
            write_json(self.path, {"done": done, "total": self.steps + self.tests, "text": text})
