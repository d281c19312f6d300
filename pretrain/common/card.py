"""Architecture card: what a state dict does not say.

A state dict never reveals its number of heads, its normalisation or how its positions are resized. The card holds
all of it, one field for every fact that changes a feature; it is stored in every record.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from .errors import UserError, shorten
from .ranges import bounded, check_value, one_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# How the positions of another grid are made from the stored G x G ones (implemented in positions.py).
POSITION_RULES = {
    "dino": "bicubic, scale factor ((h+0.1)/G, (w+0.1)/G); the stored square grid is left as it is",
    "timm": "bicubic with antialiasing to (h, w); the stored grid is left as it is",
    "size": "bicubic to (h, w)",
    # The format's code has none for other grids; then it is DINO's, marked as assumed.
    "square": "bicubic to (h, w) for square grids; else as dino (assumed)",
    "stored": "the stored grid only; else as dino (assumed)",
    "rotary": "no stored positions: queries and keys are rotated by the place of their patch in the image",
    # Of tables of relative positions: (2G-1) x (2G-1) biases of the attention, and three of the class token.
    "bilinear": "the table bilinear to (2h-1, 2w-1); the stored one is left as it is",
    "window": "the stored grid only; else as bilinear (assumed)",
}
RELATIVE_RULES = ("bilinear", "window")
# Widths and heads of the names that `args.arch` uses; a name counts only if its width is that of the weights.
ARCHITECTURES = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
}
# A ResNet's blocks: where a stage's stride is cannot be seen in the weights.
BLOCKS = ("bottleneck, stride on the 3x3", "bottleneck, stride on the 1x1", "basic")
# What becomes of an image whose sides are not multiples of patch x window x 2^(stages - 1), 224 for Swin-T: the
# official pretraining code refuses it, so the rule is not the format's but that of Swin's detection code (swin.py).
# The other rules are those of the code that wrote the weights, where it takes such sizes at all.
SIZE_RULES = {
    "padded": "zeros at the bottom and right, to whole patches and in each block to whole windows (assumed)",
    "padded_own": "as padded; sides of less than a window are assumed",
    "padded_axes": "as padded; windows are shifted along each axis of more than one; of whole patches, else assumed",
    "padded_fixed": "as padded; never shifted where 224 pixels are one window; squares of 224 and more, else assumed",
}
# Fields of a network of a user's own, whose family is its name (benchmarks/backbones/networks.py): those that it must
# have, and those that it may have.
OWN = ("strides", "widths")
OWN_MORE = ("patch", "dim", "depth", "heads", "window", "depths", "blocks", "groups", "base_width", "probe")
# Each family's fields beside family, mean and std.
FAMILIES = {
    "vit": (
        *("patch", "dim", "depth", "heads", "class_token", "final_norm", "registers", "layer_scale", "pos"),
        *("pos_resize", "norm_eps", "mlp_ratio", "qkv_bias", "act", "readout", "norm", "proj_bias"),
    ),
    "resnet": (
        *("block", "blocks", "stem_channels", "widths", "groups", "base_width", "bn_eps"),
        *("stem_widths", "avg_down"),
    ),
    "swin": (
        *("patch", "window", "dim", "depths", "heads", "final_norm", "class_token", "patch_norm", "absolute_pos"),
        *("mlp_ratio", "qkv_bias", "norm_eps", "act", "sizes"),
    ),
    "swinv2": (
        *("patch", "window", "dim", "depths", "heads", "final_norm", "mlp_ratio", "qkv_bias", "norm_eps", "act"),
        "pretrained_windows",
    ),
    "xcit": (
        *("patch", "dim", "depth", "heads", "cls_depth", "tokens_norm", "class_token", "final_norm", "mlp_ratio"),
        *("qkv_bias", "norm_eps", "act"),
    ),
    "eva": (
        *("patch", "dim", "depth", "heads", "class_token", "final_norm", "layer_scale", "pos", "pos_resize"),
        *("norm_eps", "mlp_ratio", "qkv_bias", "act", "readout", "inner_norms", "rope_grid"),
    ),
    "convnext": ("patch", "depths", "widths", "layer_scale", "response_norm", "final_norm", "norm_eps", "act"),
}
PLAIN = ("groups", "base_width", "stem_widths", "avg_down")  # of a ResNet: None in a plain one
UNSAID = {**dict.fromkeys(PLAIN), "norm": "layer", "proj_bias": True}  # what a card is silent of where it is so
MAY_LACK = {"heads", "mean", "std", *PLAIN}  # what a card can be made without
# Largest sizes taken from a card: far above any network, far below what would keep a machine busy.
MAX_WIDTH, MAX_BLOCKS, MAX_WINDOW = 65536, 1000, 32


@dataclass(frozen=True)
class Card:
    """The facts of a network. None: unknown; a task refuses to run while heads, mean or std are.

    patch, dim, depth, heads: pixels, width, blocks, attention heads. pos: kind and stored grid, `learned 14x14`, or of
    relative positions `relative 14x14` (a table in each block; with `, shared` one for all), or `rotary` (with
    `, stored` by frequencies that each block stores). pos_resize: a key of POSITION_RULES. norm: LayerNorm or RMSNorm.
    proj_bias: have the attention's projection and the MLP biases? act: of the MLP. readout: what the image vector is:
    the normed class token, SelfPatch's class attention, the mean of the normed patches, the norm of their mean, or the
    mean of the normed class token and of the one after it (DeiT's distillation token). mean, std: of RGB in 0..1, per
    channel.

    Swin: dim is the width of the first stage; depths and heads of each stage; window: its side in tokens. ResNet:
    block: one of BLOCKS; blocks and widths (channels of the output) of each stage; groups and base_width of the 3x3
    convolutions where they are not 1 and 64 (ResNeXt, wide ResNet); stem_widths: channels of the first two of three 3x3
    convolutions that stand for the 7x7 one; avg_down: shortcuts halve by average pooling (both: ResNet-C, -D). sizes: a
    key of SIZE_RULES. Swin V2: as Swin; pretrained_windows: sides by which each stage divides its distances (0: its
    window); window: None where the file does not say it.

    EVA-02: inner_norms: LayerNorms inside a block's parts; rope_grid: side of the grid whose places the rotation has.
    XCiT: cls_depth: blocks of class attention; tokens_norm: do they norm the patches too? ConvNeXt: depths and widths
    of each stage; response_norm: has it ConvNeXt V2's global response norms?

    A network of a user's own: family is its name; strides (pixels) and widths (channels) are those of each block's map;
    probe: hash of what it gives for a drawn picture, to two digits, so that with other code it is another network.

    Raises UserError for a family without all that it needs.
    """

    family: str
    patch: int | None = bounded(None, at_least=1, at_most=1024)
    dim: int | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    depth: int | None = bounded(None, at_least=1, at_most=MAX_BLOCKS)
    heads: int | tuple[int, ...] | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    class_token: bool = True
    final_norm: bool = True
    registers: int = bounded(0, at_least=0, at_most=1024)
    layer_scale: bool = False
    pos: str = "learned 14x14"
    pos_resize: str = one_of(*POSITION_RULES)
    norm_eps: float = bounded(1e-6, above=0)
    mlp_ratio: float = bounded(4.0, above=0, at_most=64)
    qkv_bias: bool = True
    act: str = one_of("gelu (erf)", "gelu (tanh)", "swiglu")
    mean: tuple[float, ...] | None = bounded(None, at_least=0, at_most=1)
    std: tuple[float, ...] | None = bounded(None, above=0, at_most=1)
    readout: str = one_of("token", "class_attention", "mean", "mean_norm", "token_pair")
    norm: str = one_of("layer", "rms")
    proj_bias: bool = True
    window: int | None = bounded(None, at_least=1, at_most=MAX_WINDOW)
    depths: tuple[int, ...] | None = bounded(None, at_least=1, at_most=MAX_BLOCKS)
    patch_norm: bool | None = None
    absolute_pos: bool | None = None
    sizes: str | None = one_of(None, *SIZE_RULES)
    block: str | None = one_of(None, *BLOCKS)
    blocks: tuple[int, ...] | None = bounded(None, at_least=1, at_most=MAX_BLOCKS)
    stem_channels: int | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    widths: tuple[int, ...] | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    groups: int | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    base_width: int | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    bn_eps: float | None = bounded(None, above=0)
    cls_depth: int | None = bounded(None, at_least=0, at_most=MAX_BLOCKS)
    tokens_norm: bool | None = None
    response_norm: bool | None = None
    inner_norms: str | None = one_of(None, "none", "mlp", "attention", "mlp and attention")
    rope_grid: int | None = bounded(None, at_least=1, at_most=1024)
    strides: tuple[int, ...] | None = bounded(None, at_least=1, at_most=256)
    probe: str | None = None
    pretrained_windows: tuple[int, ...] | None = bounded(None, at_least=0, at_most=MAX_WINDOW)
    stem_widths: tuple[int, ...] | None = bounded(None, at_least=1, at_most=MAX_WIDTH)
    avg_down: bool | None = None

    def __post_init__(self):
        if self.own:
            for key in ("readout", "pos"):
                object.__setattr__(self, key, "own")
            object.__setattr__(self, "class_token", False)
            if lacking := [key for key in OWN if getattr(self, key) is None]:
                raise UserError(f"the card of {self.family} lacks {', '.join(lacking)}")
            if len(self.strides) != len(self.widths):
                raise UserError(f"{len(self.strides)} strides and {len(self.widths)} widths: one of each for a block")
        if self.family in ("resnet", "convnext", "swinv2"):  # none of these has one, and their cards do not speak of it
            object.__setattr__(self, "class_token", False)
        if self.family == "vit" and not isinstance(self.heads, int | None):
            raise UserError(f"heads={self.heads}: a ViT has one number of heads")
        if self.family == "vit" and self.pos.startswith("relative") != (self.pos_resize in RELATIVE_RULES):
            raise UserError(f"pos_resize={self.pos_resize} is no rule for positions that are {self.pos}")
        own = FAMILIES.get(self.family, ())
        may_lack = MAY_LACK | ({"window"} if self.family == "swinv2" else set())
        if lacking := [key for key in own if key not in may_lack and getattr(self, key) is None]:
            raise UserError(f"a card of family {self.family} lacks {', '.join(lacking)}")

    @property
    def own(self) -> bool:
        """Is it of a network of a user's own?"""
        return self.family not in FAMILIES

    @property
    def size(self) -> str:
        """The network's size in a few words, for messages."""
        if self.own:
            return f"{self.family}, maps {'/'.join(map(str, self.widths))} wide"
        stages = {"resnet": (self.blocks, self.widths), "convnext": (self.depths, self.widths)}
        stages = (stages | dict.fromkeys(("swin", "swinv2"), (self.depths, (self.dim,)))).get(self.family)
        if stages is None:
            return f"{self.dim} wide, {self.depth} blocks"
        return f"{self.family} of {'/'.join(map(str, stages[0]))} blocks, {'/'.join(map(str, stages[1]))} wide"

    @property
    def grid(self) -> int:
        """Side G of the stored position grid; 0 where none is stored."""
        found = re.search(r"\d+x(\d+)", self.pos)
        return int(found[1]) if found else 0

    @property
    def staged(self) -> bool:
        """Are its maps those of stages, each coarser and wider than the one before, and not all of one size?"""
        return self.family not in ("vit", "xcit", "eva")

    @property
    def absolute(self) -> bool:
        """Are positions vectors that are added to a ViT's patches, and not part of its attention?"""
        return not self.pos.startswith(("rotary", "relative"))

    def as_dict(self) -> dict:
        """Plain types, for JSON: the fields of the card's family."""
        if self.own:
            fields_of = (*("family", "mean", "std"), *OWN, *(k for k in OWN_MORE if getattr(self, k) is not None))
            return {k: list(v) if isinstance(v := getattr(self, k), tuple) else v for k in fields_of}
        keep = {"family", "mean", "std", *FAMILIES[self.family]}
        keep -= {key for key, value in UNSAID.items() if getattr(self, key) == value}
        keep |= {"readout"} if self.readout == "class_attention" else set()  # else a Swin's: the mean of the last map
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k in keep}

    @classmethod
    def from_dict(cls, facts: Mapping[str, object]) -> "Card":
        """The card whose `as_dict` this is. Raises UserError for a bad value or unknown field."""
        unknown = {k for k, v in facts.items() if v is None and k in FIELDS and FIELDS[k].default is None}
        return cls(**{k: None if k in unknown else parse_field(k, v) for k, v in facts.items()})

    def override(self, values: Mapping[str, object]) -> "Card":
        """A card with some fields replaced; texts are converted. Raises UserError for a bad value or unknown field."""
        own = (*FAMILIES.get(self.family, (*OWN, *OWN_MORE)), "mean", "std")
        for key in values:
            if key in FIELDS and key not in own:
                raise UserError(f"the card of a {self.family} has no field {key}; there are: {', '.join(own)}")
        return replace(self, **{key: parse_field(key, value) for key, value in values.items()})


