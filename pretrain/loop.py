"""The steps of a run, from the first batch to the last stored state. It never knows a method's name."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from .checkpoint import Run
from .common.atomic import write_atomic
from .common.errors import UserError
from .common.machine import out_of_memory
from .common.processes import catching
from .data.group import Group
from .data.identity import identity
from .data.images import ImageSource
from .data.loader import Batch, Mover, batches
from .distributed import Ranks, Reported
from .monitor import collapse
from .monitor.collapse import Signs
from .monitor.log import Log
from .monitor.mfu import Utilisation
from .monitor.watch import Watch, due, evaluate
from .step import NotFinite, Trainer


class Loop:
    """Steps until the end of the run or a signal, with lines of the log, stored states and evaluations."""

    def __init__(self, trainer: Trainer, run: Run, source: ImageSource, watch: Watch | None):
        """watch: None where there are no evaluations, or another process makes them."""
        self.trainer, self.run, self.source, self.watch = trainer, run, source, watch
        self.cfg, self.ranks, self.total = trainer.cfg, trainer.ranks, len(trainer)
        self.about = {"steps_per_epoch": trainer.per_epoch, "data": identity(source) if trainer.ranks.main else {}}
        self.stop, self.move, self.utilisation = Stop(), Mover(trainer.device), Utilisation(trainer)
        self.names: dict[int, list[str]] = {}  # of this process's images, by step: the last and the one before
        self.log: Log | None = None  # of the first process
        self.saved = trainer.step
        self.ended_by = 0  # the signal that ends the run: the same in all processes, who must stop at the same step
        self.cut = False  # whether it did so before an evaluation that was due was made

    def __call__(self, evaluate_first: bool, changed: Sequence[str] = ()) -> int:
        """-> exit status. evaluate_first: the run was stopped before an evaluation that was due. changed: what is done
        otherwise than before this start."""
        trainer, log = self.trainer, self.cfg.log
        with contextlib.ExitStack() as stack:
            # submitit says by SIGUSR2 that the time is nearly up; its handler gets the signal once the run is saved.
            stack.enter_context(catching(self.stop.catch, launchers=signal.SIGUSR2))
            if self.ranks.main:
                signs = Signs({n: c.shape[-1] for n, c in collapse.centres(trainer.learner).items()}, self.total)
                title = self.cfg.recipe or "pretrain"
                self.log = stack.enter_context(Log(self.run, trainer.step, self.total, signs, log.tensorboard, title))
                self.log.utilisation = self.utilisation
                if changed:
                    text = "; ".join([*changed, "from here on the run is not the one that was begun"])
                    self.log.write({"step": trainer.step, "epoch": trainer.epoch, "warning": text})
            feed = stack.enter_context(contextlib.closing(self.start_feed()))
            if evaluate_first:
                self.evaluate()
            while trainer.step < self.total and not self.ended_by and self.try_step(feed):
                if self.to_save():
                    self.save()
                if due(trainer):
                    self.settle()
                    self.evaluate()
            if self.saved < trainer.step:
                self.save()
        return self.end()

    def start_feed(self) -> Iterator[Batch]:
        """This process's batches from the trainer's step on."""
        cfg, trainer, ranks = self.cfg, self.trainer, self.ranks
        workers = cfg.data.workers
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = max(1, cores // ranks.local_world)
        return batches(
            self.source,
            cfg.views,
            seed=cfg.seed,
            batch=cfg.loop.batch,
            epoch=trainer.epoch,
            epochs=-(-self.total // trainer.per_epoch),
            start_step=trainer.step % trainer.per_epoch,
            rank=ranks.rank,
            world=ranks.world,
            accumulation=trainer.shares.accumulation,
            workers=workers,
            pin=ranks.device.type == "cuda",
            prefetch=cfg.data.prefetch,
            patch=trainer.learner.patch,
        )

    def micro_batches(self, feed: Iterator[Batch]) -> Iterator[list[Group]]:
        """This process's images of a step, on the device. `names` of them and the seconds `waited` are kept.

        Raises Cut if the signal to stop has also ended the workers that make them.
        """
        step, self.waited = self.trainer.step, 0.0
        self.names = {step - 1: self.names.get(step - 1, []), step: []}
        for _ in range(self.trainer.shares.accumulation):
            began = time.perf_counter()
            try:
                batch = next(feed)
            except UserError:
                if self.stop.signal and self.ranks.world == 1:
                    raise Cut from None
                raise
            self.waited += time.perf_counter() - began
            self.names[step] += batch.names
            groups = self.move(batch).groups
            self.utilisation.look(groups)
            yield groups

    def try_step(self, feed: Iterator[Batch]) -> bool:
        """`take_step`, with an error that says what to try where there is not enough memory."""
        try:
            return self.take_step(feed)
        except (MemoryError, RuntimeError) as error:
            if (text := out_of_memory(error)) is None:
                raise
            shares, again = self.trainer.shares, how_to_resume(self.run)
            todo = f"try {again} loop.per_gpu={shares.smaller}" if shares.smaller else "make network or views smaller"
            images = f"{shares.images} image{'s' * (shares.images != 1)}"
            raise UserError(f"{images} at once do not fit into memory: {todo} ({text})", status=1) from None

    def take_step(self, feed: Iterator[Batch]) -> bool:
        """One optimiser step and its line of the log, where one is due; False if the run was stopped before it."""
        trainer = self.trainer
        epoch, step = trainer.epoch, trainer.step + 1
        # The first line says what later ones are held against: rank and centres of a network that has learned nothing.
        shown = step % self.cfg.log.every == 0 or step in (1, self.total)
        try:
            outcome = trainer.advance(self.micro_batches(feed), self.stop.signal)
            if shown:
                trainer.settle()
        except Cut:
            self.ended_by = self.stop.signal
            return False
        except NotFinite as error:
            raise self.not_finite(error) from None
        self.ended_by = outcome.flag if self.ranks.world > 1 else self.stop.signal
        if self.log:
            self.log.count(self.cfg.loop.batch, self.waited)
            if shown:
                numbers = collapse.numbers(trainer.learner, outcome.images)
                self.log.line({"step": step, "epoch": epoch} | outcome.numbers | numbers)
        return True

    def to_save(self) -> bool:
        """Whether a state is due after this step: at the end of an epoch and of the run, and every so many steps."""
        step, every = self.trainer.step, self.cfg.checkpoint.every_steps
        return step % self.trainer.per_epoch == 0 or step == self.total or bool(every and step % every == 0)

    def save(self) -> None:
        """Store the state, by the first process. Should it fail, the others are ended by whoever started them."""
        self.settle()
        if self.ranks.main:
            self.run.save(self.trainer.state() | self.about, self.cfg.checkpoint.keep_every)
        self.saved = self.trainer.step

    def settle(self) -> None:
        """Hear of the last step, before something is made of it."""
        try:
            self.trainer.settle()
        except NotFinite as error:
            raise self.not_finite(error) from None

    def not_finite(self, error: NotFinite) -> UserError:
        return not_finite(error, self.names[self.trainer.step], self.trainer, self.run)

    def evaluate(self) -> None:
        self.ended_by = self.ended_by or evaluate(self.watch, self.log, self.ranks, self.stop)
        self.cut = self.ended_by != 0

    def end(self) -> int:
        """Say how the run ended; -> exit status"""
        step, ended_by = self.trainer.step, self.ended_by
        if not ended_by or (step == self.total and not self.cut):
            say(self.ranks, f"{self.run.folder}: {self.total} steps done")
            return 0
        if ended_by == signal.SIGUSR2:  # the launcher's handler queues this job again, and ends this process
            signal.raise_signal(ended_by)
        name = signal.Signals(ended_by).name
        say(self.ranks, f"stopped by {name} after step {step}: go on with {how_to_resume(self.run)}")
        return 128 + ended_by


def not_finite(error: NotFinite, mine: list[str], trainer: Trainer, run: Run) -> UserError:
    """The error that names the step's images, of all processes, and the last good state. mine: of this one."""
    names = [name for part in trainer.ranks.gather(mine) for name in part]
    if not trainer.ranks.main:
        return Reported("see the first process", status=1)
    step = trainer.step + 1
    where = run.folder / f"not-finite-{step:08d}.txt"
    write_atomic(where, lambda file: file.write("".join(f"{n}\n" for n in names).encode(errors="surrogateescape")))
    kept = list(run.steps().values())
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    more = f" and {len(names) - 3} more, see {where}" if len(names) > 3 else f" (also in {where})"
    return UserError(
        f"the {error} of step {step} {'is' if str(error) == 'loss' else 'are'} not finite; its images: "
        f"{', '.join(names[:3])}{more}; {good}; a lower schedule.lr or loop.precision=float32 may help",
        status=1,
    )


def say(ranks: Ranks, text: str) -> None:
    if ranks.main:
        print(" ".join(text.split()), file=sys.stderr, flush=True)


def how_to_resume(run: Run) -> str:
    return f"selfpatch pretrain --resume {run.folder}"


class Cut(Exception):
    """A step that was begun and cannot be finished; nothing has been changed by it."""


class Stop:
    """What a signal to stop leaves behind, to be looked at after the step: `signal`, its number, 0 so far.

    A second Ctrl-C a second or more after the first does not wait for the step. (torchrun passes a Ctrl-C on to
    processes that have got it already.)
    """

    def __init__(self):
        self.signal, self.at = 0, 0.0

    def catch(self, number: int, _frame) -> None:
        if self.signal == number == signal.SIGINT and time.monotonic() - self.at > 1:
            raise KeyboardInterrupt
        self.signal, self.at = self.signal or number, self.at or time.monotonic()
