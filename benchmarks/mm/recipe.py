"""What an mm recipe declares: the literal `harness = dict(...)` of `mm_configs/NAME.py`, read without mm.

The rest of the file is an mm config; `build.py` joins the two with a checkpoint's card.
"""

import ast
import contextlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...pretrain.common.card import POSITION_RULES, Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value
from ..tasks import Metric
from ..tasks._registry import RECIPES

FAMILIES = ("vit", "swin", "resnet")
BLOCKS = (3, 5, 7, 11)  # of a ViT of 12, whose outputs the heads take where a recipe says nothing
AMP = ("off", "fp16", "bf16")
STRIDES = (4, 8, 16, 32)  # of the maps that the heads are made for
# Of each kind of data set: what its evaluator gives, and so a recipe's metrics unless it names fewer.
METRICS = {
    "coco": tuple(f"AP_{of}{end}" for of in ("bb", "mk") for end in ("", "_50", "_75", "_s", "_m", "_l")),
    "ade20k": ("mIoU", "aAcc", "mAcc"),
}


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and value >= least


# `key=value` on the command line that every recipe understands: what the value is, in words, and whether it is that.
# Any other key is a dotted one of the mm config (see build.py). Iterations are optimiser steps.
OWN = {
    "amp": (f"one of {', '.join(AMP)}", AMP.__contains__),
    "batch": ("a whole number of at least 1 (images per optimiser step)", _whole(1)),
    "per_gpu": ("a whole number of at least 1 (images that a GPU takes at once)", _whole(1)),
    "lr": ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
    "blocks": ("four numbers of blocks, counted from 0, like 3,5,7,11", lambda value: len(value) == 4),
    "pos_resize": (f"one of {', '.join(POSITION_RULES)}", [*POSITION_RULES].__contains__),
    "with_cp": ("true or false (gradient checkpointing: less memory, more time)", lambda value: type(value) is bool),
    "classes": ("a whole number of at least 1 (of a data set of your own)", _whole(1)),
    "epochs": ("a whole number of at least 1", _whole(1)),
    "iterations": ("a whole number of at least 1", _whole(1)),
    "warmup": ("a whole number of at least 0 (iterations)", _whole(0)),
    "workers": ("a whole number of at least 0 (processes that load images, per GPU)", _whole(0)),
}


@dataclass(frozen=True)
class Recipe:
    """One file of `mm_configs/`.

    version: raised whenever the same checkpoint would get another number. published: (task, protocol) pairs.
    batch: images per optimiser step, over all GPUs; None: whatever the config's data loader says, per GPU.
    per_gpu: images that one GPU takes at once, at most. blocks: of a network of 12 blocks, 0-based (see `blocks_of`).
    heads: instead of the card's number; None: the card's. pos_resize: instead of the card's position rule.
    amp: one of AMP. lr: for `batch`.
    """

    name: str
    path: Path
    version: int
    family: str
    dataset: str
    protocol_id: str
    metrics: tuple[Metric, ...]
    published: tuple[tuple[str, str], ...] = ()
    batch: int | None = None
    per_gpu: int | None = None
    lr: float | None = None
    blocks: tuple[int, ...] | None = None
    heads: int | None = None
    pos_resize: str | None = None
    amp: str = "off"


