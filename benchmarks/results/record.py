"""Records: one JSON per result, written at once and never overwritten. How a record reads: results/README.md.

`OUT/records/TASK/KEY.json`, `KEY.2.json` ... for repetitions, `KEY.failed-N.json` for failures. KEY is a hash of
whatever makes a number another number. Names and rows may change later: labels.py.
"""

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ...pretrain.common import locks
from ...pretrain.common.atomic import replacing
from ...pretrain.common.errors import UserError
from . import labels

SCHEMA = 1
DONE, FAILED = "done", "failed"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The network; of masks that were only scored: name, fingerprint and row alone, under the format `masks`. That of
    an encoder which Python handed in is `in memory`."""

    name: str
    fingerprint: str
    card: dict | None = None
    format: str | None = None
    overrides: dict = field(default_factory=dict)
    row: str | None = None
    accounting: str | None = None
    facts: dict = field(default_factory=dict)
    file: str | None = None


@dataclass(frozen=True)
class Protocol:
    """values: all. overridden: those that differ from the protocol's own. effective: what followed for the network."""

    id: str = ""
    values: dict = field(default_factory=dict)
    overridden: dict = field(default_factory=dict)
    effective: dict | None = None


@dataclass(frozen=True)
class DataSet:
    """official: exactly the benchmark's data. differs: what is not, in words. summary: the counts in words. notes: what
    the check of the data had to say."""

    name: str = "data"
    root: str = ""
    fingerprint: str = ""
    official: bool = False
    differs: str = ""
    summary: str = ""
    notes: list = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """One evaluation. The fields up to `created` are the file's keys, in its order; those that are None in OPTIONAL are
    left out of it. metrics to artifacts: of a result; error to log: of a failure. doubts: why the number may not be
    what it seems, said wherever it is shown. published: as `Task.published`.

    model: with the newest name and row. names: every name that the result has had, its own first. labelled: when the
    newest was given, '' if none was.
    """

    key: str
    model: Model
    task: str
    version: int | None = None
    protocol: Protocol = Protocol()
    published: list | tuple = ()
    data: DataSet = DataSet()
    limit: int | None = None
    seed: int = 0
    status: str = DONE
    metrics: dict | None = None
    doubts: list | None = None
    parts: dict | None = None
    artifacts: str | None = None
    error: str | None = None
    traceback: str | None = None
    log: str | None = None
    environment: dict = field(default_factory=dict)
    wall_seconds: float | int = 0.0
    peak_memory_bytes: dict = field(default_factory=dict)
    created: str = ""

    path: Path | None = None
    names: tuple = ()
    labelled: str = ""

    def columns(self) -> dict[tuple[str, str, str], str]:
        """(task, protocol, metric) of the published columns that its numbers may stand in -> our metric."""
        found = {}
        for task, protocol, *names in self.published:
            pairs = [names] if names else [(metric, metric) for metric in self.metrics]
            found |= {(task, protocol, theirs): ours for ours, theirs in pairs if ours in self.metrics}
        return found

    @property
    def number(self) -> int:
        """1 for KEY.json, N for KEY.N.json."""
        found = re.search(r"\.(\d+)$", self.path.stem) if self.path else None
        return int(found[1]) if found else 1

    @property
    def file(self) -> str:
        """TASK/KEY.json."""
        return f"{self.task}/{self.path.name if self.path else self.key + '.json'}"


OPTIONAL = ("effective", "metrics", "doubts", "parts", "artifacts", "error", "traceback", "log")
BESIDE = ("path", "names", "labelled")


def content(record: Record) -> dict:
    """What the file holds."""
    kept = {k: v for k, v in vars(record).items() if k not in BESIDE and (k not in OPTIONAL or v is not None)}
    protocol = {k: v for k, v in vars(record.protocol).items() if k not in OPTIONAL or v is not None}
    data = {k: v for k, v in vars(record.data).items() if k != "notes" or v}
    return {"schema": SCHEMA} | kept | {"model": vars(record.model), "protocol": protocol, "data": data}


def text_of(record: Record) -> str:
    """The file. Raises UserError for a record that `read` would refuse, like one with a number that is not finite."""
    try:
        text = json.dumps(content(record), indent=1, allow_nan=False)
        parse(json.loads(text))
    except (TypeError, ValueError) as error:
        raise UserError(f"{record.task} gives what no record can hold: {error}", 1) from None
    return text + "\n"


