"""What the objectives over a patch's neighbours share: which neighbours these are, and how they become one target."""

from dataclasses import dataclass

from ..common.errors import UserError
from ..common.ranges import bounded, one_of
from ..geometry import neighbours
from . import Aggregated, Net


@dataclass
class NeighbourConfig:
    """Options of SelfPatch's targets; the defaults are those of alinlab/SelfPatch 81aef14."""

    # Neighbours in a target.
    k: int = bounded(4, at_least=1)
    # Of the neighbourhood in patches: 1, 2, ... or all (every other patch of the view).
    radius: int | str = 1
    # The patch grid is a torus, as in the official code; false clips the neighbourhood at the border.
    wrap: bool = True
    # How the neighbours become one target: class_attention | mean.
    aggregation: str = one_of("class_attention", "mean")
    # Views with a target: all, or global, so that the teacher need not see the local ones.
    views: str = one_of("all", "global")

    def aggregated(self, net: Net, objective: str) -> Aggregated:
        """The input of the teacher's head. Raises UserError for options that cannot work."""
        if self.aggregation == "class_attention" and net.readout != "class_attention":
            raise UserError(
                f"objective {objective}: aggregation=class_attention needs network.readout=class_attention, not "
                f"{net.readout}; or choose aggregation=mean"
            )
        used = net.grids if self.views == "all" else net.grids[:1]
        if min(h * w for h, w in used) < 2:
            raise UserError(f"objective {objective}: a view of a single patch has no neighbours; make views larger")
        neighbours(*used[0], self.radius, self.wrap)  # raises for a radius that is none
        return Aggregated(self.k, self.radius, self.wrap, self.aggregation)
