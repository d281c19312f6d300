"""Weight decay by a parameter's name, as the released configs have it."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DecayByName(DefaultOptimWrapperConstructor):
    """`paramwise_cfg=dict(no_decay=(...))`: decay 0 for parameters whose full name contains one of these.

    All others have the optimiser's. The kind of layer does not matter: a bias, or a batch norm whose name says nothing,
    is decayed. mmengine's own `custom_keys` chooses the same, but makes a group and lines of log of every parameter.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module=None) -> None:
        """At most two groups, in the order of the model's parameters."""
        named = [(f"{prefix}.{n}" if prefix else n, p) for n, p in module.named_parameters() if p.requires_grad]
        words = tuple(self.paramwise_cfg["no_decay"])
        exempt = {n for n, _ in named if any(word in n for word in words)}
        for decay, names in ((self.base_wd, lambda n: n not in exempt), (0.0, lambda n: n in exempt)):
            if chosen := [p for n, p in named if names(n)]:
                params.append({"params": chosen, "weight_decay": decay})
