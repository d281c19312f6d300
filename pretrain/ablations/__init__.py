"""Ablations: grids of pretraining runs that are evaluated on video and printed as a paper's tables.

One yaml file = one grid, run by `selfpatch ablate NAME`. It holds

    values: key=value for every run;  quick: the same, added by --quick, and what it changes at the evaluation (davis)
    cells:  NAME -> {recipe, values, quick}; a cell that several table rows name is run once
    tables: title, columns (of the left-hand labels) and rows: {labels, cell, row}, and the published table (source,
            table) that they come from. row: METHOD, BACKBONE and a text that is in the note of exactly one published
            number; left out for a row that was not published.
"""

from pathlib import Path

from ..common.plugins import Kind

ABLATIONS = Kind("ablations", Path(__file__).resolve().parent, suffix=".yaml")
