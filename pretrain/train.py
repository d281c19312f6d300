"""A run: what belongs to it is opened and checked, then its steps are taken (loop.py)."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import Run, changes, read
from .common.errors import UserError
from .common.machine import keep_memory, out_of_memory
from .common.plugins import named
from .common.processes import refuse_in_child
from .config import Config
from .data.decode import note_on_turned
from .data.identity import check_identity
from .data.images import ImageSource, open_source
from .data.loader import steps_per_epoch
from .distributed import PATIENCE, Ranks, Reported, restarted
from .loop import Loop, how_to_resume, say
from .model.initial import load_initial, read_own
from .monitor.log import check_tensorboard
from .monitor.watch import Watch, missed
from .step import Trainer


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


def absolute_paths(cfg: Config) -> Config:
    """Make paths absolute, so that a run can go on from any folder."""
    if not cfg.data.path:
        raise UserError("no images to train on: give --data FOLDER (or a list file, or tar shards)")
    for section, names in ((cfg.data, ("path", "root")), (cfg, ("init",)), (cfg.watch, ("knn", "davis", "images"))):
        for name in names:
            if path := getattr(section, name):
                setattr(section, name, os.path.abspath(os.path.expanduser(path)))
    return cfg


def run(cfg: Config, out: Path, resume: bool = False, hooks: Hooks = ALONE) -> int:
    """Train in this process, one of those that torchrun started or alone, into the folder `out`; -> exit status: 0, or
    128 + signal when told to stop (it has saved by then). Raises UserError."""
    refuse_in_child()
    folder = Run(out)
    try:
        with (
            reproducible(cfg.loop.deterministic),
            Ranks(cfg.loop.device) as ranks,
            products(cfg.loop.matmul if ranks.device.type == "cuda" else "highest"),
            contextlib.ExitStack() as held,
        ):
            return train(cfg, folder, ranks, resume, held, hooks)
    except Reported as error:
        return error.status
    except KeyboardInterrupt:
        raise UserError(f"interrupted: go on with {how_to_resume(folder)}", 130) from None


@contextlib.contextmanager
def reproducible(asked: bool) -> Iterator[None]:
    """Have GPUs add in the same order each time, if asked to; an operation that cannot is an error."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Have float32 matrix products computed so, see options.Loop.matmul."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def train(cfg: Config, run: Run, ranks: Ranks, resume: bool, held: contextlib.ExitStack, hooks: Hooks) -> int:
    """The whole run, with its folder claimed until `held` closes. Everything that can be wrong is found before the
    folder is made."""
    if ranks.device.type == "cpu":
        keep_memory()
    if resume:
        ranks.first(lambda: run.claim(held, PATIENCE if restarted() else 0.0))
    source = open_source(cfg.data.path, cfg.data.root)
    for note in source.notes:
        say(ranks, f"note: {source.where}: {note}")
    per_epoch = steps_per_epoch(len(source), cfg.loop.batch)
    if not per_epoch:
        raise UserError(f"{source.where}: {len(source)} images are fewer than one batch: loop.batch={cfg.loop.batch}")
    if cfg.log.tensorboard:
        check_tensorboard()
    if resume and cfg.loop.precision == "auto":
        cfg.loop.precision = ranks.first(lambda: run.config([]).loop.precision)
        if cfg.loop.precision == "auto" and ranks.device.type == "cpu":
            cfg.loop.precision = "float32"  # what it was on every CPU while `auto` was stored as such
    trainer = build(cfg, per_epoch, ranks)
    cfg.loop.precision = trainer.precision  # `auto` is resolved once: the run's configuration holds what came of it
    changed = start_from(trainer, run, source, resume, hooks)
    watch = open_watch(trainer, run, source, hooks)
    if not resume:
        ranks.first(lambda: run.create(cfg, held))
    done, total = trainer.step, len(trainer)
    evaluate_first = ranks.first(lambda: missed(trainer, run))
    if done >= total and not evaluate_first:
        say(ranks, f"{run.folder}: all of its {total} steps are done")
        return 0
    size = sum(p.numel() for _, p in trainer.named) / 1e6
    products = f" (matmul {torch.get_float32_matmul_precision()})" if ranks.device.type == "cuda" else ""
    say(
        ranks,
        f"{run.folder}: {f'from step {done} of' if done else ''} {total} steps, {per_epoch} an epoch of {len(source)} "
        f"images; {size:.1f} M parameters, {trainer.precision}{products} on {ranks.world} x {ranks.device.type}; batch "
        f"{trainer.shares} (images x processes x accumulation)",
    )
    say(ranks, weight(trainer))
    if trainer.statistics:
        say(ranks, f"batch statistics go over {trainer.noise()['statistics']} of the {cfg.loop.batch} images of a step")
    for note in note_on_turned(source.data, len(source)) if ranks.main else ():
        say(ranks, f"note: {source.where}: {note}")
    return Loop(trainer, run, source, watch)(evaluate_first, changed)


def weight(trainer: Trainer) -> str:
    """What a checkpoint of the run weighs, and how much of it are heads, which no export has."""
    learner, moments = trainer.learner, [(name, 2 * p.nbytes) for name, p in trainer.named]
    networks = [learner.student.state_dict(), learner.teacher.state_dict()]
    sizes = [(name, t.nbytes) for state in networks for name, t in state.items()] + moments
    heads: dict[str, int] = {}
    for name, size in sizes:
        if name.startswith("heads."):
            head = name.split(".")[1]
            heads[head] = heads.get(head, 0) + size
    own = sum(t.nbytes for t in learner.objectives.state_dict().values())
    share, total = sum(heads.values()), sum(size for _, size in sizes) + own
    of = f" ({max(heads, key=heads.get)} most of all)" if heads else ""
    return (
        f"a checkpoint takes {total / 1e6:.3g} MB, {share / total:.0%} of it for heads{of}, which an export leaves out"
    )


def build(cfg: Config, per_epoch: int, ranks: Ranks) -> Trainer:
    """The networks and all that belongs to them. Raises UserError, also where there is not enough memory."""
    try:
        return Trainer(cfg, per_epoch, ranks)
    except (MemoryError, RuntimeError) as error:
        if (text := out_of_memory(error)) is None:
            raise
        raise UserError(f"the networks do not fit into memory: {text}; make network or heads smaller", 1) from None


def start_from(trainer: Trainer, run: Run, source: ImageSource, resume: bool, hooks: Hooks) -> list[str]:
    """Give the networks the weights that they start from: the run's newest state, or the checkpoint `init`; -> what is
    done otherwise than before that state."""
    cfg = trainer.cfg
    if resume and (state := newest_state(cfg, run, trainer.ranks)):
        check_identity(source, state["data"])
        trainer.load(state)
        return changes(state.get("noise", {}), trainer.noise())
    if cfg.init:
        say(trainer.ranks, load_initial(trainer.learner, cfg.init, cfg.init_format, hooks.reader()))
    return []


def newest_state(cfg: Config, run: Run, ranks: Ranks) -> dict | None:
    """The state that a run goes on from, None if there is none yet. Its folder is put in order."""
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

    path = ranks.first(prepare)
    return mine["state"] if ranks.main else path and read(path)


def open_watch(trainer: Trainer, run: Run, source: ImageSource, hooks: Hooks) -> Watch | None:
    """The evaluation on the way, in the first process, if one is asked for."""
    opened: list[Watch] = []
    if trainer.cfg.watch.every is not None:
        trainer.ranks.first(lambda: opened.append(Watch(trainer, run, source, hooks.evaluation())))
    return opened[0] if opened else None
