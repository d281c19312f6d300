"""models.yaml: checkpoints with names and overrides, so that a whole zoo runs by one command.

    models:
      - path: dino_deitsmall16_pretrain.pth   # from this file's folder; also timm:NAME, hf:REPO or a run's folder
        name: DINO
        format: dino
        heads: 6                              # this and any other field of the card, also below `card:`
      - path: ours.pth
        weights: student                      # and part: PREFIX, the network below it
        row: DINO+SelfPatch|ViT-S/16
      - {path: vit-s-300ep.pth.tar, zoo: mocov3_vits_300ep}   # format, card and row as the zoo's entry has them
      - ../runs/selfpatch

Each entry's values are what --format, --heads, --card, --weights, --part, --row and --name are for a checkpoint given
by hand, and only its own. They are recorded in the same way.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from ...pretrain.common.card import FIELDS, parse_field
from ...pretrain.common.errors import UserError, naming
from ..hub import zoo
from ..hub.remote import is_remote

TEXTS = ("path", "name", "format", "weights", "part", "row", "zoo")
KEYS = (*TEXTS, "card", *FIELDS)
LARGEST = 1 << 20  # bytes of a list


@dataclass(frozen=True)
class Entry:
    """A checkpoint and how to open it. where: `models.yaml, entry 2 (DINO)`, '' for one given by hand."""

    path: Path
    name: str | None = None
    format: str | None = None
    card: Mapping[str, object] = field(default_factory=dict)
    weights: str | None = None
    row: str | None = None
    where: str = ""
    part: str | None = None

    def at(self, paths: list[Path]) -> "list[Entry]":
        """The entry of a run's folder, for the exports of its checkpoints; several have names of their own."""
        if len(paths) == 1 or not self.name:
            return [replace(self, path=path) for path in paths]
        return [replace(self, path=path, name=f"{self.name}/{path.stem}") for path in paths]


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error; the last one would win silently."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read_models(file: Path) -> list[Entry]:
    """The entries of a models.yaml, in order; a checkpoint that is not there is an error already.

    Raises UserError: one line that names the file and the entry.
    """
    items = _items(file)
    entries = []
    for i, item in enumerate(items, 1):
        name = item.get("name") if isinstance(item, dict) else None
        where = f"{file}, entry {i}" + (f" ({name})" if isinstance(name, str) and name else "")
        with naming(where):
            entries.append(_entry(item, file.parent, where))
    names: dict[str, Entry] = {}
    for entry in entries:
        if entry.name and names.setdefault(entry.name, entry) is not entry:
            raise UserError(f"{entry.where}: {names[entry.name].where} has that name already")
    return entries


def _items(file: Path) -> list:
    if not file.is_file():
        raise UserError(f"--models {file}: no such file")
    if file.stat().st_size > LARGEST:
        raise UserError(f"--models {file}: {file.stat().st_size} bytes are no list of models")
    try:
        table = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"--models {file} is not YAML: {error or type(error).__name__}") from None
    if isinstance(table, dict):
        if unknown := [str(k) for k in table if k != "models"]:
            raise UserError(
                f"--models {file}: unknown {', '.join(unknown)}; at the top there is only the list `models:`"
            )
        table = table.get("models")
    if not isinstance(table, list) or not table:
        raise UserError(f"--models {file}: must be a list of checkpoints (`- path: FILE`), alone or below `models:`")
    return table


def _entry(item, folder: Path, where: str) -> Entry:
    item = {"path": item} if isinstance(item, str) else item
    if not isinstance(item, dict):
        raise UserError(f"{item!r} is neither a path nor a table with a path")
    for key in item:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"unknown {key}{hint}; there are: {', '.join(KEYS)}")
    for key in TEXTS:
        if key in item and not (isinstance(item[key], str) and item[key].strip() and item[key].isprintable()):
            raise UserError(f"{key}: {item[key]!r} is no text; write it in quotes")
    if "path" not in item:
        raise UserError("has no path")
    known = zoo.get(item["zoo"]) if "zoo" in item else None
    facts = dict(known.facts) if known else {}
    card = {k: v for k, v in facts.items() if k in FIELDS} | _card(item)
    chosen = {k: item.get(k) or facts.get(k) for k in ("format", "row")}
    if chosen["row"]:
        from ..results.published import check_row  # pandas, which takes its time

        check_row(chosen["row"], "row")
    path = _path(item["path"], folder, known)
    return Entry(
        path, item.get("name"), card=card, weights=item.get("weights"), where=where, part=item.get("part"), **chosen
    )


def _card(item: Mapping) -> dict:
    """Fields of the card, from the entry itself and from its `card:`, checked."""
    below = item.get("card", {})
    if not isinstance(below, dict):
        raise UserError(f"card: {below!r} is not a table of fields, like {{mean: 0.5, std: 0.5}}")
    card = {k: v for k, v in item.items() if k in FIELDS}
    if twice := sorted(card.keys() & below.keys()):
        raise UserError(f"{', '.join(twice)} is given twice, in the entry and in its card")
    card |= below
    for key, value in card.items():
        parse_field(str(key), value)
    return card


def _path(text: str, folder: Path, known: zoo.Public | None) -> Path:
    """From the list's folder; `timm:NAME` and `hf:REPO` stay. Raises UserError where nothing is there."""
    path = folder / Path(text).expanduser()
    if path.exists():
        return path
    if is_remote(Path(text)):
        return Path(text)
    fetch = ""
    if known and known.url:
        fetch = f"; `selfpatch zoo {known.name}` says where it is to be had"
    raise UserError(f"no such file or folder: {path}{fetch}")
