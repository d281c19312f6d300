"""Records: one JSON per result, written at once and never overwritten.

`OUT/records/TASK/KEY.json`, `KEY.2.json` ... for repetitions, `KEY.failed-N.json` for failures. KEY is a hash of
whatever makes a number another number. Names and rows may change later: labels.py. How a record reads:
results/README.md.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from ...pretrain.common import locks
from ...pretrain.common.atomic import replacing
from ...pretrain.common.errors import UserError
from . import labels

SCHEMA = 1


def folder(out: Path, task: str) -> Path:
    """Where a task's records lie."""
    return out / "records" / task


def files(out: Path, task: str = "*") -> list[Path]:
    """Record files of a task, or of all, sorted; labels and what is being written at this moment are none."""
    found = (Path(out) / "records").glob(f"{task}/*.json")
    return sorted(p for p in found if not p.name.endswith(labels.SUFFIX) and not p.name.startswith("."))


def done(out: Path, task: str, key: str) -> list[Path]:
    """Records of this key that are results, oldest first; failures do not count."""
    numbered = []
    for path in folder(out, task).glob(f"{key}*.json"):
        if match := re.fullmatch(rf"{key}(?:\.(\d+))?\.json", path.name):
            numbered.append((int(match[1] or 1), path))
    return [path for _, path in sorted(numbered)]


def read(path: Path) -> dict:
    """A record from its file, with its newest name and row (labels.py). Raises UserError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a record: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a record of schema {SCHEMA}")
    return labels.apply(content, path)


def write(out: Path, record: Mapping, failed: bool = False) -> Path:
    """Write a record under the next free name of its key; the name appears only when the content is on disk.

    Two processes never get the same name, and a crash leaves nothing but a hidden temporary file. Raises UserError
    when the disk refuses.
    """
    base, key = folder(out, record["task"]), record["key"]
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    names = (f".failed-{n}" if failed else f".{n}" if n > 1 else "" for n in itertools.count(1))
    taken = []

    def publish(temporary: Path, _: Path) -> None:
        for name in names:
            path = base / f"{key}{name}.json"
            try:
                _publish(temporary, path)
            except FileExistsError:
                continue
            taken.append(path)
            return

    _make(base)
    with replacing(base / f"{key}.json", sync=True, publish=publish) as temporary:
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
