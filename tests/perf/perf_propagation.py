"""Label propagation at 480p: seconds a frame and peak memory, ours against the plain dense rule, in one run.

    python tests/perf/perf_propagation.py [--quick] [--dim 384] [--tile 8 16] [--device cuda]

Both see the same features (8 context frames, 3 channels). Memory is what a fresh process adds to its peak beyond the
features while propagating one frame; on a GPU it is torch's own peak.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reference_propagation as reference
from selfpatch_bench.benchmarks.propagation import Propagator, normalise

GRIDS = {16: (30, 52), 8: (60, 104)}
FRAMES, CHANNELS = 8, 3


def scene(h: int, w: int, dim: int, device: str):
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, dim, h // 4 + 1, w // 4 + 1, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")[0].permute(1, 2, 0)
    frames = [normalise(smooth + 0.3 * torch.randn(h, w, dim, generator=g)).to(device) for _ in range(FRAMES + 1)]
    return frames[-1], frames[:-1], torch.rand(FRAMES, CHANNELS, h, w, generator=g).to(device)


def method(name: str, h: int, w: int, args):
    if name == "ours":
        return Propagator(tile=args.tile and tuple(args.tile))
    near = reference.window(h, w, 12).to(args.device)  # once per video, as in the official script

    def dense(target, context, labels):
        return reference.propagate(target, torch.stack(context), labels, near=near)

    return dense


def seconds(run, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def peak_memory(name: str, args) -> float:
    """GiB that one frame takes beyond the features; called in a process of its own."""
    h, w = GRIDS[args.memory_patch]
    inputs = scene(h, w, args.dim, args.device)
    if args.device != "cpu":
        before = torch.cuda.memory_allocated()
        method(name, h, w, args)(*inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # threads and libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method(name, h, w, args)(*inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # KiB on Linux


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="patch 16 only (patch 8 dense needs about 5 GiB and 10 s a frame)"
    )
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--tile", type=int, nargs=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=["ours", "dense"], help=argparse.SUPPRESS)
    parser.add_argument("--memory-patch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return

    print(
        f"480p, D={args.dim}, {FRAMES} context frames, C={CHANNELS}, {args.device}, {torch.get_num_threads()} threads"
    )
    print(
        f"{'patch':>5} {'grid':>7} {'dense s':>9} {'ours s':>9} {'ratio':>6} {'dense GiB':>10} {'ours GiB':>9} {'differ':>7}"
    )
    for patch, (h, w) in GRIDS.items():
        if args.quick and patch == 8:
            continue
        inputs = scene(h, w, args.dim, args.device)
        ours, dense = method("ours", h, w, args), method("dense", h, w, args)
        # Targets whose k-th and (k+1)-th cosine agree to float32 rounding may differ; a handful at most.
        differ = ((ours(*inputs) - dense(*inputs)).abs().amax(0) > 1e-5).sum().item()
        t_ours, t_dense = seconds(lambda: ours(*inputs), 7), seconds(lambda: dense(*inputs), 5 if patch == 16 else 2)  # noqa: B023
        del inputs, dense
        memory = []
        for name in ("dense", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name, "--memory-patch", str(patch)]
            memory.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(
            f"{patch:>5} {f'{h}x{w}':>7} {t_dense:>9.3f} {t_ours:>9.3f} {t_dense / t_ours:>6.1f} {memory[0]:>10.2f} "
            f"{memory[1]:>9.2f} {f'{differ}/{h * w}':>7}"
        )


if __name__ == "__main__":
    main()
