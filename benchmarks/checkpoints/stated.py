"""What a checkpoint's own arguments, or a config beside it, state of the network."""

import re
from collections.abc import Iterator, Mapping

from ...pretrain.common.card import ARCHITECTURES, Card, parse_field
from ...pretrain.common.errors import shorten
from ...pretrain.common.weights import about_of

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
GIVEN = "--heads"  # the place of what the user gave, for formats that need it to read a file
COUNTED = {
    "vit": "depth",
    "resnet": "blocks",
    "swin": "depths",
    "swinv2": "depths",
    "xcit": "depth",
    "eva": "depth",
    "convnext": "depths",
}  # family -> its field of numbers of blocks


def heads_from(meta: Mapping, dim: int) -> tuple[int | None, str]:
    """Number of heads that the file (or the config.json beside it) states, and where it says so.

    The arch counts only if its width fits. (None, reason) otherwise; the reason goes into the error.
    """
    reason = "nothing in the file says how many attention heads it has"
    for where, table in _statements(meta).items():
        for key in ("num_heads", "num_attention_heads", "heads"):
            if type(table.get(key)) is int and table[key] > 0:
                return table[key], f"{where}: {key}"
        arch = _arch(table)
        size = vit_size(arch) if arch else None
        if size and ARCHITECTURES[size][0] == dim:
            return ARCHITECTURES[size][1], f"{where}: arch {shorten(arch)}"
        if arch:
            wide = f"is {ARCHITECTURES[size][0]} wide" if size else "is not a name known here"
            reason = f"{where}: arch {shorten(arch)} {wide}, the weights are {dim} wide"
    return None, reason


