"""Training steps: the rows of `figures.py --only pretrain`."""

import contextlib
import functools
import itertools
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from table import Table, peak_gb, seconds_each, wait

from reference_pretrain import Plain
from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.monitor import mfu
from selfpatch_bench.pretrain.recipes import RECIPES
from selfpatch_bench.pretrain.step import Trainer

COLUMNS = ("step", "images/s", "ms a step", "memory, GB", "wait for data", "GFLOP an image", "MFU")
PLAIN = ("selfpatch", "dino")  # of which there is a plain step
SMALL = {"outputs": 32, "hidden": 32, "bottleneck": 16, "queue": 8, "samples": 4, "local_samples": 2}
# Recipes that are for another backbone by default.
VIT = {"moby": ["network.class_token=true", "network.readout=token"]}


def configuration(recipe: str, args, *more: str):
    """A recipe with ViT-S/16 on the device; tiny: small in everything."""
    options = [*VIT.get(recipe, []), f"loop.batch={args.batch}", f"loop.device={args.device}", "loop.steps=100000"]
    options += [f"loop.precision={args.precision}", "schedule.warmup_epochs=1", "optim.freeze_epochs=0"]
    options.append(f"loop.per_gpu={args.batch}")  # one micro-batch
    if not args.tiny:
        return load_recipe(recipe, ["network.backbone=vit_small_patch16", *options, *more])
    options += ["network.backbone=vit_tiny_patch8", "network.overrides={embed_dim: 24, depth: 2, num_heads: 2}"]
    cfg = load_recipe(recipe)
    sides = {"local": 24, "global": 32, None: 32}
    options += [f"views.rows.{i}.size={sides[row.role]}" for i, row in enumerate(cfg.views.rows)]
    options += ["views.pre_resize=40"] if cfg.views.pre_resize else []
    options += [
        f"objectives.{e.name}.{k}={v}" for e in cfg.objectives for k, v in SMALL.items() if hasattr(e.options, k)
    ]
    return load_recipe(recipe, [*options, *more])


def synthetic(cfg, batch: int, device: torch.device) -> list[Group]:
    """Views of random pixels, uint8, on the device."""
    noise, specs, made = torch.Generator().manual_seed(0), cfg.views.specs(), []
    for members in cfg.views.groups():
        size = specs[members[0]].size
        x = torch.randint(0, 256, (len(members), batch, 3, size, size), dtype=torch.uint8, generator=noise)
        box = torch.tensor([0.0, 0.0, 224.0, 224.0]).expand(len(members), batch, 4).contiguous()
        made.append(Group(x, box, torch.zeros(len(members), batch, dtype=torch.bool)))
    if cfg.views.mask.kind != "none":
        side = specs[0].size // int(cfg.network.backbone.rpartition("patch")[2])
        made[0].mask = torch.rand(*made[0].x.shape[:2], side, side, generator=noise) < 0.3
    return [group.to(device) for group in made]


COUNTED: dict[str, float] = {}


def flops(recipe: str, args) -> float:
    """Floating point operations of a step's matrix products, for each image; 0 where they cannot be counted."""
    if recipe not in COUNTED:
        COUNTED[recipe] = 0.0
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):  # a row is worth more than its MFU
            COUNTED[recipe] = count(recipe, args)
    return COUNTED[recipe]


def count(recipe: str, args) -> float:
    few = 2  # batch norm needs more than one
    cfg = configuration(recipe, args, f"loop.batch={few}")
    trainer = Trainer(cfg, 1000, Ranks(args.device))
    return mfu.flops(trainer, synthetic(cfg, few, trainer.device))


def cells(seconds: float, each: float, args, device: torch.device, waited: float | None = None) -> dict[str, str]:
    """A row of a step of `seconds`; each: operations of an image, 0 if not counted."""
    rate = args.batch / seconds
    most = mfu.peak(torch.cuda.get_device_name(device), args.precision) if device.type == "cuda" else None
    found = {"images/s": f"{rate:.0f}" if rate >= 10 else f"{rate:.2f}", "ms a step": f"{1e3 * seconds:.1f}"}
    found |= {"memory, GB": peak_gb(device), "GFLOP an image": f"{each / 1e9:.3g}" if each else ""}
    found |= {"MFU": f"{100 * rate * each / most:.1f} %" if each and most else ""}
    return found | ({} if waited is None else {"wait for data": f"{100 * waited:.0f} %"})


