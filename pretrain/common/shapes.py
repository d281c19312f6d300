"""A network's card from the shapes of its weights, under timm's names."""

import math
import re
from collections.abc import Iterable, Mapping

from .card import MAX_BLOCKS, MAX_WINDOW, Card
from .errors import UserError

DEEP_STEM = ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")  # of a ResNet: three 3x3 convolutions


def shapes_of(weights: Mapping) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def vit_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A ViT's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name, which the caller adds) when the shapes cannot be a ViT's.
    """
    try:
        dim, channels, patch, patch_w = shapes["patch_embed.proj.weight"]
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
        gated = hidden == 2 * shapes["blocks.0.mlp.fc2.weight"][1]
        rotary, pos = "rope_periods" in shapes, _positions_in_attention(shapes)
        positions = 0 if rotary or pos else shapes["pos_embed"][1]
        registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
        per_head = 4 * shapes["rope_periods"][0] if rotary else 0
        depth = _count(shapes, r"blocks\.(\d{1,9})\.")
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a ViT: no usable {error}") from None
    class_token = "cls_token" in shapes
    grid = math.isqrt(max(positions - class_token, 0))
    wrong = not rotary and not pos and positions != grid * grid + class_token
    if channels != 3 or patch != patch_w or wrong or (rotary and (per_head == 0 or dim % per_head)):
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
        "pos": pos.get("pos") or ("rotary" if rotary else f"learned {grid}x{grid}"),
        "mlp_ratio": _ratio(hidden, dim),
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "act": "swiglu" if gated else "gelu (erf)",
        "readout": _readout(shapes, class_token),
    }
    facts |= {"pos_resize": "rotary", "heads": dim // per_head} if rotary else {}
    return Card(**(facts | pos | known))


TABLE, SHARED_TABLE = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"


def _positions_in_attention(shapes: Mapping[str, tuple]) -> dict:
    """Fields of a ViT's card by its tables of relative positions or stored rotary frequencies; {} where there are
    none."""
    if (frequencies := shapes.get("blocks.0.attn.rope_freqs")) is not None:
        return {"pos": "rotary, stored", "pos_resize": "rotary", "heads": shapes["norm.weight"][0] // frequencies[1]}
    if not (tables := [name for name in (TABLE, SHARED_TABLE) if name in shapes]):
        return {}
    rows, heads = shapes[tables[0]]
    grid = (math.isqrt(max(rows - 3, 0)) + 1) // 2
    if len(tables) > 1 or "pos_embed" in shapes:
        raise UserError("it has positions of two kinds: added ones and tables of relative ones, or two sorts of tables")
    if (2 * grid - 1) ** 2 + 3 != rows or "cls_token" not in shapes:
        raise UserError(f"{tables[0]} is {rows}x{heads}, not of a square grid and a class token")
    shared = ", shared" if tables[0] == SHARED_TABLE else ""
    return {"pos": f"relative {grid}x{grid}{shared}", "pos_resize": "window", "heads": heads}


def _readout(shapes: Mapping, class_token: bool) -> str:
    if "readout.cls_token" in shapes:
        return "class_attention"
    return "mean_norm" if "fc_norm.weight" in shapes else "token" if class_token else "mean"


def _ratio(hidden: int, dim: int) -> float:
    """hidden/dim such that timm's int(dim * ratio) gives `hidden` back."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def resnet_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A ResNet's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be a ResNet's.
    """
    _no_empty(shapes)
    try:
        stem = [shapes[name] for name in (DEEP_STEM if DEEP_STEM[0] in shapes else ("conv1.weight",))]
        blocks = tuple(_count(shapes, rf"layer{i}\.(\d{{1,9}})\.") for i in (1, 2, 3, 4))
        last = "conv3" if "layer1.0.conv3.weight" in shapes else "conv2"
        widths = tuple(shapes[f"layer{i}.0.{last}.weight"][0] for i in (1, 2, 3, 4))
        inner, per_group = shapes["layer1.0.conv2.weight"][:2]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a ResNet: no usable {error}") from None
    side = 3 if len(stem) > 1 else 7
    inputs = [3, *(shape[0] for shape in stem)]
    if any(shape[1:] != (channels, side, side) for shape, channels in zip(stem, inputs, strict=False)):
        found = ", ".join(str(list(shape)) for shape in stem)
        raise UserError(f"not a ResNet whose stem is one 7x7 convolution on RGB, or three of 3x3: conv1 is {found}")
    facts = {"block": "bottleneck, stride on the 3x3" if last == "conv3" else "basic"}
    planes = widths[0] // 4
    if last == "conv3" and per_group and (inner, per_group) != (planes, planes):
        groups = max(inner // per_group, 1)
        base_width = round(inner / groups * 64 / max(planes, 1))
        facts |= {"groups": groups if groups > 1 else None, "base_width": base_width if base_width != 64 else None}
    facts |= {"blocks": blocks, "stem_channels": stem[-1][0], "widths": widths, "bn_eps": 1e-5}
    facts |= {"stem_widths": (stem[0][0], stem[1][0])} if len(stem) > 1 else {}
    pooled = (shapes.get(f"layer{i}.0.downsample.1.weight", ()) for i in (1, 2, 3, 4))  # a convolution, not its norm
    facts |= {"avg_down": True} if any(len(shape) == 4 for shape in pooled) else {}
    return Card("resnet", **(facts | known))


def swin_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A Swin's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be a Swin's.
    """
    _no_empty(shapes)
    try:
        dim, channels, patch, patch_w = shapes["patch_embed.proj.weight"]
        stages = _count(shapes, r"layers\.(\d{1,9})\.")
        depths = tuple(_count(shapes, rf"layers\.{i}\.blocks\.(\d{{1,9}})\.") for i in range(stages))
        first = [f"layers.{i}.blocks.0." for i in range(stages)]
        rows = shapes[first[0] + "attn.relative_position_bias_table"][0]
        heads = tuple(shapes[name + "attn.relative_position_bias_table"][1] for name in first)
        hidden = shapes[first[0] + "mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a Swin: no usable {error}") from None
    window = (math.isqrt(rows) + 1) // 2
    if channels != 3 or patch != patch_w or (2 * window - 1) ** 2 != rows or not 1 <= window <= MAX_WINDOW:
        raise UserError(f"not a Swin on RGB: patch embedding {dim}x{channels}x{patch}x{patch_w}, {rows} positions")
    facts = {
        "patch": patch,
        "window": window,
        "dim": dim,
        "depths": depths,
        "heads": heads,
        "final_norm": "norm.weight" in shapes,
        "class_token": False,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        "absolute_pos": "absolute_pos_embed" in shapes,
        "mlp_ratio": hidden / dim,
        "qkv_bias": first[0] + "attn.qkv.bias" in shapes,
        "norm_eps": 1e-5,
        "sizes": "padded",
    }
    return Card("swin", **(facts | known))


