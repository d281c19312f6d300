"""One optimiser step, and the state that it changes. No method has a name here: see objectives/."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import optim
from .common.errors import UserError
from .config import Config, to_dict, total_steps
from .data.group import Group
from .data.shares import divide
from .data.views import hashed
from .distributed import Ranks
from .model.backbone import recompute_blocks, set_fused_attention
from .model.compiled import compile_networks, compile_objectives
from .model.learner import Learner
from .model.precision import LOW, choose_precision
from .objectives import Step

VERSION = 1  # of a stored state's layout
_NOISE = 0x6E6F697365  # apart from the keys of views and of the order of images


class NotFinite(Exception):
    """Loss or gradients (the message says which) of a step are not finite; nothing has been changed by it, nor by one
    after it. `Trainer.step` steps were done before."""


class Check:
    """What the host is told of a step, on its way from the device. step: how many were done before.

    message: integers, whether loss and gradients are finite, and the flag.
    """

    def __init__(self, step: int, message: Tensor):
        self.step, device = step, message.device
        self.message = message.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def read(self) -> list[int]:
        if self.arrived:
            self.arrived.synchronize()
        return self.message.tolist()


class Outcome(NamedTuple):
    """What a step did, over the global batch.

    numbers: by their names in the log, 0-dim tensors on the device or numbers: the loss (weighted sum), its terms, what
    the objectives report (teacher entropy, KL), grad_norm: largest gradient norm of a tensor (or the global one) before
    clipping, and the schedules' values. flag: the largest of `flag` over processes, on a GPU in the steps before.
    images: see `Learner`.
    """

    numbers: dict[str, Tensor | float]
    flag: int
    images: Tensor


class Trainer:
    """Networks, objectives, optimiser, scaler and schedules of a run; `step` counts the optimiser steps done.

    `advance(groups)` takes this process's images of a global batch, divided as `shares` says. The noise of a step
    (stochastic depth) comes from (seed, step, share of the batch), so nothing of a generator's state has to be kept.

    On a GPU (`late`) the host does not wait for a step: the device leaves out one that is not finite, and the next
    `advance`, or `settle`, raises NotFinite. Call `settle` before the state is stored or the numbers are looked at.
    Raises UserError for a configuration that cannot be trained.
    """

    def __init__(self, cfg: Config, steps_per_epoch: int, ranks: Ranks):
        loop = cfg.loop
        self.cfg, self.ranks, self.device, self.per_epoch = cfg, ranks, ranks.device, steps_per_epoch
        self.shares = divide(loop.batch, ranks.world, loop.per_gpu, loop.accumulation)
        self.parts = self.shares.count
        self.precision = ranks.first(lambda: choose_precision(loop.precision, self.device))
        self.schedules = optim.build_schedules(
            cfg.schedule, loop.batch, total_steps(cfg, steps_per_epoch), steps_per_epoch
        )
        self.learner = Learner(cfg)
        if self.precision == "float64":
            self.learner.double()
        self.learner.to(self.device)
        fused = loop.fused_attention
        if fused is None:  # on CPUs it is slower in low precision
            fused = self.device.type != "cpu" or self.precision not in LOW
        set_fused_attention([self.learner.student, self.learner.teacher], fused)
        self.named = self.learner.trained()
        self.statistics = [b for m in self.learner.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
        self.optimiser = optim.build_optimiser(self.named, cfg.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if loop.compile:
            compile_networks(self.learner.student, self.learner.teacher)
            compile_objectives(self.learner.objectives)
        if loop.checkpointing:
            recompute_blocks(self.learner.student.backbone)
        self.module = None if ranks.joined else self.learner  # see _wrap
        self.late = self.device.type != "cpu"
        self.pending: Check | None = None
        self.step, self.flag = 0, 0

    def __len__(self) -> int:
        """Optimiser steps of the whole run."""
        return len(self.schedules)

    @property
    def epoch(self) -> int:
        """0-based epoch of the next step, which is the number of finished epochs."""
        return self.step // self.per_epoch

    def advance(self, groups: list[Group] | Iterator[list[Group]], flag: int = 0) -> Outcome:
        """One optimiser step. groups: of this process's images, on the device; or an iterator over those of its
        micro-batches. flag: a number >= 0 on which the processes agree by its maximum. Raises NotFinite (if `late`, of
        the step before), or what the iterator raises (everything is then as before the step)."""
        cfg, optimiser, schedules = self.cfg.optim, self.optimiser, self.schedules
        lr, decay, ema = (float(values[self.step]) for values in (schedules.lr, schedules.weight_decay, schedules.ema))
        optim.set_schedule(optimiser, lr, decay)
        optimiser.zero_grad(set_to_none=True)
        kept = optim.copies(self.statistics)
        try:
            sums = self._backward(self._micro_batches(groups) if isinstance(groups, list) else groups)
            flags = torch.zeros(self.ranks.world, device=self.device)
            flags[self.ranks.rank].fill_(flag)
            sums = self.ranks.add(sums | {"flag": flags})
            self.settle()
            total, images, flags = sums.pop("loss") / self.parts, sums.pop("images"), sums.pop("flag")
            norm, left_out = self._check(total, flags)
        except Exception:
            optim.put_back(kept)  # running statistics have been moved by the micro-steps so far
            optimiser.zero_grad(set_to_none=True)
            raise
        losses = {k.removeprefix("loss "): sums.pop(k) / self.parts for k in list(sums) if k.startswith("loss ")}
        optim.freeze(self.named, cfg.freeze, cfg.freeze_epochs, self.epoch)
        optimiser.found_inf = left_out  # a scaler puts its own in this place
        self.scaler.step(optimiser)
        self.scaler.update()
        if left_out is not None:
            optim.put_back(kept, left_out)
        numbers = {"loss": total} | losses | self.learner.finish_step(sums, ema, left_out)
        numbers |= {"grad_norm": norm, "lr": lr, "weight_decay": decay, "ema": ema}
        self.step += 1
        numbers |= {"loss_scale": self.scaler.scale(torch.ones_like(total))} if self.scaler.is_enabled() else {}
        return Outcome(numbers, self.flag, images)

    def _check(self, total: Tensor, flags: Tensor) -> tuple[Tensor, Tensor | None]:
        """Clip the gradients, and send the host word of the step. -> the largest norm before; if `late`, float32, 1
        where the step is to be left out. Raises NotFinite, unless `late`."""
        cfg, scaled = self.cfg.optim, self.scaler.is_enabled()
        good = torch.isfinite(total)
        if scaled and self.late:  # one gradient that is not finite, and the scaler leaves the step out
            next(p.grad for _, p in self.named if p.grad is not None).masked_fill_(~good, torch.nan)
        self.scaler.unscale_(self.optimiser)
        norms = optim.clip((p for _, p in self.named), cfg.clip, cfg.clip_mode)
        norm = norms.max() if len(norms) else norms.sum()
        # With a scaler, gradients that are too large are its business: it leaves the step out and lowers the scale.
        finite = torch.stack([good, good if scaled else torch.isfinite(norm).to(good.device)])
        self.pending = Check(self.step, torch.cat([finite, flags.max()[None]]).int())
        if self.late:
            return norm, 1 - finite.all().float()
        self.settle()
        return norm, None

    def settle(self) -> None:
        """Hear of the last step, if that is still to come. Raises NotFinite; `step` is then that step's, again."""
        check, self.pending = self.pending, None
        if check is None:
            return
        *finite, flag = check.read()
        self.flag = max(self.flag, flag) if self.late else flag
        if not all(finite):
            self.step = check.step
            raise NotFinite("gradients" if finite[0] else "loss")

    def _micro_batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """A process's images, divided; no copies."""
        size = groups[0].x.shape[1] // self.shares.accumulation
        for start in range(0, size * self.shares.accumulation, size):
            yield [g.rows(slice(start, start + size)) for g in groups]

    def _backward(self, micro_batches: Iterator[list[Group]]) -> dict[str, Tensor]:
        """Forward and backward of all micro-steps; -> their losses and the objectives' sums, added up."""
        sums: dict[str, Tensor] = {}
        with self.learner.cast_teacher(LOW.get(self.precision)):
            for micro, rows in enumerate(micro_batches):
                for name, value in self._micro_step(rows, micro).items():
                    sums[name] = sums[name] + value if name in sums else value
        return sums

    def _micro_step(self, rows: list[Group], micro: int) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; -> its losses and the objectives' sums."""
        accumulation = self.shares.accumulation
        last = micro == accumulation - 1
        if self.module is None:
            self.module = self._wrap(rows)
        part = self.ranks.rank * accumulation + micro
        torch.manual_seed(hashed(self.cfg.seed, _NOISE, self.step, part))
        silent = contextlib.nullcontext() if last or self.module is self.learner else self.module.no_sync()
        with silent:
            total, losses, stats = self._forward(self.module, rows, part)
            self.scaler.scale(total / accumulation).backward()
        return {"loss": total.detach()} | {f"loss {k}": v for k, v in losses.items()} | stats

    def _forward(self, module: nn.Module, rows: list[Group], part: int) -> tuple[Tensor, dict, dict]:
        cast = LOW.get(self.precision)
        with torch.autocast(self.device.type, cast, enabled=cast is not None):
            return module(rows, Step(self.step, self.epoch, part, self.parts))

    def _wrap(self, rows: list[Group]) -> nn.Module:
        """The learner with gradients averaged over the processes, once a micro-batch shows which of them there are.

        A backward pass for nothing follows: after the first one DDP orders the gradients anew. With three processes or
        more the order is that of additions, and a resumed run would make its first step in another one.
        """
        part, kept = self.ranks.rank * self.shares.accumulation, optim.copies(self.statistics)
        with torch.compiler.set_stance("force_eager"):
            total, _, _ = self._forward(self.learner, rows, part)
            module = self.ranks.wrap(self.learner, total)
            total, _, _ = self._forward(module, rows, part)
            total.backward()
        optim.put_back(kept)
        self.optimiser.zero_grad(set_to_none=True)
        return module

    def state(self) -> dict:
        """Everything that a step changes, and the configuration: dicts of tensors and numbers."""
        learner = self.learner
        return {
            "version": VERSION,
            "step": self.step,
            "epoch": self.epoch,
            "student": dict(learner.student.state_dict()),
            "teacher": dict(learner.teacher.state_dict()),
            "objectives": dict(learner.objectives.state_dict()),
            "optimizer": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": to_dict(self.cfg),
            "noise": self.noise(),
        }

    def noise(self) -> dict[str, int | str]:
        """What a step's numbers depend on beside the configuration: the shares, each with noise of its own; the
        precision in force; images that batch statistics go over (0: there are none)."""
        statistics = self.shares.images * self.shares.world if self.statistics else 0
        return {"shares": self.parts, "precision": self.precision, "statistics": statistics}

    def load(self, state: dict) -> None:
        """Take over what `state` gave. Raises UserError where it belongs to another network."""
        learner = self.learner
        try:
            for name in ("student", "teacher", "objectives"):
                getattr(learner, name).load_state_dict(state[name])
            names = [g["names"] for g in state["optimizer"]["param_groups"]]
            if names != [g["names"] for g in self.optimiser.param_groups]:
                raise ValueError("the optimiser's parameters are others")
            self.optimiser.load_state_dict(state["optimizer"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"the checkpoint does not fit the network of its configuration: {error}") from error
        self.step = state["step"]
