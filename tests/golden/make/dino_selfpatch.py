"""One step and a short run of the official DINO or SelfPatch code on a tiny network.

    python tests/golden/make/dino_selfpatch.py dino facebookresearch/dino          (commit 7c446df)
    python tests/golden/make/dino_selfpatch.py selfpatch alinlab/SelfPatch         (commit 81aef14)

The second argument is the folder of that repository. Writes official/NAME_step.npz and official/NAME_trajectory.json.
2 global and 2 local views, 2 images, 24 wide, 2 blocks, 3 heads; epoch 1 of a teacher temperature 0.04 ->
0.07 over 2 epochs. SelfPatch's code takes 196 and 36 patches only: there views of 56 and 24 pixels in patches of 4, for
DINO 64 and 32 in patches of 16. The run: 4 epochs of 3 steps from the same weights and centres, one epoch of
warm-up, batch `it` is every view rolled by `it` pixels along its width; clipping 3.0 a parameter, the last layers
frozen in epoch 0, AdamW without decay for biases and norms.
"""

import json
import sys
from functools import partial

import official
import torch
from torch import nn

METHOD, FOLDER = sys.argv[1:3]
WIDTH, DEPTH, HEADS, NEIGHBOURS = 24, 2, 3, 4
PATCH, GLOBAL, LOCAL_SIZE = (4, 56, 24) if METHOD == "selfpatch" else (16, 64, 32)
OUTPUTS, PATCH_OUTPUTS, HIDDEN, BOTTLENECK = 48, 32, 32, 16
IMAGES, LOCAL, EPOCHS, STEPS, RATE, BATCH = 2, 2, 4, 3, 5e-4, 256
official.use(FOLDER)
import utils  # noqa: E402

if METHOD == "selfpatch":
    import main_selfpatch as main
    import selfpatch_vision_transformer as vits
else:
    import main_dino as main
    import vision_transformer as vits


def network() -> nn.Module:
    backbone = vits.VisionTransformer(
        img_size=[GLOBAL],
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **({} if METHOD == "selfpatch" else {"num_classes": 0}),
    )
    head = partial(vits.DINOHead, WIDTH, hidden_dim=HIDDEN, bottleneck_dim=BOTTLENECK)
    if METHOD == "selfpatch":
        readout = vits.SelfPatchHead(WIDTH, HEADS, NEIGHBOURS)
        return main.MultiCropWrapper(backbone, readout, head(OUTPUTS), head(PATCH_OUTPUTS))
    return utils.MultiCropWrapper(backbone, head(OUTPUTS, norm_last_layer=False))


torch.manual_seed(0)
student, teacher = network(), network()
official.other_teacher(student, teacher)
views = official.random_views([GLOBAL] * 2 + [LOCAL_SIZE] * LOCAL, IMAGES, seed=1)
both = (0.04, 0.07, 2, EPOCHS)
if METHOD == "selfpatch":
    loss_of = main.DINOLoss(OUTPUTS, PATCH_OUTPUTS, LOCAL + 2, *both)
    loss_of.patch_center = torch.randn(1, PATCH_OUTPUTS) * 0.1
    loss_of.center = torch.randn(1, 1, OUTPUTS) * 0.1
else:
    loss_of = main.DINOLoss(OUTPUTS, LOCAL + 2, *both)
    loss_of.center = torch.randn(1, OUTPUTS) * 0.1
CENTRES = [name for name in ("center", "patch_center") if hasattr(loss_of, name)]
start = {name: getattr(loss_of, name).clone() for name in CENTRES}


def step(epoch: int, it: int, some: list) -> dict:
    """The losses of a step: `loss`, and what it is made of."""
    if METHOD == "dino":
        return {"loss": loss_of(student(some), teacher(some[:2]), epoch)}
    parts = torch.cat(some[:2]), torch.cat(some[2:])
    with torch.no_grad():
        targets = [teacher(part, loc=True) for part in parts]
    outputs = [student(part, loc=False) for part in parts]
    loss, image, patch = loss_of(teacher, student, outputs, targets, epoch, it)
    return {"loss": loss, "loss_cls": torch.tensor(image), "loss_patch": torch.tensor(patch)}


recorded = {f"image{i}": view.half() for i, view in enumerate(views)}
recorded |= official.state("student", student) | official.state("teacher", teacher)
recorded |= {f"{name}_before": value for name, value in start.items()}
with torch.no_grad():
    if METHOD == "selfpatch":
        recorded["teacher_backbone_global0"] = teacher.backbone(views[0])
        recorded["teacher_head_global0"] = teacher.ca_head(teacher.backbone(views[0]), True)
        recorded["teacher_head_local0"] = teacher.ca_head(teacher.backbone(views[2]), True)
        recorded["student_head_global0"] = student.ca_head(student.backbone(views[0]), False)
        recorded["student_backbone_40x56"] = student.backbone(views[0][:, :, :40])
    else:
        recorded["student_out"], recorded["teacher_out"] = student(views), teacher(views[:2])
        recorded["student_cls_48x64"] = student.backbone(views[0][:, :, :48])
losses = step(1, 0, views)
losses["loss"].backward()
recorded |= losses | {f"{name}_after": getattr(loss_of, name).clone() for name in CENTRES}
recorded |= official.gradients(student)
official.save(f"{METHOD}_step", recorded)

for name, value in start.items():
    setattr(loss_of, name, value.clone())
optimiser = torch.optim.AdamW(utils.get_params_groups(student))
rates = utils.cosine_scheduler(RATE * BATCH / 256, 1e-6, EPOCHS, STEPS, warmup_epochs=1)
decays = utils.cosine_scheduler(0.04, 0.4, EPOCHS, STEPS)
momenta = utils.cosine_scheduler(0.996, 1, EPOCHS, STEPS)
run = []
for it in range(EPOCHS * STEPS):
    for group in optimiser.param_groups:
        group["lr"] = rates[it]
    optimiser.param_groups[0]["weight_decay"] = decays[it]
    losses = step(it // STEPS, it, [torch.roll(view, it, -1) for view in views])
    optimiser.zero_grad()
    losses["loss"].backward()
    utils.clip_gradients(student, 3.0)
    utils.cancel_gradients_last_layer(it // STEPS, student, 1)
    optimiser.step()
    with torch.no_grad():
        for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
            theirs.mul_(momenta[it]).add_((1 - momenta[it]) * ours)
    row = {"it": it, "epoch": it // STEPS, "lr": rates[it], "weight_decay": decays[it], "ema": momenta[it]}
    row |= {k: v.item() for k, v in losses.items()}
    for side, net in (("student", student), ("teacher", teacher)):
        row[f"{side}_abs_sum"] = sum(p.detach().abs().sum().item() for p in net.parameters())
    run.append({k: float(v) if k not in ("it", "epoch") else v for k, v in row.items()})
facts = {"k": NEIGHBOURS} if METHOD == "selfpatch" else {}
facts |= {"heads": HEADS, "batch": BATCH, "base_lr": RATE, "epochs": EPOCHS, "steps_per_epoch": STEPS}
text = json.dumps(facts | {"steps": run}, indent=1)
(official.OUT / f"{METHOD}_trajectory.json").write_text(text + "\n")
