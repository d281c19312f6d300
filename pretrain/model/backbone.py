"""Vision transformers from timm, run the way the DINO family runs them; Swin's own part is in swin.py.

The network is timm's, under timm's parameter names; only what differs is here: which tokens there are, positions at
other sizes than the stored one, masked patches, initialisation, and the final norm, which belongs to the readout.

A backbone has `num_features` (the width of a final token), `stride` (its pixels), `final_eps`, `blocks`, `cls_token`.
"""

import difflib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common.errors import UserError
from ..common.positions import resize_positions
from ..options import Network
from .droppath import take_over
from .heads import init_linear
from .swin import SHORT_SWIN, SWIN_OPTIONS, Swin, become_swin

# vit_small_patch8 and the like: timm's network of that width at any patch size, also one that timm does not list.
SHORT = re.compile(r"(vit_(?:tiny|small|base|large))_patch(\d+)")


class Tokens(NamedTuple):
    """Last block's output, before any norm: cls [M, D] or None, patch [M, N, D] row-major, hw = (h, w) with N = h w."""

    cls: Tensor | None
    patch: Tensor
    hw: tuple[int, int]


def build_backbone(
    cfg: Network, image_size: int, drop_path: float = 0.0, mask_token: bool = False
) -> VisionTransformer | Swin:
    """A timm ViT or Swin without classifier and final norm, initialised as the official code does.

    image_size: side of the square images, where `cfg` says none: of a ViT, whose grid the learned positions have, of a
    Swin, which it will mostly see. drop_path: stochastic depth, per sample, rising linearly from 0 to this over the
    blocks. mask_token: adds `masked_embed` [1, D], which stands for masked patches.
    Raises UserError for an unknown name, another kind of network, or an image size that the patch does not divide.
    """
    name, class_token, image_size = cfg.backbone, cfg.class_token, cfg.image_size or image_size
    swin = name.startswith("swin")
    if swin and (class_token or mask_token):
        lacks = "class token: network.class_token=false" if class_token else "token for masked patches: use a ViT"
        raise UserError(f"network.backbone={name}: a Swin has no {lacks}")
    options = {"img_size": image_size, "num_classes": 0, "global_pool": "", "drop_path_rate": drop_path}
    if swin:
        options |= SWIN_OPTIONS
    elif class_token is not None:
        options["class_token"] = class_token
    full, given = timm_name(name)
    options |= given | dict(cfg.overrides)
    try:
        network = timm.create_model(full, pretrained=False, **options)
    except Exception as error:  # arguments that nobody checked before
        raise UserError(f"network.backbone={name} cannot be built with {options}: {error}") from error
    patches = isinstance(getattr(network, "patch_embed", None), PatchEmbed)
    if patches and type(network) is SwinTransformer:
        become_swin(network)
    elif patches and isinstance(network, VisionTransformer) and network.pos_embed is not None:
        become_vit(network)
    else:
        kinds = "not a plain ViT with learned positions, nor a plain Swin"
        raise UserError(f"network.backbone={name}: {kinds}, the kinds there are")
    take_over(network)
    if mask_token:
        network.masked_embed = nn.Parameter(torch.zeros(1, network.embed_dim))
    check_size(network, image_size)
    return network


def timm_name(name: str) -> tuple[str, dict[str, Any]]:
    """A configuration's name -> timm's, and what its constructor is given for it. Raises UserError for neither."""
    if short := SHORT.fullmatch(name):
        return f"{short[1]}_patch16_224", {"patch_size": int(short[2])}
    if name in SHORT_SWIN:
        return SHORT_SWIN[name], {}
    if name in timm.list_models():
        return name, {}
    if name.startswith("swin"):
        close = difflib.get_close_matches(name, [*SHORT_SWIN, *timm.list_models("swin_*")], 4, 0.4) or ["swin_tiny"]
        raise UserError(f"network.backbone={name}: no Swin of timm; did you mean {', '.join(close)}?")
    close = difflib.get_close_matches(name, timm.list_models("*vit*"), 4, 0.4) or ["vit_small_patch16"]
    raise UserError(
        f"network.backbone={name}: neither vit_{{tiny,small,base,large}}_patchP or swin_{{tiny,small,base,large}} "
        f"nor a ViT or Swin of timm; did you mean {', '.join(close)}?"
    )


def become_vit(vit: VisionTransformer) -> None:
    """Take norm and classifier off a new ViT, and initialise it as DINO does."""
    vit.stride = vit.patch_embed.patch_size[0]
    vit.final_eps = getattr(vit.norm, "eps", 1e-6)
    vit.norm = vit.fc_norm = nn.Identity()
    init_linear(vit)
    for token in (vit.cls_token, vit.reg_token, vit.pos_embed):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


def check_size(backbone: nn.Module, size: int) -> None:
    """Raise UserError unless an image side of `size` makes whole tokens."""
    stride = backbone.stride
    if size < stride or size % stride:
        what = f"a Swin whose last tokens are {stride}" if isinstance(backbone, Swin) else f"patches of {stride}"
        near = f"{max(1, size // stride) * stride} or {(size // stride + 1) * stride}"
        raise UserError(f"views of {size} pixels with {what}: the patch must divide the size, as it does {near}")


def tokens(vit: VisionTransformer | Swin, x: Tensor, mask: Tensor | None = None, rule: str = "dino") -> Tokens:
    """Images [M, 3, H, W] -> Tokens. mask [M, h, w]: patches to replace by `masked_embed` before positions are added.

    rule: how positions are made at another grid than the stored one (card.POSITION_RULES).
    """
    if isinstance(vit, Swin):
        x = vit.last_map(x)
        return Tokens(None, x.flatten(1, 2), tuple(x.shape[1:3]))
    x = vit.patch_embed.proj(x)
    hw = x.shape[-2], x.shape[-1]
    x = vit.patch_embed.norm(x.flatten(2).transpose(1, 2))
    if mask is not None:
        x = torch.where(mask.flatten(1)[..., None], vit.masked_embed.to(x.dtype), x)
    own = vit.pos_embed.shape[1] - vit.patch_embed.num_patches  # positions of class token and registers
    x = x + resize_positions(vit.pos_embed[:, own:], hw, rule)
    first = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
    if first:
        before = torch.cat(first, 1)
        before = before + vit.pos_embed[:, :own] if own else before
        x = torch.cat([before.expand(len(x), -1, -1).to(x.dtype), x], 1)
    x = vit.blocks(vit.norm_pre(vit.pos_drop(x)))
    return Tokens(x[:, 0] if vit.cls_token is not None else None, x[:, vit.num_prefix_tokens :], hw)


def set_fused_attention(modules: Sequence[nn.Module], fused: bool) -> None:
    """Switch timm's attention layers between `scaled_dot_product_attention` and plain matrix products.

    Plain attention is the faster one on CPUs under bf16 autocast, where the fused kernel's backward is slow. Swin's
    windows stay plain: their bias has a gradient, which the fused kernels have no fast path for.
    """
    for module in modules:
        for part in module.modules():
            if hasattr(part, "fused_attn") and not isinstance(part, WindowAttention):
                part.fused_attn = fused


def recompute_blocks(backbone: nn.Module) -> None:
    """Keep only the inputs of the blocks for the backward pass, which computes the rest again with the same noise.

    Call it after the blocks are compiled: torch.compile leaves a block eager that has this inside.
    """
    for block in backbone.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
