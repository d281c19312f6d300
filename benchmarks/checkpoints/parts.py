"""The networks that a file holds, by the weight of each that sees the three colours; and a file reduced to one of them.

Trainers keep a network beside others: a classifier, a second network, projectors. Where the names do not say which one
is meant, the user does (`--part PREFIX`); what is then left out is counted and said.
"""

import re
from collections.abc import Callable, Mapping

from ...pretrain.common.errors import UserError, shorten
from .state import State

# How the first weight of a network is called, below its prefix.
STEM = re.compile(
    r"(?:^|(?<=\.))(?:patch_embed(?:\.proj(?:ection)?(?:\.\d+)*)?|embeddings\.patch_embeddings(?:\.projection)?|conv_proj"
    r"|conv1(?:\.\d+)?|stem(?:\.\w+)*|features\.0\.0|downsample_layers\.0\.0|stages\.0\.downsample_layers\.0"
    r"|patch_embedding|patch_embedder|embedder\.embedder\.convolution)\.weight$"
)
EMA = {  # an averaged copy of the weights -> the network whose place it takes, so that a wrapper is one there too
    **{
        "state_dict_ema.": "state_dict.",
        "ema_state_dict.": "state_dict.",
        "state_dict.ema_model.": "state_dict.model.",
    },
    **dict.fromkeys(("model_ema.", "ema_model.", "ema."), "model."),
}
# What lies beside a network in a file that holds one, by its first segment.
BESIDE = re.compile(
    r"(?:\w+_)?(?:classifier|fc|heads?|linear|projector|projection_head|projection|predictor|prototypes|mlp|criterion"
    r"|loss|loss_fn|decoder)\d*"
)
GIVEN = "outside the part (given)"


def networks(shapes: Mapping[str, tuple]) -> list[str]:
    """Prefixes of the networks in a file, in its order."""
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[1] == 3 and (stem := STEM.search(name)):
            found[name[: stem.start()]] = None
    return list(found)


def part(state: State, prefix: str) -> State:
    """The tensors below a prefix that the user gave, which stays a wrapper of theirs; all others are set aside. Raises
    UserError that names the networks of the file where there is nothing."""
    prefix = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    inner = state.below(prefix)
    if not inner:
        there = ", ".join(networks(state.shapes)) or shorten(", ".join(sorted({k.partition(".")[0] for k in state})))
        raise UserError(f"--part {prefix.rstrip('.')}: it holds nothing of that prefix; there are: {there}")
    return _only(state, prefix, GIVEN)


def averaged(state: State) -> State:
    """The averaged copy of the weights (`--weights ema`). Raises UserError where there is none."""
    for prefix, place in EMA.items():
        if inner := state.below(prefix):
            aside = dict.fromkeys(set(state) - set(inner.values()), "not the EMA copy")
            counter = inner.pop("n_averaged", None)  # torch's AveragedModel
            aside |= {counter: "counter"} if counter else {}
            refs = {place + name: state.refs[key] for name, key in inner.items()}
            return State(refs, state.wanted, state.aside | aside)
    raise UserError(f"--weights ema: it holds none of {', '.join(p.rstrip('.') for p in EMA)}")


def only_network(state: State) -> State | None:
    """A file's one network, below its prefix, without what is known to lie beside one; None where there are several, or
    other things."""
    if len(found := networks(state.shapes)) != 1 or not found[0]:
        return None
    prefix = found[0]
    outside = [k for k in state if not k.startswith(prefix)]
    common = prefix.rstrip(".").rpartition(".")[0]
    common = f"{common}." if common else ""
    strange = [k for k in outside if not BESIDE.fullmatch(k.removeprefix(common).partition(".")[0])]
    return None if strange else _only(state, prefix, "head")


def _only(state: State, prefix: str, why: str) -> State:
    """The tensors below a prefix, which their names keep; why: what the others are."""
    aside = {k: why for k in state if not k.startswith(prefix)}
    return State({k: r for k, r in state.refs.items() if k not in aside}, state.wanted, state.aside | aside)


def _below(state: State, prefix: str, aside: Mapping[str, str]) -> State:
    refs = {name: state.refs[key] for name, key in state.below(prefix).items()}
    return State(refs, state.wanted, state.aside | aside)


def described(state: State, candidates: Callable[[State], list[str]]) -> str:
    """`it holds 2 networks: a. (timm or dino), b. (the same): take one by --part`; '' for a file without a prefix.

    candidates: names of the formats that know a network.
    """
    prefixes = [p for p in networks(state.shapes) if p]
    if not prefixes:
        return ""
    parts, before, any_known = [], None, False
    for prefix in prefixes[:6]:
        names = candidates(_only(state, prefix, "")) or candidates(_below(state, prefix, {}).split())
        known = " or ".join(names) or "no format knows it"
        any_known = any_known or bool(names)
        parts.append(f"{prefix} ({'the same' if known == before else known})")
        before = known
    more = f" and {len(prefixes) - 6} more" if len(prefixes) > 6 else ""
    count = f"{len(prefixes)} networks" if len(prefixes) > 1 else "a network"
    return f"it holds {count}: {', '.join(parts)}{more}" + ": take one by --part PREFIX" * any_known
