"""Plug-ins: a folder is the list.

`formats/`, `tasks/` and the mm recipes are found by scanning; a module's name is its public name. Folders named in
`SELFPATCH_PLUGINS` (separated as in PATH; `--plugins DIR` adds one) are scanned with the same sub-folders.
"""

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "benchmarks"
TOP = __package__.partition(".")[0]
# kind -> (our folder, import package below selfpatch_bench, sub-folder of a user's plug-in folder, suffix)
KINDS = {
    "formats": (HERE / "formats", "benchmarks.formats", "formats", ".py"),
    "tasks": (HERE / "tasks", "benchmarks.tasks", "tasks", ".py"),
    "mm_configs": (ROOT / "mm_configs", "mm_configs", "mm_configs", ".py"),
    "objectives": (ROOT / "pretrain" / "objectives", "pretrain.objectives", "objectives", ".py"),
    "recipes": (ROOT / "pretrain" / "recipes", "pretrain.recipes", "recipes", ".yaml"),
    "ablations": (ROOT / "pretrain" / "ablations", "pretrain.ablations", "ablations", ".yaml"),
}


@dataclass
class Plugin:
    """One plug-in file. `module` imports it (only then can it turn out to be broken)."""

    kind: str
    name: str
    path: Path
    package: str | None = field(default=None, repr=False)  # None: a user's file, imported from its path

    @cached_property
    def module(self):
        """The imported module. Raises UserError, naming the file and the cause, when the import fails."""
        try:
            if self.kind == "mm_configs":  # plain mm configs; what they declare is read without running them
                from ...benchmarks.mm.task import MMTask

                return MMTask(self.path)
            if self.package:
                return importlib.import_module(f".{self.package}.{self.name}", TOP)
            label = f"{TOP}.plugins_{self.kind}_{self.name}_{abs(hash(self.path)):x}"
            spec = importlib.util.spec_from_file_location(label, self.path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[label] = module  # dataclasses look their module up by name
            spec.loader.exec_module(module)
            return module
        except Exception as error:
            if self.kind == "mm_configs" and isinstance(error, UserError):
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
        return "built in" if self.package else str(self.path.parent)


def plugin_folders() -> list[Path]:
    """The user's plug-in folders, in order. Raises UserError for one that does not exist."""
    folders = [Path(p) for p in os.environ.get("SELFPATCH_PLUGINS", "").split(os.pathsep) if p]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"SELFPATCH_PLUGINS (or --plugins) names {folder}, which is not a folder")
    return folders


def scan(kind: str) -> dict[str, Plugin]:
    """All plug-ins of a kind by name, sorted. Raises UserError when two files share a name."""
    folder, package, sub, suffix = KINDS[kind]
    found: dict[str, Plugin] = {}
    for base, pkg in [(folder, package)] + [(f / sub, None) for f in plugin_folders()]:
        for path in sorted(base.glob(f"*{suffix}")) if base.is_dir() else []:
            if path.stem.startswith("_"):
                continue
            if path.stem in found:
                raise UserError(f"two plug-ins of {kind} are called {path.stem}: {found[path.stem].path} and {path}")
            found[path.stem] = Plugin(kind, path.stem, path, pkg)
    return dict(sorted(found.items()))


def tasks() -> dict[str, Plugin]:
    """Everything that `--task` takes: the tasks and the mm recipes. Raises UserError when two share a name."""
    found, recipes = scan("tasks"), scan("mm_configs")
    for name in found.keys() & recipes.keys():
        raise UserError(f"a task and an mm recipe are called {name}: {found[name].path} and {recipes[name].path}")
    return dict(sorted((found | recipes).items()))


def get(kind: str, name: str) -> Plugin:
    """The plug-in of that name; kind tasks: an mm recipe's too. Raises UserError that lists the valid names."""
    plugins = tasks() if kind == "tasks" else scan(kind)
    if name not in plugins:
        raise UserError(f"no {kind.rstrip('s')} called {name}; there are: {', '.join(plugins) or 'none'}")
    return plugins[name]
