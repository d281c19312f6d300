"""Options of `selfpatch run` and `compare`, beside models and tasks.

Each field that is annotated is an option of the command line, described here and nowhere else: its type and words as
typer takes them, then what makes the field's value of the text, where that is another.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value


def comma_list(values: list[str] | None) -> list[str]:
    """Repeated or comma-separated values as one list."""
    return [part for value in values or [] for part in value.split(",") if part]


def seed_list(values: list[str] | None) -> list[int]:
    """--seed as numbers; [0] where none is given. Raises UserError for what is no seed."""
    seeds = comma_list(values) or ["0"]
    if not all(s.isdigit() for s in seeds):
        raise UserError(f"--seed {','.join(seeds)}: seeds are whole numbers from 0")
    return [int(s) for s in seeds]


def card_fields(values: list[str] | None) -> dict[str, str]:
    """--card as a table. Raises UserError for a field without a value, or with two."""
    found: dict[str, str] = {}
    for key, value in (key_value(item, f"--card {item}") for item in values or []):
        if found.setdefault(key, value) != value:
            raise UserError(f"--card {key}={found[key]} and {key}={value} contradict each other")
    return found


Out = Annotated[Path, typer.Option("--out", help="Folder of records, masks and pictures.")]
Heads = Annotated[int | None, typer.Option("--heads", help="Attention heads: weights never tell.", show_default=False)]
CardFields = Annotated[
    list[str] | None,
    typer.Option("--card", help="Field of the card: `mean=0.5`; may be repeated.", show_default=False),
    card_fields,
]
Format = Annotated[str | None, typer.Option("--format", help="Format, instead of detection (`selfpatch ls formats`).")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="teacher, student, online or ema, instead of the format's own choice.")
]
Part = Annotated[
    str | None, typer.Option("--part", help="Only the network below this prefix of names, `state_dict.backbone`.")
]


@dataclass
class Options:
    """The options of a command that evaluates; see its help.

    own: values of tasks' own flags that were given, by `tasks.Flag.key`. overrides: `key=value` of the protocol. rank:
    this process's number among `world` that torchrun or Slurm started.
    """

    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Root of the data set, or NAME=ROOT; else SELFPATCH_DATA."),
        list,
    ] = field(default_factory=list)
    out: Out = Path("results")
    heads: Heads = None
    card: CardFields = field(default_factory=dict)
    format: Format = None
    weights: Weights = None
    part: Part = None
    name: Annotated[str | None, typer.Option("--name", help="Name in tables; else parent folder/stem.")] = None
    row: Annotated[
        str | None,
        typer.Option("--row", help="Published row 'METHOD|BACKBONE' that it reproduces (checked), for differences."),
    ] = None
    seeds: Annotated[
        list[str] | None,
        typer.Option(
            "--seed", help="Seed; a list `0,1,2` or repeated. A task that depends on none runs once, under seed 0."
        ),
        seed_list,
    ] = field(default_factory=lambda: [0])
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N sequences or images.")] = None
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; auto takes a GPU if there is one.")] = (
        "auto"
    )
    rerun: Annotated[bool, typer.Option("--rerun", help="Add a record even if there is one.")] = False
    every: Annotated[
        int | None,
        typer.Option("--every", min=1, help="Of a pretraining run, all kept checkpoints whose step is a multiple."),
    ] = None
    models: Annotated[
        Path | None,
        typer.Option("--models", help="models.yaml: checkpoints with names and overrides.", show_default=False),
    ] = None
    own: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        self.card = with_heads(self.card, self.heads)


def with_heads(card: dict[str, str], heads: int | None) -> dict[str, str]:
    """--heads is short for the card's field. UserError where both are given, with two values."""
    if heads is not None and card.get("heads", str(heads)) != str(heads):
        raise UserError(f"--heads {heads} and --card heads={card['heads']} contradict each other")
    return card if heads is None else card | {"heads": str(heads)}
