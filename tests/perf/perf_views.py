"""Images per second and core: views as training makes them against the official Pillow pipeline, in one process.

    python tests/perf/perf_views.py [FOLDER] [--images 60] [--rounds 3] [--scale 0.4 0.05] [--quick]

Without a folder: drawn JPEGs of 500x375. Both sides read the same bytes and use the same drawn parameters, in one
thread; they take turns and CPU time is counted, so that a busy machine falsifies little. The reference ends in
normalised float32 tensors; a data worker's views end in uint8, which the training step normalises on the device: the
ratio is given with that done on this core as well, and for the worker alone.
"""

import argparse
import io
import sys
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
import reference_views as reference
from selfpatch_bench.pretrain.data import pixels
from selfpatch_bench.pretrain.data.group import normalise
from selfpatch_bench.pretrain.data.images import decode, open_source
from selfpatch_bench.pretrain.data.views import Views, ViewSpec, draw_all

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clock:
    """CPU seconds by name; `step` adds the time since the last call."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def start(self):
        self.last = time.process_time()

    def step(self, name: str):
        now = time.process_time()
        self.seconds[name] += now - self.last
        self.last = now


def drawn(count: int) -> list[bytes]:
    """JPEGs of about the size of ImageNet's (110 KB)."""
    found = []
    for seed in range(count):
        file = io.BytesIO()
        Image.fromarray(reference.picture(seed)).save(file, "JPEG", quality=93)
        found.append(file.getvalue())
    return found


def ours(data: bytes, views: Views, number: int, clock: Clock, outs) -> None:
    clock.start()
    image = decode(data)
    clock.step("decode")
    parameters = draw_all(views, *image.shape[:2], 0, 0, number)
    clock.step("draw")
    for view, out in zip(parameters, outs, strict=True):
        pixels.apply(view, image, out=out.numpy())
    clock.step("views")
    for out in outs:
        normalise(out, MEAN, STD)
    clock.step("normalise")


def official(data: bytes, views: Views, number: int, clock: Clock) -> None:
    clock.start()
    image = reference.decode(data)
    clock.step("decode")
    parameters = draw_all(views, image.height, image.width, 0, 0, number)
    clock.start()  # the same parameters; drawing them is not timed on this side
    made = [reference.view_of(view, image) for view in parameters]
    clock.step("views")
    for view in made:
        reference.to_tensor(view, MEAN, STD)
    clock.step("normalise")


def breakdown(datas: list[bytes], views: Views) -> dict[str, float]:
    """Milliseconds per image of each step of our views, from timed wrappers."""
    spent = defaultdict(float)

    def timed(name, function):
        def wrapper(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[name] += time.process_time() - start
            return result

        return wrapper

    names = ("resize", "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize")
    saved = {name: getattr(pixels, name) for name in names}, dict(pixels._JITTER)
    try:
        for name in names:
            wrapped = timed(name, saved[0][name])
            setattr(pixels, name, wrapped)
            if name in pixels._JITTER:
                pixels._JITTER[name] = wrapped
        for number, data in enumerate(datas):
            image = decode(data)
            for view in draw_all(views, *image.shape[:2], 0, 0, number):
                pixels.apply(view, image)
    finally:
        for name in names:
            setattr(pixels, name, saved[0][name])
        pixels._JITTER.update(saved[1])
    return {name: 1e3 * spent[name] / len(datas) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, nargs=2, default=(0.4, 0.05), help="lower ends for global, local views")
    parser.add_argument("--quick", action="store_true", help="20 images, one round")
    args = parser.parse_args()
    if args.quick:
        args.images, args.rounds = min(args.images, 20), 1
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    wide, narrow = args.scale
    middle = 0.4 if wide == 0.4 else 0.25  # DINO: 0.4-1 and 0.05-0.4; SelfPatch: 0.25-1 and 0.05-0.25
    views = Views(
        [
            ViewSpec(1, 224, (wide, 1.0), blur_p=1.0),
            ViewSpec(1, 224, (wide, 1.0), blur_p=0.1, solarize_p=0.2),
            ViewSpec(8, 96, (narrow, middle), blur_p=0.5),
        ]
    )
    outs = [torch.empty(3, s.size, s.size, dtype=torch.uint8) for s in views.specs()]
    if args.folder:
        source = open_source(args.folder)
        datas = [source.data(i) for i in range(0, len(source), max(1, len(source) // args.images))][: args.images]
    else:
        datas = drawn(args.images)
    fast, slow = [], []
    for _ in range(args.rounds):
        clocks = Clock(), Clock()
        for number, data in enumerate(datas):
            ours(data, views, number, clocks[0], outs)
        for number, data in enumerate(datas):
            official(data, views, number, clocks[1])
        fast.append(clocks[0].seconds)
        slow.append(clocks[1].seconds)
    best = [min(rounds, key=lambda s: sum(s.values())) for rounds in (fast, slow)]
    n = len(datas)
    size = np.mean([decode(d).shape[:2] for d in datas], 0)
    print(f"{n} images, mean {size[1]:.0f}x{size[0]:.0f}, {np.mean([len(d) for d in datas]) / 1e3:.0f} KB; one core")
    print("ms per image       ours  Pillow")
    for name in ("decode", "draw", "views", "normalise"):
        print(f"  {name:<14}{1e3 * best[0][name] / n:8.2f}{1e3 * best[1].get(name, 0) / n:8.2f}")
    total = [sum(b.values()) for b in best]
    print(f"  {'all':<14}{1e3 * total[0] / n:8.2f}{1e3 * total[1] / n:8.2f}")
    print(f"images/s         {n / total[0]:8.1f}{n / total[1]:8.1f}")
    pairs = list(zip(fast, slow, strict=True))
    with_all = [sum(s.values()) / sum(f.values()) for f, s in pairs]
    worker = [sum(s.values()) / (sum(f.values()) - f["normalise"]) for f, s in pairs]
    print(f"ratio by round: {', '.join(f'{r:.2f}' for r in with_all)}; a worker's, without normalising: ", end="")
    print(", ".join(f"{r:.2f}" for r in worker))
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in breakdown(datas, views).items())
    print(f"our views, ms per image: {parts}")


if __name__ == "__main__":
    main()
