"""Modules under the names that they had: a user's plug-in may import them still."""

import importlib
import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


class Moved(MetaPathFinder, Loader):
    """Finds the modules of a table: full old name -> full names of those that have what it had."""

    def __init__(self, table: Mapping[str, list[str]]):
        self.table = table

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self.table else None

    def exec_module(self, module) -> None:
        for home in reversed(self.table[module.__name__]):
            content = vars(importlib.import_module(home))
            vars(module).update({name: value for name, value in content.items() if not name.startswith("__")})


def keep(package: str, table: Mapping[str, str]) -> None:
    """Have old names below an import package work: `old` -> `new, new`, both below the package's top."""
    top = package.partition(".")[0]
    full = {f"{package}.{old}": [f"{top}.{n}" for n in new.split(", ")] for old, new in table.items()}
    sys.meta_path.append(Moved(full))  # asked last: what is there under its name is found before
