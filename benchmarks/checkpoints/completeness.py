"""Is this the whole network? A ViT that lost its last block is a smaller ViT, of which no tensor is missing.

What a lost part changes is the card, so the card is held against whatever else says what it should be: the code base
that wrote the file (`ALWAYS` of its format), the file itself (an architecture's name, a config), and the other networks
in it. A contradiction is refused unless the user gives that field of the card himself. What is only unusual is said.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile

import numpy as np
import torch
from torch import Tensor

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError, shorten
from .state import State
from .stated import BASIC, COUNTED, NAMED_RESNETS, NAMED_SWINS, stated, text_of

# Blocks of ViTs by width; 18x2 and 36x1 are timm's. Source: huggingface/pytorch-image-models 1.0.31.
VIT_BLOCKS = {
    **{192: (12,), 256: (10, 14, 16), 320: (14,), 384: (12, 18, 36), 512: (12, 20), 640: (12,), 768: (12, 18)},
    **{832: (21,), 896: (12, 18), 1024: (24,), 1152: (27,), 1280: (32,), 1408: (40,), 1536: (40,), 1664: (48,)},
    4096: (40,),
}
OTHER_VITS = (12, 24, 32, 40)
# timm's, and for ConvNeXt V2 the official ones.
XCIT_BLOCKS, EVA_BLOCKS = (12, 24), (12, 24, 38)
CONVNEXT_BLOCKS = ((2, 2, 6, 2), (2, 2, 8, 2), (3, 3, 9, 3), (3, 3, 27, 3), (2, 2, 4, 2), (3, 4, 30, 3))
SIDES = (196, 240, 252, 336, 364, 378, 392, 518, 560)  # images whose grid is stored, besides multiples of 32
UNBIASED = 4096  # width of DINOv3's ViT-7B, which alone among its models has no biases of query, key and value
MAX_BLOCKS = 128  # in all stages together: EVA's largest has 64, ResNet-269 has 89
MAX_OTHERS = 8  # networks of a file that are looked at
MATRIX = re.compile(r"(.*(?:blocks|layer\d)\.\d+)\.(?:mlp\.fc1|conv2)\.weight")  # one of each block
COMPARED = 1 << 16  # values of it
BLOCK = {
    **dict.fromkeys(("vit", "xcit", "eva"), r"blocks\.(\d+)\."),
    **dict.fromkeys(("swin", "swinv2"), r"layers\.{}\.blocks\.(\d+)\."),
    "resnet": r"layer{}\.(\d+)\.",
    "convnext": r"stages\.{}\.blocks\.(\d+)\.",
}
# Fields that a network's tensors alone decide.
STRUCTURE = (
    *("patch", "dim", "depth", "class_token", "final_norm", "registers", "layer_scale", "pos", "mlp_ratio"),
    *("qkv_bias", "act", "readout", "window", "depths", "patch_norm", "absolute_pos", "block", "blocks"),
    *("stem_channels", "widths", "groups", "base_width", "cls_depth", "response_norm", "inner_norms"),
    *("stem_widths", "avg_down"),
)


@dataclass
class Doubts:
    """What speaks against a reading. lost: field of the card -> sentence; odd: sentences that refuse nothing."""

    lost: dict[str, str] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)


def doubts(module, state: State, view: State, meta: Mapping, read: tuple) -> Doubts:
    """Hold what a format made of a file against the format, the file's own words and its other networks.

    module: the format's. state: the file; view: what `convert` was given, which knows what was used. read: what it
    returned.
    """
    _, card, dropped = read
    found, facts = Doubts(), card.as_dict()
    for key, value in getattr(module, "ALWAYS", {}).items():
        if key in facts and getattr(card, key) != value:
            found.lost[key] = f"networks of this format always have {key}={value}, and this one has {_is(card, key)}"
    for where, key, value in stated(meta, card):
        if getattr(card, key) != value:
            text = f"{where} means {key}={text_of(value)}, the weights have {_is(card, key)}"
            found.lost.setdefault(key, text)
    for mine, name, exchanged in others(state, view.used - set(dropped)):
        _compare(module, exchanged, meta, read, (mine, name), found)
    for key, value in getattr(module, "USUAL", {}).items():
        known = card.dim == UNBIASED and key == "qkv_bias"
        if key in facts and getattr(card, key) != value and key not in found.lost and not known:
            found.odd.append(f"unusual: {_is(card, key)} (networks of this format have {key}={value})")
    return found


def _is(card: Card, key: str) -> str:
    return f"{key}={text_of(getattr(card, key))}"


def refuse(found: Doubts, card: Card, given: Mapping) -> list[str]:
    """Sentences for the user; raises UserError for a contradiction in a field that the user has not `given`."""
    if left := [key for key in found.lost if key not in given]:
        flags = " ".join(f"--card {_quoted(_is(card, key))}" for key in left)
        texts = "; ".join(dict.fromkeys(found.lost[key] for key in left))
        raise UserError(f"{texts}: part of the network was lost? Get the file again, or accept it with {flags}")
    return [*(f"accepted as given: {text}" for text in found.lost.values()), *found.odd]


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


# -- the other networks of a file


def others(state: State, used: set[str]) -> Iterator[tuple[str, str, State]]:
    """(name of the network that was taken, name of another one like it, the file with that in its place).

    used: names of the tensors that the network was made of. One like it has a stem of the same name and shape: the
    one weight that sees three channels. So each is read by the format as the first was, whatever its names.
    """
    stems = sorted(k for k in used if len(state.shapes[k]) == 4 and state.shapes[k][1] == 3)
    if not stems:
        return
    folders = sorted(k.split(".")[:-1] for k in used)
    pairs = zip(folders[0], folders[-1], strict=False)  # what the first and the last begin with, all do
    home = "".join(f"{a}." for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    stem = stems[0].removeprefix(home)
    prefixes = (k.removesuffix(stem) for k in state if k.endswith(stem) and state.shapes[k] == state.shapes[stems[0]])
    found = (p for p in prefixes if p != home and p[-1:] in ("", "."))
    for other in islice(found, MAX_OTHERS):
        # What differs in their names: of teacher.backbone and student.backbone the whole teacher and student.
        mine, theirs = home.split(".")[:-1], other.split(".")[:-1]
        while mine and theirs and mine[-1] == theirs[-1]:
            mine.pop(), theirs.pop()
        old, new = ("".join(f"{part}." for part in parts) for parts in (mine, theirs))
        refs = {k: r for k, r in state.refs.items() if k not in used and not k.startswith(new)}
        refs |= {old + k.removeprefix(new): r for k, r in state.refs.items() if k.startswith(new)}
        yield home.rstrip(".") or "network", other.rstrip(".") or "the other", State(refs, state.wanted)


def _compare(module, exchanged: State, meta: Mapping, read: tuple, names: tuple[str, str], found: Doubts) -> None:
    """Add what the other network has and this one lacks, or the reverse, to `found`."""
    (weights, card, _), (mine, name) = read, names
    try:
        other, its, _ = module.convert(exchanged, meta)
        fields = [k for k in STRUCTURE if getattr(its, k) != getattr(card, k)]
    except Exception as error:  # only this network is evaluated
        found.odd.append(f"its {name} cannot be read in the same way: {shorten(error) or type(error).__name__}")
        return
    if not fields:
        if moved := misplaced_blocks(weights, other):
            found.odd.append(f"blocks were exchanged? {', '.join(moved)} of its {mine} are others of its {name}")
        return
    lacks, more = sorted(other.keys() - weights.keys()), sorted(weights.keys() - other.keys())
    what = "; ".join(f"its {mine} has {_is(card, k)}, its {name} {_is(its, k)}" for k in fields)
    if more and not lacks:
        found.odd.append(f"{what}: part of the latter was lost?")
        return
    if lacks:
        rest = f" and {len(lacks) - 1} more" if len(lacks) > 1 else ""
        what += f" ({lacks[0]}{rest} only there)"
    for key in fields:
        found.lost.setdefault(key, what)


def misplaced_blocks(weights: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The blocks whose place another block has in another network of the file.

    Of teacher and student the same blocks are nearly parallel, and different ones nearly orthogonal: a block is named
    if it is parallel (cosine above 0.9) to another of the other network and not (below 0.5) to its own. Blocks that
    were exchanged in both networks, or in the only one of a file, cannot be seen.
    """
    stacks: dict[tuple, list] = {}
    for name, value in weights.items():
        if (match := MATRIX.fullmatch(name)) and name in other and other[name].shape == value.shape:
            stacks.setdefault(tuple(value.shape), []).append((match[1], name))
    found = []
    for members in stacks.values():
        mine, theirs = (
            torch.nn.functional.normalize(torch.stack([w[n].flatten()[:COMPARED].float() for _, n in members]))
            for w in (weights, other)
        )
        cosine = mine @ theirs.T
        found += [b for i, (b, _) in enumerate(members) if cosine[i].max() > 0.9 and cosine[i, i] < 0.5]
    return found


