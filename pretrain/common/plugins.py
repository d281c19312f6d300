"""Plug-ins: a folder is the list, and a file's name is its public name.

A `Kind` says where our files of a kind lie. A user's lie in the sub-folder of the same name of every folder that
`SELFPATCH_PLUGINS` names (separated as in PATH; `--plugins DIR` adds one).
"""

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True)
class Kind:
    """One kind of plug-in. name: its sub-folder in a user's folder. folder: of our own files; None where all are
    users'. package: the import package that `folder` is; None for files that are not imported. suffix: of the files
    that count. read: what makes `Plugin.module` of a file, where that is not the imported module."""

    name: str
    folder: Path | None
    package: str | None = None
    suffix: str = ".py"
    read: Callable[[Path], object] | None = None

    def scan(self) -> "dict[str, Plugin]":
        """All plug-ins of the kind by name, sorted. Raises UserError when two files share a name."""
        found: dict[str, Plugin] = {}
        for base in (self.folder, *(f / self.name for f in plugin_folders())):
            for path in sorted(base.glob(f"*{self.suffix}")) if base and base.is_dir() else []:
                if path.stem.startswith("_"):
                    continue
                if path.stem in found:
                    both = f"{found[path.stem].path} and {path}"
                    raise UserError(f"two plug-ins of {self.name} are called {path.stem}: {both}")
                found[path.stem] = Plugin(self, path.stem, path, base is self.folder)
        return dict(sorted(found.items()))

    def get(self, name: str) -> "Plugin":
        """The plug-in of that name. Raises UserError that lists the valid names."""
        return pick(self.scan(), name, self.name)


def pick(plugins: "dict[str, Plugin]", name: str, kind: str) -> "Plugin":
    """The plug-in of that name. Raises UserError that lists the valid names."""
    if name not in plugins:
        raise UserError(f"no {kind.rstrip('s')} called {name}; there are: {', '.join(plugins) or 'none'}")
    return plugins[name]


@dataclass
class Plugin:
    """One plug-in file. `module` imports it (only then can it turn out to be broken). ours: not a user's."""

    kind: Kind
    name: str
    path: Path
    ours: bool = field(default=False, repr=False)

    @cached_property
    def module(self):
        """The imported module, or what its kind reads of the file. Raises UserError, naming file and cause."""
        try:
            if self.kind.read:
                return self.kind.read(self.path)
            if self.ours:
                return importlib.import_module(f"{self.kind.package}.{self.name}")
            return import_file(self.path, f"{self.kind.name}_{self.name}")
        except Exception as error:
            if self.kind.read and isinstance(error, UserError):  # says more than that an import failed
                raise
            raise UserError(f"plug-in {self.path} does not import: {type(error).__name__}: {error}") from error

    @property
    def doc(self) -> str:
        """First line of the file's docstring or header comment, read without importing it."""
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            text = line.strip().strip("\"'#").strip()
            if text:
                return text
        return ""

    @property
    def source(self) -> str:
        """Where it comes from, for `ls`."""
        return "built in" if self.ours else str(self.path.parent)


def import_file(path: Path, name: str):
    """A user's file as a module of its own name, the same in every process."""
    label = f"{__package__.partition('.')[0]}.plugins_{name}_{zlib.crc32(os.fsencode(path)):x}"
    spec = importlib.util.spec_from_file_location(label, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def plugin_folders() -> list[Path]:
    """The user's plug-in folders, in order. Raises UserError for one that does not exist."""
    folders = [Path(p) for p in os.environ.get("SELFPATCH_PLUGINS", "").split(os.pathsep) if p]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"SELFPATCH_PLUGINS (or --plugins) names {folder}, which is not a folder")
    return folders


def named(text: str) -> Callable:
    """The function (or class) called `module:name`, as `train.Hooks` has them."""
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)
