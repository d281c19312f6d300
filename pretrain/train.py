"""The loop from images to checkpoints. It never knows a method's name."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from .checkpoint import Run, identity, read
from .common.atomic import write_atomic
from .common.errors import UserError
from .common.machine import keep_memory
from .common.plugins import named
from .common.processes import refuse_in_child
from .config import Config
from .data.images import ImageSource, open_source
from .data.loader import Batch, batches, steps_per_epoch
from .distributed import PATIENCE, Ranks, Told, restarted
from .model.initial import load_initial, read_own
from .monitor.collapse import Collapse
from .monitor.log import Log, check_tensorboard, entries, plain
from .monitor.watch import Watch, due, evaluate, missed
from .step import NotFinite, Outcome, Trainer


@dataclass(frozen=True)
class Hooks:
    """What a run needs from outside the core, as `module:function`: so submitit's pickles, torchrun's children and a
    resumed run find it.

    read_weights(path, format) -> model.initial.Found, for `init=`; without it, only our own exports are read. evaluate:
    see monitor.watch.Watch; without it, `watch.every` is refused.
    """

    read_weights: str | None = None
    evaluate: str | None = None

    def reader(self) -> Callable:
        return named(self.read_weights) if self.read_weights else read_own

    def evaluation(self) -> Callable:
        if not self.evaluate:
            raise UserError("watch.every: nothing evaluates here; leave it away, or train with `selfpatch pretrain`")
        return named(self.evaluate)


ALONE = Hooks()  # the core without anything above it


def settle(cfg: Config) -> Config:
    """Make paths absolute, so that a run can go on from any folder."""
    if not cfg.data.path:
        raise UserError("no images to train on: give --data FOLDER (or a list file, or tar shards)")
    cfg.data.path = absolute(cfg.data.path)
    cfg.data.root = cfg.data.root and absolute(cfg.data.root)
    cfg.init = cfg.init and absolute(cfg.init)
    for name in ("knn", "davis", "images"):
        setattr(cfg.watch, name, getattr(cfg.watch, name) and absolute(getattr(cfg.watch, name)))
    return cfg


def absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def run(cfg: Config, out: Path, resume: bool = False, hooks: Hooks = ALONE) -> int:
    """Train in this process, one of those that torchrun started or alone, into the folder `out`; -> exit status: 0, or
    128 + signal when told to stop (it has saved by then). Raises UserError."""
    refuse_in_child()
    folder = Run(out)
    try:
        with Ranks(cfg.loop.device) as ranks, contextlib.ExitStack() as held:
            return train(cfg, folder, ranks, resume, held, hooks)
    except Told as error:
        return error.status
    except KeyboardInterrupt:
        raise UserError(f"interrupted: go on with {how_to_resume(folder)}", 130) from None


def train(cfg: Config, run: Run, ranks: Ranks, resume: bool, held: contextlib.ExitStack, hooks: Hooks) -> int:
    """The whole run, with its folder claimed until `held` closes. Everything that can be wrong is found before the
    folder is made."""
    if ranks.device.type == "cpu":
        keep_memory()
    if resume:
        ranks.first(lambda: run.claim(held, PATIENCE if restarted() else 0.0))
    source = open_source(cfg.data.path, cfg.data.root)
    per_epoch = steps_per_epoch(len(source), cfg.loop.batch)
    if not per_epoch:
        raise UserError(f"{source.where}: {len(source)} images are fewer than one batch: loop.batch={cfg.loop.batch}")
    if cfg.log.tensorboard:
        check_tensorboard()
    trainer = build(cfg, per_epoch, ranks)
    about = {"steps_per_epoch": per_epoch, "data": identity(source)}
    if state := begin(cfg, run, ranks, resume):
        if state["data"] != about["data"]:
            began = f"the {state['data']['images']} images that this run began with"
            raise UserError(f"{source.where}: its {len(source)} images are not {began}; give --data their folder")
        trainer.load(state)
    elif cfg.init:
        say(ranks, load_initial(trainer.learner, cfg.init, cfg.init_format, hooks.reader()))
    watch: list[Watch] = []
    if cfg.watch.every is not None:  # checked before there is a folder
        ranks.first(lambda: watch.append(Watch(cfg, run, trainer, source, hooks.evaluation())))
    if not resume:
        ranks.first(lambda: run.create(cfg, held))
    done, total = trainer.step, len(trainer)
    late = ranks.first(lambda: missed(cfg, run, done, per_epoch, total))
    if done >= total and not late:
        say(ranks, f"{run.folder}: all of its {total} steps are done")
        return 0
    size = sum(p.numel() for _, p in trainer.named) / 1e6
    say(
        ranks,
        f"{run.folder}: {f'from step {done} of' if done else ''} {total} steps, {per_epoch} an epoch of {len(source)} "
        f"images; {size:.1f} M parameters, {trainer.precision} on {ranks.world} x {ranks.device.type}",
    )
    del state
    return loop(cfg, run, ranks, trainer, source, about, watch[0] if watch else None, late)


def build(cfg: Config, per_epoch: int, ranks: Ranks) -> Trainer:
    """The networks and all that belongs to them. Raises UserError, also where there is not enough memory."""
    try:
        return Trainer(cfg, per_epoch, ranks)
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU's memory
        if not isinstance(error, MemoryError) and not re.search("(allocate|enough|out of) memory", str(error)):
            raise
        text = (str(error).splitlines() or ["out of memory"])[0]
        raise UserError(f"the networks do not fit into memory: {text}; make network or heads smaller", 1) from None


def begin(cfg: Config, run: Run, ranks: Ranks, resume: bool) -> dict | None:
    """The state to go on from, if there is one; the folder of a resumed run is put in order."""
    mine: dict = {}

    def prepare() -> Path | None:
        run.clean()
        path, mine["state"] = run.newest() or (None, None)
        run.check_config(cfg, mine["state"])
        if mine["state"]:
            run.prune(mine["state"]["steps_per_epoch"], cfg.checkpoint.keep_every)
        run.write_config(cfg)
        run.checkpoints.mkdir(exist_ok=True)
        return path

    if not resume:
        return None
    path = ranks.first(prepare)
    return mine["state"] if ranks.main else path and read(path)


def loop(
    cfg: Config,
    run: Run,
    ranks: Ranks,
    trainer: Trainer,
    source: ImageSource,
    about: dict,
    watch: Watch | None,
    late: bool,
) -> int:
    """Steps until the end or a signal, with checkpoints, log lines and evaluations; -> exit status. late: one is to be
    made first."""
    total, per_epoch, every = len(trainer), about["steps_per_epoch"], cfg.checkpoint.every_steps
    collapse = Collapse(trainer, per_epoch)
    title, console = cfg.recipe or "pretrain", Console(stderr=True)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        log = stack.enter_context(Log(run, trainer.step, cfg.log.tensorboard, console, title)) if ranks.main else None
        feed = stack.enter_context(contextlib.closing(start_feed(cfg, trainer, source, per_epoch)))
        if log:
            collapse.replay(entries(run.log_file))
        saved, told, cut = trainer.step, 0, 0
        if late:
            told = cut = evaluate(watch, log, ranks, stop)
        while trainer.step < total and not told:
            epoch, began = trainer.epoch, time.perf_counter()
            batch = fetch(feed, stop, ranks)
            waited = time.perf_counter() - began
            if batch is None:
                told = stop.signal
                break
            shown = (trainer.step + 1) % cfg.log.every == 0 or trainer.step + 1 == total
            collapse.arm(shown)
            try:
                outcome = trainer.advance(batch.to(ranks.device, non_blocking=True).groups, stop.signal)
            except NotFinite as error:
                raise not_finite(error, batch, trainer, run, ranks) from None
            step = trainer.step
            told = outcome.flag if ranks.world > 1 else stop.signal  # several processes must stop at the same step
            numbers = collapse.numbers() if shown else {}  # in every process
            if log:
                log.count(cfg.loop.batch, waited)
                if shown:
                    line = {"step": step, "epoch": epoch} | described(outcome, trainer) | numbers
                    line = {k: plain(v) for k, v in line.items()}
                    signs = collapse.look(line)
                    line = log.line(line | ({"warning": "; ".join(signs)} if signs else {}))
                    text = f"loss {line['loss']:.4f}  {line['images_per_s']:.4g} images/s"
                    log.reporter(step, total, text)
            if step % per_epoch == 0 or (every and step % every == 0) or step == total:
                save(run, ranks, trainer, about)
                saved = step
            if due(cfg, step, per_epoch, total):
                told = cut = told or evaluate(watch, log, ranks, stop)
        if told and saved < trainer.step:
            save(run, ranks, trainer, about)
    if not told or (trainer.step == total and not cut):
        say(ranks, f"{run.folder}: {total} steps done")
        return 0
    if told == signal.SIGUSR2:
        signal.raise_signal(told)  # to whom it was meant for: this job is requeued, and this process ends here
    say(ranks, f"stopped by {signal.Signals(told).name} after step {trainer.step}: go on with {how_to_resume(run)}")
    return 128 + told


def start_feed(cfg: Config, trainer: Trainer, source: ImageSource, per_epoch: int) -> Iterator[Batch]:
    """This process's batches from the trainer's step on."""
    ranks, workers = trainer.ranks, cfg.data.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, cores // ranks.local_world)
    return batches(
        source,
        cfg.views,
        seed=cfg.seed,
        batch=cfg.loop.batch,
        epoch=trainer.epoch,
        epochs=-(-len(trainer) // per_epoch),
        start_step=trainer.step % per_epoch,
        rank=ranks.rank,
        world=ranks.world,
        workers=workers,
        pin=ranks.device.type == "cuda",
        prefetch=cfg.data.prefetch,
        patch=trainer.learner.patch,
    )


def fetch(feed: Iterator[Batch], stop: "Stop", ranks: Ranks) -> Batch | None:
    """The next batch; None if the signal to stop has also ended the workers that make it."""
    try:
        return next(feed)
    except UserError:
        if stop.signal and ranks.world == 1:
            return None
        raise


def save(run: Run, ranks: Ranks, trainer: Trainer, about: dict) -> None:
    """A checkpoint, by the first process. Should it fail, the others are ended by whoever started them."""
    if ranks.main:
        run.save(trainer.state() | about, trainer.cfg.checkpoint.keep_every)


def described(outcome: Outcome, trainer: Trainer) -> dict:
    """The numbers of a step for the log."""
    scale = {"loss_scale": trainer.scaler.get_scale()} if trainer.scaler.is_enabled() else {}
    return (
        {"loss": outcome.total}
        | outcome.losses
        | outcome.numbers
        | {"grad_norm": outcome.norm, "lr": outcome.lr, "weight_decay": outcome.weight_decay, "ema": outcome.ema}
        | scale
    )


def not_finite(error: NotFinite, batch: Batch, trainer: Trainer, run: Run, ranks: Ranks) -> UserError:
    """The error that names the step's images, of all processes, and the last good checkpoint."""
    names = [name for part in ranks.gather(batch.names) for name in part]
    if not ranks.main:
        return Told("see the first process", status=1)
    step = trainer.step + 1
    where = run.folder / f"not-finite-{step:08d}.txt"
    write_atomic(where, lambda file: file.write("".join(f"{n}\n" for n in names).encode(errors="surrogateescape")))
    kept = list(run.steps().values())
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    more = f" and {len(names) - 3} more, see {where}" if len(names) > 3 else f" (also in {where})"
    return UserError(
        f"the {error.kind} of step {step} {'is' if error.kind == 'loss' else 'are'} not finite; its images: "
        f"{', '.join(names[:3])}{more}; {good}; a lower schedule.lr or loop.precision=float32 may help",
        status=1,
    )


def say(ranks: Ranks, text: str) -> None:
    if ranks.main:
        print(" ".join(text.split()), file=sys.stderr, flush=True)


def how_to_resume(run: Run) -> str:
    return f"selfpatch pretrain --resume {run.folder}"


class Stop:
    """Turns SIGTERM and SIGINT into a number to look at after the step: `signal`, 0 so far. A context manager.

    A launcher's own handler of SIGTERM is left alone; its handler of SIGUSR2 (submitit: the job's time is nearly up)
    gets the signal once the run has been saved. A second Ctrl-C a second or more after the first does not wait for the
    step. (torchrun passes a Ctrl-C on to processes that have got it already.)
    """

    def __init__(self):
        self.signal, self.at, self.before = 0, 0.0, {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            default = (signal.SIG_DFL, signal.default_int_handler)
            own = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) in default]
            own += [signal.SIGUSR2] if callable(signal.getsignal(signal.SIGUSR2)) else []
            self.before = {n: signal.signal(n, self.catch) for n in own}
        return self

    def catch(self, number: int, _frame) -> None:
        if self.signal == number == signal.SIGINT and time.monotonic() - self.at > 1:
            raise KeyboardInterrupt
        self.signal, self.at = self.signal or number, self.at or time.monotonic()

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
