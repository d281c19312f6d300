"""The one trained network of the shared folder."""

from pathlib import Path

import torch


def rescaled(path: Path, out: Path) -> Path:
    """The trained file with its patch embedding rescaled to ImageNet-normalised input, as golden/README.md says."""
    weights = torch.load(path, weights_only=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    kernel = weights["patch_embed.proj.weight"]
    weights["patch_embed.proj.bias"] += (kernel * ((mean - 0.5) / 0.5).view(1, 3, 1, 1)).sum((1, 2, 3))
    weights["patch_embed.proj.weight"] = kernel * (std / 0.5).view(1, 3, 1, 1)
    teacher = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith("head.")}
    torch.save({"teacher": teacher}, out)
    return out
