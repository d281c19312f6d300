"""timm's ViT as a backbone of mmdet and mmseg."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ....pretrain.common.card import Card
from ....pretrain.common.errors import UserError
from ....pretrain.common.positions import resize_positions
from ...backbones.encoder import Encoder
from ..recipe import BLOCKS, blocks_of
from .base import MODELS, Backbone, build_norm_layer


def rescale_layers(patch: int, dim: int, norm_cfg: Mapping) -> list[nn.Module]:
    """The four layers that take maps of the patch's stride to strides 4, 8, 16 and 32; of 3.5, 7, 14, 28 for patch 14.

    alinlab/SelfPatch 81aef14, detection/ (after XCiT): the same modules under the same names. Raises UserError for
    patches of other than 8, 14 and 16 pixels.
    """

    def double() -> nn.Module:
        return nn.ConvTranspose2d(dim, dim, 2, stride=2)

    if patch == 8:
        halves = nn.Sequential(nn.MaxPool2d(2)), nn.Sequential(nn.MaxPool2d(4))
        return [nn.Sequential(double()), nn.Identity(), *halves]
    if patch not in (14, 16):
        raise UserError(f"rescale layers are there for patches of 8, 14 and 16 pixels, not {patch}")
    norm = build_norm_layer(dict(norm_cfg), dim)[1]
    first = nn.Sequential(double(), norm, nn.GELU(), double())
    return [first, nn.Sequential(double()), nn.Identity(), nn.MaxPool2d(2)]


class RenamedBlock(Block):
    """timm's block whose LayerNorms have other names, and so another weight decay. `rename_norms` makes it."""

    norm_names = ("norm1", "norm2")
    norm1 = property(lambda self: self._modules[self.norm_names[0]])
    norm2 = property(lambda self: self._modules[self.norm_names[1]])


def rename_norms(block: Block, new: Sequence[str]) -> None:
    """Call a block's two LayerNorms by these names; the order of its parameters stays."""
    renamed = dict(zip(("norm1", "norm2"), new, strict=True))
    modules = [(renamed.get(name, name), module) for name, module in block._modules.items()]
    block.__class__ = RenamedBlock  # timm's block reads self.norm1 and self.norm2
    block.norm_names = tuple(new)
    block._modules.clear()
    block._modules.update(modules)


