"""A network of a user's own (backbones/NAME.py of a plug-in folder) as a backbone of mmdet and mmseg."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ....pretrain.common.card import Card
from ....pretrain.common.errors import UserError
from ....pretrain.common.shapes import shapes_of
from ....pretrain.common.weights import check_fit, load_weights
from ...backbones.networks import weight_shapes
from ...backbones.own import empty, features_of, pictures
from .base import MODELS, Backbone
from .vit import rescale_layers


@MODELS.register_module()
class OwnNetwork(Backbone):
    """The maps of four blocks of the network that the card's family names, by the plug-in's `features`.

    card: a Card or its `as_dict`. weights: our export (.safetensors). rescale: the maps, all of one stride, are brought
    to strides 4 to 32 as a ViT's. norm_cfg: of these layers; SyncBN makes the network's batch norms such. What
    no map depends on is not trained: DDP allows no parameter without gradient. Raises UserError for maps without
    gradient, and for weights that do not fit.
    """

    family = property(lambda self: self.card.family)  # any that is none of ours

    def __init__(
        self,
        card: Card | Mapping,
        weights: str,
        blocks: Sequence[int],
        rescale: bool = False,
        norm_cfg: Mapping | None = None,
        with_cp: bool = False,
    ):
        super().__init__(card, with_cp)
        self.blocks = tuple(blocks)
        stored, _ = load_weights(weights)
        encoder = empty(self.card, stored)
        self.module, self.compute = encoder.module.requires_grad_(True), encoder.compute
        wanted = weight_shapes(self.module)
        check_fit(shapes_of(stored), wanted, weights, f"the network {self.card.family}")
        self.module.load_state_dict(self.module.state_dict() | stored, strict=True)
        unused = self._freeze_unused()
        self.accounting = f"{len(wanted)}/{len(wanted)} tensors loaded"
        self.accounting += f", {unused} not used by the maps and not trained" if unused else ""
        if norm_cfg and norm_cfg["type"] == "SyncBN":
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
        layers = [nn.Identity()] * 4
        if rescale:
            layers = rescale_layers(self.card.strides[blocks[0]], self.card.widths[blocks[0]], norm_cfg)
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = layers
        self.train()

    def _freeze_unused(self) -> int:
        """Take the gradient from parameters that no map depends on; -> how many."""
        self.eval()  # statistics stay
        maps = self.maps(pictures(self.card.strides)[:1])
        if not all(x.requires_grad for x in maps):
            raise UserError(
                f"network {self.card.family}: its maps have no gradient: features goes by no_grad or detach?"
            )
        named = [p for p in self.module.parameters() if p.requires_grad]
        found = torch.autograd.grad(sum(x.sum() for x in maps), named, allow_unused=True)
        unused = [p for p, gradient in zip(named, found, strict=True) if gradient is None]
        for parameter in unused:
            parameter.requires_grad_(False)
        return len(unused)

    def maps(self, images: Tensor) -> list[Tensor]:
        """images [B, 3, H, W] -> the map of each of `blocks`."""
        return features_of(self.module, self.compute, self.card, images, list(self.blocks)).patches

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        layers = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return tuple(layer(x) for layer, x in zip(layers, self.maps(images), strict=True))
