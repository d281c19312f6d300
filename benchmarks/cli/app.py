"""The face: `selfpatch COMMAND THING [--flag value] [key=value ...]`.

Nothing heavy is imported before a command runs, so that help is instant.
"""

import errno
import inspect
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer

from ...pretrain.common.errors import UserError
from ..run.options import comma_list
from . import evaluate, look, train
from .options import parameters_of, spell_out_card, spelled_out, use_plugins

COMMANDS = (
    *(train.pretrain, train.show, train.ablate, evaluate.run, train.export, look.inspect, look.convert),
    *(evaluate.table, evaluate.compare, look.zoo, look.ls, look.doctor, train.demo),
)
EXAMPLES = "Examples:\n"


def make_app(flags: Sequence = ()) -> typer.Typer:
    """The program, whose commands that evaluate take these flags of tasks (tasks.Flag) as well."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help="Pretrain vision transformers with patch-level self-supervision, evaluate any checkpoint, "
        "and get the paper's table with your row in it.\n\n"
        "`selfpatch demo` shows the whole way on small data that it makes itself.",
    )
    for command in COMMANDS:
        text, _, examples = inspect.getdoc(command).partition(EXAMPLES)
        register = app.command(command.__name__, help=text, epilog=f"\n{EXAMPLES}{examples}\n")
        register(spelled_out(command, flags))
    return app


app = make_app()


def task_flags(arguments: Sequence[str]) -> list:
    """The own flags of the tasks that are asked for, each once. Raises UserError for one that only others have."""
    named = comma_list(values_of(arguments, "--task"))
    if arguments[:1] not in (["run"], ["compare"]) or ("--help" in arguments and not named):
        return []
    use_plugins([Path(folder) for folder in values_of(arguments, "--plugins")])
    from ..tasks._registry import check_flags, get_task

    tasks = [get_task(name) for name in named]
    flags = {}
    for flag in (flag for task in tasks for flag in task.flags):
        if (other := flags.setdefault(flag.key, flag)) != flag and other.type is not flag.type:
            raise UserError(f"{flag.spelling} means different things to {', '.join(named)}: run them one by one")
    common = {"--help"}
    for one in parameters_of(evaluate.run):
        common |= {one.name, one.annotation.__metadata__[0].default}  # in an annotation that is the option's spelling
    if taken := [flag.spelling for flag in flags.values() if common & {flag.key, flag.spelling}]:
        raise UserError(f"{taken[0]} of {', '.join(named)}: every run has an option of that name")
    words = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    check_flags(tasks, sorted(words - common))
    return list(flags.values())


def values_of(arguments: Sequence[str], option: str) -> list[str]:
    """What is given after an option, wherever it stands."""
    after = [b for a, b in pairwise(arguments) if a == option]
    return after + [word.partition("=")[2] for word in arguments if word.startswith(f"{option}=")]


def main() -> None:
    """Console script: runs a command; a user's mistake is one line on stderr and a non-zero exit status."""
    try:
        arguments = spell_out_card(sys.argv[1:])
        make_app(task_flags(arguments))(args=arguments)
    except UserError as error:
        print(f"{'' if error.status == 130 else 'error: '}{error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {str(error.filename)[:80]}...: this name is too long for a file", file=sys.stderr)
        sys.exit(2)
