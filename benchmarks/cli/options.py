"""What all commands share: --plugins, the options of an evaluation, `key=value` among the arguments."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import split
from ..run.options import Options

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
    os.environ["SELFPATCH_PLUGINS"] = os.pathsep.join(known + [str(f) for f in folders or [] if str(f) not in known])


def parameters_of(command: Callable, flags: Sequence = ()) -> list[inspect.Parameter]:
    """A command's options: its own parameters, with the annotated fields of `Options`, and the tasks' own flags
    (tasks.Flag), in place of its parameter of that type; and --plugins."""
    found = []
    for one in inspect.signature(command).parameters.values():
        if one.annotation is not Options:
            found.append(one.replace(kind=one.KEYWORD_ONLY))
            continue
        hints = get_type_hints(Options, include_extras=True)
        for spec in fields(Options):
            if hasattr(hints[spec.name], "__metadata__"):
                default = None if spec.default is MISSING else spec.default
                found.append(parameter(spec.name, hints[spec.name], default))
        for flag in flags:
            words = typer.Option(flag.spelling, help=flag.help, min=flag.least, rich_help_panel="Of the tasks")
            found.append(parameter(flag.key, Annotated[flag.type | None, words], flag.default))
    return [*found, parameter("plugins", Plugins, None)]


def parameter(name: str, annotation, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def spelled_out(command: Callable, flags: Sequence = ()) -> Callable:
    """A command as typer runs it: with all of its options, --plugins in force, and the exit status that it returns."""
    parameters = parameters_of(command, flags)
    convert = {p.name: p.annotation.__metadata__[1] for p in parameters if len(p.annotation.__metadata__) > 1}

    @wraps(command)
    def called(**given):
        use_plugins(given.pop("plugins"))
        given = {name: convert[name](value or []) if name in convert else value for name, value in given.items()}
        own = {flag.key: value for flag in flags if (value := given.pop(flag.key)) != flag.default}
        if "options" in inspect.signature(command).parameters:
            values = {spec.name: given.pop(spec.name) for spec in fields(Options) if spec.name in given}
            given["options"] = Options(**values, own=own)
        try:
            raise typer.Exit(command(**given) or 0)
        except KeyboardInterrupt:  # here, because typer turns it into a bare exit
            raise UserError("interrupted: the same command goes on from here", 130) from None

    called.__signature__ = inspect.Signature(parameters)
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def split_arguments(arguments: list[Path] | None) -> tuple[list[Path], list[str]]:
    """Checkpoints and key=value; whatever exists as a path is a checkpoint, even with `=` in its name."""
    paths, values = [], []
    for argument in arguments or []:
        is_value = "=" in str(argument) and not argument.exists()
        (values if is_value else paths).append(str(argument) if is_value else argument)
    return paths, values


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
