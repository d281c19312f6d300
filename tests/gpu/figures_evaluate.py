"""Evaluation: the rows of `figures.py --only evaluate`."""

import contextlib
import functools
import importlib.util
import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from rich.console import Console
from table import Table, peak_gb, seconds_each, wait

import reference_propagation
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.demo_full import SMALL_ADE, SMALL_COCO, SMALL_FPN
from selfpatch_bench.benchmarks.datasets.davis import open_davis
from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures, make_videos
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, COCO_CLASSES, make_ade20k, make_coco
from selfpatch_bench.benchmarks.tasks import _video as video
from selfpatch_bench.benchmarks.tasks import davis
from selfpatch_bench.benchmarks.tasks._features import Replicas, features, image_vector
from selfpatch_bench.benchmarks.tasks._propagation import Propagator, first_labels, normalise
from selfpatch_bench.benchmarks.tasks._registry import RECIPES
from selfpatch_bench.pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, Card
from selfpatch_bench.pretrain.common.weights import save_weights
from selfpatch_bench.pretrain.distributed import Ranks

COLUMNS = ("what", "figure", "memory, GB", "beside it", "remark")
FRAMES = 8  # of the context: the first, and seven before


def shorter_side(args) -> int:
    """Pixels of DAVIS frames."""
    return 96 if args.tiny else davis.Protocol().size


