"""Everything that `--task` takes: the files of tasks/ and the mm recipes of mm_configs/."""

import importlib
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.plugins import Kind, Plugin, pick

_HERE = Path(__file__).resolve().parent
_ABOVE = __package__.rpartition(".")[0]


def _recipe(path: Path):
    """An mm recipe as a task. mm/ stands above tasks/: it is looked up as a plug-in is, when one is asked for."""
    return importlib.import_module(f"{_ABOVE}.mm.task").MMTask(path)


TASKS = Kind("tasks", _HERE, __package__)
RECIPES = Kind("mm_configs", _HERE.parent.parent / "mm_configs", read=_recipe)


def tasks() -> dict[str, Plugin]:
    """All tasks by name, sorted. Raises UserError when two share a name."""
    found, recipes = TASKS.scan(), RECIPES.scan()
    for name in found.keys() & recipes.keys():
        raise UserError(f"a task and an mm recipe are called {name}: {found[name].path} and {recipes[name].path}")
    return dict(sorted((found | recipes).items()))


def get_task(name: str) -> Plugin:
    """The task of that name. Raises UserError that lists the valid names."""
    return pick(tasks(), name, TASKS.name)
