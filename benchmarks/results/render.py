"""A finished table -> Markdown, CSV, LaTeX. What stands where, and why, is decided in layout.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import pandas as pd

LABELS = {"method": "method", "backbone": "backbone", "pretrain_data": "pretraining data", "pretrain_epochs": "epochs"}
NAMES = {"JF_m": "(J&F)_m"}  # metrics that papers spell otherwise than our vocabulary
LATEX_NAMES = {
    "JF_m": r"$(\mathcal{J}\&\mathcal{F})_m$",
    "J_m": r"$\mathcal{J}_m$",
    "F_m": r"$\mathcal{F}_m$",
    **{f"AP_{of}": f"AP$^{{{of}}}$" for of in ("bb", "mk")},
    **{f"AP_{of}_{iou}": f"AP$^{{{of}}}_{{{iou}}}$" for of in ("bb", "mk") for iou in (50, 75)},
}
LATEX_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "[": "{[}",  # at the start of a row it would be read as the option of the line break before it
    "*": "{*}",
    "±": r"$\pm$",
}


@dataclass
class Column:
    """A column of numbers: a metric of a task; protocol: where the table has several of the task. csv: name in a CSV.

    extra: shown in CSV only (a metric beyond the ones papers print).
    """

    key: tuple
    metric: str
    task: str
    protocol: str
    csv: str
    unit: str = "%"
    extra: bool = False

    @property
    def group(self) -> str:
        """Heading over the metrics of a task and protocol."""
        return ", ".join(t for t in (self.task, self.protocol) if t)

    def tag(self, columns: list["Column"]) -> str:
        """What tells it from the columns of the same metric, as short as possible; '' where there is none."""
        same = [c for c in columns if c.metric == self.metric]
        if len(same) == 1:
            return ""
        for name in ("task", "protocol"):
            if len({getattr(c, name) for c in same}) == len(same):
                return f" [{getattr(self, name)}]"
        return f" [{self.group}]"


@dataclass
class Cell:
    """A number: `text` as printed in its source, else value (std over seeds, diff to the named row) in full."""

    value: float
    std: float | None = None
    diff: float | None = None
    text: str = ""

    def show(self, unit: str) -> str:
        """For people: as printed, or percent with one decimal, other units with three digits."""
        if self.text:
            return self.text
        spread = "" if self.std is None else f" ± {number(self.std, unit)}"
        return number(self.value, unit) + spread


@dataclass
class Row:
    """A row. labels: of LABELS. marks: footnotes. differs: what keeps it from a published column.

    meta: further columns of the CSV.
    """

    labels: dict[str, str]
    cells: dict[tuple, Cell]
    ours: bool = False
    variant: str = ""
    marks: list[str] = field(default_factory=list)
    n: str = ""
    differs: str = ""
    meta: dict[str, object] = field(default_factory=dict)


@dataclass
class Section:
    """One block with its own columns. notes: (mark, text), mark '' for a remark on the whole; differences: lines."""

    place: str  # published | ours | below the rule
    title: str
    caption: list[str]
    columns: list[Column]
    rows: list[Row]
    notes: list[tuple[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass
class Table:
    """Blocks separated by a rule, and lines that stand under all of them."""

    sections: list[Section]
    footer: list[str] = field(default_factory=list)


def number(value: float, unit: str = "%") -> str:
    """One decimal for percent, three digits otherwise; never a negative zero."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.1f}" if unit == "%" else f"{value:.3g}"
    return text.lstrip("-") if not text.strip("-0.") else text


def render(table: Table, form: str) -> str:
    """`table` as text that ends in a line break. form: md, csv or latex. The same table gives the same bytes."""
    return {"md": _markdown, "csv": _csv, "latex": _latex}[form](table)


@dataclass
class _Grid:
    """A section as texts: heads and lines, `lead` text columns before the numbers, which columns align right."""

    heads: list[str]
    lines: list[list[str]]
    lead: int
    columns: list[Column]
    right: list[bool]


def _grid(section: Section, escape, mark, names: dict[str, str]) -> _Grid:
    """escape(text), mark(list of footnotes) -> text, names of metrics: what differs between the formats."""
    rows = section.rows
    theirs = [r for r in rows if not r.ours]
    labels = [k for k in LABELS if len({r.labels.get(k, "") for r in theirs}) > 1 or k == "method"]
    if "backbone" not in labels and any(r.labels.get("backbone") for r in rows):
        labels.insert(1, "backbone")
    tail = [k for k in ("variant", "n", "differs") if any(getattr(r, k) for r in rows)]
    columns = [c for c in section.columns if not c.extra]
    titles = LABELS | {"variant": "variant", "n": "n", "differs": "what differs"}
    if section.place != "published":
        titles["method"] = "model"
    heads = [titles[k] for k in labels]
    for column in columns:
        unit = "" if column.unit == "%" else f" ({column.unit})"
        name = names.get(column.metric) or escape(column.metric)
        heads.append(name + escape(unit + column.tag(columns)))
    heads += [titles[k] for k in tail]
    lines = []
    for row in rows:
        texts = [escape(row.labels.get(k, "")) for k in labels]
        texts[0] = ("ours: " if row.ours and section.place == "published" else "") + texts[0] + mark(row.marks)
        numbers = [escape(row.cells[c.key].show(c.unit)) if c.key in row.cells else "" for c in columns]
        lines.append(texts + numbers + [escape(getattr(row, k)) for k in tail])
    right = [False] * len(labels) + [True] * len(columns) + [k == "n" for k in tail]
    return _Grid(heads, lines, len(labels), columns, right)


