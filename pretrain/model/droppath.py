"""Stochastic depth that is compiled once, whatever the rates of the blocks."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class StochasticDepth(DropPath):
    """timm's DropPath, with its numbers; compiled, the share that is kept is a tensor.

    A rate that is a Python float is a constant of a compiled graph: every block of a network, whose rates rise from
    block to block, gets a graph of its own, and torch.compile stops at eight.
    """

    def __init__(self, drop_prob: float, scale_by_keep: bool = True):
        super().__init__(drop_prob, scale_by_keep)
        keep = 1 - drop_prob
        self.register_buffer("keep", torch.tensor(keep), persistent=False)
        self.register_buffer("divisor", torch.tensor(keep if keep and scale_by_keep else 1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [M, ...] -> with some of the M set to 0 and the others made larger, in training mode"""
        if not self.training or not torch.compiler.is_compiling():
            return super().forward(x)
        kept = torch.rand([len(x)] + [1] * (x.ndim - 1), device=x.device) < self.keep
        return x * (kept.to(x.dtype) / self.divisor.to(x.dtype))


def take_over(backbone: nn.Module) -> None:
    """Put `StochasticDepth` in the place of every DropPath below."""
    for part in list(backbone.modules()):
        for name, child in part.named_children():
            if type(child) is DropPath:
                setattr(part, name, StochasticDepth(child.drop_prob, child.scale_by_keep))
