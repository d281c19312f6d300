"""`selfpatch ls`: what there is, and where it comes from."""

from pathlib import Path

from ...pretrain.common import plugins
from ...pretrain.common.errors import UserError

KINDS = {
    "tasks": ("tasks", "mm_configs"),
    "formats": ("formats",),
    "recipes": ("recipes",),
    "ablations": ("ablations",),
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
    rows = [row for folder in KINDS[kind] for row in plugin_rows(folder)]
    return columns(rows) if rows else f"no {kind} yet"


def plugin_rows(kind: str) -> list[tuple[str, str, str]]:
    """(name, first line of its docstring or `broken: why`, where it comes from)"""
    rows = []
    for plugin in plugins.scan(kind).values():
        text = plugin.doc
        if kind == "mm_configs":
            rows.append((plugin.name, recipe_text(plugin), plugin.source))
            continue
        if not plugin.package and plugin.path.suffix == ".py":  # ours are tested, a user's may not import
            try:
                _ = plugin.module
            except UserError as error:
                text = f"broken: {error}"
        rows.append((plugin.name, text, plugin.source))
    return rows


def recipe_text(plugin: plugins.Plugin) -> str:
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
