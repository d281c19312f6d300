"""`selfpatch ablate`: a grid of pretraining runs, evaluated on video, as a paper's tables with its numbers beside ours.

Every cell is a run of its own folder, made and evaluated by the commands a user would type, in processes of their own:
an interrupted grid goes on where it stopped, and a cell that fails is named and does not hinder the others.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console

from ...pretrain.ablations import ABLATIONS
from ...pretrain.common.errors import UserError, naming
from ...pretrain.common.keyvalue import key_value
from ...pretrain.common.processes import child_environment, python, refuse_in_child, run_together
from ...pretrain.common.progress import line_console
from ..results.collect import changed, differing
from ..results.published import Number, load_published
from ..results.record import DONE, Record, records
from ..results.render import markdown_table
from ..run.plan import check_gpus
from ..tasks._registry import get_task

TASK, METRIC = "davis", "JF_m"
PROGRAM = __package__.rpartition(".")[0]  # what `python -m` runs as `selfpatch`
MACHINE = ("path", "root", "device", "workers")  # where a run lies and computes; no other number comes of it


class Cell(NamedTuple):
    """A run: its recipe, the ablation's values of it, and what --quick and the command line add."""

    recipe: str
    own: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def values(self) -> list[str]:
        return [*self.own, *self.added]


class Row(NamedTuple):
    """A line of a table: labels, the cell that fills it, and the published number, if there is one."""

    labels: list[str]
    cell: str
    published: Number | None


class Table(NamedTuple):
    title: str
    columns: list[str]
    rows: list[Row]


class Grid(NamedTuple):
    """What an ablation file says. davis, limit: of the evaluation."""

    cells: dict[str, Cell]
    tables: list[Table]
    davis: tuple[str, ...] = ()
    limit: int | None = None


def read_grid(name: str, quick: bool = False, overrides: tuple[str, ...] = ()) -> Grid:
    """The ablation NAME. overrides: key=value for every run, after the file's own. Raises UserError for a file that is
    not as `pretrain/ablations/__init__.py` says."""
    path = ABLATIONS.get(name).path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        extra = content.get("quick", {}) if quick else {}
        cells = {}
        for label, cell in content["cells"].items():
            own = (*content.get("values", []), *cell.get("values", []))
            added = (*extra.get("values", []), *cell.get("quick", [])) if quick else ()
            cells[label] = Cell(cell["recipe"], own, (*added, *overrides))
        tables = [
            Table(t["title"], t["columns"], [_row(path, t, row, cells) for row in t["rows"]]) for t in content["tables"]
        ]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an ablation: {type(error).__name__}: {error}") from None
    if quick and not extra:
        raise UserError(f"--quick: {path} has no quick values")
    return Grid(cells, tables, tuple(extra.get("davis", ())), extra.get("limit"))


def _row(path: Path, table: dict, row: dict, cells: dict[str, Cell]) -> Row:
    if row["cell"] not in cells:
        raise UserError(f"{path}: {table['title']}: no cell {row['cell']}")
    return Row(
        [str(x) for x in row["labels"]], row["cell"], _published(path, table, row["row"]) if "row" in row else None
    )


def _published(path: Path, table: dict, row: list[str]) -> Number:
    """The one published number whose method, backbone and note fit."""
    every, (method, backbone, note) = load_published(), row
    same = every[["source", "table", "method", "backbone", "metric"]]
    same = same == [table["source"], table["table"], method, backbone, METRIC]
    fits = every[same.all(axis=1) & every.note.str.contains(note, regex=False)]
    if len(fits) != 1:
        raise UserError(f"{path}: {len(fits)} published numbers are {row} in {table['source']}:{table['table']}")
    return Number(*fits[["value", "task", "protocol", "metric", "note"]].iloc[0])


