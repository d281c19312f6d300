"""What checking a data set gives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Data:
    """What a task's `check` found: the parts of a record that describe the data.

    official: exactly the published benchmark's data, checked by names and counts; `differs` says in words what is not.
    """

    name: str
    root: Path
    fingerprint: str
    official: bool
    differs: str
    summary: str
    notes: list[str] = field(default_factory=list)  # lines for the user
    content: Any = field(default=None, repr=False)  # the opened set, handed on to `run`
