"""A training step of every recipe beside DINO's: images per second and memory per image, in one run on one machine.

    python tests/perf/perf_methods.py [--batch 4] [--rounds 3] [--threads 1] [--recipes dino,ibot] [--no-memory]

ViT-Ti/16 with every recipe's own views, heads and objectives at full size; MoBY's views are two of 224 pixels, which
makes its step shorter. With one thread CPU time is counted, so that a busy machine falsifies little. The recipes take
turns; figures are medians. Memory per image: peak of a process that makes a step of 4 images less that of 1, over 3
for DINO and SelfPatch; where batch statistics need more than one image 8 less 4, over 4.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures
from selfpatch_bench.pretrain.common.machine import process_peak
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.recipes import RECIPES
from selfpatch_bench.pretrain.step import Trainer

# Recipes that are for another backbone or other pictures by default are brought to the same.
SAME = ["network.backbone=vit_tiny_patch16", "loop.device=cpu", "loop.precision=float32", "loop.steps=1000"]
SAME += ["schedule.warmup_epochs=1"]
OWN = {"moby": ["network.class_token=true", "network.readout=token"]}


def now() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def prepare(recipe: str, batch: int, pictures: Path) -> tuple[Trainer, list]:
    """A trainer and the groups of one batch, drawn as in a run."""
    cfg = load_recipe(recipe, [*SAME, *OWN.get(recipe, []), f"loop.batch={batch}"])
    trainer = Trainer(cfg, 10, Ranks("cpu"))
    feed = batches(
        open_source(pictures), cfg.views, seed=0, batch=batch, epoch=0, epochs=1, workers=0, patch=trainer.learner.patch
    )
    return trainer, next(iter(feed)).groups


def peak(recipe: str, batch: int, pictures: Path) -> int:
    """Peak bytes of a new process that makes one step."""
    line = [sys.executable, __file__, "--one", recipe, "--batch", str(batch), "--pictures", str(pictures)]
    line += ["--threads", str(torch.get_num_threads())]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", help="only these, separated by commas; dino is always among them")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        trainer, groups = prepare(args.one, args.batch, args.pictures)
        trainer.advance(groups)
        print(process_peak())
        return
    names = ["dino", *(n for n in (args.recipes or ",".join(RECIPES.scan())).split(",") if n != "dino")]
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(Path(folder) / "pictures", 16)
        ready = {name: prepare(name, args.batch, pictures) for name in names}
        spent: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(args.rounds + 1):
            for name, (trainer, groups) in ready.items():
                start = now()
                trainer.advance(groups)
                if turn:  # the first is to warm up
                    spent[name].append(now() - start)
        del ready
        print(f"ViT-Ti/16, batch {args.batch}, float32, {torch.get_num_threads()} threads")
        print("| recipe | images/s | relative to dino | memory per image |\n|---|---|---|---|")
        for name in names:
            speed = args.batch / statistics.median(spent[name])
            ratio = statistics.median(d / t for d, t in zip(spent["dino"], spent[name], strict=True))
            few, many = (1, 4) if name in ("dino", "selfpatch") else (4, 8)
            memory = "" if args.no_memory else _memory(name, few, many, pictures)
            print(f"| {name} | {speed:.2f} | {ratio:.2f} | {memory} |", flush=True)


def _memory(name: str, few: int, many: int, pictures: Path) -> str:
    return f"{(peak(name, many, pictures) - peak(name, few, pictures)) / (many - few) / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
