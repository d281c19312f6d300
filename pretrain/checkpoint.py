"""The folder of a run and its stored states: written whole or not at all, read without running anything in them.

RUN/config.yaml                     the full configuration
RUN/log.jsonl                       see monitor/log.py
RUN/checkpoints/step-00000100.pt    after 100 optimiser steps (step.Trainer.state)
RUN/exports/                        see export.py
RUN/watch/step-00000100/            pictures, see monitor/watch.py
RUN/.lock                           says which process works on it, see pretrain/common/locks.py
"""

import contextlib
import logging
import re
from pathlib import Path

import torch
from omegaconf import OmegaConf

from .common.atomic import TEMPORARY, write_atomic
from .common.errors import UserError
from .common.locks import Busy, lock
from .common.reading.state import load_state
from .config import Config, from_dict, read_options, to_dict

log = logging.getLogger(__name__)
NAME = re.compile(r"step-(\d{8,})\.pt")
JOB_FOLDER = "slurm"  # sub-folder of a job's files
LOCK = ".lock"  # held by the first process of a run as long as it works
FALLBACKS = 2  # newest states that are always kept: should one be damaged, there is the one before
# Options that a resumed run may change: what it computes stays the same, or it says what does not (see `changes`).
CHANGEABLE = ("data.path", "data.root", "data.workers", "data.prefetch", "loop.device", "checkpoint.", "log.", "watch.")
CHANGEABLE += ("loop.per_gpu", "loop.accumulation", "loop.precision", "loop.deterministic", "loop.checkpointing")


class Run:
    """A run's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config_file, self.log_file = folder / "config.yaml", folder / "log.jsonl"
        self.checkpoints = folder / "checkpoints"

    def check_empty(self) -> None:
        """Raise UserError if there is something in the folder already, other than the files of a job to come."""
        if self.config_file.exists():
            with contextlib.ExitStack() as held:
                self.claim(held)  # that another process works on it is the better answer
        self._check_content()

    def _check_content(self) -> None:
        try:
            full = self.folder.exists() and any(p.name not in (JOB_FOLDER, LOCK) for p in self.folder.iterdir())
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error.strerror or error}") from None
        if full:
            resume = f"go on with --resume {self.folder}, or " if self.config_file.exists() else ""
            raise UserError(f"{self.folder} is not empty: {resume}give another --out")

    def claim(self, held: contextlib.ExitStack, wait: float = 0.0) -> None:
        """Lock the run's folder against other processes until `held` closes. wait: seconds for another one to end.
        Raises UserError, naming who works on it."""
        try:
            held.enter_context(lock(self.folder / LOCK, wait))
        except Busy as busy:
            todo = f"wait for it or stop it, then go on with --resume {self.folder}"
            raise UserError(f"{self.folder} is in use by {busy.who}: {todo}", busy.status) from None

    def create(self, cfg: Config, held: contextlib.ExitStack) -> None:
        """Make the folder of a new run, claimed until `held` closes. Raises UserError if it cannot be made or holds
        something."""
        self.check_empty()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim(held)
            self._check_content()  # another run may have begun meanwhile
            self.write_config(cfg)
            self.checkpoints.mkdir()
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error.strerror or error}") from None

    def write_config(self, cfg: Config) -> None:
        write_atomic(self.config_file, OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg))))

    def steps(self) -> dict[int, Path]:
        """Stored states by the number of steps done, oldest first."""
        names = [(NAME.fullmatch(path.name), path) for path in self.checkpoints.glob("step-*.pt")]
        return dict(sorted((int(match[1]), path) for match, path in names if match))

    def clean(self) -> None:
        """Remove what a killed process left half written; for the process that has claimed the folder."""
        for folder in (self.folder, self.checkpoints, *self.folder.glob("watch/*")):
            for path in folder.glob(f".*{TEMPORARY}"):
                path.unlink(missing_ok=True)

    def newest(self) -> tuple[Path, dict] | None:
        """The newest stored state that can be read, and its file; a damaged one is named in a warning and passed over.

        None if there is none yet. Raises UserError if all are damaged.
        """
        found = self.steps()
        for path in reversed(found.values()):
            try:
                return path, read(path)
            except UserError as error:
                log.warning("%s; going back to the checkpoint before it", error)
        if found:
            raise UserError(f"{self.checkpoints}: none of its {len(found)} checkpoints can be read; start a new run")
        return None

    def save(self, state: dict, keep_every: int) -> Path:
        """Store a state and remove those that are not to be kept: all but the newest two and, if `keep_every`, those
        at the end of every so many epochs. Raises UserError; older states are then untouched."""
        path = self.checkpoints / f"step-{state['step']:08d}.pt"
        try:
            write_atomic(path, lambda file: torch.save(state, file))
        except UserError as error:
            found = [p for p in self.steps().values() if p != path]
            last = f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
            raise UserError(f"{error}; {last}: free space, then --resume {self.folder}", error.status) from error
        self.prune(state["steps_per_epoch"], keep_every)
        return path

    def prune(self, per_epoch: int, keep_every: int) -> None:
        """Remove the states that are not to be kept, see `save`."""
        for step, old in list(self.steps().items())[:-FALLBACKS]:
            if not (keep_every and step % per_epoch == 0 and step // per_epoch % keep_every == 0):
                old.unlink(missing_ok=True)

    def config(self, overrides: list[str]) -> Config:
        """config.yaml with overrides. Raises UserError where there is no run."""
        if not self.config_file.is_file():
            raise UserError(f"--resume {self.folder}: no run is there (it would have a config.yaml)")
        where = str(self.config_file)
        return from_dict(read_options(self.config_file, where), overrides, where)

    def check_config(self, wanted: Config, state: dict | None) -> None:
        """Raise UserError where a configuration would change the result of the run (of its state, or of its
        config.yaml while there is none): only CHANGEABLE options may differ."""
        before = from_dict(state["config"], (), f"{self.folder}: checkpoint") if state else self.config([])
        old, new = flat(to_dict(before)), flat(to_dict(wanted))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and not key.startswith(CHANGEABLE):
                changeable = ", ".join(s + "*" * s.endswith(".") for s in CHANGEABLE)
                raise UserError(
                    f"--resume {self.folder}: {key} is {old.get(key)} in this run and cannot become {new.get(key)}, "
                    f"which would change its result; only {changeable} may change; for others start a new run"
                )


def changes(before: dict, now: dict) -> list[str]:
    """What a run does otherwise than in its stored state, as texts. before, now: Trainer.noise(), which a state of an
    older version lacks."""
    texts = {
        "shares": "a batch was divided into {} shares, each with stochastic depth of its own, and is into {}",
        "precision": "the precision was {} and is {}",
        "statistics": "batch statistics went over {} images and go over {}",
    }
    return [t.format(before[k], now[k]) for k, t in texts.items() if k in before and before[k] != now[k]]


def flat(value, key: str = "") -> dict[str, object]:
    """Nested dicts and lists -> one dict by dotted names."""
    if isinstance(value, (dict, list)) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, part in pairs for k, v in flat(part, f"{key}.{name}" if key else str(name)).items()}
    return {key: value}


def read(path: Path) -> dict:
    """A stored state, on the CPU. Raises UserError for a file that is damaged or holds no state of a run."""
    try:
        state = load_state(path)
    except UserError as error:
        raise UserError(f"{path} is damaged: {str(error).removeprefix(f'{path}: ')}") from None
    if not isinstance(state, dict) or not {"student", "teacher", "optimizer", "step", "config"} <= state.keys():
        raise UserError(f"{path} is no checkpoint of a pretraining run")
    return state
