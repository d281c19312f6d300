"""Options that several commands share, each described once, and what is made of their texts."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value, split

Checkpoints = Annotated[list[Path] | None, typer.Argument(metavar="CKPT... [key=value...]", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Folder of records, masks and pictures.")]
Heads = Annotated[int | None, typer.Option("--heads", help="Attention heads: weights never tell.", show_default=False)]
CardFields = Annotated[
    list[str] | None,
    typer.Option("--card", help="Field of the card: `mean=0.5`; may be repeated.", show_default=False),
]
Format = Annotated[str | None, typer.Option("--format", help="Format, instead of detection (`selfpatch ls formats`).")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="teacher, student or online, instead of the format's own choice.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; auto takes a GPU if there is one.")]
ModelsFile = Annotated[
    Path | None,
    typer.Option("--models", help="models.yaml: checkpoints with names and overrides.", show_default=False),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Task; a list `a,b` or repeated.")]
DataRoots = Annotated[
    list[str] | None, typer.Option("--data", help="Root of the data set, or NAME=ROOT; else SELFPATCH_DATA.")
]
Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seed", help="Seed; a list `0,1,2` or repeated. A task that depends on none runs once, under seed 0."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N sequences or images.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugins", help="Folder with formats/, tasks/ ... of your own; also SELFPATCH_PLUGINS."),
]


def use_plugins(folders: list[Path] | None) -> None:
    """Add plug-in folders for this process and its children."""
    for folder in folders or []:
        if not folder.is_dir():
            raise UserError(f"--plugins {folder}: no such folder")
    known = [p for p in os.environ.get("SELFPATCH_PLUGINS", "").split(os.pathsep) if p]
    os.environ["SELFPATCH_PLUGINS"] = os.pathsep.join(known + [str(f) for f in folders or []])


def card_fields(heads: int | None, fields: list[str] | None) -> dict[str, str]:
    """--heads and --card as one table. Raises UserError for a field without a value."""
    table: dict[str, str] = {}
    for item in fields or []:
        key, value = key_value(item, f"--card {item}")
        table[key] = value
    return table | ({"heads": str(heads)} if heads is not None else {})


def split_arguments(arguments: list[Path] | None) -> tuple[list[Path], list[str]]:
    """Checkpoints and key=value; whatever exists as a path is a checkpoint, even with `=` in its name."""
    paths, values = [], []
    for argument in arguments or []:
        is_value = "=" in str(argument) and not argument.exists()
        (values if is_value else paths).append(str(argument) if is_value else argument)
    return paths, values


def comma_list(values: list[str] | None) -> list[str]:
    """Repeated or comma-separated values as one list."""
    return [part for value in values or [] for part in value.split(",") if part]


def seed_list(values: list[str] | None) -> list[int]:
    """--seed as numbers; [0] where none is given. Raises UserError for what is no seed."""
    seeds = comma_list(values) or ["0"]
    if not all(s.isdigit() for s in seeds):
        raise UserError(f"--seed {','.join(seeds)}: seeds are whole numbers from 0")
    return [int(s) for s in seeds]


def spell_out_card(arguments: list[str]) -> list[str]:
    """`--card mean=0.5 std=0.5` as `--card mean=0.5 --card std=0.5`: fields that follow a --card belong to it."""
    from ...pretrain.common.card import FIELDS

    out: list[str] = []
    in_card = False
    for argument in arguments:
        is_field = (split(argument) or ("",))[0] in FIELDS
        if in_card and is_field and out[-1] != "--card":
            out.append("--card")
        in_card = argument == "--card" or (in_card and is_field)
        out.append(argument)
    return out
