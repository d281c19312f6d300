"""timm's Swin and ResNet as backbones of mmdet and mmseg."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....pretrain.common.card import Card
from ....pretrain.common.errors import UserError
from ...backbones.conv import timm_network
from .base import MODELS, Backbone, build_norm_layer

PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))  # of a ResNet, as they can be frozen


@MODELS.register_module()
class TimmSwin(Backbone):
    """The four stages' maps, of strides 4 to 32, each through a LayerNorm of its own (`norm0` to `norm3`, new).

    As in Swin-Transformer-Object-Detection (models/backbones/swin_transformer.py), where the pretrained final norm is
    left out. Equal to it for pictures of more than 224 pixels; a stage of one window is shifted there and not here (see
    swin.PaddedSwinBlock). card, weights, with_cp: as in TimmViT. drop_path: the last block's, rising linearly from 0.
    """

    family = "swin"

    def __init__(
        self,
        card: Card | Mapping,
        weights: str | None = None,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ):
        super().__init__(card, with_cp)
        if len(self.card.depths) != 4:
            raise UserError(f"a Swin of {len(self.card.depths)} stages: the heads take four maps")
        self.net = timm_network(self.card, drop_path_rate=drop_path)
        self.net.norm = nn.Identity()
        if weights:
            self.load(self.net, weights, ["norm.", "readout."])
        for i in range(4):
            self.add_module(f"norm{i}", nn.LayerNorm(self.card.dim << i))
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.net.patch_embed(images), []  # [B, h, w, C]
        for i, stage in enumerate(self.net.layers):
            x = self.through(stage.blocks, stage.downsample(x))[-1]
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
        return tuple(maps)


@MODELS.register_module()
class TimmResNet(Backbone):
    """The four stages' maps, of strides 4 to 32.

    card, weights, with_cp: as in TimmViT. norm_cfg: of every batch norm. frozen_stages: -1 nothing, 0 the stem, n also
    the first n stages, weights and statistics; norm_eval: all batch norms keep their statistics (as mmdet's ResNet).
    """

    family = "resnet"

    def __init__(
        self,
        card: Card | Mapping,
        weights: str | None = None,
        norm_cfg: Mapping | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
    ):
        super().__init__(card, with_cp)
        cfg = {"eps": self.card.bn_eps} | dict(norm_cfg or {"type": "SyncBN", "requires_grad": True})
        self.net = timm_network(self.card, norm_layer=partial(_norm, cfg=cfg))
        if weights:
            self.load(self.net, weights)
        self.frozen = [name for part in PARTS[: frozen_stages + 1] for name in part]
        for name in self.frozen:
            getattr(self.net, name).requires_grad_(False)
        self.norm_eval = norm_eval
        self.train()

    def train(self, mode: bool = True) -> "TimmResNet":
        super().train(mode)
        for name in self.frozen:  # by name, since mmengine may have replaced a SyncBN
            getattr(self.net, name).eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        net, maps = self.net, []
        x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
        for (name,) in PARTS[1:]:
            x = self.through(getattr(net, name), x)[-1]
            maps.append(x)
        return tuple(maps)


def _norm(channels: int, *, cfg: Mapping, **factory) -> nn.Module:
    """mm's norm layer where timm wants one; the device and dtype that timm passes on are None here."""
    return build_norm_layer(dict(cfg), channels)[1]
