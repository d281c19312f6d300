"""What changes the weights in a step: schedules, optimiser, gradient clipping, frozen layers, the teacher's EMA."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .common.errors import UserError
from .options import Optim, Schedule

Named = Iterable[tuple[str, nn.Parameter]]


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
    """One value for each optimiser step, float64 [steps]. ema: the share of itself that the teacher keeps after the
    step."""

    lr: np.ndarray
    weight_decay: np.ndarray
    ema: np.ndarray

    def __len__(self) -> int:
        return len(self.lr)


def build_schedules(cfg: Schedule, batch: int, steps: int, steps_per_epoch: int) -> Schedules:
    """The schedules of a run. batch: images of an optimiser step, over all processes.

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
    )


def param_groups(named: Named, decay_biases: bool = False, no_decay: Sequence[str] = ()) -> list[dict]:
    """Trainable parameters in two groups, decayed and not, with their names.

    Not decayed: 1-D tensors and names that end in `.bias` (facebookresearch/dino 7c446df, utils.py: get_params_groups).
    decay_biases: biases are decayed, other 1-D tensors still not (MCG-NKU/SERE e20f37f). no_decay: nor is what has one
    of these in its name. The second group carries `decay: False`, which `set_schedule` goes by.
    """
    split: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
    for name, parameter in named:
        if parameter.requires_grad:
            bias = name.endswith(".bias") or name == "bias"
            decayed = (decay_biases if bias else parameter.ndim > 1) and not any(p in name for p in no_decay)
            split[decayed].append((name, parameter))
    return [
        {"params": [p for _, p in pairs], "names": [n for n, _ in pairs], "decay": decay}
        | ({} if decay else {"weight_decay": 0.0})
        for decay, pairs in split.items()
    ]


def build_optimiser(named: Named, cfg: Optim) -> torch.optim.AdamW:
    """AdamW over `param_groups`; learning rate and decay come from `set_schedule` before every step."""
    groups = param_groups(named, cfg.decay_biases, cfg.no_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(cfg.betas), eps=cfg.eps, weight_decay=0.0, fused=True)


def set_schedule(optimiser: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """The values of one step; decay goes to the decayed group only."""
    for group in optimiser.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float | None, mode: str = "per_tensor") -> Tensor:
    """Scale gradients down to an L2 norm of `limit` (None: measure only); -> the norms before, [tensors] or [1].

    mode: global, all together, or per_tensor, each by the factor limit / (norm + 1e-6) where that is below 1
    (facebookresearch/dino 7c446df, utils.py: clip_gradients).
    """
    limit = float("inf") if limit is None else limit
    if mode == "global":
        return nn.utils.clip_grad_norm_(list(parameters), limit).reshape(1)
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(0)
    norms = torch.stack(torch._foreach_norm(grads))
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    if factors.device.type == "cpu":  # reading the factors costs nothing there, and most tensors need no change
        for grad, factor in zip(grads, factors.tolist(), strict=True):
            if factor < 1:
                grad.mul_(factor)
    else:
        torch._foreach_mul_(grads, list(factors.unbind()))
    return norms


@torch.no_grad()
def copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a tensor and what it holds at present."""
    return [(tensor, tensor.clone()) for tensor in tensors]


def put_back(kept: Iterable[tuple[Tensor, Tensor]], left_out: Tensor | None = None) -> None:
    """Pairs of a tensor and a copy of it from before: it becomes what it was, or does so where `left_out`, 0-dim on
    the device, is 1."""
    for tensor, before in kept:
        tensor.copy_(before if left_out is None else torch.where(left_out.bool(), before, tensor))


def freeze(named: Named, patterns: Sequence[str], epochs: int, epoch: int) -> None:
    """Drop the gradients of parameters whose name contains one of the patterns, in epochs before `epochs`.

    Without gradient there is no update at all, neither of moments nor by decay.
    """
    if epoch < epochs:
        for name, parameter in named:
            if any(p in name for p in patterns):
                parameter.grad = None


class Ema:
    """The teacher follows the student: parameters of the same name in both, teacher <- m teacher + (1 - m) student.

    Buffers are left alone. Raises KeyError for a pair of different shapes.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module):
        source = dict(student.named_parameters())
        pairs = [(t, source[name]) for name, t in teacher.named_parameters() if name in source]
        for t, s in pairs:
            if t.shape != s.shape:
                raise KeyError(f"student and teacher have a parameter of shapes {tuple(s.shape)} and {tuple(t.shape)}")
        self.teacher, self.student = [t for t, _ in pairs], [s for _, s in pairs]

    @torch.no_grad()
    def update(self, momentum: float, left_out: Tensor | None = None) -> None:
        """left_out: float32, 0-dim on the device; the teacher stays as it is where it is 1, whatever the student."""
        if momentum == 1:
            return
        if left_out is None:
            torch._foreach_lerp_(self.teacher, self.student, 1 - momentum)
            return
        behind = torch._foreach_sub(self.teacher, self.student)
        # A step along them by an optimiser that can leave it out on the device: 0 times infinity would be no such step.
        plain = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False}
        lr = 1 - momentum
        torch._fused_sgd_(self.teacher, behind, [], lr=lr, is_first_step=True, found_inf=left_out, **plain)

    @torch.no_grad()
    def copy(self) -> None:
        """The teacher's parameters become the student's."""
        torch._foreach_copy_(self.teacher, self.student)
