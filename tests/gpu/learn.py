"""Does a network learn on a GPU within minutes?

    python tests/gpu/learn.py DATA [--recipe dino_small] [--minutes 8] [--epochs 40] [--device cuda] [key=value ...]

DATA: train/ and val/ with a folder for each class, pictures of 32 pixels (CIFAR-10), or `drawn`. ViT-Ti/4, views of 32
and 16 pixels, batch 256. k-NN of the teacher before and after; KL, rank and loss by epoch, from the run's log. The last
line says whether it is accepted: k-NN 20 points above the random network's, KL and rank higher at the end than after
epoch 2; exit status 1 if not. A minute before time is up the run is stopped, and judged as it is.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import describe

from frozen_knn import drawn_classes, image_vectors, top1
from selfpatch_bench.pretrain import train
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.monitor.log import entries
from selfpatch_bench.pretrain.step import Learner

GAIN, LATER = 20.0, 2  # points of k-NN; the epoch after which KL and rank are to rise
MOST = 10_000  # pictures of each split for k-NN
ENDED = 60.0  # seconds kept for the last evaluation


def configuration(args, data: Path):
    values = ["network.backbone=vit_tiny_patch4", "views.rows.0.size=32", "views.rows.1.size=16", "loop.batch=256"]
    values.append("loop.per_gpu=256")  # small pictures: all at once
    if args.tiny:
        values += ["network.overrides={embed_dim: 24, depth: 2, num_heads: 2}", "loop.batch=8", "log.every=1"]
        values += ["data.workers=0", "views.rows.1.count=2"]
    values += [f"loop.epochs={args.epochs}", f"loop.device={args.device}", "watch.every=null", *args.values]
    cfg = load_recipe(args.recipe, values)
    cfg.data.path = str(data / "train")
    return train.absolute_paths(cfg)


def knn(cfg, data: Path, state: dict | None, device) -> float:
    """Top-1 of the teacher; state: of a run, None for the initial weights."""
    learner = Learner(cfg)
    if state:
        learner.teacher.load_state_dict(state["teacher"])
    teacher = learner.teacher.to(device)
    return top1(image_vectors(teacher), data, cfg, cfg.views.rows[0].size, MOST, device)


def curves(run: Run) -> dict[int, dict[str, float]]:
    """Means of the log's lines by epoch (1-based): loss, KL (of the first objective with prototypes), rank."""
    found: dict[int, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for line in entries(run.log_file):
        if "loss" not in line:
            continue
        kl = next((v for k, v in line.items() if k.endswith(".kl")), None)
        for name, value in (("loss", line["loss"]), ("KL", kl), ("rank", line.get("rank"))):
            if value is not None:
                found[line["epoch"] + 1][name].append(value)
    return {e: {k: statistics.fmean(v) for k, v in numbers.items()} for e, numbers in found.items()}


def judged(before: float, after: float, by_epoch: dict[int, dict[str, float]]) -> tuple[bool, str]:
    """Whether a run is accepted, and the line that says so."""
    held, words = (
        [after - before >= GAIN],
        [f"k-NN {after:.1f} (random {before:.1f}, {after - before:+.1f} of {GAIN:.0f})"],
    )
    early, late = by_epoch.get(LATER, {}), by_epoch[max(by_epoch)] if max(by_epoch, default=0) > LATER else {}
    for name in ("KL", "rank"):
        known = name in early and name in late
        held.append(known and late[name] > early[name])
        words.append(f"{name} {early[name]:.3g} -> {late[name]:.3g}" if known else f"{name}: no epoch after {LATER}")
    return all(held), f"{'accepted' if all(held) else 'NOT accepted'}: {'; '.join(words)}"


def learn(args, data: Path, out: Path) -> bool:
    begun, cfg, run = time.monotonic(), configuration(args, data), Run(out)
    device = Ranks(args.device).device
    print(f"{args.recipe}, {args.epochs} epochs: {describe(device)}", flush=True)
    before = knn(cfg, data, None, device)
    print(f"k-NN of the random network {before:.2f}", flush=True)

    def stop(*_) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # which the run takes as: save, and end

    left = 60 * args.minutes - (time.monotonic() - begun) - (0 if args.tiny else ENDED)
    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
    try:
        status = train.run(cfg, out, False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    if status not in (0, 128 + signal.SIGTERM):
        sys.exit(status)
    _, state = run.newest()
    by_epoch = curves(run)
    print("| epoch | loss | KL | rank |\n|---|---|---|---|")
    for epoch, numbers in by_epoch.items():
        print(
            f"| {epoch} | {' | '.join(f'{numbers[k]:.4g}' if k in numbers else '' for k in ('loss', 'KL', 'rank'))} |"
        )
    accepted, line = judged(before, knn(cfg, data, state, device), by_epoch)
    spent = f"{state['step']} steps, {time.monotonic() - begun:.0f} s"
    print(f"{spent}{'' if status == 0 else ', stopped by the clock'}\n{line}", flush=True)
    return accepted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("values", nargs="*", metavar="key=value")
    parser.add_argument("--recipe", default="dino_small")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="the run's folder (default: one that is removed)")
    parser.add_argument("--tiny", action="store_true", help="a network and a batch of no size, three epochs")
    args = parser.parse_args(arguments)
    args.epochs = 3 if args.tiny else args.epochs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = Path(args.data)
        if args.data == "drawn":
            counts = (24, 12, 40, 3) if args.tiny else (8000, 2000, 40, 10)
            data = drawn_classes(folder / "drawn", *counts)
        return 0 if learn(args, data, args.out or folder / "run") else 1


if __name__ == "__main__":
    sys.exit(main())
