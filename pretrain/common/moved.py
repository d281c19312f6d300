"""Modules under the names that they had: a user's plug-in may import them still."""

import importlib
import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Moved(MetaPathFinder, Loader):
    """Finds the modules of a table: full old name -> full names of those that now hold what it held."""

    def __init__(self, table: Mapping[str, tuple[str, ...]]):
        self.table = table

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self.table else None

    def exec_module(self, module: ModuleType) -> None:
        homes = self.table[module.__name__]

        def look(attribute: str):
            for home in homes:
                found = importlib.import_module(home)
                if hasattr(found, attribute):
                    return getattr(found, attribute)
            raise AttributeError(
                f"module {module.__name__} has no attribute {attribute}; it is now {' and '.join(homes)}"
            )

        module.__getattr__ = look


def keep(package: str, table: Mapping[str, str]) -> None:
    """Have old names below an import package work: `old` -> `new, new`, both below the package's top."""
    top = package.partition(".")[0]
    full = {f"{package}.{old}": tuple(f"{top}.{n}" for n in new.split(", ")) for old, new in table.items()}
    sys.meta_path.append(Moved(full))  # asked last: what is there under its name is found before