def usual_heads(dim: int) -> int | None:
    """Heads of the usual ViT of a width, 64 channels each; None where no usual one is so wide. Never applied."""
    named = {width: heads for width, heads in ARCHITECTURES.values()}
    return named.get(dim, dim // 64 if dim >= min(named) and dim % 64 == 0 else None)


def facts_of(meta: Mapping) -> dict[str, str]:
    """Where the facts of a card of ours came from, as `convert` and `export` wrote it beside the weights, and of which
    file it was made."""
    about = about_of(meta.get("__metadata__"))
    facts = table_in(about, "facts") | ({"converted": about["file"]} if "file" in about else {})
    return {shorten(key): shorten(value, 400) for key, value in facts.items()}


COUNTERS = ("step", "steps", "iter", "iteration", "global_step", "epoch")


def trained_for(meta: Mapping) -> str | None:
    """How long the network was trained, as the file says: `step 80`; None where it says nothing, or nothing above 0."""
    about = about_of(meta.get("__metadata__"))
    if isinstance(about.get("trained"), str):  # of the file that this one was converted from
        return shorten(about["trained"])
    for table in (about, meta, table_in(meta, "meta")):
        for key in COUNTERS:
            if type(table.get(key)) is int and table[key] > 0:
                return f"{key} {table[key]}"
    return None


def vit_size(arch: str) -> str | None:
    """The size that an architecture's name tells: a key of ARCHITECTURES, or None."""
    return next((size for size in ARCHITECTURES if re.search(rf"(vit|deit)_{size}", arch)), None)


def stated(meta: Mapping, card: Card) -> Iterator[tuple[str, str, object]]:
    """(where it is said, field of the card, value): blocks by architecture names, facts by configs.

    A name or config counts only if its width is that of the weights.
    """
    config, arguments = table_in(meta, "config.json"), table_in(meta, "config.json", "model_args")  # timm's
    swin = table_in(meta, "config", "MODEL", "SWIN")  # of the official Swin code and MoBY
    tables = []
    if card.family == "vit" and arguments.get("embed_dim", card.dim) == card.dim:
        tables.append(("config.json: model_args", arguments, {"depth": "depth", "qkv_bias": "qkv_bias"}))
    if card.family == "vit" and config.get("hidden_size") == card.dim:
        keys = {"num_hidden_layers": "depth", "qkv_bias": "qkv_bias", "num_register_tokens": "registers"}
        tables.append(("config.json", config, keys))
    if card.family == "convnext" and config.get("hidden_sizes") == list(card.widths):
        tables.append(("config.json", config, {"depths": "depths"}))
    if card.family == "swin" and swin.get("EMBED_DIM") == card.dim:
        keys = {"DEPTHS": "depths", "QKV_BIAS": "qkv_bias", "PATCH_NORM": "patch_norm"}
        tables.append(("config: MODEL.SWIN", swin, keys))
    if card.family == "swin" and config.get("embed_dim") == card.dim:  # Hugging Face's
        tables.append(("config.json", config, {"depths": "depths", "num_heads": "heads", "window_size": "window"}))
    if card.family == "resnet" and config.get("hidden_sizes") == list(card.widths):
        tables.append(("config.json", config, {"depths": "blocks"}))
    stated_already = set()
    for where, table, keys in tables:
        for name, key in keys.items():
            value = tuple(table[name]) if isinstance(table.get(name), list) else table.get(name)
            if type(value) is type(getattr(card, key)):
                stated_already.add(key)
                yield f"{where}: {name} {text_of(value)}", key, value
    size = config.get("image_size")
    own = card.family == "vit" and config.get("hidden_size") == card.dim
    if type(size) is int and own and card.grid and size > 0:
        grid = size // card.patch
        yield f"config.json: image_size {size}", "pos", re.sub(r"\d+x\d+", f"{grid}x{grid}", card.pos)
    key = COUNTED.get(card.family)
    for where, table in _statements(meta).items() if key not in stated_already else ():
        if (arch := _arch(table)) and (blocks := blocks_of(arch, card)) is not None:
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
    if card.family in ("swin", "swinv2"):
        found = re.search(rf"{card.family}_(tiny|small|base|large)", arch)
        width, blocks = NAMED_SWINS[found[1]] if found else (None, None)
        return blocks if width == card.dim else None
    return None


def text_of(value) -> str:
    """A value as it is said, short enough for a message."""
    return shorten(",".join(map(str, value)) if isinstance(value, tuple) else value, 80)


def normalisation_from(meta: Mapping) -> dict[str, tuple]:
    """Mean and std that timm, or a config beside the file (timm's or Hugging Face's) states, else {}."""
    return normalisation_in(meta)[0]


def normalisation_in(meta: Mapping) -> tuple[dict[str, tuple], str]:
    """Mean and std, and the place that states them; ({}, "") where nothing does. Of other places than configs only
    what can be of images in 0..1 counts."""
    for place in ("timm", "preprocessor_config.json", "config.json", "args", "args.yaml"):
        config = table_in(meta, place, "pretrained_cfg") or table_in(meta, place)
        if config.get("do_normalize") is False:
            return {"mean": (0.0,) * 3, "std": (1.0,) * 3}, f"{place}: do_normalize false"
        found = {}
        for field_name, keys in (("mean", ("mean", "image_mean")), ("std", ("std", "image_std"))):
            values = next((config[k] for k in keys if _numbers(config.get(k))), None)
            if values is not None and ("args" not in place or _of_unit(values)):
                found[field_name] = parse_field(field_name, values)
        if len(found) == 2:
            return found, place
    return {}, ""


def _numbers(value) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _of_unit(values) -> bool:
    """Can they be of images in 0..1? A code base's arguments may mean something else by the words."""
    listed = values if isinstance(values, (list, tuple)) else [values]
    return bool(listed) and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in listed)


def table_in(meta: Mapping, *keys: str) -> Mapping:
    """The table under these keys, one below the other; an empty one where there is none."""
    for key in keys:
        meta = meta.get(key) if isinstance(meta, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def _statements(meta: Mapping) -> dict[str, Mapping]:
    """The tables in which a file, or what lies beside it, may say what network it is, by where they are."""
    places = {GIVEN: meta.get(GIVEN), "args": meta.get("args"), "the file": meta}
    places["args.yaml"] = meta.get("args.yaml")  # timm's, as the two below
    places |= {f"{k}: model_kwargs": table_in(meta, k, "model_kwargs") for k in ("args", "args.yaml")}
    places["config.json: model_args"] = table_in(meta, "config.json", "model_args")
    places |= {k: meta.get(k) for k in ("config.json", "timm")}
    return {where: table for where, table in places.items() if isinstance(table, Mapping)}


def architectures(meta: Mapping) -> Iterator[tuple[str, str, Mapping]]:
    """(where it is said, name of an architecture, the table that says it)"""
    for where, table in _statements(meta).items():
        if arch := _arch(table):
            yield f"{where}: arch", arch, table


def _arch(table: Mapping) -> str | None:
    return next((table[k] for k in ("arch", "architecture", "model") if isinstance(table.get(k), str)), None)
