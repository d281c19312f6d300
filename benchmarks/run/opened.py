"""The checkpoints of a command. Each is opened, recognised and hashed once, however many tasks and seeds it runs for.
Or the network that Python hands in.

The plan opens all of them, to know that each will run. Their weights stay in memory until they are evaluated, up to
KEEP bytes in all; those beyond are freed, and their files opened once more for their evaluations.
"""

import copy
import os
from collections.abc import Iterable
from pathlib import Path

from ...pretrain.common.errors import UserError, naming
from ..results.record import Model
from .models import Entry

KEEP = 4 << 30  # bytes of weights


class Opened:
    """A checkpoint of a command, that can run. kept: its weights stay in memory from the plan on; else only during its
    evaluations. model: what records say of it. doubts: why its numbers may not be what they seem. given: its name and
    row, as far as the user gave them.

    Raises UserError, like `checkpoints.open.ready`.
    """

    def __init__(self, asked: Entry):
        from ..checkpoints.open import default_name, look_untrained, ready

        self.asked, self.kept = asked, True
        self.checkpoint = c = self._open()
        ready(c)
        overrides = {k: list(v) if isinstance(v, tuple) else v for k, v in c.overrides.items()}
        overrides |= {
            k: v for k, v in (("format", asked.format), ("weights", asked.weights), ("part", asked.part)) if v
        }
        self.given = given_labels(asked.name, asked.row)
        untrained = look_untrained(c.reading.weights, c.trained)
        self.doubts = [f"the weights look untrained: {untrained}"] if untrained else []
        self.model = Model(
            name=asked.name or default_name(asked.path),
            fingerprint=c.fingerprint,
            card=c.card.as_dict(),
            format=c.reading.format,
            overrides=overrides,
            row=asked.row or c.row,
            accounting=c.accounting,
            facts=c.facts,
            file=str(asked.path),
        )

    def _open(self):
        from ..hub.open import open_checkpoint

        a = self.asked
        self.stamp = stamp(a.path)  # of before, so that a change meanwhile is noticed
        return open_checkpoint(a.path, format=a.format, card=a.card, weights=a.weights, part=a.part)

    @property
    def nbytes(self) -> int:
        """Of the weights, also where they are views of the file, which take memory only while they are used."""
        return sum(w.nbytes for w in self.checkpoint.reading.weights.values())

    def take(self, last: bool):
        """The opened file (checkpoints.open.Checkpoint) for an evaluation. last: it is the last one, so that nothing of
        the file is kept here. Raises UserError where the file holds other weights by now."""
        found = self.checkpoint
        if found is None or stamp(self.asked.path) != self.stamp:
            found = self.checkpoint = None  # freed before the file is read again
            found = self._open()
            if found.fingerprint != self.model.fingerprint:
                raise UserError(f"{self.asked.path} changed while this was running")
        self.checkpoint = None if last else found
        return found

    def let_go(self) -> None:
        """Free the weights."""
        self.checkpoint = None


class InMemory:
    """An encoder that Python has already (`load`, `wrap`), in the place of an `Opened`, and of the entry of a list.

    name: in tables; else the encoder's own. Its weights are hashed anew: they may be others than when it was made.
    """

    kept, where, nbytes = True, "", 0

    def __init__(self, encoder, name: str | None = None, row: str | None = None):
        from ...pretrain.common.weights import fingerprint
        from ..checkpoints.open import look_untrained

        self.encoder, self.asked = encoder, self
        self.name = name or encoder.name or encoder.card.family
        self.path, self.given = Path(self.name), given_labels(name, row)
        own = {k.removeprefix(f"{encoder.network}."): v for k, v in encoder.state_dict().items()}
        weights = {k: own[k] for k in encoder.named_shapes()}
        untrained = look_untrained({k: v.cpu() for k, v in weights.items()})
        self.doubts = [f"the weights look untrained: {untrained}"] if untrained else []
        self.model = Model(
            self.name,
            fingerprint(weights),
            encoder.card.as_dict(),
            format="in memory",
            row=row,
            accounting=encoder.accounting,
        )

    def network(self, device: str):
        """A copy of it, which a task may change."""
        encoder = copy.deepcopy(self.encoder).eval().to(device)
        encoder.fingerprint = self.model.fingerprint
        return encoder

    def let_go(self) -> None:
        """The caller of Python has it."""


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


def given_labels(name: str | None, row: str | None) -> dict[str, str]:
    """Of name and row those that the user gave."""
    return {k: v for k, v in (("name", name), ("row", row)) if v}


def describe(model: Path | Entry | InMemory, options) -> Opened | InMemory:
    """Open a checkpoint, unless its network is in memory. options: how, for one that was given by hand. Raises
    UserError, naming the entry, for one that no task could run."""
    if isinstance(model, InMemory):
        return model
    if not isinstance(model, Entry):
        model = Entry(
            model, options.name, options.format, options.card, options.weights, options.row, part=options.part
        )
    with naming(model.where):
        return Opened(model)


def hold(models: Iterable[Opened], rank: int = 0) -> list[Opened]:
    """Keep the weights of a command's first model in memory, and those of the others as far as KEEP allows. rank: of
    this process; only the first, 0, needs weights, and what is `kept` is the same in all of them."""
    held, size = [], 0
    for opened in models:
        opened.kept = not held or size + opened.nbytes <= KEEP
        size += opened.nbytes if opened.kept else 0
        if rank or not opened.kept:
            opened.let_go()
        held.append(opened)
    return held
