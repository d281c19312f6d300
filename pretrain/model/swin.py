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
SWIN_OPTIONS = {"strict_img_size": False, "always_partition": True}


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's block, whose windows and shift follow the official code at every size; no weights of its own.

    timm shifts each axis that is longer than a window, and shifts before it pads, so that its masks miss the seam.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] -> [B, H, W, C]"""
        h, w = x.shape[1:3]
        side = self.window_size[0]
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        padded = x.shape[1:3]
        shift = self.shift_size[0] if min(padded) > side else 0
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        windows = window_partition(x, self.window_size).flatten(1, 2)
        windows = self.attn(windows, mask=self.get_attn_mask(x) if shift else None)
        x = window_reverse(windows.unflatten(1, self.window_size), self.window_size, *padded)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :h, :w]


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
    for stage in net.layers:
        for block in stage.blocks:
            block.__class__ = PaddedSwinBlock
    return net
