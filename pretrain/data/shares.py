"""How the images of an optimiser step are divided: an equal share for each process and micro-step."""

from dataclasses import dataclass

from ..common.errors import UserError


@dataclass(frozen=True)
class Shares:
    """batch = images x world x accumulation.

    images: that a process holds at once. world: processes. accumulation: micro-steps of an optimiser step.
    """

    images: int
    world: int
    accumulation: int

    @property
    def count(self) -> int:
        """Number of shares; each has noise of its own."""
        return self.world * self.accumulation

    @property
    def smaller(self) -> int | None:
        """Largest number of images, at most half of this share's, that divides a process's images; None for one."""
        share = self.images * self.accumulation
        return next((n for n in range(self.images // 2, 0, -1) if share % n == 0), None)

    def __str__(self) -> str:
        return f"{self.images * self.count} = {self.images} x {self.world} x {self.accumulation}"


def divide(batch: int, world: int, per_gpu: int, accumulation: int | None = None) -> Shares:
    """The fewest micro-steps with which a process holds at most `per_gpu` images at once, or those that are given.

    Raises UserError, with the nearest batch that works, where the batch cannot be divided into equal shares.
    """
    parts = world * (accumulation or 1)
    if batch % parts:
        given = f" ({world} processes times loop.accumulation={accumulation})" if accumulation else " processes"
        near = " or ".join(str(n * parts) for n in (batch // parts, batch // parts + 1) if n)
        what = f"{parts}{given}" if accumulation else f"the {parts}{given}"
        raise UserError(f"loop.batch={batch}: must be a multiple of {what}, as {near} is")
    share = batch // world
    count = accumulation or next(n for n in range(-(-share // per_gpu), share + 1) if share % n == 0)
    return Shares(share // count, world, count)
