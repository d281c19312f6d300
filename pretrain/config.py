"""What a run is: dataclasses, recipes (recipes/NAME.yaml) and `dotted.key=value` overrides.

Types are strict: an unknown key or a value of another type is a UserError that names what is valid.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .common.errors import UserError
from .common.keyvalue import key_value
from .common.plugins import Kind
from .common.ranges import check_number, check_values
from .options import STEPS, Config, ObjectiveEntry
from .recipes import RECIPES, RENAMED

log = logging.getLogger(__name__)
OBJECTIVES = Kind("objectives", Path(__file__).resolve().parent / "objectives", f"{__package__}.objectives")
# Bounds of network.overrides, which timm's constructors do not check.
SIZES = {"at_least": 1, "at_most": 2**14}
COUNTS = {"at_least": 1, "at_most": 1000}
OVERRIDES = {
    "mlp_ratio": {"above": 0, "at_most": 64},
    "reg_tokens": {"at_least": 0, "at_most": 1000},
    **{key: SIZES for key in ("embed_dim", "num_heads", "patch_size", "window_size")},
    **{key: COUNTS for key in ("depth", "depths")},
    **{f"{part}drop_rate": {"at_least": 0, "below": 1} for part in ("", "pos_", "patch_", "proj_", "attn_")},
}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Config:
    """A recipe by name, or by the path of a yaml file, with `dotted.key=value` overrides -> a checked Config.

    Rows of views and objectives are addressed by number, objectives also by name: `objectives.selfpatch.weight=0`.
    """
    if name in RENAMED and name not in RECIPES.scan():
        log.warning("recipe %s is called %s", name, RENAMED[name])
        name = RENAMED[name]
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES.get(name).path
    if not path.is_file():
        raise UserError(f"recipe {name}: no such file")
    return from_dict({"recipe": path.stem} | read_options(path, f"recipe {path}"), overrides, f"recipe {path.name}")


def read_options(path: Path, what: str) -> dict:
    """A yaml file of options. Raises UserError, which calls it `what`."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # yaml's and OmegaConf's errors have no common base
        raise UserError(f"{what}: not yaml: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{what}: holds no options")
    return found


def from_dict(values: Mapping, overrides: Sequence[str] = (), where: str = "config") -> Config:
    """Nested dicts and lists, as `to_dict` gives them, with overrides on top -> a checked Config. Raises UserError."""
    root = OmegaConf.structured(Config)
    for key, value in values.items():
        if key != "objectives":
            _put(root, key, value, where)
    objectives = _objectives(values.get("objectives", []), where)
    for text in overrides:
        key, value = key_value(text, example="loop.batch=64")
        key = key.replace("[", ".").replace("]", "")
        value = _parse(text, value)
        section, _, rest = key.partition(".")
        if section != "objectives":
            _put(root, key, value, "option")
            if key == "loop.per_gpu" or (key == "loop" and {"per_gpu", "accumulation"} & set(value) == {"per_gpu"}):
                root.loop.accumulation = None  # of a stored configuration or an earlier option: the later one holds
        elif not rest:
            objectives = _objectives(value, key)
        else:
            label, _, option = rest.partition(".")
            node, where = _objective(objectives, label), f"objectives.{label}"
            if not option and not isinstance(value, Mapping):
                raise UserError(f"{text}: not an option; {_valid(node, [where])}")
            for name, one in {option: value}.items() if option else value.items():
                _put(node, str(name), one, where)
    config: Config = OmegaConf.to_object(root)
    config.objectives = [_entry(*o) for o in objectives]
    check(config)
    return config


def to_dict(config: Config) -> dict:
    """Nested dicts and lists that `from_dict` takes back, for the run's folder and its stored states."""
    values = asdict(config)
    values["objectives"] = [{"name": e.name, "weight": e.weight} | asdict(e.options) for e in config.objectives]
    return json.loads(json.dumps(values))  # lists in place of tuples