FIELDS = {f.name: f for f in fields(Card)}
NAMES = {"family": r"[A-Za-z]\w{0,63}", "probe": r"[0-9a-f]{1,64}"}
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse_field(key: str, value):
    """`value` (text or Python) as the type of the card's field `key`. Raises UserError that names what is valid."""
    if key not in FIELDS:
        raise UserError(f"the card has no field {shorten(key)}; there are: {', '.join(FIELDS)}")
    try:
        parsed = _convert(key, value)
    except (TypeError, ValueError, KeyError):
        needed = FIELDS[key].type
        needed = needed.__name__ if isinstance(needed, type) else needed
        if key in ("mean", "std"):
            needed = "1 or 3 numbers, like 0.5 or 0.485,0.456,0.406"
        raise UserError(f"card {key}={shorten(value)}: not {needed}") from None
    check_value(FIELDS[key], parsed, f"card {key}")
    return parsed


def _convert(key: str, value):
    """The value as the field's type; ValueError, TypeError or KeyError for one that is not of it."""
    wanted = str(FIELDS[key].type)
    if key in ("mean", "std"):
        parsed = tuple(float(v) for v in _listed(value))
        parsed = parsed * 3 if len(parsed) == 1 else parsed
        valid = len(parsed) == 3
    elif wanted.startswith("tuple") or (key == "heads" and isinstance(value, (list, tuple))):  # one for each stage
        parsed = tuple(int(str(v)) for v in _listed(value))
        valid = 1 <= len(parsed) <= (MAX_BLOCKS if key in OWN else 16)
    else:
        cls = next(cls for cls in (bool, int, float, str) if cls.__name__ in wanted)
        parsed = WORDS[str(value).lower()] if cls is bool else cls(value if cls is float else str(value))
        valid = key != "pos" or re.fullmatch(r"rotary(, stored)?|\w+ (\d{1,4})x\2(, stored|, shared)?", parsed)
    if not valid or (key in NAMES and not re.fullmatch(NAMES[key], parsed)):
        raise ValueError
    return parsed


def _listed(value) -> list:
    """The parts of a list, of its text `1,2 3`, or the one value."""
    if isinstance(value, str):
        return re.split(r"[,\s]+", value.strip("[]() "))
    return list(value) if isinstance(value, (list, tuple)) else [value]
