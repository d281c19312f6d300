"""One step of the official SERE code (iBOT with self-relations) on a tiny network.

    python tests/golden/make/sere.py MCG-NKU/SERE          (commit e20f37f)

The argument is the folder of that repository. Writes official/sere_step.npz: 2 global views of 56 and 3 local ones of
24 pixels, patch 4 (the code knows 14 x 14 and 6 x 6 patches only), 2 images, 24 wide, 2 blocks, 3 heads; alpha 0.2,
beta 0.5, temperatures 0.5 and 0.1; relations at 13 x 13 and 6 x 6 points; epoch 1 of a teacher temperature 0.04 -> 0.07
over 2 epochs. The last local view of one image overlaps neither global view, and its second view has no masked patch.
"""

import argparse
import sys
import types

import numpy as np
import official
import torch

WIDTH, DEPTH, HEADS, OUTPUTS, HIDDEN, BOTTLENECK = 24, 2, 3, 40, 32, 16
IMAGES, LOCAL, POINTS, LOCAL_POINTS, EPOCH = 2, 3, 13, 6, 1
official.use(sys.argv[1])
sys.modules["tensorboardX"] = types.ModuleType("tensorboardX")
sys.modules["tensorboardX"].SummaryWriter = object
import main_sere as main  # noqa: E402
import utils  # noqa: E402
from models.head import iBOTHead  # noqa: E402
from models.vision_transformer import VisionTransformer  # noqa: E402
from transforms_overlap import get_grid  # noqa: E402

options = argparse.Namespace(accum_iter=1, alpha=0.2, beta=0.5, temperature_pixel=0.5, temperature_channel=0.1)
main.args = options  # the loss reads a name of its module


def network(masked: bool):
    backbone = VisionTransformer(
        img_size=[56],
        patch_size=4,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=4,
        qkv_bias=True,
        return_all_tokens=True,
        masked_im_modeling=masked,
        local_crop=True,
    )
    sizes = {"patch_out_dim": OUTPUTS, "hidden_dim": HIDDEN, "bottleneck_dim": BOTTLENECK}
    return utils.MultiCropWrapper(backbone, iBOTHead(WIDTH, OUTPUTS, norm_last_layer=False, shared_head=True, **sizes))


def stacked(first: int, second: int, points: int) -> list[torch.Tensor]:
    """The official sampling grids of two views, both ways, over the images."""
    pairs = [get_grid(boxes[b, first], boxes[b, second], points) for b in range(IMAGES)]
    return [torch.stack(side) for side in zip(*pairs, strict=True)]


torch.manual_seed(0)
student, teacher = network(True), network(False)
official.other_teacher(student, teacher)
with torch.no_grad():
    student.backbone.masked_embed.normal_(std=0.02)
loss_of = main.iBOTLoss(OUTPUTS, OUTPUTS, 2, LOCAL, 0.04, 0.07, 0.04, 0.07, 2, 4)
loss_of.center = torch.randn(1, OUTPUTS) * 0.1
loss_of.center2 = torch.randn(1, 1, OUTPUTS) * 0.1
views = official.random_views([56, 56] + [24] * LOCAL, IMAGES, seed=1)

# Boxes (left, top, width, height, flip) in pixels of pictures of 500 x 375.
draw = np.random.default_rng(1)
boxes = np.zeros((IMAGES, 2 + LOCAL, 5), int)
for box, view in ((boxes[b, v], v) for b in range(IMAGES) for v in range(2 + LOCAL)):
    width, height = draw.integers(200, 330, 2) if view < 2 else draw.integers(60, 140, 2)
    box[:] = draw.integers(0, 500 - width), draw.integers(0, 375 - height), width, height, draw.integers(0, 2)
boxes[1, 0, :4], boxes[1, 1, :4], boxes[1, -1, :4] = [0, 0, 300, 300], [100, 20, 250, 250], [400, 300, 90, 70]
masks = [torch.from_numpy(draw.random((IMAGES, 14, 14)) < ratio) for ratio in (0.3, 0.2)]
masks[1][1] = False
grids = stacked(0, 1, POINTS)
crossed = [stacked(2 + local, view, LOCAL_POINTS) for view in range(2) for local in range(LOCAL)]
of_local, of_global = [pair[0] for pair in crossed], [pair[1] for pair in crossed]

recorded = {f"image{i}": view.half() for i, view in enumerate(views)}
recorded |= {"boxes": boxes, "mask0": masks[0], "mask1": masks[1]}
recorded |= official.state("student", student) | official.state("teacher", teacher)
recorded |= {"center_before": loss_of.center.clone(), "center2_before": loss_of.center2.clone()}
recorded |= {"grid_global0": grids[0], "grid_global1": grids[1]}
recorded |= {"grid_local0_g0": of_local[0], "grid_g0_local0": of_global[0]}

target, target_channel, target_pixel, _, _, target_global = teacher(views[:2], *(grids, grids), teacher=True)
output, channel, pixel, _, _, _ = student(views[:2], *(grids, grids), mask=masks, teacher=False)
student.backbone.masked_im_modeling = False
local, _, _, local_channel, local_pixel, _ = student(views[2:], teacher=False)
student.backbone.masked_im_modeling = True
parts = loss_of(output, target, local[0], masks, EPOCH, it=0)
counts = {"ncrops": 2, "ncrops_local": LOCAL}
spatial = main.sere_loss_pixel(options, pixel, target_pixel, local_pixel, target_global, of_local, of_global, **counts)
channels = main.sere_loss_channel(options, channel, target_channel, local_channel, **counts)
loss = parts["loss"] * (4 - options.alpha - options.beta) / 2 + spatial * options.alpha + channels * options.beta
loss.backward()
recorded |= {"loss": loss, "loss_cls": parts["cls"], "loss_patch": parts["patch"]}
recorded |= {"loss_spatial": spatial, "loss_channel": channels}
recorded |= {"center_after": loss_of.center.clone(), "center2_after": loss_of.center2.clone()}
official.save("sere_step", recorded | official.gradients(student))