# -- what can be said of a card alone


def unusual(card: Card) -> list[str]:
    """What no known network of this family has, in words."""
    if card.family == "vit":
        usual, size = VIT_BLOCKS.get(card.dim, OTHER_VITS), f" at a width of {card.dim}"
    elif card.family == "resnet":
        basic = card.block == "basic"
        usual, size = [b for n, b in NAMED_RESNETS.items() if (n in BASIC) == basic], ""
    elif card.family in ("swin", "swinv2"):
        usual, size = list(dict.fromkeys(blocks for _, blocks in NAMED_SWINS.values())), ""
    elif card.family in COUNTED:
        usual, size = {"xcit": XCIT_BLOCKS, "eva": EVA_BLOCKS, "convnext": CONVNEXT_BLOCKS}[card.family], ""
    else:
        return []
    key, found = COUNTED[card.family], []
    blocks = getattr(card, key)
    if blocks not in usual:
        count, *some = ("/".join(map(str, b)) if isinstance(b, tuple) else str(b) for b in (blocks, *usual))
        found.append(f"unusual: {key} {count} (usual{size}: {', '.join(some)})")
    side = card.grid * card.patch if card.family == "vit" else 0
    if side % 32 and side not in SIDES:
        found.append(f"unusual: positions of a {card.grid}x{card.grid} grid, which is that of {side}x{side} images")
    return found


