"""Swin transformers from timm as backbones, at any view size that leaves whole grids in every stage.

Windows at the border and shifts follow benchmarks.conv: what is trained here is what is evaluated there. At multiples
of 224 pixels (with windows of 7) that is what the official code computes, which takes no other sizes
(SwinTransformer/Transformer-SSL 4510de1, models/swin_transformer.py).
"""

import difflib
from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ...benchmarks.backbones.conv import PaddedSwinBlock
from ..common.errors import UserError

SHORT = {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")}


class Swin(SwinTransformer):
    """timm's network without final norm and classifier; made by `build_swin`.

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


def build_swin(name: str, image_size: int, drop_path: float = 0.0, overrides: dict[str, Any] | None = None) -> Swin:
    """A Swin of timm by its name, or swin_{tiny,small,base,large}, initialised as the official one.

    image_size: side of the square images it will mostly see (any other works as well). drop_path: rising linearly from
    0 to this over the blocks of all stages. overrides: arguments of timm's constructor (embed_dim, depths, window_size
    ...). Raises UserError for what timm cannot build or is another kind of Swin.
    """
    full = SHORT.get(name, name)
    if full not in timm.list_models():
        near = ", ".join(difflib.get_close_matches(name, [*SHORT, *timm.list_models("swin_*")], 4, 0.4))
        raise UserError(f"network.backbone={name}: no Swin of timm; did you mean {near or 'swin_tiny'}?")
    options = {"img_size": image_size, "num_classes": 0, "global_pool": "", "drop_path_rate": drop_path}
    # With always_partition the tables keep the window's size where a stage's grid is smaller.
    options |= {"strict_img_size": False, "always_partition": True} | (overrides or {})
    try:
        swin = timm.create_model(full, pretrained=False, **options)
    except Exception as error:  # arguments that nobody checked before
        raise UserError(f"network.backbone={name} cannot be built with {options}: {error}") from error
    if type(swin) is not SwinTransformer or not isinstance(swin.patch_embed, PatchEmbed):
        raise UserError(f"network.backbone={name}: not a plain Swin, the only kind of hierarchical backbone there is")
    swin.__class__ = Swin
    for block in swin.blocks:
        block.__class__ = PaddedSwinBlock
    swin.final_eps = swin.norm.eps
    swin.stride = swin.patch_embed.patch_size[0] * 2 ** (len(swin.layers) - 1)
    swin.norm, swin.head = nn.Identity(), nn.Identity()
    return swin