@dataclass(frozen=True)
class Case:
    """A row: our step or the plain one of a recipe."""

    recipe: str
    who: str = "ours"
    compiled: bool = False
    real: bool = False

    def __str__(self) -> str:
        parts = [self.recipe, self.who, "compiled" if self.compiled else "eager"]
        return ", ".join([*parts, *(["real views"] if self.real else [])])


def run(case: Case, args, pictures: Path) -> dict[str, str]:
    """Measure a row."""
    each = flops(case.recipe, args)  # before the networks of this row take their memory
    cfg = configuration(case.recipe, args, f"loop.compile={case.compiled and case.who == 'ours'}")
    trainer = Trainer(cfg, 1000, Ranks(args.device))
    device = trainer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warm = 2 if args.tiny else 6
    if case.real:
        seconds, waited = from_disk(trainer, args, pictures, warm)
        return cells(seconds, each, args, device, waited)
    groups = synthetic(cfg, args.batch, device)
    step = trainer.advance
    if case.who == "plain":
        plain = Plain(trainer.learner, trainer.precision, fused=True)
        if case.compiled:
            plain.loss = torch.compile(plain.loss, dynamic=False)
        step = plain.step
    seconds = seconds_each(lambda: step(groups), device, args.seconds, warm)
    return cells(seconds, each, args, device)


def from_disk(trainer: Trainer, args, pictures: Path, warm: int) -> tuple[float, float]:
    """Seconds of a step with views made from JPEGs by all cores, and the share of it spent waiting for them."""
    cfg, device, source = trainer.cfg, trainer.device, open_source(str(pictures))
    feed = batches(
        source, cfg.views, seed=0, batch=args.batch, epochs=10**6, patch=trainer.learner.patch,
        workers=0 if args.tiny else len(os.sched_getaffinity(0)), pin=device.type == "cuda",
    )  # fmt: skip
    waited, count, start = 0.0, 0, math.inf
    with contextlib.closing(feed):
        for number in itertools.count():
            if number == warm:
                wait(device)
                start, waited, count = time.perf_counter(), 0.0, 0
            elif count >= 2 and time.perf_counter() - start > 2 * args.seconds:
                break
            before = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - before
            trainer.advance(batch.to(device, non_blocking=True).groups)
            count += 1
        wait(device)
        spent = time.perf_counter() - start
    return spent / count, waited / spent


def cases(tiny: bool) -> list[Case]:
    """All rows, the most valuable first."""
    first = [Case(r, compiled=True) for r in PLAIN] + [Case(r, "plain") for r in PLAIN]
    first += [Case(r) for r in PLAIN] + [Case(r, compiled=True, real=True) for r in PLAIN]
    others = [r for r in RECIPES.scan() if r not in PLAIN and not r.endswith("_small")]
    if tiny:
        return [
            Case("dino", compiled=True),
            Case("selfpatch", "plain"),
            Case("selfpatch", real=True),
            *map(Case, others),
        ]
    more = [Case(r, "plain", compiled=True) for r in PLAIN]
    return (
        first
        + [Case(r, compiled=True) for r in others[:3]]
        + more
        + [Case(r, compiled=True) for r in others[3:]]
        + [*map(Case, others)]
    )


def measure(args, folder: Path) -> None:
    device = Ranks(args.device).device
    if args.tiny:  # the default one builds C++ for each graph
        torch.compile = functools.partial(torch.compile, backend="eager")
    what = "tiny networks" if args.tiny else "ViT-S/16"
    table = Table(args.out, f"Training steps on {device.type}", COLUMNS, args.minutes, device)
    count, side = (2 * args.batch, (40, 48)) if args.tiny else (4 * args.batch, (375, 500))
    pictures = make_pictures(folder / "pictures", count, side)
    for case in cases(args.tiny):
        table.row(str(case), lambda case=case: run(case, args, pictures))
    table.close(
        f"{what}, {args.batch} images a step in one micro-batch, {args.precision}, every recipe's own views (DINO and "
        "SelfPatch: 2x224 + 8x96) and heads; synthetic uint8 views on the device unless the row says otherwise. Plain: "
        "the losses as published, written without care for speed (tests/helpers/reference_pretrain.py), with fused "
        "attention. Operations are those of matrix products, forward and backward, of student, teacher and heads, as "
        "our own step makes them; MFU is their share of the device's dense bf16 peak, empty where that is not known."
    )
