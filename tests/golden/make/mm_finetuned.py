"""Names, shapes and maps of the official backbones of fine-tuned models, at small sizes.

    python tests/golden/make/mm_finetuned.py SelfPatch Swin-Transformer-Object-Detection [facebookresearch/xcit]

The arguments are the folders of alinlab/SelfPatch (81aef14), facebookresearch/xcit (82f5291) and
SwinTransformer/Swin-Transformer-Object-Detection (c7b2011), read as they are; what they import of mmcv 1, mmdet 2 and
mmseg 0 is stood in for, where it builds no tensor. Writes official/mm_finetuned.json (name -> shape, in the order of
the state dict) and official/mm_finetuned.npz (the picture's maps). Weights are drawn in that order by `draw`; buffers
stay as they are.
"""

import json
import sys
import types
from pathlib import Path

import mmcv.cnn
import mmengine.model
import numpy as np
import torch
from mmseg.models.utils import PatchEmbed, resize
from torch import nn

OUT = Path(__file__).parents[1] / "official"


def module(name: str, **content) -> None:
    sys.modules[name] = made = types.ModuleType(name)
    vars(made).update(content)


class Registry:
    def register_module(self):
        return lambda kind: kind


module("mmcv.runner", BaseModule=mmengine.model.BaseModule, ModuleList=mmengine.model.ModuleList)
sys.modules["mmcv.runner"].load_checkpoint = sys.modules["mmcv.runner"]._load_checkpoint = None
for name in ("constant_init", "kaiming_init", "normal_init", "trunc_normal_init"):
    setattr(mmcv.cnn, name, getattr(mmengine.model, name))
module("mmcv_custom", load_checkpoint=None)
for package in ("mmdet", "mmseg"):
    module(f"{package}.utils", get_root_logger=None)
    module(f"{package}.models.builder", BACKBONES=Registry())
module("mmseg.ops", resize=resize)
module("stand"), module("stand.in")
module("stand.builder", BACKBONES=Registry())
module("stand.utils", PatchEmbed=PatchEmbed)


def source(folder: str, path: str, name: str) -> type:
    """The class of a file of the official repository."""
    made = types.ModuleType("stand.in.file")
    made.__package__ = "stand.in"
    exec(compile((Path(folder) / path).read_text(), path, "exec"), vars(made))
    return vars(made)[name]


def draw(net: nn.Module) -> None:
    """Weights [..] ~ 0.2 N, plus 1 for those of one dimension that scale; one stream over the state dict's order."""
    generator = torch.Generator().manual_seed(0)
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not key.endswith(("running_mean", "running_var")):
            drawn = 0.2 * torch.randn(value.shape, generator=generator)
            value.copy_(drawn + 1 if key.endswith("weight") and value.ndim == 1 else drawn)


selfpatch, swin = sys.argv[1:3]
kinds = {
    "selfpatch_detection": source(selfpatch, "detection/backbone/vit_SelfPatch.py", "SelfPatch_ViT")(
        img_size=64, embed_dim=24, num_heads=3, out_indices=[3, 5, 7, 11]
    ),
    "selfpatch_segmentation": source(selfpatch, "segmentation/backbones/vit_SelfPatch.py", "SelfPatch_ViT")(
        img_size=(64, 64),
        embed_dims=24,
        num_layers=12,
        num_heads=3,
        out_indices=(2, 5, 8, 11),
        norm_cfg={"type": "LN", "eps": 1e-6},
    ),
    "swin": source(swin, "mmdet/models/backbones/swin_transformer.py", "SwinTransformer")(
        embed_dim=12, depths=[2, 2, 2, 2], num_heads=[1, 2, 3, 4], out_indices=(0, 1, 2, 3), drop_path_rate=0.0
    ),
}
if sys.argv[3:]:
    xcit = source(sys.argv[3], "detection/backbone/xcit.py", "XCiT")
    kinds["xcit"] = xcit(embed_dim=24, depth=2, num_heads=3, eta=1.0)
image = torch.randn(1, 3, 80, 112, generator=torch.Generator().manual_seed(1))
large = torch.randn(1, 3, 256, 288, generator=torch.Generator().manual_seed(1))
shapes, maps = {}, {}
for kind, net in kinds.items():
    net.eval()
    with torch.no_grad():
        draw(net)
        shapes[kind] = {k: list(v.shape) for k, v in net.state_dict().items()}
        if kind != "xcit":
            found = net(large if kind == "swin" else image)
            maps |= {f"{kind}.{i}": m.numpy() for i, m in enumerate(found)}
(OUT / "mm_finetuned.json").write_text(json.dumps(shapes))
np.savez_compressed(OUT / "mm_finetuned.npz", **maps)