@dataclass
class Sweep:
    """A grid being run in the folder `out`; data: training images; video: DAVIS root; gpus: processes of a run."""

    grid: Grid
    out: Path
    data: str
    video: str
    gpus: int = 1
    device: str | None = None

    def folder(self, cell: str) -> Path:
        return self.out / "runs" / cell

    def commands(self, cell: str) -> list[list[str]]:
        """Pretrain (or go on), then evaluate: argument lists without the program."""
        folder, spec = self.folder(cell), self.grid.cells[cell]
        if (folder / "config.yaml").is_file():
            train = ["pretrain", "--resume", str(folder)]
        else:
            train = ["pretrain", spec.recipe, "--data", self.data, "--out", str(folder), *spec.values]
        test = ["run", str(folder), "--task", TASK, "--data", self.video, "--out", str(self.out), "--name", cell]
        test += ["--limit", str(self.grid.limit)] if self.grid.limit else []
        where = ["--device", self.device] if self.device else []
        return [train + where, test + where + list(self.grid.davis)]

    def start(self, arguments: list[str]) -> int:
        """Run one of our commands; -> exit status. Its output goes where ours goes."""
        line = python(PROGRAM, *arguments)
        if arguments[0] == "pretrain" and self.gpus > 1:
            return run_together(line, self.gpus)[1]
        return subprocess.run(line, env=child_environment(), check=False).returncode

    def check(self, names: list[str]) -> None:
        """Raise UserError for values that a recipe does not take, GPUs that are not there, or a folder that holds a run
        with other values, whose numbers would else become this cell's."""
        from ...pretrain.checkpoint import Run
        from ...pretrain.config import load_recipe, to_dict

        for name in names:
            cell = self.grid.cells[name]
            with naming(f"cell {name}"):
                wanted = load_recipe(cell.recipe, cell.values)
            check_gpus(self.gpus, self.device or wanted.loop.device)
            run = Run(self.folder(name))
            if run.config_file.is_file():
                theirs, ours = to_dict(run.config([])), to_dict(wanted)
                for key in ("data", "loop"):
                    for place in MACHINE:
                        theirs[key].pop(place, None), ours[key].pop(place, None)
                if theirs != ours:
                    raise UserError(f"{run.folder}: holds a run with other values than cell {name}; give another --out")

    def run(self, console: Console, names: list[str]) -> int:
        """Train and evaluate cells; -> 1 if any failed. Raises UserError when interrupted."""
        failed = 0
        for number, cell in enumerate(names, 1):
            console.print(f"[{number}/{len(names)}] {cell}: {self.grid.cells[cell].recipe}")
            for arguments in self.commands(cell):
                status = self.start(arguments)
                if status in (130, 143) or status < 0:
                    raise UserError("interrupted: the same command goes on from here", 130)
                if status:
                    failed += 1
                    console.print(f"{cell}: failed (status {status})", style="red")
                    break
        return int(failed > 0)

    def results(self) -> dict[str, Record]:
        """cell -> the newest record with this evaluation's values.

        Two cells whose weights came out equal share a record, which has had the names of both.
        """
        found: dict[str, Record] = {}
        asked = dict(map(key_value, self.grid.davis))
        for one in records(self.out, TASK):
            given = {k: str(v) for k, v in one.protocol.overridden.items()}
            if one.status != DONE or one.limit != self.grid.limit or given != asked:
                continue
            for name in one.names:
                if name in self.grid.cells and (name not in found or one.created > found[name].created):
                    found[name] = one
        return found

    def differs(self, row: Row, result: Record) -> str:
        """Why our number does not stand beside the row's published one: as in `table`, or the run had other values than
        the ablation's; '' if it does."""
        number = row.published
        columns = None if number is None else [(number.task, number.protocol, number.metric)]
        said = differing(result, get_task(TASK), columns)
        given = dict(map(key_value, self.grid.cells[row.cell].added))
        other = changed({k: v for k, v in given.items() if k.rpartition(".")[2] not in MACHINE}, 4)
        return "; ".join([*said, *([f"pretrained with {', '.join(other)}"] if other else [])])

    def text(self) -> str:
        """The tables in Markdown; a cell without a result shows as such, one under other conditions below the table."""
        results, parts = self.results(), []
        for table in self.grid.tables:
            lines, below = [], []
            for row in table.rows:
                ours = "not run"
                if result := results.get(row.cell):
                    ours = f"{result.metrics[METRIC]:.1f}"
                    if differs := self.differs(row, result):
                        below.append([*row.labels, ours, differs])
                        ours = "below"
                lines.append([*row.labels, row.published.text if row.published else "-", ours])
            heads = [*table.columns, "published (J&F)_m", "ours"]
            parts.append("\n".join([f"### {table.title}", "", *markdown_table(heads, lines)]))
            if below:
                heads = [*table.columns, "ours (J&F)_m", "what differs"]
                parts.append("Under other conditions, so that these say nothing about the published numbers:")
                parts.append("\n".join(markdown_table(heads, below)))
        return "\n\n".join(parts)


def ablate_command(
    name: str,
    data: str,
    video: str,
    out: Path,
    overrides: list[str],
    quick: bool = False,
    cells: list[str] | None = None,
    gpus: int = 1,
    device: str | None = None,
) -> int:
    """Run the ablation NAME (or only some of its cells), print its tables; -> exit status."""
    refuse_in_child()
    grid = read_grid(name, quick, tuple(overrides))
    if unknown := [c for c in cells or [] if c not in grid.cells]:
        raise UserError(f"--cells {','.join(unknown)}: there are {', '.join(grid.cells)}")
    for what, path in (("--data", data), ("--video", video)):
        if not Path(path).expanduser().exists():
            raise UserError(f"{what} {path}: does not exist")
    sweep = Sweep(grid, out, data, video, gpus, device)
    chosen = cells or list(grid.cells)
    sweep.check(chosen)
    status = sweep.run(line_console(stderr=True), chosen)
    print(sweep.text())
    return status
