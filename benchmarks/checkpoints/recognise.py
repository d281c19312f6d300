"""Which format a file is of, and what that format makes of it.

Every tensor of a file is either used or dropped on purpose by its format; anything else is refused with its name.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError, shorten
from ...pretrain.common.plugins import Plugin
from ...pretrain.common.weights import names
from ..backbones.networks import BACKBONES
from . import FORMATS, completeness, foreign, parts
from .evidence import evidence
from .state import SAME, Mismatch, State

MAX_WRAPPING = 8  # nested dicts around a network
LONGEST = 600  # characters of a format's own message, which may quote the file


@dataclass
class Reading:
    """What one format makes of a file. `dropped`: name -> reason; network: which one was taken, where it says; odd:
    what is unusual about it; assumed: fields of the card that nothing says; evidence(): what spoke for the format."""

    format: str
    weights: dict[str, Tensor]
    card: Card
    dropped: dict[str, str]
    network: str | None = None
    odd: list[str] = field(default_factory=list)
    assumed: set[str] = field(default_factory=set)
    evidence: Callable[[], str] = str


@contextlib.contextmanager
def _one_line(plugin: Plugin, path: Path):
    """Whatever a format raises, as a UserError that names it and the file."""
    try:
        yield
    except UserError as error:
        same = Mismatch if isinstance(error, Mismatch) else UserError
        raise same(f"{path}: as format {plugin.name}: {shorten(error, LONGEST)}") from None
    except Exception as error:  # a fault of the format, or of a file that it did not expect
        text = f"{type(error).__name__}: {shorten(error)}"
        raise UserError(f"{path}: as format {plugin.name} ({plugin.path.name}): {text}") from error


def _read_as(plugin: Plugin, state: State, meta: dict, path: Path, given: Mapping) -> Reading:
    """One format's reading, checked: every tensor is used or dropped, the weights are exactly the network's, and no
    part of it was lost. given: fields of the card that the user gave."""
    view = State(state.refs, state.wanted)
    with _one_line(plugin, path):
        weights, card, dropped = plugin.module.convert(view, meta)
        if not isinstance(card, Card) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
            raise TypeError("convert gave no (tensors by name, Card, reasons by name)")
        loose = set(state) - view.used - set(dropped)
    if state.wanted and view.network not in (state.wanted, SAME.get(state.wanted, state.wanted)):
        raise UserError(f"{path}: --weights {state.wanted}: format {plugin.name} knows one network in such a file")
    if loose:
        raise UserError(
            f"{path}: as format {plugin.name}: {len(loose)} tensors belong neither to the network nor to what the "
            f"format drops: {names(loose)}. Give another --format, or remove them"
        )
    for key, value in weights.items():
        if not value.is_floating_point():
            raise UserError(f"{path}: {key} holds {value.dtype}, not floating-point weights")
    with _one_line(plugin, path):
        doubts = completeness.doubts(plugin.module, state, view, meta, (weights, card, dropped))
        odd = completeness.refuse(doubts, card, given)
    weights = {k: v.detach().float() for k, v in weights.items()}
    assumed = {*getattr(plugin.module, "ASSUMED", ()), *view.assumed}
    why = partial(evidence, plugin.module, state.shapes, meta)
    return Reading(plugin.name, weights, card, {**dropped, **state.aside}, view.network, odd, assumed, why)


def readings(path: Path, state: State, meta: dict, format: str | None, given: Mapping) -> list[Reading]:
    """The readings of the formats with the highest claim.

    Training state is set aside; where no format knows the names, segments that all of them begin with are peeled off,
    then what is known to lie beside the one network of a file. A format whose claim the values contradict (Mismatch)
    stands back for the next lower claim; one that has looked at them (`BY_VALUES`) goes before the others.
    """
    candidates = {format: FORMATS.get(format)} if format else FORMATS.scan()
    whole = state.split()
    refusal, broken = None, {}
    for level in _levels(whole):
        for claims in _claims(candidates, level, meta, broken):
            found, errors = _read_all(claims, level, meta, path, given)
            for reading in found:
                reading.odd += broken.values()
            if found:  # a format that cannot read all of the file is no candidate beside one that can
                by_values = [r for r in found if getattr(candidates[r.format].module, "BY_VALUES", False)]
                return by_values or found
            if damaged := [error for error in errors if not isinstance(error, Mismatch)]:
                raise _called(damaged[0], state)
            refusal = refusal or errors[0]
    if refusal:
        raise _called(refusal, state)
    if format:  # the user insists: the format reads it, or says what it misses
        return [_insisted(candidates[format], whole, meta, path, given)]

    def knowing(network: State) -> list[str]:
        return next(([p.name for p in claims] for claims in _claims(candidates, network, meta, {})), [])

    shown = shorten(", ".join(foreign.telling(state)), LONGEST)
    failed = "".join(f"; {text}" for text in broken.values())
    what = foreign.described(state, meta) or parts.described(whole, knowing)
    what = what or "`selfpatch ls formats` lists those that are known"
    if own := ", ".join(name for name, plugin in candidates.items() if plugin.kind is BACKBONES):
        what += f"; is it a network of your own? give --format ({own})"
    raise UserError(f"{path}: no format knows these {len(state)} tensors ({shown}); {what}{failed}")


def _called(error: UserError, state: State) -> UserError:
    """A format's refusal, with what the network is where another one than it reads has such names."""
    text = foreign.described(state, {})
    return type(error)(f"{error}; {text}") if text else error


def _levels(whole: State) -> Iterator[State]:
    """The file as it is, then with one wrapping after the other peeled off; then so its one network alone."""
    for level in (whole, parts.only_network(whole)):
        for _ in range(MAX_WRAPPING):
            if level is None:
                break
            yield level
            level = level.inside()


def _insisted(plugin: Plugin, whole: State, meta: dict, path: Path, given: Mapping) -> Reading:
    """The reading of a format that claims nothing of the file, at the first level that it can read."""
    errors = []
    for level in _levels(whole):
        try:
            return _read_as(plugin, level, meta, path, given)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _read_all(claims: list[Plugin], state: State, meta: dict, path: Path, given: Mapping) -> tuple[list[Reading], list]:
    """(readings, errors of the formats that have none)"""
    found, errors = [], []
    for plugin in claims:
        try:
            found.append(_read_as(plugin, state, meta, path, given))
        except UserError as error:
            errors.append(error)
    return found, errors


def _claims(candidates: Mapping[str, Plugin], state: State, meta: dict, broken: dict[str, str]) -> list[list[Plugin]]:
    """Those with a claim above 0 by claim, the highest first. One that fails to look at the file hinders nobody, and is
    added to `broken`: name -> what to say of it."""
    claims: dict[int, list] = {}
    kind = foreign.model_type(meta)
    for plugin in candidates.values():
        try:
            if not kind or kind in getattr(plugin.module, "MODEL_TYPES", (kind,)):
                claims.setdefault(int(plugin.module.claims(state.shapes, meta)), []).append(plugin)
        except Exception as error:
            if plugin.ours and isinstance(error, UserError):  # ours must import
                raise
            why = error if isinstance(error, UserError) else f"{type(error).__name__}: {shorten(error)}"
            broken[plugin.name] = f"format {plugin.name} ({plugin.path}) could not look at the file: {why}"
    return [claims[claim] for claim in sorted(claims, reverse=True) if claim > 0]
