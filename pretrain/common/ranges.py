"""Which numbers an option can be: said beside its field, checked before anything is made of it."""

import math
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any

from .errors import UserError

TESTS = {  # bound -> its words, and whether a number keeps to it
    "at_least": ("at least", lambda x, bound: x >= bound),
    "above": ("above", lambda x, bound: x > bound),
    "at_most": ("at most", lambda x, bound: x <= bound),
    "below": ("below", lambda x, bound: x < bound),
}


def bounded(default: Any, **limits: float) -> Any:
    """A dataclass field whose numbers have bounds."""
    return field(default=default, metadata=bounds(**limits))


def bounds(**limits: float) -> dict[str, dict]:
    """A field's metadata: at_least, above, at_most, below; for each number of a tuple or list. null passes."""
    assert limits.keys() <= TESTS.keys()
    return {"bounds": limits}


def check_numbers(options: Any, name: str) -> None:
    """Raise UserError for the first number of a dataclass `name`, however deep, that is not finite or not within its
    bounds."""
    for one in fields(options):
        where = f"{name}.{one.name}" if name else one.name
        check_number(getattr(options, one.name), where, **one.metadata.get("bounds", {}))


def check_number(value: Any, name: str, **limits: float) -> None:
    """`check_numbers` of one option. What is no number passes, unless there are numbers in it."""
    if is_dataclass(value):
        check_numbers(value, name)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_number(part, f"{name}.{key}", **limits)
    elif isinstance(value, (list, tuple)) and not all(map(_is_number, value)):
        for i, part in enumerate(value):
            check_number(part, f"{name}[{i}]", **limits)
    elif isinstance(value, (list, tuple)):
        if wrong := [x for x in value if not _fits(x, limits)]:
            raise UserError(f"{name}={list(value)}: each must be {_words(wrong[0], limits)}")
    elif _is_number(value) and not _fits(value, limits):
        raise UserError(f"{name}={value}: it must be {_words(value, limits)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _fits(value: float, limits: Mapping[str, float]) -> bool:
    return _finite(value) and all(TESTS[kind][1](value, bound) for kind, bound in limits.items())


def _words(value: float, limits: Mapping[str, float]) -> str:
    words = [] if _finite(value) else ["finite"]
    return " and ".join(words + [f"{TESTS[kind][0]} {bound}" for kind, bound in limits.items()])
