"""Everything that `--task` takes: the files of tasks/ and the mm recipes of mm_configs/."""

import contextlib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.plugins import Kind, Plugin, pick
from . import Task

_HERE = Path(__file__).resolve().parent
_ABOVE = __package__.rpartition(".")[0]
FAMILY = re.compile(r"^TASKS\b", re.MULTILINE)


def _recipe(path: Path) -> Task:
    """An mm recipe as a task. mm/ stands above tasks/: it is looked up as a plug-in is, when one is asked for."""
    return importlib.import_module(f"{_ABOVE}.mm.task").MMTask(path)


FILES = Kind("tasks", _HERE, __package__)
RECIPES = Kind("mm_configs", _HERE.parent.parent / "mm_configs", read=_recipe)


@dataclass
class Entry:
    """A task by its name, and the file that it is in."""

    name: str
    file: Plugin

    @cached_property
    def task(self) -> Task:
        """Raises UserError for a file that does not import, or lacks what a task must have."""
        found = self.file.module
        if not isinstance(found, Task):
            found = _family(found).get(self.name) or _of_module(found, self.file.path)
        for hook in ("check", "run"):
            if hook not in vars(found) and getattr(type(found), hook) is getattr(Task, hook):
                raise UserError(f"plug-in {self.file.path}: its task has no {hook}")
        found.name = self.name
        return found


def _family(module) -> dict[str, Task]:
    """The TASKS of a file; {} where they are not a table of tasks by their names."""
    found = getattr(module, "TASKS", None)
    named = isinstance(found, dict) and all(isinstance(n, str) and isinstance(t, Task) for n, t in found.items())
    return found if named else {}


def _of_module(module, path: Path) -> Task:
    """The TASK of a file. Where it is a bare `Task(...)`, the functions beside it stand for its methods."""
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise UserError(f"plug-in {path}: it has no TASK that is a Task, and no TASKS, a table of Tasks by name")
    if type(task) is Task:
        for hook in ("check", "run", "check_data", "check_card", "check_model", "parse"):
            if hasattr(module, hook):
                setattr(task, hook, getattr(module, hook))
    return task


def tasks() -> dict[str, Entry]:
    """All tasks by name, sorted. Raises UserError when two share a name."""
    found: dict[str, Entry] = {}
    for file in (*FILES.scan().values(), *RECIPES.scan().values()):
        for name in _names(file):
            if name in found:
                raise UserError(f"two tasks are called {name}: {found[name].file.path} and {file.path}")
            found[name] = Entry(name, file)
    return dict(sorted(found.items()))


def _names(file: Plugin) -> list[str]:
    """A file's own name, or those of its family; that of a family which does not import, or is none, is the file's."""
    if file.kind is FILES and FAMILY.search(file.path.read_text(encoding="utf-8", errors="replace")):
        with contextlib.suppress(UserError):
            return list(_family(file.module)) or [file.name]
    return [file.name]


def get_task(name: str) -> Task:
    """The task called NAME or NAME:VARIANT. Raises UserError that lists the valid names."""
    name, colon, variant = name.partition(":")
    task = pick(tasks(), name, FILES.name).task
    return task.of_variant(variant) if colon else task


def check_flags(asked: Iterable[Task], given: Iterable[str]) -> None:
    """Raise UserError for a flag of tasks, by its key or its spelling, that none of those asked for declares."""
    asked = list(asked)
    own = {word for task in asked for flag in task.flags for word in (flag.key, flag.spelling)}
    strange = [word for word in given if word not in own]
    loaded = _loaded() if strange else {}  # which takes its time
    for word in strange:
        if having := {n: f.spelling for n, t in loaded.items() for f in t.flags if word in (f.key, f.spelling)}:
            names = ", ".join(task.title for task in asked)
            rest = f"{names} has no such flag" if names else "give it with --task"
            raise UserError(f"{next(iter(having.values()))}: is for {', '.join(having)}; {rest}")


def _loaded() -> dict[str, Task]:
    """The tasks whose files import."""
    found = {}
    for name, entry in tasks().items():
        with contextlib.suppress(UserError):
            found[name] = entry.task
    return found
