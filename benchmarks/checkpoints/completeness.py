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
from torch import Tensor

from ...pretrain.common.card import ARCHITECTURES, Card
from ...pretrain.common.errors import UserError, shorten
from .state import State
from .stated import arch_names, vit_size

# Blocks of ViTs by width; 18x2 and 36x1 are timm's. Source: huggingface/pytorch-image-models 1.0.31.
VIT_BLOCKS = {
    **{192: (12,), 256: (10, 14, 16), 320: (14,), 384: (12, 18, 36), 512: (12, 20), 640: (12,), 768: (12, 18)},
    **{832: (21,), 896: (12, 18), 1024: (24,), 1152: (27,), 1280: (32,), 1408: (40,), 1536: (40,), 1664: (48,)},
    4096: (40,),
}
OTHER_VITS = (12, 24, 32, 40)
NAMED_VITS = {"tiny": 12, "small": 12, "base": 12, "large": 24, "huge": 32}
NAMED_RESNETS = {  # the number in the name -> blocks of each stage
    **{18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)},
    **{152: (3, 8, 36, 3), 200: (3, 24, 36, 3)},
}
BASIC = (18, 34)  # ResNets of basic blocks
NAMED_SWINS = {  # name -> width of the first stage, blocks of each
    **{"tiny": (96, (2, 2, 6, 2)), "small": (96, (2, 2, 18, 2)), "base": (128, (2, 2, 18, 2))},
    "large": (192, (2, 2, 18, 2)),
}
SIDES = (196, 240, 252, 336, 364, 378, 392, 518, 560)  # images whose grid is stored, besides multiples of 32
UNBIASED = 4096  # width of DINOv3's ViT-7B, which alone among its models has no biases of query, key and value
MAX_BLOCKS = 128  # in all stages together: EVA's largest has 64, ResNet-269 has 89
MAX_OTHERS = 8  # networks of a file that are looked at
COUNTED = {"vit": "depth", "resnet": "blocks", "swin": "depths"}  # family -> its field of numbers of blocks
# Fields that a network's tensors alone decide.
STRUCTURE = (
    *("patch", "dim", "depth", "class_token", "final_norm", "registers", "layer_scale", "pos", "mlp_ratio"),
    *("qkv_bias", "act", "readout", "window", "depths", "patch_norm", "absolute_pos", "block", "blocks"),
    *("stem_channels", "widths", "groups", "base_width"),
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
            text = f"{where} means {key}={_text(value)}, the weights have {_is(card, key)}"
            found.lost.setdefault(key, text)
    for mine, name, exchanged in others(state, view.used - set(dropped)):
        _compare(module, exchanged, meta, read, (mine, name), found)
    for key, value in getattr(module, "USUAL", {}).items():
        known = card.dim == UNBIASED and key == "qkv_bias"
        if key in facts and getattr(card, key) != value and key not in found.lost and not known:
            found.odd.append(f"unusual: {_is(card, key)} (networks of this format have {key}={value})")
    return found


def _is(card: Card, key: str) -> str:
    return f"{key}={_text(getattr(card, key))}"


def _text(value) -> str:
    return shorten(",".join(map(str, value)) if isinstance(value, tuple) else value, 80)


def refuse(found: Doubts, card: Card, given: Mapping) -> list[str]:
    """The sentences to be said; raises UserError for a contradiction in a field that the user has not `given`."""
    if left := [key for key in found.lost if key not in given]:
        flags = " ".join(f"--card {_quoted(_is(card, key))}" for key in left)
        texts = "; ".join(dict.fromkeys(found.lost[key] for key in left))
        raise UserError(f"{texts}: part of the network was lost? Get the file again, or accept it with {flags}")
    return [*(f"accepted as given: {text}" for text in found.lost.values()), *found.odd]


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


# -- what a file says of itself


def stated(meta: Mapping, card: Card) -> Iterator[tuple[str, str, object]]:
    """(where it is said, field of the card, value): blocks by architecture names, facts by configs.

    A name or config counts only if its width is that of the weights.
    """
    config = meta.get("config.json")
    config = config if isinstance(config, Mapping) else {}
    made = config.get("model_args") if isinstance(config.get("model_args"), Mapping) else {}  # timm's, beside its name
    tables = []
    if card.family == "vit" and made.get("embed_dim", card.dim) == card.dim:
        tables.append(("config.json: model_args", made, {"depth": "depth", "qkv_bias": "qkv_bias"}))
    if card.family == "vit" and config.get("hidden_size") == card.dim:
        keys = {"num_hidden_layers": "depth", "qkv_bias": "qkv_bias", "num_register_tokens": "registers"}
        tables.append(("config.json", config, keys))
    training = meta.get("config")  # of the official Swin code and MoBY
    model = training.get("MODEL") if isinstance(training, Mapping) else None
    swin = model.get("SWIN") if isinstance(model, Mapping) else None
    if card.family == "swin" and isinstance(swin, Mapping) and swin.get("EMBED_DIM") == card.dim:
        keys = {"DEPTHS": "depths", "QKV_BIAS": "qkv_bias", "PATCH_NORM": "patch_norm"}
        tables.append(("config: MODEL.SWIN", swin, keys))
    said = set()
    for where, table, keys in tables:
        for name, key in keys.items():
            value = tuple(table[name]) if isinstance(table.get(name), list) else table.get(name)
            if type(value) is type(getattr(card, key)):
                said.add(key)
                yield f"{where}: {name} {_text(value)}", key, value
    size = config.get("image_size")
    if type(size) is int and config.get("hidden_size") == card.dim and card.grid and size > 0:
        grid = size // card.patch
        yield f"config.json: image_size {size}", "pos", re.sub(r"\d+x\d+", f"{grid}x{grid}", card.pos)
    key = COUNTED.get(card.family)
    for where, arch in arch_names(meta) if key not in said else ():
        if (blocks := blocks_of(arch, card)) is not None:
            yield f"{where}: arch {shorten(arch)}", key, blocks


def blocks_of(arch: str, card: Card) -> int | tuple[int, ...] | None:
    """Blocks of the architecture of that name, if it is one of the card's family and width; else None."""
    if card.family == "vit":
        size = vit_size(arch)
        fits = size and ARCHITECTURES[size][0] == card.dim and not re.search(r"_\d+x\d", arch)  # timm's 18x2, 36x1
        return NAMED_VITS[size] if fits else None
    if card.family == "resnet":
        found = re.search(r"(?:^|_)resne(?:x)?t(\d+)(?!\d)", arch)
        number = int(found[1]) if found else 0
        width = 64 if number in BASIC else 256
        fits = card.widths[0] == width and (card.block == "basic") == (number in BASIC)
        return NAMED_RESNETS.get(number) if fits else None
    if card.family == "swin":
        found = re.search(r"swin_(tiny|small|base|large)", arch)
        width, blocks = NAMED_SWINS[found[1]] if found else (None, None)
        return blocks if width == card.dim else None
    return None


# -- the other networks of a file


def others(state: State, used: set[str]) -> Iterator[tuple[str, str, State]]:
    """(name of the network that was taken, name of another of its kind, the file with that one in its place).

    used: names of the tensors that the network was made of. Another of its kind has a stem of the same name and shape:
    the one weight that sees three channels. So each is read by the format as the first was, whatever its names.
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


# -- what can be said of a card alone


def unusual(card: Card) -> list[str]:
    """What no known network of this family has, in words."""
    if card.family == "vit":
        usual, size = VIT_BLOCKS.get(card.dim, OTHER_VITS), f" at a width of {card.dim}"
    elif card.family == "resnet":
        basic = card.block == "basic"
        usual, size = [b for n, b in NAMED_RESNETS.items() if (n in BASIC) == basic], ""
    elif card.family == "swin":
        usual, size = list(dict.fromkeys(blocks for _, blocks in NAMED_SWINS.values())), ""
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
    key = COUNTED.get(card.family)
    if key is None:
        return
    said = getattr(card, key)
    stages = said if isinstance(said, tuple) else (said,)
    if sum(stages) > MAX_BLOCKS:
        raise UserError(f"{sum(stages)} blocks ({_is(card, key)}) are no network: at most {MAX_BLOCKS}")
    patterns = {"vit": r"blocks\.(\d+)\.", "resnet": r"layer{}\.(\d+)\.", "swin": r"layers\.{}\.blocks\.(\d+)\."}
    for i, count in enumerate(stages):
        pattern = re.compile(patterns[card.family].format(i + (card.family == "resnet")))
        there = {m[1] for name in names if (m := pattern.match(name))}
        if len(there) != count:
            stage = f" in stage {i + 1}" if isinstance(said, tuple) else ""
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
