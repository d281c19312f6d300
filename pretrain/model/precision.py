"""The precision that a run computes in."""

import torch
from torch import Tensor, nn

from ..common.machine import multiplies_bf16

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: str, device: torch.device) -> str:
    """options.Loop.precision -> float32 | bf16 | fp16 | float64"""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if multiplies_bf16() else "float32"


@torch.no_grad()
def cast_weights(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """What autocast makes of the weights and biases of linear and convolutional layers, by their names."""
    layers = {name: part for name, part in network.named_modules() if type(part) in (nn.Linear, nn.Conv2d)}
    return {f"{name}.{key}": p.to(dtype) for name, part in layers.items() for key, p in part.named_parameters()}
