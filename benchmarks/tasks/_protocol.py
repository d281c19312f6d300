"""A task's protocol: a dataclass whose fields are its values, and `key=value` that override them."""

from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from typing import Any

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value
from ...pretrain.common.ranges import check_value


def parse_protocol(protocol: type, overrides: Iterable[str], preset: Mapping = {}) -> tuple[Any, dict, list[str]]:
    """A protocol dataclass with `key=value` applied -> (values, what differs from the defaults, keys it lacks).

    preset: a variant's values in place of the defaults, which count as a difference. Raises UserError, naming what is
    valid, for a value of another type or beyond what its field allows (pretrain.common.ranges).
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {f.name: f for f in fields(protocol)}
    default = protocol()
    try:
        values, unknown = OmegaConf.merge(OmegaConf.structured(default), dict(preset)), []
    except OmegaConfBaseException as error:  # of a task of a user's own
        raise UserError(
            f"a variant's values {dict(preset)} are not its protocol's: {str(error).splitlines()[0]}"
        ) from None
    for item in overrides:
        key = key_value(item)[0].partition(".")[0]
        if key not in known:
            unknown.append(key_value(item)[0])
            continue
        try:
            values = OmegaConf.merge(values, OmegaConf.from_dotlist([item]))
        except OmegaConfBaseException:
            raise UserError(f"{item}: {key} is of type {_type(known[key])}") from None
    values = OmegaConf.to_object(values)
    for name, spec in known.items():
        if spec.metadata:
            check_value(spec, getattr(values, name), name)
    changed = {k: getattr(values, k) for k in known if getattr(values, k) != getattr(default, k)}
    return values, changed, unknown


def _type(spec: Field) -> str:
    return spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", str(spec.type))
