"""Why a file was taken for one of a format: the names and words without which the format would claim it less.

Found by leaving them out one after the other, so that a format needs to say nothing of it.
"""

import re
from collections.abc import Mapping
from itertools import takewhile

from ...pretrain.common.errors import shorten

STRENGTH = {1: "names that fit", 2: "parts that its code base writes", 3: "only its code base writes that"}
SHOWN = 4
TABLES = ("config.json", "args", "timm")  # of a file's words, those whose own words are looked at
MAX_WORDS = 200


def evidence(module, shapes: Mapping[str, tuple], meta: Mapping) -> str:
    """`dino_loss.center (only its code base writes that)`: what speaks for a format, of the tensors' names and the
    words beside them. module: the format's. '' where it does not claim the file."""
    claim = _claim(module, shapes, meta)
    if not claim:
        return ""
    lower, needed = [], []  # left out, the format claims the file less; or not at all
    for name, group in _alike(shapes).items():
        left = _claim(module, {k: v for k, v in shapes.items() if k not in group}, meta)
        (lower if 0 < left < claim else needed if left == 0 else []).append(name)
    for word, rest in _words(meta):
        if _claim(module, shapes, rest) < claim:
            lower.insert(0, word)
    found = lower or needed or list(_alike(shapes))
    text = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    if not lower and len(found) > SHOWN and (prefix := _shared(found)):
        count = sum(name.startswith(prefix) for name in shapes)
        text = f"{count} names below {prefix}, {found[0].removeprefix(prefix)} among them"
    values = ", and its values" if getattr(module, "BY_VALUES", False) else ""
    return f"{text} ({STRENGTH.get(claim, claim)}{values})"


def _claim(module, shapes: Mapping, meta: Mapping) -> int:
    try:
        return int(module.claims(shapes, meta))
    except Exception:  # of a file that is not whole
        return 0


def _shared(names: list[str]) -> str:
    """The segments that all names begin with."""
    first, last = (name.split(".")[:-1] for name in (min(names), max(names)))
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{segment}." for segment, _ in pairs)


def _alike(names) -> dict[str, set[str]]:
    """Names that differ in numbers only, by the first of them."""
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "N", name), set()).add(name)
    return {min(group): group for group in groups.values()}


def _words(meta: Mapping):
    """(word, what else there is) of each key beside the tensors, and of the tables that say what a network is."""
    for key in list(meta)[:MAX_WORDS]:
        yield shorten(key), {k: v for k, v in meta.items() if k != key}
        table = meta[key]
        for inner in list(table)[:MAX_WORDS] if key in TABLES and isinstance(table, Mapping) else ():
            yield f"{key}: {shorten(inner)}", dict(meta) | {key: {k: v for k, v in table.items() if k != inner}}