@functools.cache
def network(patch: int, tiny: bool, folder: Path) -> tuple[Encoder, Path]:
    """A ViT-S of random weights, and the file that holds them."""
    dim, depth, heads, side = (24, 2, 2, 4) if tiny else (384, 12, 6, 224 // patch)
    card = Card(
        "vit", patch, dim, depth, heads, True, pos=f"learned {side}x{side}", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    torch.manual_seed(0)
    encoder, path = Encoder(card), folder / f"s{patch}.safetensors"
    save_weights(path, encoder.vit.state_dict(), card)
    return encoder, path


@torch.inference_mode()
def propagation(patch: int, args, folder: Path, videos: Path) -> dict[str, str]:
    """Seconds a frame of the search for similar patches, beside the dense affinity of the official code."""
    device = Ranks(args.device).device
    sequence = open_davis(videos).content.sequences[0]
    h, w = video.frame_size(sequence.size, davis.Protocol(size=shorter_side(args)), patch)[0]
    grid, noise = (h // patch, w // patch), torch.Generator().manual_seed(0)
    truth = normalise(torch.randn(*grid, 24 if args.tiny else 384, generator=noise)).to(device)
    context = [normalise(truth + 0.05 * torch.randn(truth.shape, generator=noise).to(device)) for _ in range(FRAMES)]
    labels = [first_labels(sequence.truth(0), grid).to(device)] * FRAMES
    fast, stacked = Propagator(), (torch.stack(context), torch.stack(labels))
    near = reference_propagation.window(*grid, 12).to(device)

    def dense():
        return reference_propagation.propagate(truth, *stacked, 12, 5, 0.1, near)

    ours = seconds_each(lambda: fast(truth, context, labels), device, args.seconds, 1)
    memory, error = peak_gb(device), float((fast(truth, context, labels) - dense()).abs().max())
    theirs = seconds_each(dense, device, args.seconds, 0)
    return {
        "figure": f"{ours:.4f} s a frame", "memory, GB": memory, "beside it": f"dense form {theirs:.4f}",
        "remark": f"{theirs / ours:.1f} times as fast, labels differ by {error:.0e}",
    }  # fmt: skip


def whole(patch: int, args, folder: Path, videos: Path, frames: int) -> dict[str, str]:
    """Seconds a frame of the whole task, its start included, beside those of the backbone alone."""
    device = Ranks(args.device).device
    encoder, path = network(patch, args.tiny, folder)
    values = [f"frames={frames}", f"size={shorter_side(args)}"]
    options = Options(data=[str(videos)], out=folder / f"davis{patch}", device=str(device), overrides=values)
    jobs = plan([path], ["davis"], options)
    wait(device)
    start = time.perf_counter()
    if run(jobs, options, Console(quiet=True)):
        raise RuntimeError("the task failed, see its record")
    each = (time.perf_counter() - start) / (frames * len(jobs[0].cfg.data.content.sequences))
    memory = peak_gb(device)
    size = video.frame_size(jobs[0].cfg.data.content.sequences[0].size, jobs[0].cfg.protocol, patch)[0]
    image = torch.randn(1, 3, *size, device=device)
    encoder = encoder.to(device)
    with torch.inference_mode():
        alone = seconds_each(lambda: encoder.patch_maps(image, norm=True), device, args.seconds)
    return {"figure": f"{each:.4f} s a frame", "memory, GB": memory, "beside it": f"backbone alone {alone:.4f}",
            "remark": f"{frames} frames, {jobs[0].cfg.protocol.precision}"}  # fmt: skip


@torch.inference_mode()
def vectors(precision: str, args, folder: Path) -> dict[str, str]:
    """Image vectors a second of pixels that are in memory."""
    device = Ranks(args.device).device
    encoder = network(16, args.tiny, folder)[0].to(device)
    side, count = (32, 4) if args.tiny else (224, 64)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    with Replicas(encoder, image_vector, str(device), precision) as replicas:

        def several():
            for future in [replicas.submit(images) for _ in range(4)]:
                future.result()

        each = seconds_each(several, device, args.seconds) / (4 * count)
    return {
        "figure": f"{1 / each:.0f} images/s",
        "memory, GB": peak_gb(device),
        "remark": f"{side} px, batches of {count}",
    }


def from_files(args, folder: Path) -> dict[str, str]:
    """Image vectors a second from JPEGs, as k-NN takes them."""
    device = Ranks(args.device).device
    encoder = network(16, args.tiny, folder)[0].to(device)
    count, size, resize, crop = (8, (40, 48), 36, 32) if args.tiny else (1024, (375, 500), 256, 224)
    for split, pictures in (("train", count), ("val", 4)):
        make_pictures(folder / f"classes/{split}", pictures, size, classes=2)
    split = open_classes(folder / "classes").train
    protocol = SimpleNamespace(resize=resize, crop=crop, precision="float32")
    cfg = SimpleNamespace(device=str(device), protocol=protocol)
    start = time.perf_counter()
    features(encoder, split, image_vector, None, cfg)
    spent = time.perf_counter() - start
    return {"figure": f"{count / spent:.0f} images/s", "memory, GB": peak_gb(device),
            "remark": f"{count} JPEGs of {size[1]}x{size[0]}, {os.cpu_count()} cores, float32"}  # fmt: skip


class Enough(Exception):
    """As many iterations as were to be timed."""


def fine_tuning(name: str, args, folder: Path) -> dict[str, str]:
    """Iterations a second of mm's loop, with its loading of pictures; of its own settings but for the classes."""
    from selfpatch_bench.benchmarks.mm import ops

    ops.install()
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

    from selfpatch_bench.benchmarks.mm import build, launch
    from selfpatch_bench.benchmarks.mm.training import Training
    from selfpatch_bench.pretrain.common.weights import load_card

    warm, most = (1, 2) if args.tiny else (5, 10**6)
    times: list[float] = []

    class Clock(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            wait(device)
            times.append(time.perf_counter())
            done = len(times) - warm
            if done >= most or (done >= 2 and times[-1] - times[warm - 1] > 2 * args.seconds):
                raise Enough

    HOOKS.register_module(name="FiguresClock", module=Clock, force=True)
    coco = name.startswith("coco")
    pictures, size = ((2, 2), (96, 128)) if args.tiny else ((32, 2), (480, 640) if coco else (512, 683))
    data = (make_coco if coco else make_ade20k)(folder / ("coco" if coco else "ade20k"), pictures, size)
    values = [f"classes={len(COCO_CLASSES if coco else ADE_CLASSES)}", f"workers={0 if args.tiny else 4}"]
    if args.tiny:
        small = SMALL_COCO if coco else (*SMALL_ADE, *SMALL_FPN)
        values = [*(v for v in small if not v.startswith(("batch=", "per_gpu="))), "batch=1", "per_gpu=1"]
    export = network(16, args.tiny, folder)[1]
    with Ranks(args.device) as ranks:
        device = ranks.device
        training = Training(
            str(RECIPES.get(name).path), str(export), str(data), str(folder / f"out-{name}"), values,
            classes=list(COCO_CLASSES if coco else ADE_CLASSES), device=str(device),
        )  # fmt: skip
        Path(training.out).mkdir()
        cfg, effective = build.config(training, load_card(export), 1, str(device))
        launch.prepare(cfg, training, ranks)
        cfg.custom_hooks.append({"type": "FiguresClock"})
        cfg.log_level = "ERROR"
        with warnings.catch_warnings(), contextlib.suppress(Enough):
            warnings.simplefilter("ignore")
            Runner.from_cfg(cfg).train()
    each = float(np.mean(np.diff(times[warm - 1 :])))
    images = f"{effective['per_gpu']} images each, {effective['accumulate']} to a step"
    return {
        "figure": f"{1 / each:.2f} iterations/s", "memory, GB": peak_gb(device),
        "remark": f"{images}, {effective['amp']}, {size[1]}x{size[0]} drawn pictures",
    }  # fmt: skip


def measure(args, folder: Path) -> None:
    device = Ranks(args.device).device
    table = Table(args.out, f"Evaluation on {device.type}", COLUMNS, args.minutes, device)
    size, frames = ((96, 128), 3) if args.tiny else ((480, 854), 40)
    videos = make_videos(folder / "videos", 1, frames, size, objects=2)
    name = "narrow ViT" if args.tiny else "ViT-S"
    for patch in (16, 8):
        table.row(f"DAVIS, {name}/{patch}, propagation", lambda p=patch: propagation(p, args, folder, videos))
        table.row(f"DAVIS, {name}/{patch}, whole task", lambda p=patch: whole(p, args, folder, videos, frames))
    for precision in ("float32", "bf16"):
        table.row(f"image vectors, {name}/16, {precision}", lambda p=precision: vectors(p, args, folder))
    table.row(f"image vectors, {name}/16, from JPEGs", lambda: from_files(args, folder))
    if importlib.util.find_spec("mmengine"):
        recipes = [r for r in RECIPES.scan() if "r50" not in r and "swin" not in r]  # those for this network
        first = ["coco_maskrcnn_1x", "ade20k_semfpn_40k"]
        for recipe in first[1:] if args.tiny else [*first, *(r for r in recipes if r not in first)]:
            table.row(f"{recipe}, {name}/16", lambda r=recipe: fine_tuning(r, args, folder))
        notes = (
            "Fine-tuning: 80 or 150 classes are replaced by those of the drawn sets, which the heads hardly notice.",
        )
    else:
        notes = ("The extra mm is not installed: no row of fine-tuning.",)
    table.close("Random weights, drawn videos and pictures: the work is that of real ones.", *notes)