def swinv2_card(shapes: Mapping[str, tuple], **known) -> Card:
    """The card of a Swin V2, whose window no weight shows; arguments and errors as of the others."""
    _no_empty(shapes)
    try:
        dim, channels, patch, patch_w = shapes["patch_embed.proj.weight"]
        stages = _count(shapes, r"layers\.(\d{1,9})\.")
        depths = tuple(_count(shapes, rf"layers\.{i}\.blocks\.(\d{{1,9}})\.") for i in range(stages))
        heads = tuple(shapes[f"layers.{i}.blocks.0.attn.logit_scale"][0] for i in range(stages))
        hidden = shapes["layers.0.blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a Swin V2: no usable {error}") from None
    if channels != 3 or patch != patch_w:
        raise UserError(f"not a Swin V2 on RGB: patch embedding {dim}x{channels}x{patch}x{patch_w}")
    facts = {"patch": patch, "dim": dim, "depths": depths, "heads": heads, "mlp_ratio": _ratio(hidden, dim)}
    facts |= {"qkv_bias": "layers.0.blocks.0.attn.q_bias" in shapes, "norm_eps": 1e-5}
    return Card("swinv2", **(facts | {"pretrained_windows": (0,) * stages} | known))


def xcit_card(shapes: Mapping[str, tuple], **known) -> Card:
    """An XCiT's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be an XCiT's.
    """
    _no_empty(shapes)
    try:
        dim, heads = shapes["cls_token"][2], shapes["blocks.0.attn.temperature"][0]
        depth, cls_depth = _count(shapes, r"blocks\.(\d{1,9})\."), _count(shapes, r"cls_attn_blocks\.(\d{1,9})\.")
        layers = {name.split(".")[2] for name in shapes if name.startswith("patch_embed.proj.")}
        patch = {("0", "2", "4"): 8, ("0", "2", "4", "6"): 16}[tuple(sorted(layers))]
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not an XCiT: no usable {error}") from None
    if dim % heads or (patch == 16 and dim % 8):
        raise UserError(f"not an XCiT: {heads} heads and patches of {patch}, {dim} wide")
    facts = {"patch": patch, "dim": dim, "depth": depth, "heads": heads, "cls_depth": cls_depth, "tokens_norm": False}
    facts |= {"mlp_ratio": _ratio(hidden, dim), "qkv_bias": "blocks.0.attn.qkv.bias" in shapes, "norm_eps": 1e-6}
    return Card("xcit", **(facts | known))


