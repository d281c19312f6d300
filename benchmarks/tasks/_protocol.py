"""A task's protocol: a dataclass whose fields are its values, and `key=value` that override them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
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
        whole, text = key_value(item)
        key = whole.partition(".")[0]
        if key not in known:
            unknown.append(whole)
            continue
        try:
            given = f"{key}=null" if text.lower() == "none" and "None" in _type(known[key]) else item
            values = OmegaConf.merge(values, OmegaConf.from_dotlist([given]))
        except (OmegaConfBaseException, ValueError, TypeError):
            raise UserError(f"{item}: {key} is {_in_words(known[key])}") from None
    values = OmegaConf.to_object(values)
    for name, spec in known.items():
        check_value(spec, getattr(values, name), name)
    changed = {k: getattr(values, k) for k in known if getattr(values, k) != getattr(default, k)}
    return values, changed, unknown


def check_patch(key: str, side: int, card: Mapping, whole: bool = False) -> None:
    """UserError for a picture's side, the protocol's value `key`, of less than a patch of a network (of a user's own: a
    cell of its last map); whole: or of a patch and a part of one."""
    patch = card.get("patch") or (card.get("strides") or [1])[-1]
    if side < patch:
        raise UserError(f"{key}={side}: less than a patch of the network; nearest: {patch}")
    if whole and side % patch:
        nearest = round(side / patch) * patch
        raise UserError(f"{key}={side}: no whole number of the network's patches of {patch} pixels; nearest: {nearest}")


def check_channels(values) -> None:
    """UserError where the protocol's `mean` or `std` is not of three numbers."""
    for name in ("mean", "std"):
        if (given := getattr(values, name)) is not None and len(given) != 3:
            raise UserError(f"{name}={given}: three numbers are needed, for red, green and blue")


def normalisation(card, protocol, official_std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Mean and std in force: overrides, else the official script's numbers for ImageNet's, else the card's own."""
    official = card.mean == IMAGENET_MEAN and card.std == IMAGENET_STD
    return list(protocol.mean or card.mean), list(protocol.std or (official_std if official else card.std))


WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}
WORDS |= {f"list[{kind}]": f"a list of {word[2:]}s, like [1,2]" for kind, word in WORDS.items() if kind != "bool"}


def _in_words(spec: Field) -> str:
    """What a value can be: 'a whole number or none'."""
    kind, _, optional = _type(spec).partition(" | ")
    return WORDS.get(kind, f"of type {kind}") + (" or none" if optional == "None" else "")


def _type(spec: Field) -> str:
    return spec.type.__name__ if type(spec.type) is type else str(spec.type)