def read(path: str | Path) -> Recipe:
    """The recipe in that file. Raises UserError that says what the harness block lacks. Never runs the file."""
    path = Path(path)
    found = literal(path, "harness")
    as_they_are = {"family", "batch", "per_gpu", "lr", "heads", "pos_resize", "amp"}
    known = as_they_are | {"version", "dataset", "protocol", "metrics", "noise", "published", "blocks"}
    for key in found:
        if key not in known:
            raise UserError(f"{path}: harness has no {key}; there are: {', '.join(sorted(known))}")
    for key in ("version", "family", "published"):
        if key not in found:
            raise UserError(f"{path}: harness lacks {key}=")
    try:
        names, noise = tuple(found.get("metrics", ())), found.get("noise", {})
        dataset = found.get("dataset") or next((d for d, given in METRICS.items() if {given[0]} & {*names}), None)
        names = names or METRICS.get(dataset, ())
        bands = dict(noise) if isinstance(noise, Mapping) else dict.fromkeys(names, noise)
        metrics = tuple(Metric(name, noise=float(bands.pop(name, 0.0))) for name in names)
        published = tuple((str(task), str(protocol)) for task, protocol in found["published"])
        version, protocol = int(found["version"]), str(found.get("protocol", path.stem))
        blocks = tuple(int(b) for b in found["blocks"]) if found.get("blocks") else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: harness cannot be read: {error}") from None
    given = {"family": found["family"], "amp": found.get("amp", "off"), "dataset": dataset}
    for key, choices in (("family", FAMILIES), ("amp", AMP), ("dataset", tuple(METRICS))):
        if given[key] not in choices:
            raise UserError(f"{path}: harness: {key}={given[key]!r}: it is one of {', '.join(choices)}")
    if bands:
        raise UserError(f"{path}: harness: noise names {next(iter(bands))}, which is none of its metrics")
    return Recipe(
        name=path.stem,
        path=path,
        version=version,
        dataset=dataset,
        protocol_id=f"{protocol}-v{version}",
        metrics=metrics,
        published=published,
        blocks=blocks,
        **{key: found[key] for key in as_they_are & found.keys()},
    )


