"""The house: which file may import which, how many entries a folder has. All sources are read, none is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPO

TOP = "selfpatch_bench"
# benchmarks/, from the top down: a package imports only from those after it, and from pretrain/.
ORDER = (
    *("__main__", "cli", "commands", "run", "results", "mm", "tasks", "pictures", "environment", "metrics"),
    *("synthetic", "datasets", "hub", "formats", "checkpoints", "backbones"),
)
PLUGINS = ("benchmarks/formats", "benchmarks/tasks", "pretrain/objectives", "pretrain/recipes", "pretrain/ablations")
PLUGINS += ("mm_configs",)
# Where plug-ins are scanned, modules are imported by a name that is made at run time.
SCANS = {"pretrain.common.plugins", "pretrain.common.moved", "benchmarks.tasks._registry"}
DYNAMIC = {"import_module", "__import__", "spec_from_file_location", "run_module"}
ENTRIES = 15


def sources() -> dict[str, Path]:
    """Dotted name below selfpatch_bench -> file; a package's is that of its __init__.py."""
    found = {}
    for top in ("pretrain", "benchmarks"):
        for path in sorted((REPO / top).rglob("*.py")):
            parts = path.relative_to(REPO).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path], text: str | None = None) -> Iterator[str]:
    """Our modules that a file imports anywhere in it, also inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            targets = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{TOP}.{package}".split(".")
            base = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        for target in targets:
            if target == TOP or target.startswith(f"{TOP}."):
                target = target.removeprefix(TOP).lstrip(".")
                yield target if target in known else target.rpartition(".")[0]


def edges() -> dict[str, set[str]]:
    known = sources()
    return {name: set(imported(name, path, known)) - {name} for name, path in known.items()}


def floor(name: str) -> int:
    """Of a module in benchmarks: 0 is the top. benchmarks/__init__.py itself is above all."""
    part = name.split(".")[1:2]
    return ORDER.index(part[0]) if part else -1


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that go up, as texts."""
    bad = []
    for name, targets in graph.items():
        for target in sorted(targets):
            if name.startswith("pretrain"):
                below_ground = name.startswith("pretrain.common") and not target.startswith("pretrain.common")
                wrong = target.startswith("benchmarks") or below_ground
            else:
                wrong = target.startswith("benchmarks") and floor(target) < floor(name)
            if wrong:
                bad.append(f"{name} imports {target}")
    return bad


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other in a circle."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for target in graph.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    reached = {name: reach(name) for name in graph}
    groups = {tuple(sorted(n for n in graph if n in reached[name] and name in reached[n])) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1 or (group and group[0] in graph[group[0]])]


def test_no_import_goes_up():
    assert upward(edges()) == []


def test_no_circle_of_files():
    assert circles(edges()) == []


def test_names_made_at_run_time_are_those_of_plugins():
    """A module imported by name would escape the tests above: only the scan of plug-ins may, or a name that is not
    ours."""
    bad = []
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = node.args[0] if node.args else None
            other = isinstance(text, ast.Constant) and not str(text.value).startswith((TOP, "."))
            if called in DYNAMIC and name not in SCANS and not other:
                bad.append(f"{name}, line {node.lineno}: {ast.unparse(node)}")
    assert bad == []


def test_the_core_does_not_even_name_what_is_above_it():
    """Such as in a text that is imported by somebody else; docstrings may speak of it."""
    bad = []
    for name, path in sources().items():
        if not name.startswith("pretrain"):
            continue
        tree = ast.parse(path.read_text())
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in docs else None
            if isinstance(text, str) and f"{TOP}.benchmarks" in text:
                bad.append(f"{name}, line {node.lineno}: {text}")
    assert bad == []


def test_a_folder_has_few_entries():
    full = {}
    for top in ("pretrain", "benchmarks", "mm_configs", "results"):
        for folder in [REPO / top, *(p for p in (REPO / top).rglob("*") if p.is_dir())]:
            plugins = folder.relative_to(REPO).as_posix() in PLUGINS
            names = [p.name for p in folder.iterdir() if p.name not in ("__pycache__", "__init__.py", "__main__.py")]
            names = [n for n in names if n.startswith("_") or not plugins]
            names = [n for n in names if (folder / n).relative_to(REPO).as_posix() not in PLUGINS]
            if len(names) > ENTRIES:
                full[folder.relative_to(REPO).as_posix()] = len(names)
    assert full == {}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("from ..benchmarks.metrics import jf", "benchmarks.metrics.jf"),
        ("def f():\n    from ..benchmarks import load", "benchmarks"),
        ("import selfpatch_bench.benchmarks.cli.app", "benchmarks.cli.app"),
        ("from selfpatch_bench.benchmarks.hub.zoo import get", "benchmarks.hub.zoo"),
    ],
)
def test_the_tests_see_every_kind_of_import(text, target):
    known = sources()
    found = set(imported("pretrain.train", known["pretrain.train"], known, text))
    assert found == {target}
    assert upward({"pretrain.train": found}) == [f"pretrain.train imports {target}"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
