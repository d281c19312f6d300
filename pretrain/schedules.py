"""Values that change during a run, as arrays with one entry per optimiser step."""

from dataclasses import dataclass

import numpy as np

from .common.errors import UserError


def cosine(base: float, end: float, steps: int, warmup: int = 0, start: float = 0.0) -> np.ndarray:
    """float64 [steps]: linear from start to base over `warmup` steps, both included, then half a cosine towards end.

    The step after the warm-up has the base value once more, and the last step is one short of `end`. Source:
    facebookresearch/dino 7c446df, utils.py: cosine_scheduler. Raises UserError when the warm-up is longer than the run.
    """
    if steps < 1 or not 0 <= warmup <= steps:
        raise UserError(
            f"a warm-up of {warmup} steps does not fit a run of {steps}: set schedule.warmup_epochs or loop.epochs"
        )
    t = np.arange(steps - warmup)
    falling = end + 0.5 * (base - end) * (1 + np.cos(np.pi * t / max(len(t), 1)))
    return np.concatenate([np.linspace(start, base, warmup), falling])


def timm_cosine(base: float, end: float, steps: int, warmup: int = 0, start: float = 0.0) -> np.ndarray:
    """float64 [steps]: linear from start, base not included, then the cosine of a run without warm-up; each value is
    used one step late, and the first twice. Source: timm's CosineLRScheduler as SwinTransformer/Transformer-SSL 4510de1
    calls it, after the optimiser's step (lr_scheduler.py, moby_main.py). Raises UserError as `cosine` does.
    """
    cosine(base, end, steps, warmup)  # raises for a warm-up that does not fit
    whole = cosine(base, end, steps)
    whole[:warmup] = start + (base - start) * np.arange(warmup) / max(warmup, 1)
    return whole[np.maximum(np.arange(steps) - 1, 0)]


LR_RULES = {"dino": cosine, "timm": timm_cosine}


def warm_up(start: float, end: float, epochs: int, epoch: int) -> float:
    """Value of an epoch: linear from start (epoch 0) to end (epoch `epochs` - 1), constant afterwards.

    Source: the teacher temperature of facebookresearch/dino 7c446df, main_dino.py: DINOLoss.
    """
    return float(np.linspace(start, end, epochs)[epoch]) if epoch < epochs else end


@dataclass(frozen=True)
class Schedules:
    """lr, weight_decay, ema: float64 [steps]. ema: the teacher keeps this share of itself after the step."""

    lr: np.ndarray
    weight_decay: np.ndarray
    ema: np.ndarray
    steps_per_epoch: int

    def __len__(self) -> int:
        return len(self.lr)

    def epoch(self, step: int) -> int:
        """0-based epoch that a step belongs to."""
        return step // self.steps_per_epoch


def build(cfg, batch: int, steps: int, steps_per_epoch: int) -> Schedules:
    """The schedules of a run. cfg: config.Schedule. batch: images per optimiser step, over all processes.

    steps: of the whole run. Raises UserError when the warm-up does not fit.
    """
    peak = cfg.lr * batch / cfg.lr_batch
    warmup = round(cfg.warmup_epochs * steps_per_epoch)
    ends = batch / cfg.lr_batch if cfg.scale_min_lr else 1
    ema = cosine(cfg.ema, cfg.ema_end, steps)
    return Schedules(
        LR_RULES[cfg.lr_rule](peak, cfg.min_lr * ends, steps, warmup, cfg.warmup_lr * ends),
        cosine(cfg.weight_decay, cfg.weight_decay_end, steps),
        np.append(ema, np.full(cfg.ema_shift, cfg.ema_end))[cfg.ema_shift :],
        steps_per_epoch,
    )
