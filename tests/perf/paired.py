"""Official modules and ours side by side: the same weights and the same views, step by step.

    python tests/perf/paired.py dino FOLDER      [--data CLASSES] [--steps 200] [--batch 4]     (dino 7c446df)
    python tests/perf/paired.py selfpatch FOLDER [...]                              (alinlab/SelfPatch 81aef14)

FOLDER holds that repository; nothing of it is copied. CLASSES has train/ and val/ with a folder for each class; without
it pictures are drawn. Both start from the official modules' weights and see what our loader made. The two take turns,
on one CPU thread, and CPU time is counted. Printed are losses at ten steps, their largest relative difference over all
steps, the teachers' k-NN (20 neighbours), and the time per image. Exit status 1: a loss differs by more than 1e-5, or
k-NN does at all.

SelfPatch's code takes 196 and 36 patches only, so views have 56 and 24 pixels in patches of 4. Stochastic depth is off:
the two draw it from different streams.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pretrain"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden/make"))
import official
from test_pretrain_parity import our_name

from frozen_knn import drawn_classes, image_vectors, top1
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import normalise
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.step import Trainer

WIDTH, DEPTH, HEADS, PATCH, GLOBAL, LOCAL, VIEWS = 96, 4, 3, 4, 56, 24, 6
HEAD = {"hidden": 256, "bottleneck": 64}
OUTPUTS = {"dino": 1024, "selfpatch": 512}
BOUND = 1e-5


def recipe(method: str, batch: int, epochs: int, lr: float):
    """Our configuration of what `Official` is. lr: the peak, for the batch as it is."""
    sizes = [f"views.rows.{i}.size={size}" for i, size in enumerate((GLOBAL, GLOBAL, LOCAL))]
    named = ["dino", "selfpatch"] if method == "selfpatch" else ["dino"]
    heads = [f"objectives.{n}.{k}={v}" for n in named for k, v in ({"outputs": OUTPUTS[n]} | HEAD).items()]
    return load_recipe(
        method,
        [
            *(f"network.backbone=vit_tiny_patch{PATCH}", "network.drop_path=0", f"views.rows.2.count={VIEWS - 2}"),
            f"network.overrides={{embed_dim: {WIDTH}, depth: {DEPTH}, num_heads: {HEADS}}}",
            *(*sizes, *heads, f"loop.batch={batch}", f"loop.epochs={epochs}", "loop.device=cpu"),
            *("loop.precision=float32", "schedule.warmup_epochs=1", f"schedule.lr={lr}", f"schedule.lr_batch={batch}"),
        ],
    )


class Official:
    """Networks, loss, optimiser and one step of the official training script, whose folder is on the path."""

    def __init__(self, method: str, cfg, per_epoch: int):
        import utils

        self.method, self.utils, self.cfg, self.per_epoch = method, utils, cfg, per_epoch
        if method == "selfpatch":
            import main_selfpatch as main
            import selfpatch_vision_transformer as vits
        else:
            import main_dino as main
            import vision_transformer as vits
        self.main, self.vits = main, vits
        torch.manual_seed(0)
        self.student, self.teacher = self.network(), self.network()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        epochs, tau = cfg.loop.epochs, cfg.objectives[0].options.teacher_temperature
        outputs = list(OUTPUTS.values()) if method == "selfpatch" else [OUTPUTS["dino"]]
        self.loss = main.DINOLoss(*outputs, VIEWS, tau, tau, 0, epochs)
        self.optimiser = torch.optim.AdamW(utils.get_params_groups(self.student))
        s = cfg.schedule
        self.lr = utils.cosine_scheduler(
            s.lr * cfg.loop.batch / s.lr_batch, s.min_lr, epochs, per_epoch, warmup_epochs=int(s.warmup_epochs)
        )
        self.decay = utils.cosine_scheduler(s.weight_decay, s.weight_decay_end, epochs, per_epoch)
        self.momentum = utils.cosine_scheduler(s.ema, 1, epochs, per_epoch)

    def network(self) -> nn.Module:
        backbone = self.vits.VisionTransformer(
            img_size=[GLOBAL],
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        head = partial(
            self.vits.DINOHead,
            WIDTH,
            hidden_dim=HEAD["hidden"],
            bottleneck_dim=HEAD["bottleneck"],
            norm_last_layer=True,
        )
        if self.method == "dino":
            return self.utils.MultiCropWrapper(backbone, head(OUTPUTS["dino"]))
        readout = self.vits.SelfPatchHead(WIDTH, HEADS, 4)
        return self.main.MultiCropWrapper(backbone, readout, *(head(OUTPUTS[n]) for n in ("dino", "selfpatch")))

    def forward(self, views: list, epoch: int, it: int):
        if self.method == "dino":
            with torch.no_grad():
                targets = self.teacher(views[:2])
            return self.loss(self.student(views), targets, epoch)
        parts = torch.cat(views[:2]), torch.cat(views[2:])
        with torch.no_grad():
            targets = [self.teacher(part, loc=True) for part in parts]
        outputs = [self.student(part, loc=False) for part in parts]
        return self.loss(self.teacher, self.student, outputs, targets, epoch, it)[0]

    def step(self, views: list, it: int) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr[it]
        self.optimiser.param_groups[0]["weight_decay"] = self.decay[it]
        loss = self.forward(views, it // self.per_epoch, it)
        self.optimiser.zero_grad()
        loss.backward()
        self.utils.clip_gradients(self.student, self.cfg.optim.clip)
        self.utils.cancel_gradients_last_layer(it // self.per_epoch, self.student, self.cfg.optim.freeze_epochs)
        self.optimiser.step()
        with torch.no_grad():
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.mul_(self.momentum[it]).add_((1 - self.momentum[it]) * ours)
        return loss.item()

    def image(self, x):
        """The teacher's image vectors [B, D]"""
        found = self.teacher.backbone(x)
        return found if self.method == "dino" else self.teacher.ca_head(found, False)[:, 0]


