"""Images per second of a training step against a plain implementation of the same losses, in one process.

    python tests/perf/perf_pretrain.py [--quick] [--batch 4] [--rounds 3] [--threads N] [--precision P] [--no-memory]

ViT-Ti/16, 2 views of 224 and 8 of 96 pixels, 65536 and 4096 outputs, stochastic depth off (so that both sides compute
the same, which is checked: the losses in float32 agree). The two take turns; a ratio is the median over rounds. With
one thread CPU time is counted, so that a busy machine falsifies little, else wall time. Memory per image: peak of a
process that makes one step with 4 images less that with 1, over 3.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
from perf_views import drawn

from reference_pretrain import Plain
from selfpatch_bench.pretrain import optim
from selfpatch_bench.pretrain.common.machine import process_peak
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data import pixels
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.data.images import decode
from selfpatch_bench.pretrain.data.views import draw_all
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.objectives import Step
from selfpatch_bench.pretrain.step import Trainer


def now() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


PARTS = ("teacher", "student", "heads", "objective", "backward", "optimiser", "EMA", "rest")


def make(recipe: str, precision: str, batch: int) -> Trainer:
    values = ["network.backbone=vit_tiny_patch16", "network.drop_path=0", f"loop.batch={batch}", "loop.device=cpu"]
    cfg = load_recipe(recipe, [*values, f"loop.precision={precision}", "loop.steps=1000", "schedule.warmup_epochs=1"])
    return Trainer(cfg, 10, Ranks("cpu"))


def random_groups(batch: int) -> list[Group]:
    noise = torch.Generator().manual_seed(0)
    made = []
    for views, size in ((2, 224), (8, 96)):
        x = torch.randint(0, 256, (views, batch, 3, size, size), dtype=torch.uint8, generator=noise)
        made.append(Group(x, torch.zeros(views, batch, 4), torch.zeros(views, batch, dtype=torch.bool)))
    return made


class Clock:
    """Seconds by label, of functions that `wrap` replaced."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def wrap(self, owner, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            start = now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[label] += now() - start

        setattr(owner, name, timed)


def breakdown(trainer: Trainer, groups: list[Group], rounds: int) -> dict[str, float]:
    """Seconds of each part of a step. Heads: of both networks, forward; not counted with teacher and student."""
    clock, learner, clip, backward = Clock(), trainer.learner, optim.clip, torch.Tensor.backward
    for side in ("teacher", "student"):
        clock.wrap(getattr(learner, side), "forward", side)
        clock.wrap(getattr(learner, side), "apply_head", f"heads of the {side}")
    for objective in learner.objectives.values():
        clock.wrap(objective, "forward", "objective")
        clock.wrap(objective, "update", "objective")
    clock.wrap(learner.ema, "update", "EMA")
    clock.wrap(trainer.optimiser, "step", "optimiser")
    clock.wrap(optim, "clip", "optimiser")
    clock.wrap(torch.Tensor, "backward", "backward")
    try:
        start = now()
        for _ in range(rounds):
            trainer.advance(groups)
        total = now() - start
    finally:
        optim.clip, torch.Tensor.backward = clip, backward
    found = clock.seconds
    for side in ("teacher", "student"):
        own = found.pop(f"heads of the {side}")
        found[side] -= own
        found["heads"] += own
    found["rest"] = total - sum(found.values())
    return {part: found[part] / rounds for part in PARTS}


def view_seconds(trainer: Trainer, count: int) -> float:
    """CPU seconds of one core for the views of an image of 500x375, from its JPEG."""
    views = trainer.cfg.views
    datas = drawn(count)
    outs = [torch.empty(3, s.size, s.size, dtype=torch.uint8).numpy() for s in views.specs()]
    start = time.process_time()
    for number, data in enumerate(datas):
        image = decode(data)
        for view, out in zip(draw_all(views, *image.shape[:2], 0, 0, number), outs, strict=True):
            pixels.apply(view, image, out=out)
    return (time.process_time() - start) / count


def compare(recipe: str, precision: str, batch: int, rounds: int) -> None:
    groups = random_groups(batch)
    trainer, other = make(recipe, precision, batch), make(recipe, precision, batch)
    plain = Plain(other.learner, precision)
    if precision == "float32":
        with torch.no_grad():
            losses = float(trainer.learner(groups, Step())[0]), float(plain.loss(groups)[0])
        if abs(losses[0] - losses[1]) > 1e-5 * abs(losses[1]):
            sys.exit(f"{recipe}: the two losses differ, {losses[0]} and {losses[1]}: nothing to compare")
    spent = {"ours": [], "plain": []}
    for turn in range(rounds + 1):
        for name, step in (("ours", trainer.advance), ("plain", plain.step)):
            start = now()
            step(groups)
            if turn:  # the first one is to warm up
                spent[name].append(now() - start)
    ratio = statistics.median(p / o for o, p in zip(spent["ours"], spent["plain"], strict=True))
    ours, theirs = (batch / statistics.median(spent[name]) for name in ("ours", "plain"))
    print(f"{recipe:<10} {precision:<8} {ours:6.2f} images/s, plain {theirs:6.2f}; ratio {ratio:.2f}", flush=True)
    found = breakdown(trainer, groups, max(1, rounds - 1))
    total = sum(found.values())
    parts = ", ".join(f"{part} {1e3 * s / batch:.0f} ({100 * s / total:.0f} %)" for part, s in found.items())
    views = 1e3 * view_seconds(trainer, 8)
    print(f"    ms per image: {parts}; views, on one core beside it: {views:.0f}", flush=True)


def peak(recipe: str, precision: str, side: str, batch: int) -> int:
    """Peak bytes of a new process that makes one step."""
    line = [sys.executable, __file__, "--one", recipe, precision, side, "--batch", str(batch)]
    line += ["--threads", str(torch.get_num_threads())]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def one(recipe: str, precision: str, side: str, batch: int) -> None:
    trainer = make(recipe, precision, batch)
    step = trainer.advance if side == "ours" else Plain(trainer.learner, precision).step
    step(random_groups(batch))
    print(process_peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, SelfPatch only, no memory")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", choices=("float32", "bf16"), help="only this one (bf16 crawls without AMX)")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        return one(*args.one, args.batch)
    print(f"ViT-Ti/16, batch {args.batch}, 2x224 + 8x96, outputs 65536 / 4096; {torch.get_num_threads()} threads")
    recipes = ("selfpatch",) if args.quick else ("selfpatch", "dino")
    precisions = (args.precision,) if args.precision else ("float32", "bf16")
    for recipe in recipes:
        for precision in precisions:
            compare(recipe, precision, args.batch, 1 if args.quick else args.rounds)
    if args.quick or args.no_memory:
        return None
    for recipe in recipes:
        for precision in precisions:
            each = [(peak(recipe, precision, s, 4) - peak(recipe, precision, s, 1)) / 3e6 for s in ("ours", "plain")]
            print(f"{recipe:<10} {precision:<8} memory per image {each[0]:.0f} MB, plain {each[1]:.0f} MB", flush=True)
    return None


if __name__ == "__main__":
    main()