@MODELS.register_module()
class TimmViT(Backbone):
    """Four maps of a ViT's raw block outputs, of the patch's stride or, with `rescale`, of strides 4, 8, 16 and 32.

    card: a Card or its `as_dict`. weights: our export (.safetensors), or None for random ones. blocks: whose outputs to
    take, 0-based (default: 3, 5, 7, 11 of 12, by depth). drop_path: the last block's rate, rising linearly from 0.
    pos_resize: a rule of card.POSITION_RULES instead of the card's. When a recipe gives "size", the stored positions
    become those of an `img_size` picture as the weights are loaded, and those are resized for pictures of another size
    (alinlab/SelfPatch 81aef14, segmentation/). norm_cfg: of the rescale layers. norm_names: of the blocks' LayerNorms,
    since weight decay goes by name. store_size: (height, width) of pictures whose positions are stored as the weights
    are loaded, resized to their grid by output size; `pos_resize` makes those of other pictures from them. out_norm:
    the maps go through the network's final LayerNorm, a new one where it has none (both: bytedance/ibot da316d8,
    evaluation/). with_cp: gradient checkpointing.

    Pictures whose sides are no multiples of the patch are padded with zeros at the bottom and right, after
    normalisation, and the maps are those of the padded picture. Raises UserError for blocks beyond the depth, for other
    than four, and for weights that do not fit.
    """

    family = "vit"

    def __init__(
        self,
        card: Card | Mapping,
        weights: str | None = None,
        blocks: Sequence[int] | None = None,
        rescale: bool = True,
        drop_path: float = 0.0,
        pos_resize: str | None = None,
        img_size: int = 512,
        norm_cfg: Mapping | None = None,
        norm_names: Sequence[str] = ("norm1", "norm2"),
        store_size: tuple[int, int] | None = None,
        out_norm: bool = False,
        with_cp: bool = False,
    ):
        super().__init__(card, with_cp)
        if pos_resize:
            if not self.card.absolute:
                raise UserError(f"pos_resize={pos_resize}: this network's positions are {self.card.pos}, not resized")
            self.card = self.card.override({"pos_resize": pos_resize})
        self.encoder = Encoder(self.card)
        blocks = blocks_of(BLOCKS, self.card.depth) if blocks is None else blocks
        self.blocks = tuple(self.encoder.resolve(list(blocks)))
        if len(self.blocks) != 4:
            raise UserError(f"blocks={','.join(map(str, self.blocks))}: the heads take four maps")
        self.out_norm = out_norm
        unused = self._strip()
        if weights:
            self.load(self.encoder, weights, unused, prefix="vit.")
        if pos_resize == "size":
            self._store_positions(-(-img_size // self.card.patch))
        elif store_size and self.card.absolute:
            self.encoder.stored_grid = grid = tuple(side // self.card.patch for side in store_size)
            self._resize_stored(grid)
        if out_norm and not self.card.final_norm:
            self.encoder.vit.norm = nn.LayerNorm(self.card.dim, eps=self.card.norm_eps)
        for i, block in enumerate(self.encoder.vit.blocks):
            rate = drop_path * i / max(1, self.card.depth - 1)
            if rate:
                block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
            if tuple(norm_names) != ("norm1", "norm2"):
                rename_norms(block, norm_names)
        layers = [nn.Identity()] * 4
        if rescale:
            layers = rescale_layers(self.card.patch, self.card.dim, norm_cfg or {"type": "SyncBN"})
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = layers
        self.encoder.requires_grad_(True)
        self.train()

    def _strip(self) -> list[str]:
        """Go without what no map depends on: DDP allows no parameter without gradient. -> beginnings of their names"""
        vit, last = self.encoder.vit, max(self.blocks)
        self.encoder.readout = self.encoder.fc_norm = nn.Identity()
        if not self.out_norm:
            vit.norm = nn.Identity()
        vit.blocks = vit.blocks[: last + 1]
        unused = ["readout.", "fc_norm.", *([] if self.out_norm else ["norm."])]
        return [*unused, *(f"blocks.{i}." for i in range(last + 1, self.card.depth))]

    def _resize_stored(self, grid: tuple[int, int]) -> None:
        """Positions as a grid of these rows and columns, once and for all."""
        vit, own = self.encoder.vit, self.encoder.vit.pos_embed.shape[1] - self.card.grid**2
        stored = vit.pos_embed.detach()
        patches = resize_positions(stored[:, own:], grid, "size")
        vit.pos_embed = nn.Parameter(torch.cat([stored[:, :own], patches], 1))

    def _store_positions(self, side: int) -> None:
        """Positions as a side x side grid, of which the card knows."""
        self._resize_stored((side, side))
        pos = self.card.pos.replace(f"{self.card.grid}x{self.card.grid}", f"{side}x{side}")
        self.card = self.encoder.card = self.card.override({"pos": pos})

    def tokens(self, images: Tensor) -> list[Tensor]:
        """images [B, 3, H, W], sides multiples of the patch -> raw outputs [B, prefix + h*w, D] of `blocks`."""
        out = self.through(self.encoder.vit.blocks, self.encoder.embed(images))
        return [out[b] for b in self.blocks]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        bottom, right = (-side % self.card.patch for side in images.shape[-2:])
        images = F.pad(images, (0, right, 0, bottom))
        outputs = [self.encoder.vit.norm(x) if self.out_norm else x for x in self.tokens(images)]
        maps = [self.encoder.patch_map(x, images) for x in outputs]
        return tuple(layer(m) for layer, m in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=True))
