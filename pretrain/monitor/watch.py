"""Evaluation of a network while it trains, at the end of every so many epochs (options.Watch).

k-NN and DAVIS go into a line of log.jsonl: step, epoch, watch.epochs (finished), watch.knn.top1 and so on, in per cent,
and watch.knn.k where fewer images vote than the protocol's; pictures into RUN/watch/step-XXXXXXXX/. All of it also into
TensorBoard. Training is left exactly as it would have been without: the network is a copy, no random number is taken,
and nothing of it is in a stored state. An evaluation that a kill or a signal cut short is made when the run is resumed.
"""

import errno
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checkpoint import Run
from ..common.atomic import os_error
from ..common.errors import UserError
from ..data.images import ImageSource
from ..distributed import Ranks
from ..step import Trainer
from .log import Log, entries

PULSE = 5.0  # seconds between the messages of processes that wait for the first one
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk or quota
DONE = "watch.epochs"  # is in the line of an evaluation that was finished


def due(trainer: Trainer) -> bool:
    """Whether there is an evaluation after the steps that are done."""
    step, every = trainer.step, trainer.cfg.watch.every
    return every is not None and step > 0 and (step == len(trainer) or step % (every * trainer.per_epoch) == 0)


def missed(trainer: Trainer, run: Run) -> bool:
    """Whether a run that stopped after these steps lacks the evaluation that was due then."""
    return due(trainer) and not any(x["step"] == trainer.step and DONE in x for x in entries(run.log_file))


class Stopped(Exception):
    """A signal to one of the processes cut an evaluation short."""


class Watch:
    """An evaluation that was handed in (`train.Hooks.evaluate`), opened and checked; only the first process has one.

    open_evaluation(cfg, run, source, state, device) -> an object with `encoder(state)`, the network as it evaluates it,
    and `parts`: pairs of a name and part(encoder, step, log, pulse) -> numbers by name. state: of the `Network` that
    the run is evaluated by. Raises UserError.
    """

    def __init__(self, trainer: Trainer, run: Run, source: ImageSource, open_evaluation: Callable):
        """source: of the training images."""
        self.trainer, self.run, size = trainer, run, trainer.cfg.watch.size
        if size < trainer.learner.patch:
            raise UserError(f"watch.size={size}: smaller than a patch, {trainer.learner.patch}")
        self.evaluation = open_evaluation(trainer.cfg, run, source, self.state(), trainer.device)

    def state(self) -> dict[str, Tensor]:
        """Of the network that the run is evaluated by."""
        return getattr(self.trainer.learner, self.trainer.cfg.checkpoint.export).state_dict()

    def __call__(self, log: Log, pulse: Callable[..., None]) -> None:
        """Evaluate; what fails is a warning in the log, except for a full disk.

        pulse(done, total, text): called often; what it raises ends the evaluation.
        """
        began, trainer, step = time.perf_counter(), self.trainer, self.trainer.step
        encoder, numbers, failed = None, {}, []
        cuda = [trainer.device] if trainer.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            for name, part in self.evaluation.parts:
                try:
                    encoder = encoder or self.evaluation.encoder(self.state())
                    numbers |= part(encoder, step, log, pulse)
                except Stopped:
                    raise
                except Exception as error:  # whatever it is, the training is worth more
                    pulse()  # a signal may have ended a process of the evaluation, too
                    if cause := os_error(error, FULL):
                        where = f"{self.run.folder}: the evaluation cannot be written: {cause.strerror}"
                        again = f"free space, then --resume {self.run.folder}"
                        raise UserError(f"{where}; the run is saved: {again}", status=1) from error
                    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    failed.append(f"{name} failed: {text}")
        if cuda:
            del encoder
            torch.cuda.empty_cache()  # the next step finds the memory as it left it
        line = {"step": step, "epoch": (step - 1) // trainer.per_epoch, DONE: trainer.epoch} | numbers
        log.write(line | ({"warning": " ".join("; ".join(failed).split())} if failed else {}))
        rates = {key.rpartition(".")[2]: value for key, value in numbers.items() if isinstance(value, float)}
        shown = "  ".join(f"{name} {value:.2f}" for name, value in rates.items())
        text = f"step {step}: {shown or 'evaluated'} ({time.perf_counter() - began:.0f} s)"
        log.reporter.console.print(text)


# --------------------------------------------------------------------------------------------- several processes
def evaluate(watch: Watch | None, log: Log | None, ranks: Ranks, stop) -> int:
    """Evaluate in the first process, for which the others wait; -> the signal that cut it short, 0 if none did, the
    same in every process.

    stop.signal: what this process has got. While the first one works, all exchange a few numbers every PULSE seconds:
    a collective that waited for the whole evaluation could meet its time limit, and a signal to any is obeyed soon.
    """
    if watch is None:
        busy, cut = True, False
        while busy:
            busy, cut, number = exchange(ranks, [False, False, stop.signal])
        return number if cut else 0
    began = last = time.monotonic()
    number, cut = 0, False

    def pulse(done: float = 0, total: float = 1, text: str = "") -> None:
        nonlocal last, number
        number = number or stop.signal
        if ranks.world > 1 and time.monotonic() - last > PULSE:
            number = exchange(ranks, [True, False, stop.signal])[2]
            last = time.monotonic()
        if number:
            raise Stopped
        if log.reporter.bar and text:
            log.reporter(watch.trainer.step, len(watch.trainer), f"{text} {done:g}/{total:g}")

    try:
        watch(log, pulse)
    except Stopped:
        cut = True
    log.leave_out(time.monotonic() - began)
    if ranks.world > 1:
        number = exchange(ranks, [False, cut, stop.signal])[2]
    return number if cut else 0


def exchange(ranks: Ranks, mine: Sequence[int]) -> list[int]:
    """Small numbers of this process -> the largest of all processes, one by one."""
    table = torch.zeros(ranks.world, len(mine), device=ranks.device)
    table[ranks.rank] = torch.tensor(mine, dtype=table.dtype)
    return ranks.add({"table": table})["table"].amax(0).int().tolist()
