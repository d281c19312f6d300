"""What a GPU does a second, in one table of figures.

    python tests/gpu/figures.py --only pretrain|evaluate [--minutes 8] [--device cuda] [--out FILE.md] [--batch 64]

pretrain: images/s, memory, wait for data and MFU of a training step of every recipe with ViT-S/16 at the recipe's own
views, compiled and not, beside a plain PyTorch step of the same losses. evaluate: DAVIS, k-NN, fine-tuning. The rows
come in order of value, each is written as soon as it is measured, and the command ends within its minutes.
`--device cpu --tiny` tries everything at sizes that mean nothing.

Without a network: `.gpu/` holds what tests/gpu/pack.py put there.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers"), str(HERE.parent)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("pretrain", "evaluate"), required=True)
    parser.add_argument("--minutes", type=float, default=8, help="the command ends within these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="default: results/perf/gpu_pretrain.md or gpu_evaluate.md")
    parser.add_argument("--batch", type=int, default=64, help="images of a training step")
    parser.add_argument("--precision", help="default: bf16, on a CPU float32")
    parser.add_argument("--seconds", type=float, default=3, help="each figure is measured for so long")
    parser.add_argument("--tiny", action="store_true", help="networks and views of no size")
    args = parser.parse_args(arguments)
    args.out = args.out or REPO / f"results/perf/gpu_{args.only}.md"
    args.precision = args.precision or ("float32" if args.device == "cpu" else "bf16")
    if args.tiny:
        args.batch, args.seconds = 2, 0.0
    if args.only == "pretrain":
        import figures_pretrain as part
    else:
        import figures_evaluate as part
    with tempfile.TemporaryDirectory() as folder:
        part.measure(args, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
