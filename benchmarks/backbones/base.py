"""What every task sees: images -> an image vector and patch maps, at any size, from any blocks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError

OWN = ("readout.", "fc_norm.", "rope_periods")  # weights beside timm's network


class Features(NamedTuple):
    """image: [B, D]. patches: one map [B, D, h, w] for each block asked for."""

    image: Tensor
    patches: list[Tensor]


def make_buffers(network: nn.Module, device: torch.device) -> None:
    """Make what timm computes and does not store, of a network that was built without memory."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device=device))
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()


class FrozenEncoder(nn.Module):
    """A frozen network with its card; `Encoder` is a ViT, `ConvEncoder` a ResNet or Swin.

    `encoder(images)`: images float [B, 3, H, W], RGB, normalised by `card.mean` and `card.std` (see `normalise`), any
    size of at least one patch -> Features. Subclasses say `network`, the attribute that is timm's module, and `beside`,
    how weights begin that are not its; `unit`, what a number of `blocks` counts, and how many there are; and define
    `outputs`, `image_vector` and `patch_map`.
    """

    network: str
    beside = OWN
    unit = "block"
    count: int

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.fingerprint: str | None = None  # set by checkpoints.open.build, as are the next two
        self.name: str | None = None
        self.accounting: str | None = None

    def assign(self, weights: dict[str, Tensor]) -> None:
        """Take over timm-named weights (and `readout.*`) strictly; the caller has checked names and shapes."""
        named = {key if key.startswith(self.beside) else f"{self.network}.{key}": v for key, v in weights.items()}
        self.load_state_dict(named, strict=True, assign=True)
        self.eval().requires_grad_(False)

    def named_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that it takes; batch norm's counter is none."""
        state = {k.removeprefix(f"{self.network}."): v for k, v in self.state_dict().items()}
        return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, H, W], float in 0..1 or uint8 -> what `forward` takes."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.card.mean, self.card.std))
        return (images - mean) / std

    def resolve(self, blocks: list[int] | None) -> list[int]:
        """Numbers of blocks, negative ones counted from the end (None: the last) -> 0-based. Raises UserError for one
        that is not there."""
        blocks = [-1] if blocks is None else blocks
        for block in blocks:
            if not -self.count <= block < self.count:
                there = f"the network has {self.count} (0 to {self.count - 1})"
                raise UserError(f"{self.unit} {block} does not exist: {there}")
        return [block % self.count for block in blocks]

    def patch_maps(self, images: Tensor, blocks: list[int] | None = None, norm: bool | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> a map [B, D, h, w] for each block; the cheaper part of `forward`, which see."""
        wanted = self.resolve(blocks)
        return self._maps(self.outputs(images, wanted), wanted, images, blocks is None if norm is None else norm)

    def forward(self, images: Tensor, blocks: list[int] | None = None, norm: bool | None = None) -> Features:
        """images [B, 3, H, W] -> Features.

        blocks: whose patch maps to give, in this order; default the last one. norm: pass them through the final norm
        (default: only for the default map, and only if the network has a final norm). The image vector is that of the
        card's readout.
        """
        wanted, last = self.resolve(blocks), self.count - 1
        raw = self.outputs(images, [*wanted, last])
        maps = self._maps(raw, wanted, images, blocks is None if norm is None else norm)
        return Features(self.image_vector(raw[last]), maps)

    def _maps(self, raw, wanted: list[int], images: Tensor, norm: bool) -> list[Tensor]:
        return [self.patch_map(self.normed(raw[b], b) if norm else raw[b], images) for b in wanted]
