"""Published numbers: the long-form CSVs of `results/published`, and one source's table as it was printed.

A row of a CSV is one number (columns: COLUMNS; how to add one: results/README.md). All values stay texts, so that
a table prints them with the decimals of the source.
"""

import difflib
import re
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files

import pandas as pd

from ...pretrain.common.errors import UserError

LABELS = ("method", "backbone", "pretrain_data", "pretrain_epochs")  # what names a row of a printed table
COLUMNS = ("source", "table", *LABELS, "task", "protocol", "metric", "value", "note")
NOT_PRINTED = "protocol not printed"  # a note with these words: the protocol column is inferred, not read in the source


@dataclass(frozen=True)
class Number:
    """One published number: its text as printed, the (task, protocol) it belongs to, and its note."""

    text: str
    task: str
    protocol: str
    metric: str
    note: str


@dataclass
class PublishedRow:
    """A printed row. labels: of LABELS. cells: by column. variant: the note that tells it from rows with the same
    labels, else ''."""

    labels: dict[str, str]
    variant: str = ""
    cells: dict[tuple[str, str, str], Number] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """METHOD|BACKBONE, as `--row` spells it."""
        return f"{self.labels['method']}|{self.labels['backbone']}"


@dataclass
class PublishedTable:
    """One table of one source. columns: (task, protocol, metric) in printed order; protocol '' = not printed."""

    source: str
    name: str
    columns: list[tuple[str, str, str]]
    rows: list[PublishedRow]
    others: list[str]  # the source's other tables

    def slots(self) -> dict[tuple[str, str, str], tuple[str, str, str]]:
        """(task, protocol, metric) of every number, with its real protocol -> the column it is printed in."""
        return {(n.task, n.protocol, n.metric): c for row in self.rows for c, n in row.cells.items() if n.protocol}

    def restrict(self, tasks: set[str]) -> "PublishedTable":
        """The same table with the columns of some tasks only, if it has any of them."""
        columns = [c for c in self.columns if c[0] in tasks]
        if not columns or columns == self.columns:
            return self
        rows = [replace(row, cells={c: n for c, n in row.cells.items() if c in columns}) for row in self.rows]
        return replace(self, columns=columns, rows=[row for row in rows if row.cells])


def _folder():
    return files(f"{__package__.partition('.')[0]}.results.published")


@cache
def load_published() -> pd.DataFrame:
    """All published numbers as texts, COLUMNS, files in order of name. Raises UserError for a malformed file."""
    frames = []
    for path in sorted((p for p in _folder().iterdir() if p.name.endswith(".csv")), key=lambda p: p.name):
        with path.open("r", encoding="utf-8", newline="") as f:
            frame = pd.read_csv(f, dtype=str, keep_default_na=False)
        if tuple(frame.columns) != COLUMNS:
            raise UserError(f"published table {path.name} must have exactly the columns {','.join(COLUMNS)}")
        bad = frame[pd.to_numeric(frame["value"], errors="coerce").isna()]
        if len(bad):
            raise UserError(f"published table {path.name}, line {bad.index[0] + 2}: value is not a number")
        frames.append(frame)
    if not frames:
        raise UserError("no published numbers: the folder results/published holds no CSV")
    return pd.concat(frames, ignore_index=True)


def check_row(row: str, what: str = "--row") -> None:
    """Raise UserError, with the nearest ones, where METHOD|BACKBONE is no row of any published table. what: gave it."""
    numbers = load_published()
    known = dict.fromkeys(numbers["method"] + "|" + numbers["backbone"])
    if row not in known:
        lowered = {key.lower(): key for key in known}
        near = [lowered[key] for key in difflib.get_close_matches(row.lower(), lowered, 5, 0)]
        raise UserError(f"{what}: {row} is not a published row, METHOD|BACKBONE; the nearest: {'; '.join(near)}")


@cache
def load_sources() -> dict[str, dict[str, str]]:
    """source -> {"what", "sure", "link"}, from the first table of SOURCES.md and its table of addresses."""
    found = {}
    for line in _folder().joinpath("SOURCES.md").read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and re.fullmatch(r"[a-z0-9_]+", cells[0]) and cells[0] != "source":
            found[cells[0]] = {"what": cells[2], "sure": cells[3], "link": ""}
        elif len(cells) == 2 and cells[0] in found and cells[1].startswith("https://"):
            found[cells[0]]["link"] = cells[1]
    return found


def list_published() -> list[tuple[str, str, int, list[str]]]:
    """(source, table, printed rows, tasks) of every table, sorted by source; a source's main table is its first."""
    found = []
    for (source, name), part in load_published().groupby(["source", "table"], sort=False):
        rows = len(_lay_out(source, name, part, []).rows)
        found.append((source, name, rows, list(dict.fromkeys(part["task"]))))
    return sorted(found, key=lambda one: one[0])  # stable


def find_table(against: str) -> PublishedTable:
    """`SOURCE` (its main table: the first in its file) or `SOURCE:TABLE` (the name, or a part of only one name).

    Raises UserError that lists the sources, or the source's tables.
    """
    source, _, wanted = (p.strip() for p in against.partition(":"))
    numbers = load_published()
    part = numbers[numbers["source"] == source]
    if part.empty:
        raise UserError(f"no published source {source!r}; there are: {', '.join(dict.fromkeys(numbers['source']))}")
    names = list(dict.fromkeys(part["table"]))
    fits = names[:1] if not wanted else [n for n in names if n.lower() == wanted.lower()]
    fits = fits or [n for n in names if wanted.lower() in n.lower()]
    if len(fits) != 1:
        problem = "no table" if not fits else "more than one table"
        raise UserError(f"{source} has {problem} called {wanted!r}; its tables: {'; '.join(fits or names)}")
    [name] = fits
    return _lay_out(source, name, part[part["table"] == name], [n for n in names if n != name])


def _lay_out(source: str, name: str, part: pd.DataFrame, others: list[str]) -> PublishedTable:
    """Long form -> printed rows and columns, both in the order of first appearance.

    Numbers with the same labels and column are rows of their own, told apart by their notes (ablations).
    """
    columns: dict[tuple, None] = {}
    groups: dict[tuple, list[tuple[tuple, Number]]] = {}
    for record in part.to_dict("records"):
        number = Number(*(record[k] for k in ("value", "task", "protocol", "metric", "note")))
        column = (number.task, "" if NOT_PRINTED in number.note else number.protocol, number.metric)
        columns[column] = None
        groups.setdefault(tuple(record[k] for k in LABELS), []).append((column, number))
    rows = []
    for values, cells in groups.items():
        labels = dict(zip(LABELS, values, strict=True))
        if len(dict(cells)) == len(cells):
            rows.append(PublishedRow(labels, cells=dict(cells)))
            continue
        variants: dict[str, PublishedRow] = {}
        for column, number in cells:
            variants.setdefault(number.note, PublishedRow(labels, number.note)).cells[column] = number
        rows += variants.values()
    return PublishedTable(source, name, list(columns), rows, others)
