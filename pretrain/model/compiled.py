"""torch.compile, part by part: blocks share their code, so that each is compiled once for each shape."""

import torch
import torch._dynamo
from torch import nn

from .network import Network

GRAPHS = 64  # of one function, for all shapes that it is called with


def compile_networks(*networks: Network) -> None:
    """Compile blocks, class attention and heads in place: names of parameters stay."""
    # A Swin's blocks need more than the eight graphs that are the default: four widths, with and without shift.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for network in networks:
        for block in network.backbone.blocks:
            block.forward = torch.compile(block.forward, dynamic=False)  # see recompute_blocks
        for name in ("image", "aggregate"):
            if method := getattr(network.readout, name, None):
                setattr(network.readout, name, torch.compile(method, dynamic=False))
        for name, head in network.heads.items():
            # The number of masked patches is another one at each step.
            through = [s for n, s in network.specs.items() if name in (n, s.shares)]
            dynamic = None if any(s.input == "masked" for s in through) else False
            for part in head if isinstance(head, nn.ModuleList) else [head]:
                part.compile(dynamic=dynamic)


def compile_objectives(objectives: nn.ModuleDict) -> None:
    """Compile the modules that an objective calls (a softmax, a loss, a predictor), in place."""
    for objective in objectives.values():
        for part in objective.children():
            part.compile()
