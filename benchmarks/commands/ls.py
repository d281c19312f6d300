"""`selfpatch ls`: what there is, and where it comes from."""

from pathlib import Path

from ...pretrain.ablations import ABLATIONS
from ...pretrain.common.errors import UserError
from ...pretrain.common.plugins import Kind
from ...pretrain.recipes import RECIPES
from ..backbones.networks import BACKBONES
from ..checkpoints import FORMATS
from ..tasks import KINDS, _registry

PLUGINS = {"formats": FORMATS, "backbones": BACKBONES, "recipes": RECIPES, "ablations": ABLATIONS}
THINGS = ("tasks", *PLUGINS, "records", "published")


def listing(thing: str, out: Path) -> str:
    """Lines for one kind of thing. Raises UserError that names what there is."""
    if thing not in THINGS:
        raise UserError(f"ls {thing}: it is one of {', '.join(THINGS)}")
    if thing == "published":
        from ..results.published import list_published

        return columns([(source, table, f"{n} rows", ", ".join(of)) for source, table, n, of in list_published()])
    if thing == "records":
        return list_records(out)
    if thing == "tasks":
        return task_list()
    rows = plugin_rows(PLUGINS[thing])
    return columns(rows) if rows else f"no {thing} yet"


def plugin_rows(kind: Kind) -> list[tuple[str, str, str]]:
    """(name, first line of its docstring or `broken: why`, where it comes from)"""
    rows = []
    for plugin in kind.scan().values():
        text = plugin.doc
        if not plugin.ours and plugin.path.suffix == ".py":  # ours are tested, a user's may not import
            try:
                _ = plugin.module
            except UserError as error:
                text = f"broken: {error}"
        rows.append((plugin.name, text, plugin.source))
    return rows


def formats_table() -> str:
    """The built-in formats as README's table: name, and the first line of the file's docstring."""
    rows = [f"| `{p.name}` | {p.doc.rstrip('.')} |" for p in FORMATS.scan().values() if p.ours]
    return "\n".join(["| format | files |", "|---|---|", *rows, ""])


def task_list() -> str:
    """Tasks below headings by their kind, those of files first: name, data set, cost, what it is, where it comes from.
    Of an mm recipe also its metrics, and the published columns that its numbers may stand in; of others their
    variants."""
    rows = []
    for entry in sorted(_registry.tasks().values(), key=lambda entry: entry.file.kind is _registry.RECIPES):
        text, kind, about = entry.file.doc, "other", ("", "")
        try:
            task = entry.task
            kind, about = task.kind if task.kind in KINDS else "other", (task.dataset, task.cost)
            if entry.file.kind is _registry.RECIPES:
                names = ", ".join(m.name for m in task.metrics)
                pairs = ", ".join(f"{name} {protocol}" for name, protocol, *_ in task.published)
                text += f" [{names}; beside {pairs or 'nothing published'}]"
            text += f" [variants: {', '.join(f'{entry.name}:{v}' for v in task.variants)}]" if task.variants else ""
        except UserError as error:
            text = f"broken: {error}"
        rows.append((kind, (entry.name, *about, text, entry.file.source)))
    lines = columns([row for _, row in rows]).splitlines()
    found = []
    for kind in KINDS:
        if own := [line for (k, _), line in zip(rows, lines, strict=True) if k == kind]:
            found += [f"{kind}:", *own, ""]
    return "\n".join([*found, "(cost: of the official data with a ViT-S/16 on one GPU, estimated)"])


def list_records(out: Path) -> str:
    """One line for each record below `out`, failures included."""
    from ..results.record import DONE, records

    strange: dict[Path, str] = {}
    rows = {}
    for one in records(out, strange=strange):
        text = f"failed: {one.error}"
        if one.status == DONE:
            text = "  ".join(f"{k} {v:.2f}" for k, v in list(one.metrics.items())[:3])
        rows[one.path] = (one.model.name, text, one.data.summary)
    rows |= {path: (f"not a record: {why}",) for path, why in strange.items()}
    lines = [(str(path.relative_to(out)), *row) for path, row in sorted(rows.items())]
    return columns(lines) if lines else f"no records in {out}: `selfpatch run` makes them"


def columns(rows: list[tuple]) -> str:
    """Rows as aligned text."""
    widths = [max((len(str(r[i])) for r in rows if i < len(r) - 1), default=0) for i in range(max(map(len, rows)))]
    return "\n".join("  ".join(f"{c!s:<{w}}" for c, w in zip(r, widths, strict=False)).rstrip() for r in rows)
