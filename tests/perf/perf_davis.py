"""Seconds a frame of the DAVIS task at 480p, split into its parts, against plain implementations in the same run.

python tests/perf/perf_davis.py [--quick] [--out FILE.md]
"""

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.datasets.davis import open_davis
from selfpatch_bench.benchmarks.datasets.masks import write_mask
from selfpatch_bench.benchmarks.metrics.jf import frame_scores
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.tasks import _video as video
from selfpatch_bench.benchmarks.tasks import davis
from selfpatch_bench.benchmarks.tasks._propagation import Propagator, first_labels, labels_to_mask, normalise
from selfpatch_bench.pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, Card
from selfpatch_bench.pretrain.common.machine import process_peak
from selfpatch_bench.pretrain.common.weights import save_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
import reference_jf
import reference_propagation


def clock(function, *arguments, times: int = 1):
    """(median seconds, last result)"""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        result = function(*arguments)
        spent.append(time.perf_counter() - start)
    return float(np.median(spent)), result


@torch.inference_mode()
def measure(patch: int, precision: str, videos: Path, folder: Path, frames: int, dense_frames: int) -> dict:
    """Seconds a frame of every part, alone, and of the whole task in which they overlap."""
    torch.manual_seed(0)
    card = Card("vit", patch, 384, 12, 6, False, False, pos=f"learned {224 // patch}x{224 // patch}",
                mean=IMAGENET_MEAN, std=IMAGENET_STD)  # fmt: skip
    encoder = Encoder(card)
    model = folder / f"s{patch}.safetensors"
    save_weights(model, encoder.vit.state_dict(), card)
    sequence = open_davis(videos).content.sequences[0]
    protocol = davis.Protocol()
    size, _ = video.frame_size(sequence.size, protocol, patch)
    mean, std = video.normalisation(card, protocol)
    reading, image = clock(video.prepare, sequence.frames[0], size, mean, std, times=5)

    def backbone():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return encoder.patch_maps(image, norm=True)[0][0].float()

    backbone()
    network, features = clock(backbone, times=3)
    features = normalise(features.permute(1, 2, 0))
    noisy = [normalise(features + 0.3 * torch.randn_like(features)) for _ in range(8)]
    grid = tuple(features.shape[:2])
    labels = [first_labels(sequence.truth(0), grid)] * 8
    propagator = Propagator()
    propagator(features, noisy, labels)
    propagating, soft = clock(propagator, features, noisy, labels, times=3)
    dense, plain = clock(
        lambda: reference_propagation.propagate(features, torch.stack(noisy), torch.stack(labels), 12, 5, 0.1),
        times=dense_frames,
    )
    error = float((soft - plain).abs().max())
    decoding, mask = clock(labels_to_mask, soft, patch, sequence.size, times=3)
    writing, _ = clock(write_mask, folder / "mask.png", mask, times=5)
    truth = sequence.truth(1)
    metrics, _ = clock(frame_scores, mask, truth, sequence.objects, times=5)
    formula, _ = clock(reference_jf.frame_scores, mask, truth, sequence.objects, times=3)
    options = Options(data=[str(videos)], out=folder / f"out{patch}{precision}", device="cpu",
                      overrides=[f"frames={frames}", f"precision={precision}"])  # fmt: skip
    jobs = plan([model], ["davis"], options)
    whole, status = clock(run, jobs, options, Console(quiet=True))
    assert status == 0
    return {
        "patch": patch, "precision": precision, "reading": reading, "backbone": network, "propagation": propagating,
        "mask": decoding, "writing": writing, "metrics": metrics, "dense": dense, "formula": formula,
        "whole": whole / (frames * len(jobs[0].cfg.data.content.sequences)), "error": error,
    }  # fmt: skip


def report(rows: list[dict]) -> str:
    """The figures as a table, with the ratios that matter."""
    parts = ("reading", "backbone", "propagation", "mask", "writing", "metrics")
    lines = [
        "| ViT-S | precision | "
        + " | ".join(parts)
        + " | whole task | besides backbone | dense / ours | plain / our J&F |"
    ]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for r in rows:
        rest = sum(r[p] for p in parts if p != "backbone")
        cells = [f"/{r['patch']}", r["precision"], *(f"{r[p]:.3f}" for p in parts), f"{r['whole']:.3f}"]
        cells += [f"{100 * rest / r['backbone']:.0f} %", f"{r['dense'] / r['propagation']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{r['formula'] / r['metrics']:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="patch 16 only, fewer frames")
    parser.add_argument("--bf16", action="store_true", help="also bf16 autocast (for CPUs with AMX)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = make_videos(folder / "videos", sequences=1, frames=24, size=(480, 854), objects=2)
        cases = [(16, "float32", 8 if given.quick else 24, 1)]
        if not given.quick:
            cases += [(8, "float32", 8, 1)]
        if given.bf16:
            cases += [(patch, "bf16", frames, dense) for patch, _, frames, dense in cases]
        rows = [measure(patch, precision, videos, folder, *counts) for patch, precision, *counts in cases]
    peak = process_peak() / 2**30
    lines = [
        f"Seconds a frame, 480x854 drawn video with two objects, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}.",
        "", report(rows), "",
        "Parts are timed alone; in the whole task (start and model load included) they overlap. "
        "`besides backbone`: the sum of all other parts over the backbone. `dense`: the official N x N affinity; "
        f"largest difference of the labels {max(r['error'] for r in rows):.1g}. Peak resident memory of the process, "
        f"dense implementation included: {peak:.1f} GiB.",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
