"""What a pretraining run is evaluated by on the way (options.Watch): pictures, k-NN and DAVIS.

Handed to the core as `train.Hooks.evaluate` by pretrain.py; when it is called, and what is made of its numbers, is
pretrain/monitor/watch.py's.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...pretrain.checkpoint import Run
from ...pretrain.common.errors import UserError, naming
from ...pretrain.common.weights import fingerprint
from ...pretrain.config import Config
from ...pretrain.data.images import ImageSource, Unreadable, open_source
from ...pretrain.export import portable
from ...pretrain.monitor.log import Log
from .. import tasks
from ..backbones.build import encoder_with
from ..datasets.base import Data
from ..datasets.imagenet import ClassSet, Split, in_turn, open_classes
from ..pictures.maps import attention, draw, similarity
from ..pictures.sheet import save
from ..tasks import _video, davis, knn
from ..tasks._classes import accuracies
from ..tasks._features import Crop, image_vector, of_both_splits
from ..tasks._vote import vote

VOTES = 4096  # images between two looks at the signals


def encoder_of(state: Mapping[str, Tensor], cfg: Config):
    """State dict of a `Network` and its configuration -> what `load` would make of its export, without the file.

    On the device of the weights, which are copied: training may go on. Raises UserError as `portable` does.
    """
    weights, card = portable(state, cfg)
    encoder = encoder_with(card, {k: v.detach().clone() for k, v in weights.items()})
    encoder.fingerprint = fingerprint(weights)
    return encoder


class Evaluator:
    """The data of options.Watch, opened and checked; see pretrain.monitor.watch.Watch. Raises UserError."""

    def __init__(self, cfg: Config, run: Run, source: ImageSource, state: Mapping[str, Tensor], device: torch.device):
        """source: of the training images. state: of the network."""
        self.run, self.device = run, device
        self.encoder = partial(encoder_of, cfg=cfg)  # a copy of the network that the run is evaluated by
        watch, encoder = cfg.watch, self.encoder(state)
        self.knn = self.davis = None
        if watch.knn:
            with naming("watch.knn"):
                protocol = knn.Protocol(resize=None, crop=watch.size)  # small pictures are not cut
                data = some(open_classes(watch.knn), watch.knn_images)  # not as_data: no record needs a fingerprint
                self.knn = tasks.TaskConfig(
                    protocol, data=Data("imagenet", data.root, "", False, "", "", content=data), device=str(device)
                )
        if watch.davis:
            with naming("watch.davis"):
                self.davis = videos(cfg, encoder, str(device))
        with naming("watch.images"):
            self.images = fixed(open_source(watch.images) if watch.images else source, watch.pictures, watch.size)
            if watch.images and watch.pictures and not self.images:
                raise UserError(f"{watch.images}: none of its pictures can be read")
        self.parts = (("pictures", self.draw), ("k-NN", self.vote), ("DAVIS", self.propagate))

    def draw(self, encoder, step: int, log: Log, pulse) -> dict:
        """Pictures: likeness of all patches to the middle one, and the class token's attention; -> no numbers."""
        folder = self.run.folder / "watch" / f"step-{step:08d}"
        for number, (name, photo) in enumerate(self.images):
            pulse(number, len(self.images), "pictures")
            pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].to(self.device)
            images = encoder.normalise(pixels)
            patches = encoder.patch_maps(images)[0][0]
            query = patches.shape[1] // 2, patches.shape[2] // 2
            attended = attention(encoder, images)
            attended = None if attended is None else attended[0].mean(0).cpu().numpy()
            picture = draw(photo, similarity(patches, query).cpu().numpy(), query, attended)
            save(Image.fromarray(picture), folder / f"{name}.png", format="PNG")
            log.picture(f"watch/{name}", picture, step)
        return {}

    def vote(self, encoder, step: int, log: Log, pulse) -> dict:
        """k-NN: a vote of the nearest training images (tasks/knn.py); -> accuracies"""
        if self.knn is None:
            return {}
        data, protocol = self.knn.data.content, self.knn.protocol
        whole = len(data.train) + len(data.val)
        for note in knn.few([protocol.k], len(data.train)):
            log.reporter.console.print(f"watch.knn: {note}")
        cfg = replace(self.knn, progress=lambda done, total, _: pulse(done, total, "k-NN"))
        found = of_both_splits(encoder, cfg, image_vector, None)  # no later evaluation has the same network
        train, val = (F.normalize(x, dim=1).to(self.device) for x in found)
        labels, best = torch.from_numpy(data.train.labels).to(self.device), []
        for part in val.split(VOTES):
            pulse(whole, whole, "k-NN")
            best.append(vote(train, labels, part, len(data.classes), [protocol.k], protocol.temperature)[protocol.k])
        hits = accuracies(torch.cat(best), data.val.labels)
        in_force = {"watch.knn.k": len(data.train)} if len(data.train) < protocol.k else {}
        return {f"watch.knn.{n}": 100 * float(x.mean()) for n, x in zip(("top1", "top5"), hits, strict=True)} | in_force

    def propagate(self, encoder, step: int, log: Log, pulse) -> dict:
        """DAVIS: masks carried through videos (tasks/davis.py); -> J&F"""
        if self.davis is None:
            return {}
        work = self.run.folder / "watch" / ".davis"  # beside the pictures: it is the run's disk that may be full
        shutil.rmtree(work, ignore_errors=True)  # of a killed run
        try:
            metrics = davis.TASK.run(encoder, replace(self.davis, progress=pulse), work)["metrics"]
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return {f"watch.davis.{name}": metrics[name] for name in ("JF_m", "J_m", "F_m")}


def videos(cfg: Config, encoder, device: str) -> tasks.TaskConfig:
    """The DAVIS task, with its data checked, down to the frames' size for this network."""
    watch = cfg.watch
    protocol = davis.Protocol(size=watch.davis_size, frames=watch.frames)
    task = tasks.TaskConfig(protocol, root=Path(watch.davis), limit=watch.sequences, device=device)
    task.data = davis.TASK.check(task)
    if not task.data.scored:
        raise UserError(f"{watch.davis}: only first masks are annotated, which gives no J&F")
    for sequence in task.data.content.sequences:
        _video.frame_size(sequence.size, protocol, _video.feature_map(encoder, protocol.block)[1])
    return task


def some(data: ClassSet, count: int | None) -> ClassSet:
    """The first `count` images of each split, one of every class in turn; None: all."""
    return data if count is None else replace(data, train=_first(data.train, count), val=_first(data.val, count))


def _first(split: Split, count: int) -> Split:
    kept = in_turn(split.labels.tolist(), count)
    return replace(split, picks=split.picks[kept], labels=split.labels[kept])


def fixed(source: ImageSource, count: int, size: int) -> list[tuple[str, np.ndarray]]:
    """The first `count` pictures that can be read, by names for files, cut to squares uint8 [size, size, 3]."""
    found = []
    for i in range(len(source)):
        if len(found) == count:
            break
        try:
            photo = Crop(size, size)(source.read(i)).copy()  # Pillow gives them read-only
        except Unreadable:
            continue
        found.append((f"{len(found)}-{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(source.name(i)).stem)[:60]}", photo))
    return found
