"""What the views hand to the network and the objectives: the views of one size, with the geometry of each."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
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
    hidden [V, B]          how many these are, on the host: known there, the device need not be waited for
    """

    x: Tensor
    box: Tensor
    flip: Tensor
    mask: Tensor | None = None
    hidden: np.ndarray | None = None

    def _each(self, change) -> "Group":
        mask = None if self.mask is None else change(self.mask)
        return replace(self, x=change(self.x), box=change(self.box), flip=change(self.flip), mask=mask)

    def to(self, device, non_blocking: bool = False) -> "Group":
        there = self._each(lambda t: t.to(device, non_blocking=non_blocking))
        if self.mask is not None and self.mask.device.type == "cpu":
            there.hidden = self.mask.flatten(2).sum(2).numpy()
        return there

    def pin_memory(self) -> "Group":
        return self._each(lambda t: t.pin_memory())

    def used_on(self, stream) -> "Group":
        """Of tensors that another CUDA stream has made: their memory is not given away before this one is done."""
        return self._each(lambda t: t.record_stream(stream) or t)

    def rows(self, part: slice) -> "Group":
        """The same views of some of the images (the micro-batches of gradient accumulation); no copy."""
        some = self._each(lambda t: t[:, part])
        some.hidden = None if self.hidden is None else self.hidden[:, part]
        return some

    def masked(self) -> Tensor:
        """Where `mask` is set: indices into its V * B * h * w places, ascending."""
        flat = self.mask.flatten()
        count = int(flat.sum() if self.hidden is None else self.hidden.sum())
        return torch.nonzero_static(flat, size=count).squeeze(1)


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype=torch.float32) -> Tensor:
    """x [..., 3, S, S] uint8 in 0..255 -> (x / 255 - mean) / std, mean and std per channel on the scale 0..1.

    The training step calls it once per group, on the device, right before the network: workers, shared memory and the
    bus then carry a quarter of the bytes.
    """
    scale, shift = _scale_shift(tuple(mean), tuple(std), dtype, x.device)
    return torch.addcmul(shift, x.to(dtype), scale)


@lru_cache(maxsize=8)  # made anew at each step, they would be two copies to the device that the host waits for
def _scale_shift(mean, std, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=dtype, device=device).view(-1, 1, 1)
    return scale, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=device).view(
        -1, 1, 1
    )
