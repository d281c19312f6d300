"""What the views hand to the network and the objectives: the views of one size, with the geometry of each."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Group:
    """The V views of one size of B images.

    x     [V, B, 3, S, S]  uint8 RGB as the data workers deliver it, or float once `normalise` was applied
    box   [V, B, 4]        float32 left, top, width, height of the crop in source pixels (whole numbers; after the
                           recipe's pre-resize, where it has one)
    flip  [V, B]           bool; mirrored left to right after the crop
    mask  [V, B, h, w]     bool, patches hidden from the student, or None
    """

    x: Tensor
    box: Tensor
    flip: Tensor
    mask: Tensor | None = None

    def _each(self, change) -> "Group":
        mask = None if self.mask is None else change(self.mask)
        return replace(self, x=change(self.x), box=change(self.box), flip=change(self.flip), mask=mask)

    def to(self, device, non_blocking: bool = False) -> "Group":
        return self._each(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Group":
        return self._each(lambda t: t.pin_memory())

    def used_on(self, stream) -> "Group":
        """Of tensors that another CUDA stream has made: their memory is not given away before this one is done."""
        return self._each(lambda t: t.record_stream(stream) or t)

    def rows(self, part: slice) -> "Group":
        """The same views of some of the images (the micro-batches of gradient accumulation); no copy."""
        return self._each(lambda t: t[:, part])


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype=torch.float32) -> Tensor:
    """x [..., 3, S, S] uint8 in 0..255 -> (x / 255 - mean) / std, mean and std per channel on the scale 0..1.

    The training step calls it once per group, on the device, right before the network: workers, shared memory and the
    bus then carry a quarter of the bytes.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=dtype, device=x.device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=x.device).view(-1, 1, 1)
    return torch.addcmul(shift, x.to(dtype), scale)
