"""Optimiser, gradient clipping, frozen layers, and the teacher's moving average."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .config import Optim

Named = Iterable[tuple[str, nn.Parameter]]


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


def build(named: Named, cfg: Optim) -> torch.optim.AdamW:
    """AdamW over `param_groups`; learning rate and decay come from `set_schedule` before every step."""
    groups = param_groups(named, cfg.decay_biases, cfg.no_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(cfg.betas), eps=cfg.eps, weight_decay=0.0, fused=True)


def set_schedule(optimiser: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """The values of one step; decay goes to the decayed group only."""
    for group in optimiser.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


@torch.no_grad()
def clip_per_tensor(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale every gradient tensor down to an L2 norm of `limit` of its own; -> the norms before, [tensors].

    By the factor limit / (norm + 1e-6) where that is below 1 (facebookresearch/dino 7c446df, utils.py: clip_gradients).
    """
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


def clip(parameters: Iterable[nn.Parameter], limit: float | None, mode: str = "per_tensor") -> Tensor:
    """Clip in the configured way (config.Optim); -> gradient norms before, [tensors] or [1]."""
    parameters = list(parameters)
    if mode == "per_tensor":
        return clip_per_tensor(parameters, float("inf") if limit is None else limit)
    return nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit).reshape(1)


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
    def update(self, momentum: float) -> None:
        if momentum < 1:
            torch._foreach_lerp_(self.teacher, self.student, 1 - momentum)

    @torch.no_grad()
    def copy(self) -> None:
        """The teacher's parameters become the student's."""
        torch._foreach_copy_(self.teacher, self.student)
