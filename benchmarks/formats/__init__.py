"""One file = one checkpoint format. The module's name is the format's name.

A format defines

    claims(shapes, meta) -> int
        0 no; 1 bare names that fit, below any prefix (`alone`: many codes write `model.`, `backbone.` or `teacher.`);
        2 names of parts that this code base puts beside its network; 3 a key that only it writes.
        shapes: dotted tensor name -> shape, `module.` and other wrapper segments already stripped, and without training
        state (optimizer ...); meta: everything in the file that is not a tensor (`args` as a plain dict), and
        `config.json` if one lies beside the file. Where no format claims a file, it is tried again without the first
        segment that all its names share, and without a classifier and the like beside its one network, so that
        `{"anything": {...}}` needs no format of its own.
    convert(state, meta) -> (weights, card, dropped)
        state: checkpoints.state.State, a mapping from dotted name to tensor that reads a tensor when asked; weights:
        name in timm's ViT -> tensor, `readout.*` for SelfPatch's class attention; dropped: name -> reason.
        Every tensor of the file must be asked for or dropped: the loader refuses the file otherwise, with the names.
        A file with several networks: `state.pick(networks, test)` gives the prefix of the one to take, which is the
        first of `networks` unless the user asked for another with `--weights`. Raises UserError for what cannot be
        read, and Mismatch where a look at the values shows that the file is of another format.

and may define `BY_VALUES = True` (its `convert` knows the network by its values, and goes before formats that only know
the names); `ALWAYS` and `USUAL`, fields of the card -> their value in every network of this code base (another is
refused, unless the user gives it), or in nearly every one (another is said); `ASSUMED`, fields of the card that no file
of the format says, which are printed and recorded as assumed (where only some files say them, `convert` calls
`state.assume(field, ...)` instead); `MODEL_TYPES`, transformers' words for its networks (a config.json beside the file
with another `model_type` speaks against the format); and a plug-in of a user's `example(folder) -> (path, card
overrides)`, a tiny file (those of the built-in formats: tests/helpers/format_examples). Modules whose name begins with
an underscore are shared helpers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, Card
from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.state import Mismatch  # noqa: F401 (what a format raises)

VIT_ROOTS = ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.", "blocks.", "norm.")
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLASSIFIER = {"head.weight": "head", "head.bias": "head"}  # one layer, which many codes have inside the ViT


def is_vit(keys: Iterable[str]) -> bool:
    """Do the names hold a ViT in timm's naming? (BEiT and EVA keep the biases of query and value apart.)"""
    keys = set(keys)
    found = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= keys
    return found and "blocks.0.attn.q_bias" not in keys


def fits(keys: Iterable[str], also: Iterable[str] = ()) -> bool:
    """Are the names those of a ViT in timm's naming, or begin with one of `also`, and nothing else?"""
    keys = list(keys)
    return is_vit(keys) and all(k.startswith((*VIT_ROOTS, *also)) for k in keys)


def is_dino(keys: Iterable[str]) -> bool:
    """Do the names hold DINO's ViT: class token, final norm, no layer scale, no registers?"""
    keys = set(keys)
    lacks = "blocks.0.ls1.gamma" in keys or "reg_token" in keys
    return is_vit(keys) and {"cls_token", "norm.weight"} <= keys and not lacks


def below(keys: Iterable[str], prefix: str) -> list[str]:
    """The names under a prefix, without it."""
    return [k.removeprefix(prefix) for k in keys if k.startswith(prefix)]


def prefix_of(keys: Collection[str], networks: Mapping[str | None, Sequence[str]], test) -> str | None:
    """The first prefix of `networks` (as in `State.pick`) below which the names pass the test."""
    prefixes = (prefix for prefixes in networks.values() for prefix in prefixes)
    return next((p for p in prefixes if test(below(keys, p))), None)


def alone(keys: Collection[str], mark: str) -> str | None:
    """The prefix below which all of the names lie, where one of them is `mark`; None if there is none, or another.

    Many codes put a network into a dict or a module of the same names (`state_dict`, `model`, `backbone`, `teacher`):
    such a prefix says nothing of who wrote the file.
    """
    found = [k.removesuffix(mark) for k in keys if k.endswith(mark)]
    prefix = min(found, key=len, default="-")
    return prefix if prefix[-1:] in ("", ".") and all(k.startswith(prefix) for k in keys) else None


def alone_vit(keys: Collection[str], test=is_dino, also: Iterable[str] = ()) -> str | None:
    """`alone` of a ViT in timm's naming that passes the test, of whose tensors others begin with one of `also`."""
    prefix = alone(keys, "patch_embed.proj.weight")
    fit = prefix is not None and test(names := below(keys, prefix)) and fits(names, also)
    return prefix if fit else None


def and_alone(networks: Mapping, prefix: str | None) -> dict:
    """Networks (as in `State.pick`) with that of a file which holds nothing else, below any prefix."""
    more = () if prefix is None else (prefix,)
    return {**networks, None: (*networks.get(None, ()), *more)}


def under(prefix: str, reasons: Mapping[str, str]) -> dict[str, str]:
    """The same reasons to drop names, for those under a prefix."""
    return {prefix + name: why for name, why in reasons.items()}


def drop(keys: Iterable[str], reasons: Mapping[str, str]) -> dict[str, str]:
    """name -> reason for every name that starts with one of the given prefixes."""
    return {k: why for k in keys for prefix, why in reasons.items() if k.startswith(prefix)}


def vit(state, prefix: str, dropped: Mapping[str, str], timm_name=str, **known) -> tuple[dict, Card, Mapping[str, str]]:
    """What `convert` returns for the ViT below a prefix: all its tensors but the dropped ones.

    timm_name: makes timm's name of one below the prefix. known: the card's fields that shapes do not tell.
    """
    weights = {timm_name(name): state[key] for name, key in state.below(prefix).items() if key not in dropped}
    return weights, vit_card(shapes_of(weights), **known), dropped
