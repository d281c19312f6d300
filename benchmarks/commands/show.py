"""`selfpatch show`: a recipe as a run would take it, every option with its comment, and what follows from them."""

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from textwrap import wrap
from typing import Any

import yaml

from ...pretrain.common.errors import UserError
from ...pretrain.config import load_recipe, total_steps
from ...pretrain.data.images import open_source
from ...pretrain.data.loader import steps_per_epoch
from ...pretrain.optim import build_schedules
from ...pretrain.options import Config, ObjectiveEntry, comments
from ...pretrain.step import Learner

WIDTH = 110  # columns


def show(recipe: str, overrides: list[str], data: str | None = None, images: int | None = None) -> str:
    """The recipe as yaml that `selfpatch pretrain` takes, then, as comments, what follows from it.

    data: images to count, as for `pretrain`; images: their number, if they are not here. Raises UserError.
    """
    config = load_recipe(recipe, overrides)
    if data is not None and images is not None:
        raise UserError("--images is for images that are not here: give it or --data")
    if data is not None:
        images = len(open_source(data, config.data.root))
    rows = schedule(config, images) | networks(config) | views(config)
    facts = [f"# {name:<13} {text}" for name, text in rows.items()]
    return "\n".join([*section(config, ""), "", *facts])


def section(options: Any, indent: str) -> Iterator[str]:
    """Lines of yaml for a dataclass of options."""
    known = comments(type(options))
    if not known:
        yield from comment(inspect.getdoc(type(options)) or "", indent)
    for spec in fields(options):
        value = getattr(options, spec.name)
        if is_dataclass(value):
            yield from ("", f"{indent}{spec.name}:")
            yield from section(value, f"{indent}  ")
        elif isinstance(value, list) and any(map(is_dataclass, value)):
            yield from ("", *comment(known.get(spec.name, ""), indent), f"{indent}{spec.name}:")
            for row in value:
                yield from item(row, f"{indent}  ")
        else:
            yield from option(spec.name, value, known.get(spec.name, ""), indent)


def item(row: Any, indent: str) -> Iterator[str]:
    """One of a list of dataclasses; of an objective its own options stand beside name and weight."""
    lines = list(section(row, f"{indent}  "))
    if isinstance(row, ObjectiveEntry):
        known = comments(ObjectiveEntry)
        lines = [*option("name", row.name, known["name"], f"{indent}  ")]
        lines += [*option("weight", row.weight, known["weight"], f"{indent}  "), *section(row.options, f"{indent}  ")]
    first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = f"{indent}- {lines[first].lstrip()}"
    yield from lines


def option(name: str, value: Any, text: str, indent: str) -> Iterator[str]:
    """`name: value`, with its comment behind it where there is room, else above it."""
    value = list(value) if isinstance(value, tuple) else value
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    line = f"{indent}{name}: {written}"
    if text and len(line) < 40 and len(text) + 44 <= WIDTH:
        yield f"{line:<40}  # {text}"
    else:
        yield from (*comment(text, indent), line)


def comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(" ".join(text.split()), WIDTH - len(indent) - 2)]


def schedule(config: Config, images: int | None) -> dict[str, str]:
    """Steps of the run and of its warm-up."""
    warmup = f"{config.schedule.warmup_epochs:g} epochs"
    if config.schedule.warmup_epochs > config.loop.epochs and not config.loop.steps:
        raise UserError(f"schedule.warmup_epochs={warmup.split()[0]}: more than loop.epochs={config.loop.epochs}")
    if images is None:
        steps = f"{config.loop.steps}" if config.loop.steps else f"{config.loop.epochs} epochs"
        hint = "--data FOLDER or --images N says how many steps"
        return {"steps": f"{steps} ({hint} an epoch has)", "warm-up": warmup}
    each = steps_per_epoch(images, config.loop.batch)
    if not each:
        raise UserError(f"{images} images are fewer than one batch: loop.batch={config.loop.batch}")
    total = total_steps(config, each)
    build_schedules(config.schedule, config.loop.batch, total, each)  # raises for a warm-up that does not fit
    return {
        "steps": f"{total}, {each} an epoch of {images} images",
        "warm-up": f"{warmup}, {round(config.schedule.warmup_epochs * each)} steps",
    }


def networks(config: Config) -> dict[str, str]:
    """Parameters, of the networks as a run builds them."""
    learner = Learner(config)
    student = learner.student
    parts = {"backbone": student.backbone, "readout": student.readout, **student.heads}
    sizes = [f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M" for name, part in parts.items()]
    trained = sum(p.numel() for _, p in learner.trained())
    return {"parameters": f"{trained / 1e6:.2f} M are trained: {', '.join(sizes)}"}


def views(config: Config) -> dict[str, str]:
    """Views of an image, and images and views of an optimiser step."""
    sizes = Counter((role, spec.size) for role, spec in zip(config.views.roles(), config.views.specs(), strict=True))
    rows: dict[str, str] = {}
    for (role, size), count in sizes.items():
        rows[f"{role} views"] = ", ".join([*filter(None, [rows.get(f"{role} views")]), f"{count} of {size} pixels"])
    batch = config.loop.batch
    return rows | {"images a step": f"{batch}, as {batch * sizes.total()} views"}
