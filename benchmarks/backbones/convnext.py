"""ConvNeXt over timm's network: the same interface as `encoder.Encoder`, with stages in place of blocks."""

from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from .base import FrozenEncoder


class ConvNextEncoder(FrozenEncoder):
    """A ConvNeXt; a `block` is a stage here. Its image vector is the final norm of the last map's mean.

    stages, strides, widths: name, stride and channels of each stage's map; width: of the image vector. The map of a
    stage is floor(H / stride) x floor(W / stride); an image has at least one place in each that is asked for.
    """

    network, unit = "net", "stage"

    def __init__(self, card: Card):
        super().__init__(card)
        if card.act != "gelu (erf)" or card.patch < 4:
            raise UserError(f"no ConvNeXt with act={card.act} and patch={card.patch}: it is gelu (erf), 4 and above")
        self.net = ConvNeXt(
            num_classes=0,
            depths=card.depths,
            dims=card.widths,
            patch_size=card.patch,
            ls_init_value=1.0 if card.layer_scale else None,
            use_grn=card.response_norm,
            norm_eps=card.norm_eps,
        )
        if not card.final_norm:
            self.net.head.norm = nn.Identity()
        self.widths, self.count = list(card.widths), len(card.widths)
        self.stages = [f"stage{i + 1}" for i in range(self.count)]
        self.strides = [card.patch << i for i in range(self.count)]
        self.width = self.widths[-1]
        self.eval().requires_grad_(False)

    def size_rule(self, size: tuple[int, int]) -> str:
        """How an image of (H, W) pixels is taken."""
        return "any"

    def outputs(self, images: Tensor, stages: list[int]) -> list[Tensor]:
        """Outputs of the first to the last of these stages, without final norm, [B, D, h, w] each"""
        least, (h, w) = self.strides[max(stages)], images.shape[-2:]
        if min(h, w) < least:
            raise UserError(f"a {h}x{w} image is smaller than a place of {self.stages[max(stages)]} ({least})")
        x, out = self.net.stem(images), []
        for stage in self.net.stages[: max(stages) + 1]:
            x = stage(x)
            out.append(x)
        return out

    def normed(self, x: Tensor, stage: int) -> Tensor:
        """A map [B, D, h, w] through the final norm, which is as wide as the last stage and so for that one only."""
        return self.net.head.norm(x) if stage == self.count - 1 else x

    def patch_map(self, x: Tensor, images: Tensor) -> Tensor:
        """An output is a map already."""
        return x

    def image_vector(self, raw: Tensor) -> Tensor:
        """The last map [B, D, h, w] -> [B, D]"""
        return self.net.head.norm(raw.mean((2, 3), keepdim=True)).flatten(1)
