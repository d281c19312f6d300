"""Projection heads: a token [R, D] -> what an objective compares [R, K].

One row in, one row out: a head never sees which view or image a row belongs to.
"""

import contextlib
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batchnorm import BatchNorm


class WeightNormLinear(nn.Module):
    """Linear layer without bias, its weight split into a gain and a direction: w = g * v / |v|, per output.

    in features -> outputs. The direction keeps the framework's default initialisation, the gain starts at 1 and stays
    there when `freeze_gain`. Names `weight_g` [K, 1] and `weight_v` [K, in] are the official ones.
    exact: outside autocast. A teacher's cosines, divided by a temperature of 0.04, make rounding to bf16 move
    log-probabilities by 0.09.
    """

    exact = False

    def __init__(self, features: int, outputs: int, freeze_gain: bool = True):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=not freeze_gain)
        self.weight_v = nn.Parameter(nn.Linear(features, outputs, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[R, in] -> [R, K]"""
        with torch.autocast(x.device.type, enabled=False) if self.exact else contextlib.nullcontext():
            weight = self.weight_v * (self.weight_g / torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True))
            return F.linear(x.to(weight.dtype) if self.exact else x, weight)


class PrototypeHead(nn.Module):
    """DINO's head: MLP with exact GELU, L2 normalisation, weight-normalised layer of K prototypes.

    [R, D] -> cosines to the prototypes [R, K] (times the gain). layers: linear layers of the MLP; with one of them,
    it maps D to `bottleneck` directly. Source: facebookresearch/dino 7c446df, vision_transformer.py: DINOHead.
    """

    def __init__(
        self,
        dim: int,
        outputs: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
    ):
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            steps += ([nn.GELU()] if i else []) + [nn.Linear(a, b)]
        self.mlp = nn.Sequential(*steps)  # linear layers are mlp.0, mlp.2, mlp.4
        self.last_layer = WeightNormLinear(bottleneck, outputs, norm_last_layer)
        init_linear(self.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """[R, D] -> [R, K]"""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class BatchNormMlp(nn.Module):
    """MoBY's projector and predictor: [..., D] -> [..., outputs], hidden layers with batch normalisation and ReLU.

    layers: linear layers, with `hidden` units between. Batch statistics are those of one call, over all processes.
    Initialised as the framework does. Source: SwinTransformer/Transformer-SSL 4510de1, models/moby.py: MoBYMLP.
    """

    def __init__(self, dim: int, hidden: int = 4096, outputs: int = 256, layers: int = 2):
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), outputs]
        steps: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            steps += ([BatchNorm(a), nn.ReLU()] if i else []) + [nn.Linear(a, b)]
        self.mlp = nn.Sequential(*steps)  # of two layers: mlp.0, mlp.1 (normalisation), mlp.3

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def init_linear(module: nn.Module) -> None:
    """Initialise below `module` as DINO does: linear weights truncated normal of std 0.02 cut at +-2, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
