"""Architecture card: what a state dict does not say.

A state dict never reveals its number of heads, its normalisation or how its positions are resized. The card holds
all of it, one field for every fact that changes a feature; it is stored in every record.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from .errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# How the positions of another grid are made from the stored G x G ones (implemented in encoder.py).
POSITION_RULES = {
    "dino": "bicubic, scale factor ((h+0.1)/G, (w+0.1)/G); the stored square grid is left as it is",
    "timm": "bicubic with antialiasing to (h, w); the stored grid is left as it is",
    "size": "bicubic to (h, w)",
}
READOUTS = ("token", "class_attention", "mean")

# Widths and heads of the names that `args.arch` uses; a name counts only if its width is that of the weights.
ARCHITECTURES = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
}


@dataclass(frozen=True)
class Card:
    """The facts of a network. None: unknown; a task refuses to run while heads, mean or std are.

    patch, dim, depth, heads: pixels, width, blocks, attention heads. pos: kind and stored grid, `learned 14x14`.
    pos_resize: a key of POSITION_RULES. readout: where the image vector comes from (READOUTS).
    mean, std: of RGB in 0..1, per channel.
    """

    family: str
    patch: int
    dim: int
    depth: int
    heads: int | None = None
    class_token: bool = True
    final_norm: bool = True
    registers: int = 0
    layer_scale: bool = False
    pos: str = "learned 14x14"
    pos_resize: str = "dino"
    norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    act: str = "gelu (erf)"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    readout: str = "token"

    @property
    def grid(self) -> int:
        """Side G of the stored position grid."""
        return int(self.pos.rpartition("x")[2])

    def as_dict(self) -> dict:
        """Plain types, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def override(self, values: Mapping[str, object]) -> "Card":
        """A card with some fields replaced; texts are converted. Raises UserError for an unknown field or bad value."""
        return replace(self, **{key: parse_field(key, value) for key, value in values.items()})


FIELDS = {f.name: f for f in fields(Card)}
# Largest sizes taken from a card: far above any network, far below what would keep a machine busy.
LIMITS = {"patch": 1024, "dim": 65536, "depth": 1000, "heads": 65536, "registers": 1024, "mlp_ratio": 64}


def parse_field(key: str, value):
    """`value` (text or Python) as the type of the card's field `key`. Raises UserError that names what is valid."""
    if key not in FIELDS:
        raise UserError(f"the card has no field {key}; there are: {', '.join(FIELDS)}")
    try:
        parsed = _convert(key, value)
    except (TypeError, ValueError):
        kind = "1 or 3 numbers, like 0.5 or 0.485,0.456,0.406" if key in ("mean", "std") else str(FIELDS[key].type)
        raise UserError(f"card {key}={value}: not {kind}") from None
    if key in LIMITS and parsed > LIMITS[key]:
        raise UserError(f"card {key}={value}: at most {LIMITS[key]}")
    choices = {"pos_resize": tuple(POSITION_RULES), "readout": READOUTS}.get(key)
    if choices and parsed not in choices:
        raise UserError(f"card {key}={value}: it is one of {', '.join(choices)}")
    return parsed


def _convert(key: str, value):
    if key in ("mean", "std"):
        parts = re.split(r"[,\s]+", value.strip("[]() ")) if isinstance(value, str) else value
        numbers = [float(v) for v in (parts if isinstance(parts, (list, tuple)) else [parts])]
        numbers = numbers * 3 if len(numbers) == 1 else numbers
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or (key == "std" and min(numbers) <= 0):
            raise ValueError
        return tuple(numbers)
    kind = str(FIELDS[key].type)
    if "bool" in kind:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
    if "int" in kind:
        number = int(str(value))
        if number < (0 if key == "registers" else 1):
            raise ValueError
        return number
    if "float" in kind:
        number = float(value)
        if not 0 < number < math.inf:
            raise ValueError
        return number
    if key == "pos" and not re.fullmatch(r"\w+ (\d{1,4})x\1", str(value)):
        raise ValueError
    return str(value)


def vit_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A ViT's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name, which the caller adds) when the shapes cannot be a ViT's.
    """
    try:
        dim, channels, patch, patch_w = shapes["patch_embed.proj.weight"]
        positions = shapes["pos_embed"][1]
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a ViT: no usable {error}") from None
    blocks = {int(m[1]) for k in shapes if (m := re.match(r"blocks\.(\d{1,9})\.", k))}
    depth = len(blocks)
    if blocks != set(range(depth)):
        raise UserError(f"not a ViT: its {depth} blocks are not numbered 0 to {depth - 1}")
    class_token = "cls_token" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    grid = math.isqrt(positions)
    if grid * grid != positions:
        grid = math.isqrt(positions - 1)
    if channels != 3 or patch != patch_w or positions - grid * grid not in ((0, 1) if class_token else (0,)):
        embedding = f"{dim}x{channels}x{patch}x{patch_w}"
        raise UserError(f"not a square ViT on RGB: patch embedding {embedding}, {positions} positions")
    facts = {
        "family": "vit",
        "patch": patch,
        "dim": dim,
        "depth": depth,
        "class_token": class_token,
        "final_norm": "norm.weight" in shapes,
        "registers": registers,
        "layer_scale": "blocks.0.ls1.gamma" in shapes,
        "pos": f"learned {grid}x{grid}",
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "readout": "class_attention" if "readout.cls_token" in shapes else "token" if class_token else "mean",
    }
    return Card(**(facts | known))


def heads_from(meta: Mapping, dim: int) -> tuple[int | None, str]:
    """Number of heads that the file (or the config.json beside it) states, and where it says so.

    The arch counts only if its width fits. (None, reason) otherwise; the reason goes into the error.
    """
    reason = "nothing in the file says how many attention heads it has"
    for where, table in (("args", meta.get("args")), ("the file", meta), ("config.json", meta.get("config.json"))):
        if not isinstance(table, Mapping):
            continue
        for key in ("num_heads", "num_attention_heads", "heads"):
            if isinstance(table.get(key), int) and table[key] > 0:
                return table[key], f"{where}: {key}"
        arch = table.get("arch") or table.get("architecture")
        size = next((s for s in ARCHITECTURES if isinstance(arch, str) and re.search(rf"(vit|deit)_{s}", arch)), None)
        if size and ARCHITECTURES[size][0] == dim:
            return ARCHITECTURES[size][1], f"{where}: arch {arch}"
        if arch:
            wide = f"is {ARCHITECTURES[size][0]} wide" if size else "is not a name known here"
            reason = f"{where}: arch {arch} {wide}, the weights are {dim} wide"
    return None, reason


def normalisation_from(meta: Mapping) -> dict[str, tuple]:
    """Mean and std that a config.json beside the file (timm's or Hugging Face's) states, else {}."""
    config = meta.get("config.json")
    if not isinstance(config, Mapping):
        return {}
    config = config.get("pretrained_cfg", config)
    found = {}
    for field_name, keys in (("mean", ("mean", "image_mean")), ("std", ("std", "image_std"))):
        for key in keys:
            if isinstance(config.get(key), (list, tuple)):
                found[field_name] = parse_field(field_name, config[key])
    return found if len(found) == 2 else {}