def eva_card(shapes: Mapping[str, tuple], **known) -> Card:
    """The card of an EVA-02 from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be an EVA-02's.
    """
    _no_empty(shapes)
    try:
        dim, channels, patch, patch_w = shapes["patch_embed.proj.weight"]
        positions, hidden = shapes["pos_embed"][1], shapes["blocks.0.mlp.fc2.weight"][1]
        depth = _count(shapes, r"blocks\.(\d{1,9})\.")
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not an EVA-02: no usable {error}") from None
    grid = math.isqrt(max(positions - 1, 0))
    if channels != 3 or patch != patch_w or positions != grid * grid + 1:
        raise UserError(f"not a square EVA-02 on RGB: {positions} positions and patches of {patch}x{patch_w}")
    norms = [part for part, name in (("mlp", "mlp"), ("attention", "attn")) if f"blocks.0.{name}.norm.weight" in shapes]
    facts = {"patch": patch, "dim": dim, "depth": depth, "final_norm": "norm.weight" in shapes, "act": "swiglu"}
    facts |= {"layer_scale": "blocks.0.gamma_1" in shapes, "pos": f"learned {grid}x{grid}", "pos_resize": "timm"}
    facts |= {"mlp_ratio": _ratio(hidden, dim), "qkv_bias": "blocks.0.attn.q_bias" in shapes, "norm_eps": 1e-6}
    facts |= {"inner_norms": " and ".join(norms) or "none", "readout": _readout(shapes, True), "rope_grid": 16}
    return Card("eva", **(facts | known))


def convnext_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A ConvNeXt's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be a ConvNeXt's.
    """
    _no_empty(shapes)
    try:
        stem = shapes["stem.0.weight"]
        depths = tuple(_count(shapes, rf"stages\.{i}\.blocks\.(\d{{1,9}})\.") for i in range(4))
        widths = tuple(shapes[f"stages.{i}.blocks.0.conv_dw.weight"][0] for i in range(4))
        kernel = shapes["stages.0.blocks.0.conv_dw.weight"][2:]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a ConvNeXt: no usable {error}") from None
    if len(stem) != 4 or stem[1] != 3 or stem[2] != stem[3] or kernel != (7, 7):
        raise UserError(f"not a ConvNeXt on RGB with kernels of 7: stem {list(stem)}, kernel {list(kernel)}")
    first = "stages.0.blocks.0."
    facts = {"patch": stem[2], "depths": depths, "widths": widths, "layer_scale": f"{first}gamma" in shapes}
    facts |= {"response_norm": f"{first}mlp.grn.weight" in shapes, "final_norm": "head.norm.weight" in shapes}
    return Card("convnext", **(facts | {"norm_eps": 1e-6} | known))


def _count(shapes: Iterable[str], pattern: str) -> int:
    """How many numbered members there are. Raises ValueError unless they are numbered 0, 1, 2 ... (1000 at most)."""
    numbers = {int(m[1]) for k in shapes if (m := re.match(pattern, k))}
    if not numbers or numbers != set(range(len(numbers))) or len(numbers) > MAX_BLOCKS:
        raise ValueError(f"numbering of {pattern.partition('(')[0]}".replace("\\", "").rstrip("."))
    return len(numbers)


def _no_empty(shapes: Mapping[str, tuple]) -> None:
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise UserError(f"{empty[0]} has no elements: {list(shapes[empty[0]])}")
