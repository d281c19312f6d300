"""Swin transformers from timm as backbones, at any view size that leaves whole grids in every stage.

At multiples of 224 pixels (with windows of 7) they compute what the official code does, which takes no other sizes
(SwinTransformer/Transformer-SSL 4510de1, models/swin_transformer.py); at others the blocks' own rule counts.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from ..common.card import SIZE_RULES, Card
from ..common.errors import UserError

SHORT_SWIN = {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")}
# With always_partition the tables of positions keep the window's size where a stage's grid is smaller.
BUILT = 224  # pixels of the pictures that official Swins are built for
SWIN_OPTIONS = {"strict_img_size": False, "always_partition": True}


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's block, whose windows and shift follow the official code at every size; no weights of its own.

    timm shifts before it pads, so that its masks miss the seam. by_axis: an axis of one window is not shifted, and the
    other one still is; else neither.
    """

    by_axis = False

    def _attn(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] -> [B, H, W, C]"""
        h, w = x.shape[1:3]
        side = self.window_size[0]
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        padded = x.shape[1:3]
        lengths = padded if self.by_axis else (min(padded),) * 2
        shift = tuple(s if length > side else 0 for s, length in zip(self.shift_size, lengths, strict=True))
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        windows = window_partition(x, self.window_size).flatten(1, 2)
        windows = self.attn(windows, mask=shift_mask(x, self.window_size, shift) if any(shift) else None)
        x = window_reverse(windows.unflatten(1, self.window_size), self.window_size, *padded)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        return x[:, :h, :w]


def shift_mask(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """[windows, tokens, tokens] of 0 and -100: which tokens of a shifted map x [B, H, W, C] see each other."""
    parts = []
    for length, side, by in zip(x.shape[1:3], window, shift, strict=True):
        at = torch.arange(length, device=x.device)
        parts.append(
            (at >= length - side).to(x.dtype) + (at >= length - by) if by else torch.zeros_like(at, dtype=x.dtype)
        )
    regions = 3 * parts[0][:, None] + parts[1]
    regions = window_partition(regions[None, ..., None], window).flatten(1)
    return (regions[:, None] != regions[:, :, None]).to(x.dtype) * -100


class Swin(SwinTransformer):
    """timm's network without final norm and classifier; made by `become_swin`.

    final_eps: of the norms. stride: pixels of a final token. Its width is `num_features`.
    """

    cls_token = reg_token = None
    num_reg_tokens = 0

    @property
    def blocks(self) -> list[PaddedSwinBlock]:
        """Of all stages, in order."""
        return [block for stage in self.layers for block in stage.blocks]

    def last_map(self, x: Tensor) -> Tensor:
        """Images [M, 3, H, W] -> the last stage's raw output [M, h, w, D]"""
        return self.layers(self.patch_embed(x))


def become_swin(swin: SwinTransformer) -> None:
    """Make a new Swin of timm, which has the official one's initial values, a `Swin`."""
    swin.__class__ = Swin
    for block in swin.blocks:
        block.__class__ = PaddedSwinBlock  # timm offers no place to pass a block's class
    swin.final_eps = swin.norm.eps
    swin.stride = swin.patch_embed.patch_size[0] * 2 ** (len(swin.layers) - 1)
    swin.norm, swin.head = nn.Identity(), nn.Identity()


def timm_swin(card: Card, **kwargs) -> SwinTransformer:
    """timm's Swin as a card describes it, without classifier. kwargs: passed to timm's class. Raises UserError for a
    card that timm has no network for."""
    if card.act != "gelu (erf)" or card.absolute_pos or card.sizes not in SIZE_RULES:
        facts = f"act={card.act}, absolute_pos={card.absolute_pos}, sizes={card.sizes}"
        raise UserError(f"no such Swin is there ({facts}); only gelu (erf), no absolute positions, {list(SIZE_RULES)}")
    heads = card.heads
    if not isinstance(heads, tuple) or len(heads) != len(card.depths):
        raise UserError(f"heads {heads} of a Swin with {len(card.depths)} stages")
    for stage, number in enumerate(heads):
        if (card.dim << stage) % number:
            raise UserError(f"{number} heads do not divide stage {stage + 1}, which is {card.dim << stage} wide")
    options = {"norm_layer": partial(nn.LayerNorm, eps=card.norm_eps), "drop_path_rate": 0.0} | kwargs
    net = SwinTransformer(
        img_size=card.patch * card.window << len(card.depths) - 1,
        patch_size=card.patch,
        num_classes=0,
        global_pool="",
        embed_dim=card.dim,
        depths=card.depths,
        num_heads=card.heads,
        window_size=(card.window,) * len(card.depths),
        always_partition=True,
        dynamic_img_size=True,
        mlp_ratio=card.mlp_ratio,
        qkv_bias=card.qkv_bias,
        **options,
    )
    net.patch_embed.dynamic_img_pad = True
    if not card.patch_norm:
        net.patch_embed.norm = nn.Identity()
    if not card.final_norm:
        net.norm = nn.Identity()
    for i, stage in enumerate(net.layers):
        whole = BUILT // (card.patch << i) <= card.window
        for block in stage.blocks:
            block.__class__ = PaddedSwinBlock
            block.by_axis = card.sizes == "padded_axes"
            if card.sizes == "padded_fixed" and whole:
                block.shift_size = (0, 0)
    return net