def ours(method: str, cfg, per_epoch: int, theirs: Official) -> Trainer:
    """Our trainer with the official modules' weights."""
    trainer = Trainer(cfg, per_epoch, Ranks("cpu"))
    for side in ("student", "teacher"):
        weights = {our_name(k, method): v.clone() for k, v in getattr(theirs, side).state_dict().items()}
        getattr(trainer.learner, side).load_state_dict(weights)
    return trainer


def follow(method: str, root: Path, args) -> bool:
    """Both runs, and what is to be said of them; -> whether they agree."""
    steps, batch, most = args.steps, args.batch, args.knn
    source = open_source(root / "train")
    per_epoch = len(source) // batch
    # The last layers are frozen in the first epoch.
    cfg = recipe(method, batch, max(2, -(-steps // per_epoch)), args.lr)
    theirs = Official(method, cfg, per_epoch)
    trainer = ours(method, cfg, per_epoch, theirs)
    both = {"official": theirs.image, "ours": image_vectors(trainer.learner.teacher)}
    before = {name: top1(image, root, cfg, GLOBAL, most) for name, image in both.items()}
    feed = batches(source, cfg.views, seed=0, batch=batch, epochs=cfg.loop.epochs, patch=PATCH)
    worst, spent = 0.0, {"official": [], "ours": []}
    print("| step | official | ours |\n|---|---|---|")
    for it, item in zip(range(steps), feed, strict=False):
        # Pixels become numbers in both, as part of the step.
        def official_step(groups=item.groups, it=it):
            x = [normalise(g.x, cfg.data.mean, cfg.data.std) for g in groups]
            return theirs.step([view for g in x for view in g], it)

        def our_step(groups=item.groups):
            return float(trainer.advance(groups).numbers["loss"])

        turns = [("official", official_step), ("ours", our_step)]
        losses = {}
        for name, step in turns[:: 1 if it % 2 else -1]:
            start = time.process_time()
            losses[name] = step()
            spent[name].append((time.process_time() - start) / batch)
        worst = max(worst, abs(losses["ours"] / losses["official"] - 1))
        if (it + 1) % max(1, steps // 10) == 0:
            print(f"| {it + 1} | {losses['official']:.7f} | {losses['ours']:.7f} |", flush=True)
    after = {name: top1(image, root, cfg, GLOBAL, most) for name, image in both.items()}
    ratio = statistics.median(a / b for a, b in zip(spent["official"], spent["ours"], strict=True))
    ms = {name: 1e3 * statistics.median(times) for name, times in spent.items()}
    print(
        f"\n{method}: {len(spent['ours'])} steps of {batch} images; largest relative difference of a loss {worst:.1e}; "
        f"k-NN before {before['official']:.2f} / {before['ours']:.2f}, after {after['official']:.2f} / "
        f"{after['ours']:.2f} (official / ours); ms per image {ms['official']:.1f} / {ms['ours']:.1f}, "
        f"median ratio {ratio:.2f}"
    )
    return worst <= BOUND and before["official"] == before["ours"] and after["official"] == after["ours"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("dino", "selfpatch"))
    parser.add_argument("folder", help="the official repository")
    parser.add_argument("--data", type=Path, help="train/ and val/ of class folders (default: drawn)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2.5e-4, help="peak; the recipes' own is 4e-5 at 20 images")
    parser.add_argument("--knn", type=int, default=500, help="about so many pictures of each split for k-NN")
    args = parser.parse_args()
    official.use(args.folder)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        agree = follow(args.method, args.data or drawn_classes(Path(name)), args)
    torch.distributed.destroy_process_group()
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