def parse(table) -> Record:
    """A record from its file's content, whose unknown keys are left out. Raises ValueError: what is wrong with it."""
    if not isinstance(table, dict) or "schema" not in table:
        raise ValueError("no record")
    if table["schema"] != SCHEMA:
        raise ValueError(f"schema {table['schema']}, this version reads {SCHEMA}")
    record = _typed(Record, {k: v for k, v in table.items() if k not in BESIDE})
    numbers = {} if record.status == FAILED and record.metrics is None else record.metrics
    wrong = [] if isinstance(numbers, dict) and all(map(_is_number, numbers.values())) else ["metrics"]
    if not all(isinstance(p, list | tuple) and len(p) in (2, 4) for p in record.published):
        wrong.append("published")
    if wrong:
        raise ValueError(f"bad or missing {', '.join(wrong)}")
    return replace(record, published=tuple(tuple(map(str, entry)) for entry in record.published))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _typed(cls: type, table: dict):
    """A dataclass of a JSON object; every field that is there must be of its type. null is what is not there."""
    values, wrong = {}, []
    for part in fields(cls):
        value = table.get(part.name)
        if value is None and (part.default, part.default_factory) != (MISSING, MISSING):
            continue
        if is_dataclass(part.type) and isinstance(value, dict):
            value = _typed(part.type, value)
        values[part.name] = value
        wrong += [part.name] * (not isinstance(value, part.type))
    if wrong:
        raise ValueError(f"bad or missing {', '.join(wrong)}")
    return cls(**values)


def read(path: Path) -> Record:
    """A record with its newest name and row (labels.py). Raises UserError for a file that is none."""
    try:
        return _read(path)
    except ValueError as error:
        raise UserError(f"{path} is not a record: {error}") from None


def _read(path: Path) -> Record:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"unreadable ({type(error).__name__})") from None
    return labels.apply(parse(table), path)


def records(out: Path, task: str = "*", strange: dict[Path, str] | None = None) -> list[Record]:
    """All records of a task, or of all, failures included, sorted by file.

    strange: is given the files that are no records, and why; without it one warning names them.
    """
    found, left_out = [], {} if strange is None else strange
    for path in sorted((Path(out) / "records").glob(f"{task}/*.json")):
        if path.name.endswith(labels.SUFFIX) or path.name.startswith("."):  # or just being written
            continue
        try:
            found.append(_read(path))
        except ValueError as error:
            left_out[path] = str(error)
    if left_out and strange is None:
        listed = "; ".join(f"{path} ({why})" for path, why in left_out.items())
        log.warning("left out, not records of this version: %s", listed)
    return found


# ------------------------------------------------------------------------------------ files of an evaluation's key
def folder(out: Path, task: str) -> Path:
    """Where a task's records lie."""
    return out / "records" / task


def artifacts(out: Path, task: str, key: str, number: int) -> Path:
    """Where an evaluation works; a repetition (number 2 ...) has a folder of its own."""
    return out / "artifacts" / task / (key if number == 1 else f"{key}.{number}")


def done(out: Path, task: str, key: str) -> list[Path]:
    """Records of this key that are results, oldest first; failures do not count."""
    numbered = []
    for path in folder(out, task).glob(f"{key}*.json"):
        if match := re.fullmatch(rf"{key}(?:\.(\d+))?\.json", path.name):
            numbered.append((int(match[1] or 1), path))
    return [path for _, path in sorted(numbered)]


def write(out: Path, record: Record) -> Path:
    """Write a record under the next free name of its key; the name appears only when the content is on disk.

    Two processes never get the same name, and a crash leaves nothing but a hidden temporary file. Raises UserError
    when the disk refuses, and as `text_of` does.
    """
    base, failed = folder(out, record.task), record.status == FAILED
    text = text_of(record)
    names = (f".failed-{n}" if failed else f".{n}" if n > 1 else "" for n in itertools.count(1))
    taken = []

    def publish(temporary: Path, _: Path) -> None:
        for name in names:
            path = base / f"{record.key}{name}.json"
            with contextlib.suppress(FileExistsError):
                _publish(temporary, path)
                taken.append(path)
                return

    _make(base)
    with replacing(base / f"{record.key}.json", sync=True, publish=publish) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return taken[0]


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name. Raises FileExistsError if the name is taken, which a rename would not."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # a file system without hard links
            raise
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def _make(base: Path) -> None:
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write below {base}: {error.strerror or error}", 1) from None


@contextlib.contextmanager
def lock(out: Path, task: str, key: str, wait: bool = True) -> Iterator[bool]:
    """Hold the right to work on a key; yields False (at once) if another process has it and `wait` is false.

    The kernel releases it when the process ends, however it ends.
    """
    base = folder(out, task)
    _make(base)
    with contextlib.ExitStack() as held:
        mine = True
        try:
            held.enter_context(locks.lock(base / f".{key}.lock", math.inf if wait else 0.0))
        except locks.Busy:
            mine = False
        yield mine


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
