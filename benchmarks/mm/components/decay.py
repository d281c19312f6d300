"""Weight decay and learning rate by a parameter's name, as the released configs have them."""

import re

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


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay(DefaultOptimWrapperConstructor):
    """`paramwise_cfg=dict(layer_decay_rate=r)`: a ViT's block i of L learns at r^(L - i) of the rate, what comes before
    the blocks at r^(L + 1), everything else (rescale layers, final norm, heads) at the whole rate.

    Decay 0 for vectors and for names that end in `.bias`; positions and class token are neither, and are decayed. The
    same groups as bytedance/ibot da316d8, evaluation/*/mmcv_custom/layer_decay_optimizer_constructor.py (after BEiT's).
    """

    FIRST = re.compile(r"backbone\.encoder\.vit\.(cls_token|reg_token|pos_embed|patch_embed)\b")
    BLOCK = re.compile(r"backbone\.encoder\.vit\.blocks\.(\d+)\.")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module=None) -> None:
        """A group for each layer with decay and for each without, in the order of the model's parameters."""
        rate, last, groups = self.paramwise_cfg["layer_decay_rate"], module.backbone.card.depth + 1, {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            block = self.BLOCK.match(name)
            layer = 0 if self.FIRST.match(name) else int(block[1]) + 1 if block else last
            decay = 0.0 if parameter.ndim == 1 or name.endswith(".bias") else self.base_wd
            empty = {"params": [], "lr": self.base_lr * rate ** (last - layer), "weight_decay": decay}
            groups.setdefault((layer, decay), empty)["params"].append(parameter)
        params.extend(groups.values())
