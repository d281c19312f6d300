"""Swin V2 over timm's network: cosine attention, positions by an MLP of log distances, norms after each part."""

from functools import partial

import torch.nn.functional as F
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from .base import FrozenEncoder, make_buffers


class SwinV2Encoder(FrozenEncoder):
    """A Swin V2; a `block` is a stage here. Its image vector is the mean of the normed last map.

    stages, strides, widths: name, stride and channels of each stage's map; width: of the image vector. The map of a
    stage is ceil(H / stride) x ceil(W / stride). Windows are those of timm's network that is built for this image size:
    no side longer than the stage's map, and not shifted along a side that one window covers; then zeros at the bottom
    and right fill the last windows. The weights show no window: a card without one can only be held against them.
    """

    network, beside, unit = "net", (), "stage"

    def __init__(self, card: Card):
        super().__init__(card)
        heads = card.heads if isinstance(card.heads, tuple) else ()
        self.count = len(card.depths)
        self.widths = [card.dim << i for i in range(self.count)]
        counts = {len(heads), len(card.pretrained_windows), self.count}
        if len(counts) > 1 or any(w % n for w, n in zip(self.widths, heads, strict=True)) or card.act != "gelu (erf)":
            facts = f"depths={card.depths} heads={card.heads} pretrained_windows={card.pretrained_windows}"
            raise UserError(f"no such Swin V2 is there ({facts}, {card.dim} wide, act={card.act})")
        self.net = SwinTransformerV2(
            img_size=card.patch,  # `_fit` sets the size of the images at hand
            patch_size=card.patch,
            num_classes=0,
            embed_dim=card.dim,
            depths=card.depths,
            num_heads=heads,
            window_size=card.window or 2,
            mlp_ratio=card.mlp_ratio,
            qkv_bias=card.qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=card.norm_eps),
            pretrained_window_sizes=card.pretrained_windows,
        )
        self.grid = None
        self.stages = [f"stage{i + 1}" for i in range(self.count)]
        self.strides = [card.patch << i for i in range(self.count)]
        self.width = self.widths[-1]
        self.eval().requires_grad_(False)

    def assign(self, weights: dict[str, Tensor]) -> None:
        super().assign(weights)
        make_buffers(self.net, next(iter(weights.values())).device)

    def size_rule(self, size: tuple[int, int]) -> str:
        """How an image of (H, W) pixels is taken: timm's network is built for whole patches."""
        return "any" if all(side % self.card.patch == 0 for side in size) else "padded (assumed)"

    def _fit(self, grid: tuple[int, int]) -> None:
        """Windows and masks for images of that many patches."""
        if grid != self.grid:
            for i, stage in enumerate(self.net.layers):
                before = 1 << max(i - 1, 0)  # a stage begins with the merging
                feat = tuple(-(-side // before) for side in grid)
                stage.set_input_size(feat, window_size=(self.card.window, self.card.window))
            self.grid = grid

    def outputs(self, images: Tensor, stages: list[int]) -> list[Tensor]:
        """Outputs of the first to the last of these stages, without final norm, [B, D, h, w] each"""
        patch, (h, w) = self.card.patch, images.shape[-2:]
        x = self.net.patch_embed.proj(F.pad(images, (0, -w % patch, 0, -h % patch)))
        self._fit(tuple(x.shape[-2:]))
        x, out = self.net.patch_embed.norm(x.permute(0, 2, 3, 1)), []
        for stage in self.net.layers[: max(stages) + 1]:
            x = stage(x)
            out.append(x.permute(0, 3, 1, 2))
        return out

    def normed(self, x: Tensor, stage: int) -> Tensor:
        """A map [B, D, h, w] through the final norm, which is as wide as the last stage and so for that one only."""
        return self.net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if stage == self.count - 1 else x

    def patch_map(self, x: Tensor, images: Tensor) -> Tensor:
        """An output is a map already."""
        return x

    def image_vector(self, raw: Tensor) -> Tensor:
        """The last map [B, D, h, w] -> [B, D]"""
        return self.normed(raw, self.count - 1).mean((2, 3))
