"""Label propagation at 480p: seconds a frame and peak memory, ours against the plain dense rule, in one run.

    python tests/perf/perf_propagation.py [--quick] [--dim 384] [--tile 8 16] [--device cuda]

Both see the same features (8 context frames, 3 channels). Memory is what a fresh process adds to its peak beyond the
features while propagating one frame; on a GPU it is torch's own peak.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
import reference_propagation as reference
from selfpatch_bench.benchmarks.tasks._propagation import Propagator, labels_to_mask, normalise

GRIDS = {16: (30, 52), 8: (60, 104)}
FRAMES, CHANNELS = 8, 3


def scene(h: int, w: int, dim: int, device: str):
    """Target, context frames and labels: features smooth in space, alike in time, plus noise."""
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


def seconds(run, inputs, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run(*inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def resident(field: str) -> float:
    """GiB of this process, VmRSS now or VmHWM at its peak (ru_maxrss of a child would start from its parent's)."""
    return int(re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def peak_memory(name: str, args) -> float:
    """GiB that one frame takes beyond the features; called in a process of its own."""
    h, w = GRIDS[args.memory_patch]
    inputs = scene(h, w, args.dim, args.device)
    if args.device != "cpu":
        before = torch.cuda.memory_allocated()
        method(name, h, w, args)(*inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # threads and libraries
    before = resident("VmRSS")
    method(name, h, w, args)(*inputs)
    return resident("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="patch 16 only (dense at patch 8: 6 GiB, 10 s a frame)")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--tile", type=int, nargs=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=["ours", "dense"], help=argparse.SUPPRESS)
    parser.add_argument("--memory-patch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return

    threads = torch.get_num_threads()
    print(f"480p, D={args.dim}, {FRAMES} context frames, C={CHANNELS}, {args.device}, {threads} threads")
    print("patch    grid   dense s    ours s  ratio  dense GiB  ours GiB     differ  upsampling s")
    for patch, (h, w) in GRIDS.items():
        if args.quick and patch == 8:
            continue
        inputs = scene(h, w, args.dim, args.device)
        ours, dense = method("ours", h, w, args), method("dense", h, w, args)
        # Targets whose k-th and (k+1)-th cosine agree to float32 rounding may differ, a handful at most.
        differ = ((ours(*inputs) - dense(*inputs)).abs().amax(0) > 1e-5).sum().item()
        t_dense, t_ours = seconds(dense, inputs, 5 if patch == 16 else 2), seconds(ours, inputs, 7)
        t_mask = seconds(labels_to_mask, (inputs[2][0], patch, (480, 854)), 7)
        memory = []
        for name in ("dense", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name, "--memory-patch", str(patch)]
            # Freed blocks go back to the system at once, or those of making the features would hide some of the rest.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            memory.append(float(run.stdout))
        print(
            f"{patch:>5} {f'{h}x{w}':>7} {t_dense:>9.3f} {t_ours:>9.3f} {t_dense / t_ours:>6.1f} {memory[0]:>10.2f} "
            f"{memory[1]:>9.2f} {f'{differ}/{h * w}':>10} {t_mask:>13.4f}"
        )


if __name__ == "__main__":
    main()
