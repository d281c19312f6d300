"""ResNet and Swin over timm's networks: the same interface as `encoder.Encoder`, with stages in place of blocks.

Swin at any size: official pretraining code (Transformer-SSL 4510de1, models/swin_transformer.py) takes multiples of 224
only; there a stage whose shorter side is one window is not shifted. Other sizes follow the rule `card.sizes`.
"""

from functools import partial

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ...pretrain.common.card import BLOCKS, Card
from ...pretrain.common.errors import UserError
from ...pretrain.model.readout import readout_of
from ...pretrain.model.swin import BUILT, timm_swin
from .base import FrozenEncoder


def timm_network(card: Card, **kwargs) -> nn.Module:
    """timm's module of a ResNet's or Swin's card, without classifier: the converted weights have its names.

    kwargs: passed to timm's class (`drop_path_rate`, `norm_layer` ...). Any input size. A ResNet's state dict also has
    `num_batches_tracked`, which converted weights lack and `load_state_dict` does without. Raises UserError for a card
    that timm has no network for.
    """
    if card.family == "resnet":
        return _resnet(card, kwargs)
    if card.family == "swin":
        return timm_swin(card, **kwargs)
    raise UserError(f"no network of family {card.family}: there are vit, resnet and swin")


def _resnet(card: Card, kwargs: dict) -> ResNet:
    if card.block not in BLOCKS or len(card.blocks) != 4 or len(card.widths) != 4:
        raise UserError(f"no ResNet of four stages: block {card.block}, blocks {card.blocks}, widths {card.widths}")
    block = BasicBlock if card.block == "basic" else Bottleneck
    if any(width % block.expansion for width in card.widths):
        raise UserError(f"widths {card.widths} are not multiples of {block.expansion}")
    options = {"norm_layer": partial(nn.BatchNorm2d, eps=card.bn_eps)} | kwargs
    net = ResNet(
        block,
        card.blocks,
        num_classes=0,
        global_pool="",
        channels=tuple(width // block.expansion for width in card.widths),
        cardinality=card.groups or 1,
        base_width=card.base_width or 64,
        avg_down=bool(card.avg_down),
        **options,
    )
    if card.stem_channels != 64 or card.stem_widths:
        _restem(net, card, options["norm_layer"])
    if card.block == "bottleneck, stride on the 1x1":
        for layer in (net.layer2, net.layer3, net.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return net


def _restem(net: ResNet, card: Card, norm_layer) -> None:
    """Another stem than a 7x7 convolution of 64 channels: it and the layers that touch it are made anew. Raises
    UserError for other than two widths of a deep one."""
    first, channels = net.layer1[0], card.stem_channels
    net.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    if card.stem_widths:
        if len(card.stem_widths) != 2:
            raise UserError(f"stem_widths={card.stem_widths}: a deep stem has two before its last convolution")
        one, two = card.stem_widths
        layers = [nn.Conv2d(3, one, 3, 2, 1, bias=False), norm_layer(one), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(one, two, 3, 1, 1, bias=False), norm_layer(two), nn.ReLU(inplace=True)]
        net.conv1 = nn.Sequential(*layers, nn.Conv2d(two, channels, 3, 1, 1, bias=False))
    net.bn1 = norm_layer(channels)
    inner = first.conv1
    size, padding = inner.kernel_size, inner.padding
    first.conv1 = nn.Conv2d(channels, inner.out_channels, size, inner.stride, padding, bias=False)
    out = (first.conv3 if isinstance(first, Bottleneck) else first.conv2).out_channels
    first.downsample = None
    if channels != out:
        pool = [nn.Identity()] if card.avg_down else []
        first.downsample = nn.Sequential(*pool, nn.Conv2d(channels, out, 1, bias=False), norm_layer(out))


class ConvEncoder(FrozenEncoder):
    """A ResNet or Swin; a `block` is a stage here.

    stages, strides, widths: name, stride and channels of each stage's map; width: of the image vector, the mean of the
    last map after Swin's final norm, or that of the card's class attention. The map of a stage is ceil(H / stride) x
    ceil(W / stride).
    """

    network, unit = "net", "stage"

    def __init__(self, card: Card):
        super().__init__(card)
        self.net = timm_network(card)
        if card.family == "resnet":
            stem, self.widths = 4, list(card.widths)
        else:
            stem, self.widths = card.patch, [card.dim << i for i in range(len(card.depths))]
        self.count = len(self.widths)
        name = "layer" if card.family == "resnet" else "stage"
        self.stages = [f"{name}{i + 1}" for i in range(self.count)]
        self.strides = [stem << i for i in range(self.count)]
        self.width = self.widths[-1]
        if card.readout == "class_attention":  # our own Swins pretrained with SelfPatch
            self.readout = readout_of(card)
        self.eval().requires_grad_(False)

    def assign(self, weights: dict[str, Tensor]) -> None:
        super().assign(weights)
        device = next(iter(weights.values())).device
        for module in self.net.modules():
            if (index := getattr(module, "relative_position_index", None)) is not None:
                # not among the weights, so that a network built without memory does not have it yet
                module.relative_position_index = torch.empty_like(index, device=device)
                module.init_non_persistent_buffers()

    def size_rule(self, size: tuple[int, int]) -> str:
        """How an image of (H, W) pixels is taken: as the official code takes it, or by the rule that is assumed."""
        if self.card.family == "resnet":
            return "any"
        card, whole = self.card, self.strides[-1] * self.card.window
        own = {
            "padded": all(side % whole == 0 for side in size),
            "padded_own": all(-(-min(size) // stride) >= card.window for stride in self.strides),
            "padded_axes": all(side % card.patch == 0 for side in size),
            "padded_fixed": size[0] == size[1] >= BUILT and size[0] % card.patch == 0,
        }
        return "official" if own[card.sizes] else f"{card.sizes} (assumed)"

    def outputs(self, images: Tensor, stages: list[int]) -> list[Tensor]:
        """Outputs of the first to the last of these stages, without final norm, [B, D, h, w] each"""
        net, out, last = self.net, [], max(stages)
        if self.card.family == "resnet":
            x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
            for name in self.stages[: last + 1]:
                x = getattr(net, name)(x)
                out.append(x)
            return out
        x = net.patch_embed(images)  # [B, h, w, D]
        for stage in net.layers[: last + 1]:
            x = stage(x)
            out.append(x.permute(0, 3, 1, 2))
        return out

    def normed(self, x: Tensor, stage: int) -> Tensor:
        """A map [B, D, h, w] through Swin's final norm, which is as wide as the last stage and so for that one only."""
        if self.card.family == "resnet" or stage != self.count - 1:
            return x
        return self.net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def patch_map(self, x: Tensor, images: Tensor) -> Tensor:
        """An output is a map already."""
        return x

    def image_vector(self, raw: Tensor) -> Tensor:
        """The last map [B, D, h, w] -> [B, D]"""
        if self.card.readout == "class_attention":
            return self.readout(raw.flatten(2).transpose(1, 2))[0]
        return self.normed(raw, self.count - 1).mean((2, 3))
