"""The checkpoints of a command. Each is opened, recognised and hashed once, however many tasks and seeds it runs for.

The plan opens all of them, to know that each will run, and their weights wait for the jobs. Of a sweep whose weights
are larger than KEEP together, some wait; each of the others is opened once more, when its turn comes.
"""

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...pretrain.common.errors import UserError
from .models import Entry

KEEP = 4 << 30  # bytes of weights


class Opened:
    """A checkpoint of a command. kept: its weights wait from the plan on; else they are let go between its turns.

    Raises UserError, like `loading.open_checkpoint` and `loading.ready`.
    """

    def __init__(self, asked: Entry):
        from ..checkpoints.open import ready

        self.asked, self.kept = asked, True
        self.checkpoint = self._open()
        self.fingerprint = self.checkpoint.fingerprint
        ready(self.checkpoint)

    def _open(self):
        from ..hub.open import open_checkpoint

        a = self.asked
        self.stamp = stamp(a.path)  # of before, so that a change meanwhile is noticed
        return open_checkpoint(a.path, format=a.format, card=a.card, weights=a.weights)

    @property
    def nbytes(self) -> int:
        """Of the weights, also where they are views of the file, which take memory only while they are used."""
        return sum(w.nbytes for w in self.checkpoint.reading.weights.values())

    def take(self, last: bool):
        """The loading.Checkpoint for a job; where it is not the last, with a copy of the weights, which a task may
        change. Raises UserError where the file holds other weights by now."""
        found = self.checkpoint
        if found is None or stamp(self.asked.path) != self.stamp:
            found = self.checkpoint = None  # freed before the file is read again
            found = self._open()
            if found.fingerprint != self.fingerprint:
                raise UserError(f"{self.asked.path} changed while this was running")
        self.checkpoint = None if last else found
        if last:
            return found
        weights = {k: w.clone() for k, w in found.reading.weights.items()}
        return dataclasses.replace(found, reading=dataclasses.replace(found.reading, weights=weights))

    def let_go(self) -> None:
        """Free the weights."""
        self.checkpoint = None


def stamp(path: Path) -> tuple:
    """What changes with the content of a file, or of any file of a folder or beside an index of shards: inode, size and
    times. () for what is not there, and for a name of a hub."""
    folder = path if path.is_dir() else path.parent if path.name.endswith(".index.json") else None
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file()) if folder else [path]
        stats = [(p.name, os.stat(p)) for p in files]
    except OSError:
        return ()
    return tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


@dataclass
class Model:
    """What a record says of a model; `path` is None for results of another method that are only scored.

    given: its name and row, as far as the user gave them. opened: None for those results.
    """

    name: str
    fingerprint: str
    path: Path | None = None
    card: dict | None = None
    format: str | None = None
    overrides: dict = field(default_factory=dict)
    row: str | None = None
    accounting: str | None = None
    facts: dict = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    opened: Opened | None = None

    def as_dict(self) -> dict:
        """Plain types, for the record."""
        own = ("path", "given", "opened")
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own}
        return facts | {"file": str(self.path) if self.path else None}


def given_labels(name: str | None, row: str | None) -> dict[str, str]:
    """Of name and row those that the user gave."""
    return {k: v for k, v in (("name", name), ("row", row)) if v}


def describe(model: Path | Entry, options) -> Model:
    """Open a checkpoint. options: how, for one that was given by hand. Raises UserError, naming the entry, for one that
    no task could run."""
    from ..checkpoints.open import default_name

    asked = model
    if not isinstance(model, Entry):
        asked = Entry(model, options.name, options.format, options.card, options.weights, options.row)
    with asked.named():
        opened = Opened(asked)
    c = opened.checkpoint
    overrides = {k: list(v) if isinstance(v, tuple) else v for k, v in c.overrides.items()}
    overrides |= {k: v for k, v in (("format", asked.format), ("weights", asked.weights)) if v}
    return Model(
        name=asked.name or default_name(asked.path),
        fingerprint=c.fingerprint,
        path=asked.path,
        card=c.card.as_dict(),
        format=c.reading.format,
        overrides=overrides,
        row=asked.row or c.row,
        accounting=c.accounting,
        facts=c.facts,
        given=given_labels(asked.name, asked.row),
        opened=opened,
    )


def hold(models: Iterable[Model], rank: int = 0) -> list[Model]:
    """Let the weights of the first of a command's models wait, and of the others as far as they fit beside it. rank: a
    process but for the first, 0, takes no weights, so that none wait; what is `kept` is the same in all of them."""
    held, size = [], 0
    for model in models:
        opened = model.opened
        opened.kept = not held or size + opened.nbytes <= KEEP
        size += opened.nbytes if opened.kept else 0
        if rank or not opened.kept:
            opened.let_go()
        held.append(model)
    return held
