"""Tasks from Python, on an encoder that is in memory: `evaluate(encoder, ["davis", "knn"], data={...})`."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.progress import line_console
from ..results import record
from ..results.record import Record
from .opened import InMemory
from .options import Options
from .plan import plan
from .runner import run


def evaluate(
    encoder,
    tasks: str | Iterable[str],
    data: str | Path | Mapping[str, str | Path] | None = None,
    out: str | Path = "results",
    *,
    name: str | None = None,
    row: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: str = "auto",
    rerun: bool = False,
    quiet: bool = False,
    **values,
) -> list[Record]:
    """Run an encoder (of `load` or `wrap`) through tasks, as `selfpatch run` does; -> their records, in order.

    data: root of the data set, or name -> root; else SELFPATCH_DATA. out: folder of records, where what is done already
    is found. values: of the protocol (`radius=6`). The others are those of `selfpatch run`. Raises UserError for
    whatever `run` refuses, and for a task that fails, whose record then says so.
    """
    from ..backbones.base import FrozenEncoder

    if not isinstance(encoder, FrozenEncoder):
        raise UserError(f"evaluate takes an encoder, of load(...) or wrap(...), and not {type(encoder).__name__}")
    roots = (
        [f"{key}={root}" for key, root in data.items()] if isinstance(data, Mapping) else [str(data)] if data else []
    )
    options = Options(
        data=roots,
        out=Path(out),
        row=row,
        seeds=[seed],
        limit=limit,
        device=device,
        rerun=rerun,
        overrides=[f"{key}={value}" for key, value in values.items()],
    )
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    evaluations = plan([InMemory(encoder, name, row)], names, options)
    if run(evaluations, options, line_console(file=sys.stdout, quiet=quiet)):
        failed = [
            f for e in evaluations for f in record.folder(options.out, e.task.name).glob(f"{e.key}.failed-*.json")
        ]
        last = max(failed, key=lambda file: file.stat().st_mtime_ns)
        raise UserError(f"{record.read(last).error} ({last})", 1)
    files = [record.done(options.out, e.task.name, e.key) for e in evaluations]
    return [record.read(paths[-1]) for paths in files if paths]  # there is none where there was nothing to measure by
