"""Steps of the official MoBY code on a tiny ViT.

    python tests/golden/make/moby.py SwinTransformer/Transformer-SSL          (commit 4510de1)

The argument is the folder of that repository. Writes official/moby_step.npz: 4 optimiser steps of 2 views, 4 images of
32 pixels, patch 8, 24 wide, 2 blocks, 3 heads; MLPs 24-32-256 and 256-32-256; queues of 8, so that they wrap; momentum
0.99 -> 1 over 8 steps; AdamW 1e-3, decay 0.05 for tensors of two or more dimensions, clipping at 5.0 over all.
One process: SyncBatchNorm is BatchNorm then, and gathering the keys gives the keys.
"""

import sys
import types

import official
import timm.models
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

STEPS, IMAGES, SIZE, QUEUE, RUN = 4, 4, 32, 8, 8
HIDDEN, OUTPUTS, WIDTH = 32, 256, 24  # the code knows no other width of the keys than 256
official.use(sys.argv[1])
gathering = types.ModuleType("diffdist.functional")
gathering.all_gather = lambda others, mine: [mine]
sys.modules["diffdist"] = types.ModuleType("diffdist")
sys.modules["diffdist"].functional = sys.modules["diffdist.functional"] = gathering
timm.models.vit_deit_small_patch16_224 = None  # imported by name, not used here
nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(lambda cls, module, *args: module)
from models import moby  # noqa: E402


def vit() -> VisionTransformer:
    return VisionTransformer(SIZE, 8, embed_dim=WIDTH, depth=2, num_heads=3, num_classes=0)


names = types.SimpleNamespace
config = names(
    MODEL=names(SWIN=names(NORM_BEFORE_MLP="ln")),
    DATA=names(TRAINING_IMAGES=RUN * IMAGES, BATCH_SIZE=IMAGES),
    TRAIN=names(EPOCHS=1, START_EPOCH=0),
)
moby.MoBYMLP.__init__.__defaults__ = (OUTPUTS, HIDDEN, OUTPUTS, 2)
torch.manual_seed(0)
net = moby.MoBY(config, vit(), vit(), contrast_num_negative=QUEUE).train()
with torch.no_grad():  # a target that differs from the start
    for part in (net.encoder_k, net.projector_k):
        for p in part.parameters():
            p.add_(torch.randn_like(p) * 0.02)
images = torch.randn(STEPS, 2, IMAGES, 3, SIZE, SIZE).half()
recorded = {"images": images, **official.state("before", net)}
trained = [p for p in net.parameters() if p.requires_grad]
groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05}]
groups += [{"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
optimiser = torch.optim.AdamW(groups, lr=1e-3)
for t in range(STEPS):
    loss = net(images[t, 0].float(), images[t, 1].float())
    optimiser.zero_grad()
    loss.backward()
    if t == 0:
        recorded |= official.gradients(net)
    norm = nn.utils.clip_grad_norm_(trained, 5.0)
    optimiser.step()
    found = {"loss": loss, "grad_norm": norm, "queue1": net.queue1, "queue2": net.queue2, "queue_ptr": net.queue_ptr}
    recorded |= {f"{k}.{t}": v.detach().clone() for k, v in found.items()}
recorded |= {k: v for k, v in official.state("after", net).items() if "queue" not in k}
official.save("moby_step", recorded)