def check(config: Config) -> None:
    """Raise UserError for values that no run can have."""
    check_values(replace(config, objectives=[]), "")
    for key, value in config.network.overrides.items():
        check_number(value, f"network.overrides.{key}", **OVERRIDES.get(key, {}))
    if "img_size" in config.network.overrides:
        raise UserError("network.overrides.img_size: give it as network.image_size")
    for entry in config.objectives:
        check_values(replace(entry, options=None), f"objectives.{entry.name}")
        check_values(entry.options, f"objectives.{entry.name}")
    config.views.check()
    for name in ("knn", "davis", "images"):
        if config.watch.every is None and getattr(config.watch, name):
            raise UserError(f"watch.{name}: give the epochs between evaluations too, for example watch.every=10")
    if not any(e.weight for e in config.objectives):
        raise UserError("objectives: a run needs at least one with a weight other than 0")
    names = [e.name for e in config.objectives]
    if len(set(names)) < len(names):
        raise UserError(f"objectives: one is listed twice: {', '.join(names)}")


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run. Raises UserError for more than the schedules' tables can have."""
    total = config.loop.steps or config.loop.epochs * steps_per_epoch
    if total > STEPS:
        raise UserError(f"loop.epochs={config.loop.epochs}: {total} steps; there can be {STEPS}")
    return total


def _parse(text: str, value: str) -> Any:
    """The part after `=`, as yaml reads it."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=True)["value"]
    except Exception:
        raise UserError(f"{text}: the value is not valid yaml; quote it if it is a text") from None


def _objectives(rows: Any, where: str) -> list[tuple[str, DictConfig]]:
    """A recipe's list of objectives -> the name of each, and its options and weight, typed by its file's Config."""
    if not isinstance(rows, list):
        raise UserError(f"{where}: objectives is a list of {{name: ..., weight: ..., option: ...}}")
    found = []
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
            raise UserError(f"{where}: an objective needs a name, as in {{name: dino, weight: 1}}; found {row}")
        name = row["name"]
        try:
            node = OmegaConf.structured(make_dataclass("Entry", [("weight", float, 1.0)], bases=(_options(name),)))
        except (OmegaConfBaseException, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"objective {name}: its Config cannot hold options: {reason}") from None
        for key, value in row.items():
            if key != "name":
                _put(node, key, value, f"{where}: objectives.{name}")
        found.append((name, node))
    return found


def _options(name: str) -> type:
    """The Config of an objective plug-in."""
    found = getattr(OBJECTIVES.get(name).module, "Config", None)
    if not (isinstance(found, type) and is_dataclass(found)):
        raise UserError(f"objective {name}: its file defines no dataclass Config")
    return found


def _objective(objectives: list[tuple[str, DictConfig]], label: str) -> DictConfig:
    """One of them, by name or number."""
    for number, (name, node) in enumerate(objectives):
        if label in (name, str(number)):
            return node
    raise UserError(f"objectives.{label}: there is none; there are: {', '.join(n for n, _ in objectives) or 'none'}")


def _entry(name: str, node: DictConfig) -> ObjectiveEntry:
    options = _options(name)
    try:
        values = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # an option without a default that nobody gave
        raise UserError(f"objectives.{name}: {str(error).splitlines()[0]}") from None
    return ObjectiveEntry(name, node.weight, options(**{f.name: getattr(values, f.name) for f in fields(options)}))


def _put(root: DictConfig, key: str, value: Any, where: str) -> None:
    """Set an option, or several of a section at once; a list replaces the former one."""
    parts = key.split(".")
    node = root
    for depth, part in enumerate(parts):
        try:
            known = part in node if isinstance(node, DictConfig) else 0 <= int(part) < len(node)
        except (TypeError, ValueError):
            known = False
        free = isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict
        if not known and not free:
            raise UserError(f"{where}: there is no {'.'.join(parts[: depth + 1])}; {_valid(node, parts[:depth])}")
        if depth < len(parts) - 1:
            node = node[part] if isinstance(node, DictConfig) else node[int(part)]
    try:
        OmegaConf.update(root, key, value, merge=True)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        section = OmegaConf.select(root, key)
        hint = f"; {_valid(section, parts)}" if isinstance(section, DictConfig) else ""
        raise UserError(f"{where}: {key}={value}: {str(error).splitlines()[0]}{hint}") from None


def _valid(node: Any, parts: list[str]) -> str:
    """What may follow after a prefix of an option's name."""
    here = ".".join(parts)
    if isinstance(node, DictConfig):
        return f"{f'in {here} ' if here else ''}there are: {', '.join(map(str, node))}"
    return f"{here} has rows 0 to {len(node) - 1}" if isinstance(node, ListConfig) else f"{here} is a single value"
