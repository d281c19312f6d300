"""Where data sets lie: `--data` and SELFPATCH_DATA."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import split


def environment_roots(names: Iterable[str]) -> dict[str, Path]:
    """Name -> root of what SELFPATCH_DATA holds: of a folder those of `names` that lie in it, of a yaml file all that
    it names. Raises UserError for a file that cannot be read as such."""
    value = os.environ.get("SELFPATCH_DATA")
    if not value:
        return {}
    place = Path(value).expanduser()
    if place.is_dir():
        return {name: place / name for name in names if (place / name).exists()}
    if not place.is_file():
        raise UserError(f"SELFPATCH_DATA={value}: no such file or folder")
    try:
        roots = yaml.safe_load(place.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{place} (SELFPATCH_DATA): cannot be read as yaml: {error}") from None
    if not isinstance(roots, dict) or not all(isinstance(v, str) for v in roots.values()):
        raise UserError(f"{place} (SELFPATCH_DATA): must map names to folders, one 'davis2017: /path' a line")
    return {str(name): place.parent / Path(root).expanduser() for name, root in roots.items()}


def split_roots(values: list[str]) -> tuple[str | None, dict[str, str]]:
    """The values of `--data` -> (the one root without a name, else None; name -> root).

    Several are NAME=ROOT each; a value that exists as a path is a path even with '=' in it. Raises UserError.
    """
    unnamed, named = [], {}
    for value in values or []:
        name, root = split(value) or ("", value)
        if Path(value).expanduser().exists() or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            unnamed.append(value)
        elif name in named:
            raise UserError(f"--data {value}: {name} is given twice")
        elif not root:
            raise UserError(f"--data {value}: no root after '='")
        else:
            named[name] = root
    if len(unnamed) > 1 or (unnamed and named):
        raise UserError(f"--data {unnamed[-1]}: with several data sets each is given as NAME=ROOT")
    return unnamed[0] if unnamed else None, named


def data_roots(values: list[str], task_dataset: str) -> Path:
    """The root of one data set (davis2017, coco, ade20k, imagenet ...) from the values of `--data`.

    One root without a name serves the task; several are NAME=ROOT each. Without one for this data set, SELFPATCH_DATA:
    a folder with these names, or a yaml file from names to roots.
    """
    single, named = split_roots(values)
    given = named.get(task_dataset) if single is None else single
    if given is not None:
        root = Path(given).expanduser()
        source = f"--data {given}"
    else:
        root = environment_roots([task_dataset]).get(task_dataset)
        source = f"SELFPATCH_DATA={os.environ.get('SELFPATCH_DATA')}"
    if root is None:
        has = f" (--data has {', '.join(sorted(named))})" if named else ""
        other = f"add it to {source}" if os.environ.get("SELFPATCH_DATA") else "set SELFPATCH_DATA"
        raise UserError(f"no root of {task_dataset}{has}: give --data {task_dataset}=ROOT or {other}")
    if not root.exists():
        raise UserError(f"{source}: {root} does not exist")
    return root
