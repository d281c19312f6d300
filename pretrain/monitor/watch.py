"""Evaluation of a network while it trains, at the end of every so many epochs (config.Watch).

k-NN and DAVIS go into a line of log.jsonl: step, epoch, watch.epochs (finished), watch.knn.top1 and so on, in per cent,
and watch.knn.k where fewer images vote than the protocol's; pictures into RUN/watch/step-XXXXXXXX/. All of it also into
TensorBoard. Training is left exactly as it would have been without: the network is a copy, no random number is taken,
and nothing of it is in a checkpoint. An evaluation that a kill or a signal cut short is made when the run is resumed.
"""

import errno
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checkpoint import Run
from ..common.errors import UserError
from ..config import Config
from ..data.images import ImageSource
from ..distributed import Ranks
from ..step import Trainer
from .log import Log, entries

PULSE = 5.0  # seconds between the messages of processes that wait for the first one
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DONE = "watch.epochs"  # is in the line of an evaluation that was finished


def due(cfg: Config, step: int, per_epoch: int, total: int) -> bool:
    """Whether there is an evaluation after that many steps."""
    every = cfg.watch.every
    return every is not None and step > 0 and (step == total or step % (every * per_epoch) == 0)


def missed(cfg: Config, run: Run, step: int, per_epoch: int, total: int) -> bool:
    """Whether a run that stopped after that many steps lacks the evaluation that was due then."""
    if not due(cfg, step, per_epoch, total):
        return False
    return not any(line["step"] == step and DONE in line for line in entries(run.log_file))


class Stopped(Exception):
    """A signal to one of the processes cut an evaluation short."""


class Watch:
    """An evaluation that was handed in (`train.Hooks.evaluate`), opened and checked; only the first process has one.

    open_evaluation(cfg, run, source, state, device) -> an object with `encoder(state)`, the network as it evaluates it,
    and `parts`: pairs of a name and part(encoder, step, log, pulse) -> numbers by name. state: of the `Network` that
    the run is evaluated by. Raises UserError.
    """

    def __init__(self, cfg: Config, run: Run, trainer: Trainer, source: ImageSource, open_evaluation: Callable):
        """source: of the training images."""
        self.cfg, self.run, self.trainer = cfg, run, trainer
        if cfg.watch.size < trainer.learner.patch:
            raise UserError(f"watch.size={cfg.watch.size}: smaller than a patch, {trainer.learner.patch}")
        self.evaluation = open_evaluation(cfg, run, source, self.state(), trainer.device)

    def state(self) -> dict[str, Tensor]:
        """Of the network that the run is evaluated by."""
        return getattr(self.trainer.learner, self.cfg.checkpoint.export).state_dict()

    def __call__(self, log: Log, pulse: Callable[..., None]) -> None:
        """Evaluate; what fails is a warning in the log, except for a full disk.

        pulse(done, total, text): called often; what it raises ends the evaluation.
        """
        began, trainer, step = time.perf_counter(), self.trainer, self.trainer.step
        encoder, found, failed = None, {}, []
        cuda = [trainer.device] if trainer.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            for name, part in self.evaluation.parts:
                try:
                    encoder = encoder or self.evaluation.encoder(self.state())
                    found |= part(encoder, step, log, pulse)
                except Stopped:
                    raise
                except Exception as error:  # whatever it is, the training is worth more
                    pulse()  # a signal may have ended a process of the evaluation, too
                    if cause := full(error):
                        where = f"{self.run.folder}: the evaluation cannot be written: {cause.strerror}"
                        again = f"free space, then --resume {self.run.folder}"
                        raise UserError(f"{where}; the run is saved: {again}", status=1) from error
                    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    failed.append(f"{name} failed: {text}")
        if cuda:
            del encoder
            torch.cuda.empty_cache()  # the next step finds the memory as it left it
        line = {"step": step, "epoch": trainer.schedules.epoch(step - 1), DONE: trainer.epoch} | found
        log.write(line | ({"warning": " ".join("; ".join(failed).split())} if failed else {}))
        rates = {key.rpartition(".")[2]: value for key, value in found.items() if isinstance(value, float)}
        shown = "  ".join(f"{name} {value:.2f}" for name, value in rates.items())
        text = f"step {step}: {shown or 'evaluated'} ({time.perf_counter() - began:.0f} s)"
        log.reporter.console.print(text, highlight=False, soft_wrap=True)


def full(error: BaseException | None) -> OSError | None:
    """A full disk (or quota) among an error and its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


# --------------------------------------------------------------------------------------------- several processes
def evaluate(watch: Watch | None, log: Log | None, ranks: Ranks, stop) -> int:
    """Evaluate in the first process, for which the others wait; -> the signal that cut it short, 0 if none did, the
    same in every process.

    stop.signal: what this process was told. While the first one works, all exchange a few numbers every PULSE seconds:
    a collective that waited for the whole evaluation could meet its time limit, and a signal to any is obeyed soon.
    """
    busy = [True, False]
    if watch is None:
        while busy[0]:
            *busy, told = exchange(ranks, [False, False, stop.signal])
        return told if busy[1] else 0
    began = last = time.monotonic()
    told, cut = 0, False

    def pulse(done: float = 0, total: float = 1, text: str = "") -> None:
        nonlocal last, told
        told = told or stop.signal
        if ranks.world > 1 and time.monotonic() - last > PULSE:
            told = exchange(ranks, [True, False, stop.signal])[2]
            last = time.monotonic()
        if told:
            raise Stopped
        if log.reporter.bar and text:
            log.reporter(watch.trainer.step, len(watch.trainer), f"{text} {done:g}/{total:g}")

    try:
        watch(log, pulse)
    except Stopped:
        cut = True
    log.leave_out(time.monotonic() - began)
    if ranks.world > 1:
        told = exchange(ranks, [False, cut, stop.signal])[2]
    return told if cut else 0


def exchange(ranks: Ranks, mine: Sequence[int]) -> list[int]:
    """Small numbers of this process -> the largest of all processes, one by one."""
    table = torch.zeros(ranks.world, len(mine), device=ranks.device)
    table[ranks.rank] = torch.tensor(mine, dtype=table.dtype)
    return ranks.add({"table": table})["table"].amax(0).int().tolist()
