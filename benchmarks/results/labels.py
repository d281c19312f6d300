"""What a result is called: its name in tables and the published row that it reproduces. Neither is part of its key.

A record has both as they were when it was made, and is never edited. What is given later lies beside it, for all
records of its key, in `KEY.label.json`: {"schema", "name", "row", "created", "history": [the labels before it]}. The
newest label wins; what it leaves open (null) is the record's own.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from ...pretrain.common.atomic import write_atomic

SUFFIX = ".label.json"
SCHEMA = 1
log = logging.getLogger(__name__)


def label_file(record: Path) -> Path:
    """Where the label of a record's key lies."""
    return record.with_name(record.name.partition(".")[0] + SUFFIX)


def read(record: Path) -> dict:
    """The label of a record's key; {} where there is none, and, with one warning, where the file is damaged."""
    path = label_file(record)
    try:
        label = json.loads(path.read_text(encoding="utf-8-sig"))
        problem = _problem(label)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problem = f"unreadable ({type(error).__name__})"
    if problem:
        _warn(path, problem)
        return {}
    return label


def _problem(label) -> str:
    """What keeps a JSON value from being a label, else ''."""
    if not isinstance(label, dict) or label.get("schema", SCHEMA) != SCHEMA:
        return f"no label of schema {SCHEMA}"
    history = label.get("history", [])
    if not isinstance(history, list) or not all(isinstance(x, dict) for x in history):
        return "history is no list of labels"
    for one in (label, *history):
        for key in ("name", "row", "created"):
            text = one.get(key)
            if text is not None and not (isinstance(text, str) and text.strip() and text.isprintable()):
                return f"{key} is no text"
    return ""


@cache
def _warn(path: Path, problem: str) -> None:
    """Once a process, however often the file is looked at."""
    log.warning("%s: %s; the record's own name and row are used", path, problem)


def apply(found, record: Path):
    """A record as read from its file -> with its newest name and row, and the names that it has had."""
    label = read(record)
    given = {k: label[k] for k in ("name", "row") if label.get(k) is not None}
    names = (found.model.name, *(x.get("name") for x in (*label.get("history", []), label)))
    return replace(
        found,
        path=record,
        model=replace(found.model, **given),
        names=tuple(n for n in dict.fromkeys(names) if n),
        labelled=label.get("created") or "",
    )


def write(record: Path, given: Mapping[str, str], created: str) -> Path:
    """Give a result a name, a row or both; what is not given stays as it is. The caller holds the key's lock, so that
    nothing of another process is lost. Raises UserError when the disk refuses."""
    path, before = label_file(record), read(record)
    kept = {k: before.get(k) for k in ("name", "row", "created")}
    history = [*before.get("history", []), *([kept] if before else [])]
    label = {"schema": SCHEMA} | kept | given | {"created": created, "history": history}
    write_atomic(path, json.dumps(label, indent=1) + "\n")
    return path