# --- Markdown


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """A Markdown table of texts, line by line. right: which columns align right; all are then padded to one width."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (heads, *lines)]
    if not right:
        head, *rest = (f"| {' | '.join(row)} |" for row in rows)
        return [head, f"|{'---|' * len(heads)}", *rest]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    head, *rest = (
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in rows
    )
    rule = ("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return [head, f"|{'|'.join(rule)}|", *rest]


def _markdown(table: Table) -> str:
    blocks = []
    for section in table.sections:
        grid = _grid(section, str, lambda marks: "".join(f" [{m}]" for m in marks), NAMES)
        text = [f"### {section.title}", ""]
        if section.caption:
            text += [f"- {line}" for line in section.caption] + [""]
        text += markdown_table(grid.heads, grid.lines, grid.right)
        if section.differences:
            text += ["", "Differences to named published rows:", ""] + [f"- {d}" for d in section.differences]
        if section.notes:
            text += [""] + ["- " + (f"[{mark}] " if mark else "") + note for mark, note in section.notes]
        blocks.append("\n".join(text) + "\n")
    return "\n---\n\n".join(blocks) + ("\n" if blocks else "") + "\n\n".join(table.footer) + "\n"


# --- LaTeX


def latex_escape(text: str) -> str:
    """Text for LaTeX: every special character written as itself."""
    return "".join(LATEX_ESCAPES.get(c, c) for c in text)


def _superscript(marks: list[str]) -> str:
    return f"\\textsuperscript{{{','.join(marks)}}}" if marks else ""


def _latex(table: Table) -> str:
    """One `table` environment (package booktabs); every section is a tabular, sections are separated by a rule."""
    text = ["% " + line for line in table.footer]
    text += ["% needs \\usepackage{booktabs}", "\\begin{table*}", "\\centering\\small\\setlength{\\tabcolsep}{4pt}"]
    for i, section in enumerate(table.sections):
        grid = _grid(section, latex_escape, _superscript, LATEX_NAMES)
        tail = len(grid.heads) - grid.lead - len(grid.columns)
        spec = "l" * grid.lead + "r" * len(grid.columns)
        spec += "".join("r" if right else "p{5cm}" for right in grid.right[len(spec) :])
        text += ["\\par\\medskip\\hrule\\medskip"] if i else []
        text.append(f"\\textbf{{{latex_escape(section.title)}}}\\par\\smallskip")
        text += [f"\\begin{{tabular}}{{{spec}}}", "\\toprule"]
        spans, rules, at = [""] * grid.lead, [], grid.lead + 1
        for group, columns in groupby(grid.columns, key=lambda c: c.group):
            columns = list(columns)
            spans.append(f"\\multicolumn{{{len(columns)}}}{{c}}{{{latex_escape(group)}}}")
            rules.append(f"\\cmidrule(lr){{{at}-{at + len(columns) - 1}}}")
            at += len(columns)
        if grid.columns:
            text += [" & ".join(spans + [""] * tail) + r" \\", "".join(rules)]
        text += [" & ".join(grid.heads) + r" \\", "\\midrule"]
        theirs = sum(not row.ours for row in section.rows)
        for j, line in enumerate(grid.lines):
            text += ["\\midrule"] if 0 < j == theirs else []  # ours stand after the published rows
            text.append(" & ".join(line) + r" \\")
        text += ["\\bottomrule", "\\end{tabular}"]
        lines = section.caption + [f"Difference, {d}" for d in section.differences]
        lines = [latex_escape(line) for line in lines]
        lines += [f"{_superscript([m] if m else [])} {latex_escape(note)}".strip() for m, note in section.notes]
        if lines:
            text += ["\\par\\smallskip{\\footnotesize\\raggedright"] + [line + "\\par" for line in lines] + ["}"]
    return "\n".join([*text, "\\end{table*}"]) + "\n"


# --- CSV

META = (
    *("table", "link", "pretrain_data", "pretrain_epochs", "variant"),
    *("n", "differs", "row", "data", "protocol", "key", "note"),
)


def _csv(table: Table) -> str:
    """One line per row. `section` says where a row stands; numbers are plain and at full precision.

    After a metric come its standard deviation over seeds (_std) and its difference to the named row (_diff), if any.
    """
    records = []
    used: dict[str, None] = {}
    for section in table.sections:
        for column in section.columns:
            for suffix in ("", "_std", "_diff"):
                used[column.csv + suffix] = None
        for row in section.rows:
            record = {"section": "ours" if row.ours and section.place == "published" else section.place}
            record |= {"source": row.meta.get("source", "")} | {k: row.labels.get(k, "") for k in LABELS}
            record |= {k: row.meta.get(k, "") for k in META if k not in LABELS}
            record |= {"variant": row.variant, "n": row.n, "differs": row.differs}
            for column in section.columns:
                cell = row.cells.get(column.key)
                if cell:
                    record[column.csv] = cell.text or repr(float(cell.value))
                    record[column.csv + "_std"] = "" if cell.std is None else repr(float(cell.std))
                    record[column.csv + "_diff"] = "" if cell.diff is None else repr(float(cell.diff))
            records.append(record)
    numbers = [name for name in used if any(r.get(name, "") != "" for r in records)]
    head = ["section", "source", "method", "backbone", *numbers, *META]
    return pd.DataFrame(records, columns=head).fillna("").to_csv(index=False, lineterminator="\n")
