"""Which values an option can have: said beside its field, checked before anything is made of it."""

import math
import operator
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any

from .errors import UserError, shorten

TESTS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
_WHOLE = 2**63 - 1  # as far as torch and C count


def bounded(default: Any, **limits: float) -> Any:
    """A dataclass field whose numbers have bounds."""
    return field(default=default, metadata=bounds(**limits))


def bounds(**limits: float) -> dict[str, dict]:
    """A field's metadata: at_least, above, at_most, below; for each number of a tuple or list. null passes."""
    assert limits.keys() <= TESTS.keys()
    return {"bounds": limits}


def one_of(*words: str | None) -> Any:
    """A dataclass field that takes one of these words (or null), by default the first."""
    return field(default=words[0], metadata={"words": words})


def check_values(options: Any, name: str) -> None:
    """Raise UserError for the first value of a dataclass `name`, however deep, that is none of its field's words, or a
    number that is not finite or not within its bounds."""
    for one in fields(options):
        check_value(one, getattr(options, one.name), f"{name}.{one.name}" if name else one.name)


def check_value(spec: Field, value: Any, name: str) -> None:
    """`check_values` of one field."""
    words = spec.metadata.get("words")
    if words and value not in words:
        *most, last = filter(None, words)
        raise UserError(f"{name}={shorten(value)}: it is {', '.join(most)}{' or ' * bool(most)}{last}")
    check_number(value, name, **spec.metadata.get("bounds", {}))


def check_number(value: Any, name: str, **limits: float) -> None:
    """Raise UserError for a number that is not finite or not within these limits, or the first such one in a list,
    table or dataclass. What is no number passes."""
    if is_dataclass(value):
        check_values(value, name)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_number(part, f"{name}.{key}", **limits)
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            check_number(part, f"{name}[{i}]", **limits)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > _WHOLE:
            raise UserError(f"{name}={shorten(value)}: whole numbers have 64 bits here")
        finite = isinstance(value, int) or math.isfinite(value)
        if not finite or not all(TESTS[limit](value, bound) for limit, bound in limits.items()):
            must = ["finite"] * (not finite) + [f"{limit.replace('_', ' ')} {bound}" for limit, bound in limits.items()]
            raise UserError(f"{name}={shorten(value)}: it must be {' and '.join(must)}")