def check_blocks(card: Card, names) -> None:
    """Raise UserError if the card's blocks are not those of the tensors' names, or too many: before they are built."""
    if (key := COUNTED.get(card.family)) is None:
        return
    counts = getattr(card, key)
    stages = counts if isinstance(counts, tuple) else (counts,)
    if sum(stages) > MAX_BLOCKS:
        raise UserError(f"{sum(stages)} blocks ({_is(card, key)}) are no network: at most {MAX_BLOCKS}")
    for i, count in enumerate(stages):
        pattern = re.compile(BLOCK[card.family].format(i + (card.family == "resnet")))
        there = {m[1] for name in names if (m := pattern.match(name))}
        if len(there) != count:
            stage = f" in stage {i + 1}" if isinstance(counts, tuple) else ""
            raise UserError(f"its card has {_is(card, key)}, its tensors are of {len(there)} blocks{stage}")


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The tensors that hold NaN or inf, and how many of each; None if there are none."""
    bad = []
    for name, value in weights.items():
        array = value.numpy()  # whose test is faster here than torch's, which starts threads for every tensor
        if not np.isfinite(array).all():
            counts = {"NaN": np.isnan(array).sum(), "inf": np.isinf(array).sum()}
            bad.append(f"{name} ({' and '.join(f'{n} {what}' for what, n in counts.items() if n)})")
    if not bad:
        return None
    return ", ".join(bad[:4]) + (f" and {len(bad) - 4} more tensors" if len(bad) > 4 else "")
