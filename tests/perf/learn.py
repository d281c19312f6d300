"""Does a network learn? Random weights, DINO, SelfPatch, its baseline and MoBY over seeds, evaluated on the way.

    python tests/perf/learn.py DATA --out OUT [--methods dino,moby] [--seeds 0,1] [--epochs 20] [--wide] [key=value ...]

DATA: train/ and val/ with a folder for each class, or `drawn`: scenes, whose class is that of the object in front. The
recipes are the *_small ones, on a network that is narrow and shallow enough for one core (SMALL; --wide: the recipe's
own); `key=value` is added to all. k-NN is over all pictures; J&F over drawn videos that are never trained on. Both are
measured before the first step (`random`) and at 25, 50, 75 and 100 % of the run; KL, entropy / log K and rank are those
of the nearest line of the log. OUT gets the runs, learning.csv, learning.png and learning.md, the table. A run that is
there already goes on or is skipped, so that an interrupted command can be given again.
"""

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))

from frozen_knn import drawn_classes
from selfpatch_bench.benchmarks.commands.pretrain import HOOKS
from selfpatch_bench.benchmarks.commands.watch import Evaluator
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain import train
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.config import Config, load_recipe
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.monitor.log import entries
from selfpatch_bench.pretrain.monitor.watch import DONE
from selfpatch_bench.pretrain.step import Learner

METHODS = {  # name -> recipe, and what is changed in it
    "dino": ("dino_small", ()),
    "selfpatch": ("selfpatch_small", ()),
    "baseline": ("selfpatch_small", ("objectives.selfpatch.weight=0",)),
    "moby": ("moby_small", ()),
}
DRAWN = 1200, 360, 64, 12  # pictures to learn from, to judge by; their side; classes
SMALL = ("network.overrides={embed_dim: 96, depth: 4, num_heads: 3}",)
QUARTERS = (0, 25, 50, 75, 100)  # per cent of a run
COLUMNS = ("knn", "JF", "kl", "entropy_share", "rank")
LOGGED = {"kl": "KL", "entropy_share": "H / log K", "rank": "rank"}


def configure(method: str, seed: int, data: Path, videos: Path | None, epochs: int, more: Sequence[str] = ()) -> Config:
    """A run of a method on train/ of `data`, evaluated at every quarter."""
    recipe, own = METHODS[method]
    values = [
        *own,
        "loop.precision=float32",
        f"loop.epochs={epochs}",
        f"seed={seed}",
        "data.workers=0",
        f"watch.every={epochs // 4}",
    ]
    values += ["watch.pictures=0", f"watch.knn={data}"]
    values += [f"watch.davis={videos}", "watch.davis_size=120", "watch.sequences=6"] if videos else []
    cfg = load_recipe(recipe, [*values, *more])
    cfg.data.path = str(data / "train")
    cfg.watch.size = cfg.views.rows[0].size
    return train.absolute_paths(cfg)


def learn(cfg: Config, folder: Path) -> list[dict]:
    """Train, or go on; -> a row of COLUMNS at every quarter."""
    run = Run(folder)
    start = folder.with_suffix(".start.csv")
    if not start.is_file():
        start.parent.mkdir(parents=True, exist_ok=True)
        write(start, [{"percent": 0, **untrained(cfg, Run(folder.with_suffix(".start")))}])
    if status := train.run(cfg, folder, run.config_file.is_file(), HOOKS):
        sys.exit(status)
    return [*read(start), *rows(entries(run.log_file))]


def untrained(cfg: Config, run: Run) -> dict:
    """The numbers of the initial weights."""
    source, learner = open_source(cfg.data.path), Learner(cfg)
    state = getattr(learner, cfg.checkpoint.export).state_dict()
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.loop.device != "cpu" else "cpu")
    evaluator = Evaluator(cfg, run, source, state, device)
    encoder, found = evaluator.encoder(state).to(device), {}
    with torch.inference_mode():
        for _, part in evaluator.parts[1:]:  # no pictures
            found |= part(encoder, 0, Silent(), lambda *_: None)
    return {"knn": found.get("watch.knn.top1"), "JF": found.get("watch.davis.JF_m")}


class Silent:
    """In place of a run's log."""

    class reporter:
        class console:
            @staticmethod
            def print(*_):
                pass


def rows(log: Sequence[Mapping]) -> list[dict]:
    """The log of a run -> a row for every evaluation."""
    found, last, total = [], {}, max(line["step"] for line in log)
    for line in log:
        if DONE not in line:
            last = line
            continue
        means = {k: [v for n, v in last.items() if n.rpartition(".")[2] == k and v is not None] for k in LOGGED}
        found.append(
            {"percent": round(100 * line["step"] / total)}
            | {"knn": line.get("watch.knn.top1"), "JF": line.get("watch.davis.JF_m")}
            | {k: v[0] if v else None for k, v in means.items()}  # of the first objective, the image's
        )
    return found


def write(path: Path, table: Sequence[Mapping]) -> None:
    keys = list(dict.fromkeys(k for row in table for k in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(table)


def read(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> float | str | None:
    """As written by `write`."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def markdown(table: Sequence[Mapping]) -> str:
    """All runs' rows -> a line for each method and time: mean, and standard deviation over seeds."""
    shown = ["k-NN top-1", "J&F", *LOGGED.values()]
    lines = [f"| method | % of the run | seeds | {' | '.join(shown)} |", "|---" * (3 + len(shown)) + "|"]
    for method, percent in dict.fromkeys((row["method"], row["percent"]) for row in table):
        of = [row for row in table if (row["method"], row["percent"]) == (method, percent)]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in of if row.get(column) is not None]
            digits = 1 if column in ("knn", "JF", "rank") else 3
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
        lines.append(f"| {method} | {percent:g} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, table: Sequence[Mapping]) -> None:
    """Curves of every column, a line for each method: means over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(COLUMNS), 3.5), layout="constrained")
    for axis, column in zip(figure.subplots(1, len(COLUMNS)), COLUMNS, strict=True):
        for method in dict.fromkeys(row["method"] for row in table):
            points: dict[float, list[float]] = {}
            for row in table:
                if row["method"] == method and row.get(column) is not None:
                    points.setdefault(row["percent"], []).append(row[column])
            axis.plot(list(points), [statistics.mean(v) for v in points.values()], marker="o", label=method)
        axis.set(title=column, xlabel="% of the run")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=20, help="a multiple of 4")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--no-videos", action="store_true")
    parser.add_argument("values", nargs="*")
    args = parser.parse_intermixed_args()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    data = drawn_classes(args.out / "drawn", *DRAWN) if args.data == "drawn" else Path(args.data)
    videos = None if args.no_videos else make_videos(args.out / "videos", 6, size=(120, 213), seed=41)
    table = []
    for seed in map(int, args.seeds.split(",")):
        for method in args.methods.split(","):
            more = [*(() if args.wide else SMALL), *args.values]
            cfg = configure(method, seed, data, videos, args.epochs, more)
            found = learn(cfg, args.out / "runs" / f"{method}-{seed}")
            table += [{"method": method, "seed": seed, **row} for row in found]
            write(args.out / "learning.csv", table)
            (args.out / "learning.md").write_text(markdown(table), encoding="utf-8")
            plot(args.out / "learning.png", table)
    print(markdown(table))


if __name__ == "__main__":
    main()
