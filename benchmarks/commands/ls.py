"""`selfpatch ls`: what there is, and where it comes from."""

from pathlib import Path

from ...pretrain.ablations import ABLATIONS
from ...pretrain.common.errors import UserError
from ...pretrain.common.plugins import Kind, Plugin
from ...pretrain.recipes import RECIPES
from ..checkpoints import FORMATS
from ..tasks import _registry

KINDS = {
    "tasks": (_registry.TASKS, _registry.RECIPES),
    "formats": (FORMATS,),
    "recipes": (RECIPES,),
    "ablations": (ABLATIONS,),
    "records": (),
    "published": (),
}


def listing(kind: str, out: Path) -> str:
    """Lines for one kind. Raises UserError that names the kinds."""
    if kind not in KINDS:
        raise UserError(f"ls {kind}: it is one of {', '.join(KINDS)}")
    if kind == "published":
        from ..results.published import list_published

        return columns([(r.source, r.table, f"{r.rows} rows", ", ".join(r.tasks)) for r in list_published()])
    if kind == "records":
        return records(out)
    rows = [row for one in KINDS[kind] for row in plugin_rows(one)]
    return columns(rows) if rows else f"no {kind} yet"


def plugin_rows(kind: Kind) -> list[tuple[str, str, str]]:
    """(name, first line of its docstring or `broken: why`, where it comes from)"""
    rows = []
    for plugin in kind.scan().values():
        text = plugin.doc
        if kind is _registry.RECIPES:
            rows.append((plugin.name, recipe_text(plugin), plugin.source))
            continue
        if not plugin.ours and plugin.path.suffix == ".py":  # ours are tested, a user's may not import
            try:
                _ = plugin.module
            except UserError as error:
                text = f"broken: {error}"
        rows.append((plugin.name, text, plugin.source))
    return rows


def recipe_text(plugin: Plugin) -> str:
    """First line of an mm recipe, its metrics, and the published columns that its numbers may stand in."""
    try:
        task = plugin.module.TASK
    except UserError as error:
        return f"broken: {error}"
    names = ", ".join(m.name for m in task.metrics)
    pairs = ", ".join(f"{name} {protocol}" for name, protocol in task.published)
    return f"{plugin.doc} [{names}; beside {pairs or 'nothing published'}]"


def records(out: Path) -> str:
    """One line for each record below `out`, failures included."""
    from ..results import record

    rows = []
    for path in record.files(out):
        try:
            r = record.read(path)
        except UserError as error:
            rows.append((str(path.relative_to(out)), f"not a record: {error}"))
            continue
        if r["status"] == "done":
            text = "  ".join(f"{k} {v:.2f}" for k, v in list(r["metrics"].items())[:3])
        else:
            text = f"failed: {r['error']}"
        rows.append((str(path.relative_to(out)), r["model"]["name"], text, r["data"]["summary"]))
    return columns(rows) if rows else f"no records in {out}: `selfpatch run` makes them"


def columns(rows: list[tuple]) -> str:
    """Rows as aligned text."""
    widths = [max((len(str(r[i])) for r in rows if i < len(r) - 1), default=0) for i in range(max(map(len, rows)))]
    return "\n".join("  ".join(f"{c!s:<{w}}" for c, w in zip(r, widths, strict=False)).rstrip() for r in rows)