def literal(path: Path, name: str) -> dict:
    """The value of `name = dict(...)` at a file's top level; nothing but literals, and dict() of them, is allowed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == [name]:
            value = _value(node.value, path)
            if isinstance(value, dict):
                return value
    raise UserError(f"{path}: no literal `{name} = dict(...)` at the top level of the file")


def _value(node: ast.expr, path: Path):
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "dict" and not node.args:
        if all(k.arg for k in node.keywords):
            return {k.arg: _value(k.value, path) for k in node.keywords}
    elif isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k, path): _value(v, path) for k, v in zip(node.keys, node.values, strict=True)}
    elif isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(v, path) for v in node.elts)
    else:
        try:
            return ast.literal_eval(node)
        except ValueError:
            pass
    raise UserError(f"{path}, line {node.lineno}: harness holds literal values only")


def batching(total: int, world: int, per_gpu: int) -> tuple[int, int]:
    """Images per step -> (images that each of `world` GPUs takes at once, at most `per_gpu`; accumulation steps).

    The product with `world` is exactly `total`. Raises UserError that names usable numbers of GPUs.
    """
    if min(total, world, per_gpu) < 1:
        raise UserError(f"batch={total} on {world} GPUs, per_gpu={per_gpu}: each is at least 1")
    if total % world:
        usable = [n for n in range(1, min(total, 1024) + 1) if total % n == 0]
        raise UserError(
            f"{total} images per step cannot be shared by {world} GPUs; "
            f"use {', '.join(map(str, usable))} of them, or batch={math.ceil(total / world) * world}"
        )
    share = total // world
    fits = max(n for n in range(1, min(per_gpu, share) + 1) if share % n == 0)
    return fits, share // fits


def blocks_of(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Blocks of a network of 12, 0-based, at another depth: ceil((b + 1) depth / 12) - 1."""
    return tuple(-(-(b + 1) * depth // 12) - 1 for b in blocks)


def check_blocks(blocks: Iterable[int], depth: int) -> tuple[int, ...]:
    """The blocks, if the network has them all and they are four rising ones, else UserError. Of a network of up to four
    blocks, where the rule of `blocks_of` repeats some, they may repeat."""
    blocks = tuple(blocks)
    text = ",".join(map(str, blocks))
    if len(blocks) != 4 or list(blocks) != sorted(blocks) or min(blocks) < 0 or (len(set(blocks)) < 4 < depth):
        raise UserError(f"blocks={text}: {OWN['blocks'][0]}, rising")
    if blocks[-1] >= depth:
        raise UserError(f"blocks={text}: the network has {depth} blocks, 0 to {depth - 1}")
    return blocks


def check_family(recipe: Recipe, card: Card, blocks: tuple[int, ...] | None = None) -> None:
    """Raises UserError, naming the recipes for it, when the card is of another family than the recipe takes. A user's
    own network goes by the strides of its maps: of one, as a ViT; of 4, 8, 16 and 32, as a ResNet or Swin. blocks:
    those given."""
    if card.family == recipe.family or (card.own and own_blocks(recipe, card, blocks)):
        return
    others = []
    for plugin in RECIPES.scan().values():
        with contextlib.suppress(UserError):  # a broken recipe of the user's is no candidate
            others.append(read(plugin.path))
    others = [r for r in others if r.dataset == recipe.dataset]
    fit = [r.name for r in others if (own_blocks(r, card) if card.own else r.family == card.family)]
    fit = get_close_matches(recipe.name, fit, len(fit) or 1, 0)  # the most alike first
    use = f"use --task {' or '.join(fit)}" if fit else f"there is no {recipe.dataset} recipe for it"
    this = f"this checkpoint is a {card.family}"
    this += f", with maps of strides {', '.join(map(str, card.strides))}" if card.own else ""
    raise UserError(f"{recipe.name} takes a {recipe.family}, and {this}: {use}")


def own_blocks(recipe: Recipe, card: Card, blocks: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
    """The blocks of a user's own network whose maps the recipe's heads take; None where they are none for them.

    Of a recipe for a ResNet or Swin the last of each of strides 4, 8, 16 and 32; of one for a ViT the recipe's own, all
    of one stride and width. blocks: those given; UserError for ones that it does not have.
    """
    count = len(card.strides)
    if recipe.heads:  # is about attention heads
        return None
    if recipe.family == "vit":
        blocks = check_blocks(blocks or blocks_of(recipe.blocks or BLOCKS, count), count)
        return blocks if len({(card.strides[b], card.widths[b]) for b in blocks}) == 1 else None
    last = {stride: block for block, stride in enumerate(card.strides)}
    blocks = blocks or tuple(last[stride] for stride in STRIDES if stride in last)
    fits = len(blocks) == 4 and [card.strides[b] for b in check_blocks(blocks, count)] == [*STRIDES]
    return blocks if fits else None


def parse(overrides: Iterable[str]) -> tuple[dict, dict]:
    """`key=value` texts -> (values of OWN keys, values of dotted keys of the mm config), both as Python values.

    Raises UserError for a text that is neither, or a value of the wrong kind. Whether a dotted key exists is seen when
    the config is built.
    """
    own, dotted = {}, {}
    for item in overrides:
        key, text = key_value(item)
        if "${" in text:  # would be another value in another place, under the same key of the record
            raise UserError(f"{item}: write the value itself, not ${{...}}")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=True)["value"]
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{item}: {str(error).splitlines()[0]}") from None
        if key in OWN:
            own[key] = _own(key, value, text)
        elif "." in key:
            dotted[key] = value
        else:
            near = get_close_matches(key, OWN, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OWN)}"
            raise UserError(f"no value {key}; {hint}, and dotted keys of the mm config, like model.backbone.drop_path")
    return own, dotted


def _own(key: str, value, text: str):
    """The value of an OWN key, or UserError."""
    words, good = OWN[key]
    if key == "amp" and value is False:  # YAML reads off as false
        value = "off"
    if key == "blocks":
        try:
            value = tuple(int(str(v)) for v in (text.strip("[]() ").split(",") if isinstance(value, str) else value))
        except (TypeError, ValueError):
            value = ()
    if not good(value) or re.match(r"\s*[+-]?0\d", text):  # YAML reads 012 as 10
        raise UserError(f"{key}={text}: {words}")
    return float(value) if key == "lr" else value
