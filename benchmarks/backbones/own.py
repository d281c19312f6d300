"""A network of a user's own as an encoder: the same interface as `encoder.Encoder`, and what holds it to its word."""

import copy
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from ...pretrain.common.card import FAMILIES, NAMES, Card, parse_field
from ...pretrain.common.errors import UserError, naming, shorten
from ...pretrain.common.weights import fingerprint
from .base import Features, FrozenEncoder
from .networks import network_of, weight_shapes

NEAR = 1e-3  # of the largest value: how far the same features may differ in float32, in batches of other sizes
NEAR_HALF = 3e-2  # the same of 16-bit numbers


class OwnEncoder(FrozenEncoder):
    """A module and its `features(module, images, blocks)` (see networks.py). `norm` is none of its: features decides.

    strides, widths: of the maps of its blocks; stages: their names. width: of the image vector, by the card's dim.
    Whatever it gives is checked: UserError for what is not as the card says.
    """

    network = "module"

    def __init__(self, card: Card, module: nn.Module, compute: Callable):
        super().__init__(card)
        self.module, self.compute = module, compute
        self.strides, self.widths, self.width = list(card.strides), list(card.widths), card.dim
        self.count = len(self.strides)
        self.stages = [f"block{i}" for i in range(self.count)]
        if next(module.parameters(), None) is None:
            raise UserError(f"network {card.family}: the module has no parameters")
        self.eval().requires_grad_(False)

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by the module's names, strictly."""
        self.module.load_state_dict(self.module.state_dict() | dict(weights), strict=True, assign=True)
        self.eval().requires_grad_(False)

    def named_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that it takes."""
        return weight_shapes(self.module)

    def size_rule(self, size: tuple[int, int]) -> str:
        """How an image of (H, W) pixels is taken."""
        return "its own"

    def patch_maps(self, images: Tensor, blocks: list[int] | None = None, norm: bool | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> a map [B, C, h, w] for each block."""
        return self(images, blocks).patches

    def forward(self, images: Tensor, blocks: list[int] | None = None, norm: bool | None = None) -> Features:
        """images [B, 3, H, W] -> Features. Raises UserError where `features` fails, or gives what the card does not
        say."""
        return features_of(self.module, self.compute, self.card, images, self.resolve(blocks))


