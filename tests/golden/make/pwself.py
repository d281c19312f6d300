"""The official PW-Self loss on matches of its own code.

    python tests/golden/make/pwself.py alijavidani/Local_Global_Representation_Learning          (commit 7eeff8c)

The argument is the folder of that repository. Writes official/pwself_loss.npz: 7 x 7 patches of two global views and
3 x 3 of two local ones (patch 32), 2 images, 12 prototypes, the boxes (top, left, height, width, flip; in pictures of
256 pixels) of the whole batch, epoch 1 of a teacher temperature 0.04 -> 0.07 over 2 epochs.
"""

import sys
import types
from pathlib import Path

import numpy as np
import official
import torch
import torch.nn.functional as F

IMAGES, PROTOTYPES, PATCH, EPOCH = 2, 12, 32, 1
SIDES = [7, 7, 3, 3]
official.use(sys.argv[1])
sys.modules.setdefault("matplotlib.pyplot", types.ModuleType("matplotlib.pyplot"))
import augment  # noqa: E402


def loss_class() -> type:
    """The loss of patch_wise_dino.py without running the rest of the file, which is a script."""
    text = (Path(sys.argv[1]) / "patch_wise_dino.py").read_text()
    forward = text[text.index("class DINOLoss") : text.index("# Original Dino Loss Function")]
    update = text[text.index("    @torch.no_grad()\n    def update_center") : text.index("\nif __name__")]
    names = {"torch": torch, "nn": torch.nn, "np": np, "F": F, "dist": torch.distributed}
    exec(forward.rsplit("\n", 1)[0] + "\n" + update, names)
    return names["DINOLoss"]


def crop(box: np.ndarray, patches: int):
    top, left, height, width, flip = box.tolist()
    view = augment.augmented_crop.__new__(augment.augmented_crop)
    view.original_image, view.flip, view.patches_per_side = augment, flip, patches
    view.crop_coordinates = augment.Coordinates(top, top + height, left, left + width)
    return view


draw = np.random.default_rng(0)
boxes = []
for low, high in ((150, 257), (150, 257), (60, 150), (60, 150)):
    size = draw.integers(low, high, 2)
    boxes.append([*draw.integers(0, 257 - size), *size, draw.integers(0, 2)])
boxes = np.array(boxes)
views = [crop(box, side) for box, side in zip(boxes, SIDES, strict=True)]
matches = [[augment.correspondences(view, other) for other in views] for view in views[:2]]
torch.manual_seed(0)
loss_of = loss_class()(PATCH, PROTOTYPES, 4, 0.04, 0.07, 2, 4)
loss_of.center = torch.randn(1, 50, PROTOTYPES) * 0.1
teacher, student_global = torch.randn(2, 2 * IMAGES, 50, PROTOTYPES) * 0.3
student_local = torch.randn(2 * IMAGES, 10, PROTOTYPES) * 0.3
recorded = {"boxes": boxes, "epoch": EPOCH, "teacher": teacher, "center_before": loss_of.center.clone()}
recorded |= {"student_global": student_global, "student_local": student_local}
outputs = student_global.clone().requires_grad_(), student_local.clone().requires_grad_()
loss = loss_of(*outputs, teacher, matches, EPOCH)
loss.backward()
recorded |= {"loss": loss, "center_after": loss_of.center}
recorded |= {f"grad_student_{k}": v.grad for k, v in zip(("global", "local"), outputs, strict=True)}
official.save("pwself_loss", recorded)
