"""What a checkpoint's own arguments, or a config beside it, state of the network."""

import re
from collections.abc import Mapping

from ...pretrain.common.card import ARCHITECTURES, parse_field
from ...pretrain.common.errors import shorten


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


def arch_names(meta: Mapping) -> list[tuple[str, str]]:
    """(where it is said, name) of every architecture that the file names."""
    found = {where: _arch(table) for where, table in _statements(meta).items()}
    return [(where, arch) for where, arch in found.items() if arch]


def vit_size(arch: str) -> str | None:
    """The size that an architecture's name tells: a key of ARCHITECTURES, or None."""
    return next((size for size in ARCHITECTURES if re.search(rf"(vit|deit)_{size}", arch)), None)


def normalisation_from(meta: Mapping) -> dict[str, tuple]:
    """Mean and std that timm, or a config beside the file (timm's or Hugging Face's) states, else {}."""
    for place in ("timm", "preprocessor_config.json", "config.json"):
        config = meta.get(place)
        if not isinstance(config, Mapping):
            continue
        config = config["pretrained_cfg"] if isinstance(config.get("pretrained_cfg"), Mapping) else config
        found = {}
        for field_name, keys in (("mean", ("mean", "image_mean")), ("std", ("std", "image_std"))):
            for key in keys:
                if isinstance(config.get(key), (list, tuple)):
                    found[field_name] = parse_field(field_name, config[key])
        if len(found) == 2:
            return found
    return {}


def _statements(meta: Mapping) -> dict[str, Mapping]:
    """The tables in which a file, or what lies beside it, may say what network it is, by where they are."""
    places = {"args": meta.get("args"), "the file": meta} | {k: meta.get(k) for k in ("config.json", "timm")}
    return {where: table for where, table in places.items() if isinstance(table, Mapping)}


def _arch(table: Mapping) -> str | None:
    return next((table[k] for k in ("arch", "architecture", "model") if isinstance(table.get(k), str)), None)