def features_of(module: nn.Module, compute: Callable, card: Card, images: Tensor, blocks: list[int]) -> Features:
    """What `features` of a user's network gives for these images and blocks, checked. Raises UserError.

    blocks: in any order, also repeated; features is asked for each once, the first one first.
    """
    (h, w), asked = images.shape[-2:], sorted(set(blocks))
    with naming(f"network {card.family}, a {h}x{w} picture"):
        try:
            found = compute(module, images, asked)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{type(error).__name__}: {shorten(error)}") from error
        if not isinstance(found, (tuple, list)) or len(found) != 2 or not isinstance(found[1], (tuple, list)):
            raise UserError(f"features gives {_kind(found)} instead of (image embedding, [patch map of each block])")
        image, maps = found[0], list(found[1])
        if len(maps) != len(asked):
            raise UserError(f"features gives {len(maps)} maps for blocks {asked}, not one for each")
        _check(image, "the image embedding", (len(images), card.dim))
        for block, found in zip(asked, maps, strict=True):
            stride = card.strides[block]
            _check(
                found,
                f"the map of block {block}, of stride {stride},",
                (len(images), card.widths[block], *({side // stride, -(-side // stride)} for side in (h, w))),
            )
        return Features(image, [maps[asked.index(block)] for block in blocks])


def _check(found, what: str, wanted: tuple) -> None:
    """Raise UserError unless `found` is a floating-point tensor of that shape. wanted: of each axis its length, a set
    of possible ones, or None for any."""
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise UserError(f"{what} is {_kind(found)} instead of a floating-point tensor")
    sides = [None if side is None else {side} if isinstance(side, int) else side for side in wanted]
    fits = [side is None or length in side for length, side in zip(found.shape, sides, strict=False)]
    if len(found.shape) != len(sides) or not all(fits):
        words = ["D" if side is None else " or ".join(map(str, sorted(side))) for side in sides]
        raise UserError(f"{what} is {list(found.shape)} instead of [{', '.join(words)}]")


def _kind(found) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {list(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
    parts = f" of {len(found)}" if isinstance(found, (tuple, list)) else ""
    return f"{type(found).__name__}{parts}"


# -- a network of a plug-in


def empty(card: Card, weights: Mapping[str, Tensor]) -> OwnEncoder:
    """The network of a card whose family is a plug-in's, before it has these weights. Raises UserError."""
    network = network_of(card.family)
    with naming(f"network {card.family}"):
        try:
            module = network.module(card, weights)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"build: {type(error).__name__}: {shorten(error)}") from error
    return OwnEncoder(card, module, network.features)


# -- a network in memory


def wrap(
    module: nn.Module,
    features: Callable[[nn.Module, Tensor, list[int]], tuple[Tensor, list[Tensor]]],
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
    strides: Sequence[int],
    name: str,
) -> OwnEncoder:
    """A module as an encoder, for every task that takes one: `evaluate(wrap(...), ["davis"], data=...)`.

    features(module, images, blocks) -> (image embedding [B, D], [patch map [B, C, h, w] of each of `blocks`]), as in
    networks.py. strides: in pixels, of the map of each block. mean, std: of RGB in 0..1. name: letters, digits and
    underscores; with the weights and what features gives, it makes a record's key. The encoder holds a copy of the
    module, in evaluation mode. Raises UserError, in one line, for features that are not as they should be.
    """
    if not isinstance(module, nn.Module) or not callable(features):
        raise UserError("wrap(module, features, ...): a torch module and a function")
    if name in FAMILIES:
        raise UserError(f"{name} is a family of networks that are built here: give the module another name")
    if not isinstance(name, str) or not re.fullmatch(NAMES["family"], name):
        raise UserError(f"wrap: name={shorten(name)}: it is made of letters, digits and underscores")
    if missing := [key for key, value in (("mean", mean), ("std", std)) if value is None]:
        raise UserError(f"{name}: wrap wants {' and '.join(missing)}, of RGB in 0..1")
    mean, std = (value.tolist() if hasattr(value, "tolist") else value for value in (mean, std))  # arrays
    strides = parse_field("strides", strides)
    facts = {"family": name, "strides": strides, "mean": mean, "std": std, "widths": [1] * len(strides)}
    card = Card.from_dict(facts)
    try:
        weights = weight_shapes(module)
        module = copy.deepcopy(module).eval().requires_grad_(False).float().cpu()
    except Exception as error:
        raise UserError(f"{name}: the module cannot be copied: {type(error).__name__}: {shorten(error)}") from error
    card = card.override({"widths": _widths(module, features, card)})
    encoder = OwnEncoder(card, module, features)
    encoder.card = tried(encoder)
    if not _looks_at(module, features, encoder.card):
        raise UserError(f"{name}: features uses another module than the one that it is given, of which this is a copy")
    encoder.width = encoder.card.dim
    encoder.name = name
    state = {k: v for k, v in module.state_dict().items() if k in weights}
    encoder.fingerprint = fingerprint(state)
    count = sum(v.numel() for v in state.values())
    size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}"
    encoder.accounting = f"{len(state)}/{len(state)} tensors, {size} parameters, 0 missing, 0 dropped"
    return encoder


def _widths(module: nn.Module, features: Callable, card: Card) -> tuple[int, ...]:
    """Channels of the maps, as they are; whatever is wrong with them is found later."""
    try:
        with torch.no_grad():
            _, maps = features(module, pictures(card.strides)[:1], list(range(len(card.strides))))
        found = tuple(int(x.shape[1]) for x in maps)
    except Exception:
        return card.widths
    return found if len(found) == len(card.strides) else card.widths


@torch.no_grad()
def _looks_at(module: nn.Module, features: Callable, card: Card) -> bool:
    """Whether what features gives depends on the module: with NaN for weights it does not give the same."""
    broken = copy.deepcopy(module)
    for weight in broken.parameters():
        weight.fill_(math.nan)
    try:
        image, _ = features(broken, pictures(card.strides)[:1], [len(card.strides) - 1])
    except Exception:
        return True
    return not bool(image.isfinite().all())


# -- is it what it says?


def pictures(strides: Sequence[int]) -> Tensor:
    """Five drawn pictures [5, 3, H, W], wider than high: one, and the same with another corner, each in turn."""
    unit = math.lcm(*strides)
    unit = unit if unit <= 128 else max(strides)
    rows = max(6, math.ceil(112 / unit))
    h, w = unit * rows, unit * (rows + 2)
    noise = torch.Generator().manual_seed(0)
    first, other = (torch.randn(3, h, w, generator=noise) for _ in range(2))
    found = first.repeat(5, 1, 1, 1)
    for picture, (rows, columns) in zip(found[1:], corners(h, w), strict=True):
        picture[:, rows, columns] = other[:, rows, columns]
    return found


def corners(h: int, w: int) -> list[tuple[slice, slice]]:
    """The corners of a map or picture, a third of its rows and columns each."""
    rows, columns = ((slice(0, n // 3), slice(n - n // 3, n)) for n in (h, w))
    return [(r, c) for r in rows for c in columns]


@torch.no_grad()
def tried(encoder: OwnEncoder) -> Card:
    """Show a network drawn pictures; -> its card, with the width of the image embedding and a hash of what it gives.

    Raises UserError for features that are not finite or of a wrong shape, that change between two calls or with the
    other pictures of a batch, for maps in another order or place than they should be, and for a network that is changed
    by looking at pictures.
    """
    card, blocks = encoder.card, list(range(encoder.count))
    images, last = pictures(card.strides), encoder.count - 1
    before, shown = _state(encoder.module), images.clone()
    found = encoder(shown, blocks)
    again = encoder(images[:1].clone(), blocks)
    alone = {b: encoder(images[:1].clone(), [b]).patches[0] for b in dict.fromkeys((last, 0))}
    with naming(f"network {card.family}"):
        if not torch.equal(shown, images):
            raise UserError("features changes the pictures that it is given")
        if changed := [k for k, v in _state(encoder.module).items() if before.get(k) != v]:
            raise UserError(
                f"features changes the network's {shorten(', '.join(changed))}: batch norm in training mode?"
            )
        if not all(x.isfinite().all() for x in (found.image, *found.patches)):
            raise UserError("features gives values that are not finite")
        pairs = [("the image embedding", found.image, again.image)]
        pairs += [(f"the map of block {b}", found.patches[b], again.patches[b]) for b in blocks]
        pairs += [(f"the map of block {b}", found.patches[b], one) for b, one in alone.items()]
        for name, first, second in pairs:
            if not _alike(first[:1], second):
                raise UserError(
                    f"{name} changes between two calls: dropout, batch norm in training mode, other blocks?"
                )
        for block, one in enumerate(found.patches):
            _check_place(one.float(), block)
    return card.override({"dim": found.image.shape[1], "probe": _hash(found)})


def _state(module: nn.Module) -> dict:
    """What changes with any change of a module's weights, buffers or mode."""
    state = {k: (v.data_ptr(), 0 if v.is_inference() else v._version) for k, v in module.state_dict().items()}
    return state | {f"mode (of {name or 'the whole'})": part.training for name, part in module.named_modules()}


def _alike(a: Tensor, b: Tensor) -> bool:
    near = NEAR if a.dtype == b.dtype == torch.float32 else NEAR_HALF
    return a.shape == b.shape and float((a - b).abs().max()) <= near * float(a.abs().max()) + 1e-12


def _check_place(found: Tensor, block: int) -> None:
    """Raises UserError unless a map [5, C, h, w] of `pictures` changes in the corner where a picture was changed.

    Changes by corner of the picture (rows) and of the map (columns): of all ways to pair them, none has a larger
    product than the one that pairs each with itself. That holds also for a network that answers to some corners more,
    or spreads every change over the whole map.
    """
    changes = (found[1:] - found[:1]).square().mean(1)
    table = [
        [math.log(float(change[place].mean()) + 1e-30) for place in corners(*found.shape[2:])] for change in changes
    ]

    def product(order: Sequence[int]) -> float:
        return sum(table[i][j] for i, j in enumerate(order))

    best = max(permutations(range(4)), key=product)
    if product(best) > product(range(4)) + 1e-6:
        names = ("top left", "top right", "bottom left", "bottom right")
        other = next(i for i in range(4) if best[i] != i)
        raise UserError(
            f"the map of block {block} is not where it should be: where a picture changes at the {names[other]}, it "
            f"changes at the {names[best[other]]} (rows and columns, or tokens, in another order?)"
        )


def _hash(found: Features) -> str:
    """Of the size of the first picture's features, to two digits: another processor's rounding gives the same."""
    parts = [*found.image[0].float().split(math.ceil(found.image.shape[1] / 8)), *(x[0].float() for x in found.patches)]
    text = " ".join(f"{float(part.square().mean().sqrt()):.1e}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
