"""Schedule, learning rate and batch of a recipe's config.

Iterations in a recipe, and in overrides, are optimiser steps; `count_micro_batches` turns them into mmengine's, last.
"""

from mmengine.config import Config

from ...pretrain.common.errors import UserError
from .recipe import Recipe, batching


def set_length(cfg: Config, own: dict) -> int | None:
    """epochs=, iterations= and warmup=: the whole schedule moves with them. -> as `shorten_warmup`"""
    loop, by_epoch = cfg.train_cfg, cfg.train_cfg.get("by_epoch", "Epoch" in cfg.train_cfg.get("type", ""))
    counted, other = ("epochs", "iterations") if by_epoch else ("iterations", "epochs")
    if other in own:
        raise UserError(f"{other}={own[other]}: this recipe counts {counted}; give {counted}=")
    if counted in own:
        key, new = "max_epochs" if by_epoch else "max_iters", own[counted]
        old, loop[key] = loop[key], new
        loop.val_interval = min(loop.val_interval, new)
        cfg.default_hooks.checkpoint.interval = min(cfg.default_hooks.checkpoint.interval, new)
        for s in cfg.param_scheduler:
            if s.get("by_epoch", True) != by_epoch or "Linear" in s.type:
                continue
            s.end += new - old
            if "milestones" in s:
                s.milestones = [max(1, round(m * new / old)) for m in s.milestones]
    if "warmup" in own:
        warm = [s for s in cfg.param_scheduler if s.type == "LinearLR"]
        if not warm:
            raise UserError(f"warmup={own['warmup']}: this recipe has no warm-up")
        warm[0].end = warm[0].begin + own["warmup"] + 1
        if not own["warmup"]:
            cfg.param_scheduler.remove(warm[0])
    return None if by_epoch else shorten_warmup(cfg.param_scheduler, loop.max_iters, "warmup" in own)


def shorten_warmup(schedulers: list[dict], length: int, given: bool) -> int | None:
    """A warm-up that is longer than a run of `length` iterations gets its length; -> it, or None: it is not longer.

    Raises UserError where the user gave the warm-up. Both count the same, steps or micro-batches.
    """
    for s in schedulers:
        if s["type"] == "LinearLR" and not s.get("by_epoch", True) and (old := s["end"] - s["begin"] - 1) > length:
            if given:
                raise UserError(f"warmup={old}: longer than the run; give at most warmup={length}")
            s["end"] = s["begin"] + length + 1
            return length
    return None


def fit_epochs(runner, effective: dict) -> None:
    """`shorten_warmup` for a run in epochs, whose iterations are known with its pictures: for a Runner before `train`,
    and in the record."""
    k, config = effective["accumulate"], effective["config"]["param_scheduler"]
    length = max(1, runner.train_loop.max_iters // k)
    if shorten_warmup(config, length, "warmup" in effective["overrides"]):
        shorten_warmup(runner.param_schedulers, length * k, given=False)
        effective["warmup"] = length


def set_rate(cfg: Config, recipe: Recipe, own: dict, scale_lr: bool) -> tuple[float, float]:
    """-> (learning rate in force, its factor: with --scale-lr it goes with the images per step)."""
    lr = float(own.get("lr") or cfg.optim_wrapper.optimizer.get("lr") or recipe.lr)
    scale = own.get("batch", recipe.batch) / recipe.batch if scale_lr and recipe.batch else 1.0
    cfg.optim_wrapper.optimizer.lr = lr * scale
    for s in cfg.param_scheduler:
        if s.get("eta_min"):
            s.eta_min *= scale
    return lr * scale, scale


def set_batch(cfg: Config, recipe: Recipe, own: dict, world: int) -> tuple[int, int]:
    """Images per GPU at once and accumulation steps, of which the first goes into the data loader."""
    usual = own.get("per_gpu") or recipe.per_gpu or cfg.train_dataloader.batch_size
    per_gpu, accumulate = batching(own.get("batch") or recipe.batch or usual * world, world, usual)
    if own.get("per_gpu", per_gpu) != per_gpu:
        total = per_gpu * accumulate * world
        raise UserError(f"per_gpu={own['per_gpu']}: {total} images over {world} processes do not divide by it")
    cfg.train_dataloader.batch_size = per_gpu
    return per_gpu, accumulate


def count_micro_batches(cfg: Config, k: int) -> None:
    """mmengine counts micro-batches: iterations, warm-up and checkpoint intervals times k.

    The rate of micro-batch k t is that of step t; the step itself is made k - 1 micro-batches later, so that it sees a
    rate which is up to one step's change ahead.
    """
    cfg.optim_wrapper.accumulative_counts = k
    if "max_iters" in cfg.train_cfg:
        cfg.train_cfg.max_iters *= k
    checkpoint = cfg.default_hooks.checkpoint
    if not checkpoint.get("by_epoch", True):
        checkpoint.interval *= k
    for s in cfg.param_scheduler:
        if s.get("by_epoch", True):
            continue
        for key in ("begin", "step_size", "T_max"):
            if key in s:
                s[key] *= k
        if "end" in s:
            s.end = (s.end - 1) * k + 1  # mmengine divides by end - begin - 1
        if "milestones" in s:
            s.milestones = [m * k for m in s.milestones]
