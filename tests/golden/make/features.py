"""Features of one drawn picture by the official DINO code.

    python tests/golden/make/features.py facebookresearch/dino          (commit 7c446df)

The argument is the folder of that repository. Writes drawn/network.npz: of drawn/network.pth (2 heads) and a drawn
picture, as it is (144 x 112 pixels) and at 224 x 224 (Pillow's bilinear): the class token and the patch tokens of the
last block after the norm, the keys of its attention with the heads side by side, and the mean and std that were used.
"""

import sys
from functools import partial

import numpy as np
import official
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

DRAWN = official.OUT.parent / "drawn"
MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
official.use(sys.argv[1])
import vision_transformer as vits  # noqa: E402

norm = partial(nn.LayerNorm, eps=1e-6)
size = {"patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 2, "qkv_bias": True, "num_classes": 0}
net = vits.VisionTransformer(norm_layer=norm, **size).eval()
teacher = torch.load(DRAWN / "network.pth", weights_only=True)["teacher"]
net.load_state_dict({k.removeprefix("backbone."): v for k, v in teacher.items()})
projected = {}
net.blocks[-1].attn.qkv.register_forward_hook(lambda module, given, out: projected.update(last=out))
picture = Image.open(DRAWN / "data/voc07/VOC2007/JPEGImages/000001.jpg").convert("RGB")
pixels_of = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*MEAN_STD)])
recorded = {"mean_std": np.array(MEAN_STD, np.float32)}
for name, shown in (("native", picture), ("square", picture.resize((224, 224), Image.BILINEAR))):
    with torch.no_grad():
        [tokens] = net.get_intermediate_layers(pixels_of(shown)[None])[0]
    keys = projected["last"].reshape(len(tokens), 3, 32)[1:, 1]
    found = {"class": tokens[0], "patches": tokens[1:], "keys": keys}
    recorded |= {f"{name}.{k}": v.numpy() for k, v in found.items()}
np.savez_compressed(DRAWN / "network.npz", **recorded)
