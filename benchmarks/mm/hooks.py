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
import torch.distributed as dist
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import CheckpointLoader
from torch import nn
from torch.utils.data import Dataset, Sampler

from ...pretrain.common.errors import UserError
from ...pretrain.common.reading.state import load_state
from .training import LAST, write_json

SCHEME = "selfpatch-own:"  # paths with it are read by `read_own`, not by mmengine's loader
GRADIENTS = "gradients"  # in a checkpoint's `optimizer`: what the micro-batches of an unfinished step have summed up


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
    classes, and takes the place of its predecessor when it is complete. Where an epoch ends amid the micro-batches of a
    step, it also holds what they have summed up (GRADIENTS), which mmengine would lose.
    """

    summed: list[dict] | None = None  # for `before_save_checkpoint`, which mmengine calls in the first process alone

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.summed:
            checkpoint["optimizer"][GRADIENTS] = self.summed
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}  # only mm's log uses it
        for key in list(checkpoint):
            checkpoint[key] = without_classes(checkpoint[key])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Where the run goes on amid a step, its gradients. Raises UserError for a file that lacks them."""
        done, summed = checkpoint["meta"]["iter"], checkpoint["optimizer"].pop(GRADIENTS, None)
        steps_of = runner.optim_wrapper._accumulative_counts
        if summed:
            load_gradients(bare(runner.model), summed)
        elif done % steps_of and done < runner.train_loop.max_iters:
            raise UserError(
                f"{Path(runner.work_dir) / LAST}: was left after {done % steps_of} of the {steps_of} micro-batches of "
                "a step, and lacks their gradients: a run that goes on from it is not the unbroken one; remove it to "
                "begin again"
            )

    def _save_checkpoint(self, runner) -> None:
        folder, name = Path(runner.work_dir), f".{LAST}.saving"
        self.summed = gather_gradients(bare(runner.model))
        runner.save_checkpoint(str(folder), name, by_epoch=self.by_epoch)
        if get_dist_info()[0] == 0:
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
            os.replace(folder / name, folder / LAST)
        self.summed = None


def bare(model: nn.Module) -> nn.Module:
    """The model without DDP around it."""
    return getattr(model, "module", model)


def gather_gradients(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """By parameter, the gradients of every process, in the order of ranks; only the first process gets them. [] where a
    step has just been made.

    Within a step DDP adds nothing up: every process has the sum over its own micro-batches.
    """
    rank, world = get_dist_info()
    mine = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if world == 1:
        return [mine] if mine else []
    known: list = [None] * world
    dist.all_gather_object(known, list(mine))
    found: list[dict] = [{} for _ in known] if rank == 0 and any(known) else []
    for name, parameter in model.named_parameters():
        if not any(name in names for names in known):
            continue
        grad = mine.get(name, torch.zeros_like(parameter)).contiguous()
        parts = [torch.empty_like(grad) for _ in known]
        dist.all_gather(parts, grad)  # one parameter after the other: no device holds all of them of all processes
        for names, part, kept in zip(known, parts, found, strict=False):
            if name in names:
                kept[name] = part.cpu()
    return found


def load_gradients(model: nn.Module, summed: list[dict[str, torch.Tensor]]) -> None:
    """Those of `gather_gradients`: each process takes its own. Another number of processes all take the mean, from
    which DDP makes the same step."""
    rank, world = get_dist_info()
    chosen = [summed[rank]] if len(summed) == world else summed
    for name, parameter in model.named_parameters():
        if parts := [gradients[name] for gradients in chosen if name in gradients]:
            parameter.grad = (torch.stack(parts).sum(0) / len(chosen)).to(parameter)


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
