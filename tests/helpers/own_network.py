"""The README's network of a user's own, as a plug-in and as a checkpoint."""

import re
from pathlib import Path

import torch

from conftest import REPO
from selfpatch_bench.pretrain.common.plugins import import_file

NAME = "convnet"


def source() -> str:
    """The file as the README has it."""
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    (text,) = [block for block in blocks if "def features(" in block]
    return text


def plug_in(folder: Path) -> Path:
    """Write the file into a plug-in folder; -> its path."""
    path = folder / "backbones" / f"{NAME}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source())
    return path


def trained(plugin: Path) -> torch.nn.Module:
    """The network with random weights, which do not look like an initialisation."""
    torch.manual_seed(0)
    file = import_file(plugin, "readme")
    module = file.ConvNet(file.CARD["widths"])
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) / 8)
    return module.eval()


def save(module: torch.nn.Module, path: Path) -> Path:
    """A trainer's checkpoint: wrapped, with a classifier and an optimiser beside the network."""
    state = {f"module.{k}": v for k, v in module.state_dict().items()} | {"module.head.weight": torch.ones(3, 4)}
    torch.save({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 7}, path)
    return path
