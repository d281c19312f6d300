"""Evaluation of a network while it trains, at the end of every so many epochs (config.Watch).

k-NN and DAVIS go into a line of log.jsonl: step, epoch, watch.epochs (finished), watch.knn.top1 and so on, in per cent,
and watch.knn.k where fewer images vote than the protocol's; pictures into RUN/watch/step-XXXXXXXX/. All of it also into
TensorBoard. Training is left exactly as it would have been without: the network is a copy, no random number is taken,
and nothing of it is in a checkpoint. An evaluation that a kill or a signal cut short is made when the run is resumed.
"""

import errno
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...benchmarks import tasks as task
from ...benchmarks.datasets.imagenet import ClassSet, Split, open_classes
from ...benchmarks.pictures.maps import attention, draw, similarity
from ...benchmarks.tasks import davis, knn
from ...benchmarks.tasks._features import BATCH, Crop, ahead
from ..checkpoint import Run
from ..common.atomic import write_atomic
from ..common.errors import UserError
from ..config import Config
from ..data.images import ImageSource, Unreadable, open_source
from ..distributed import Ranks
from ..export import encoder_of
from ..step import Trainer
from .log import Log, entries

VOTES = 4096  # images between two looks at the signals
PULSE = 5.0  # seconds between the messages of processes that wait for the first one
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DONE = "watch.epochs"  # is in the line of an evaluation that was finished


def due(cfg: Config, step: int, per_epoch: int, total: int) -> bool:
    """Whether there is an evaluation after that many steps."""
    every = cfg.watch.every
    return every is not None and step > 0 and (step == total or step % (every * per_epoch) == 0)


def missed(cfg: Config, run: Run, step: int, per_epoch: int, total: int) -> bool:
    """Whether a run that stopped after that many steps lacks the evaluation that was due then."""
    if not due(cfg, step, per_epoch, total):
        return False
    return not any(line["step"] == step and DONE in line for line in entries(run.log_file))


class Stopped(Exception):
    """A signal to one of the processes cut an evaluation short."""


class Watch:
    """What is evaluated, opened and checked; only the first process has one. Raises UserError."""

    def __init__(self, cfg: Config, run: Run, trainer: Trainer, source: ImageSource):
        """source: of the training images."""
        self.cfg, self.run, self.trainer = cfg, run, trainer
        watch, encoder = cfg.watch, self.encoder()
        self.crop = Crop(round(watch.size * 256 / 224), watch.size)
        if watch.size < trainer.learner.patch:
            raise UserError(f"watch.size={watch.size}: smaller than a patch, {trainer.learner.patch}")
        self.knn = self.davis = None
        if watch.knn:
            with naming("watch.knn"):
                self.knn = some(open_classes(watch.knn), watch.knn_images)
        if watch.davis:
            with naming("watch.davis"):
                self.davis = videos(cfg, encoder, str(trainer.device))
        with naming("watch.images"):
            self.images = fixed(open_source(watch.images) if watch.images else source, watch.pictures, watch.size)
            if watch.images and watch.pictures and not self.images:
                raise UserError(f"{watch.images}: none of its pictures can be read")

    def encoder(self):
        """A copy of the network that the run is evaluated by."""
        return encoder_of(getattr(self.trainer.learner, self.cfg.checkpoint.export).state_dict(), self.cfg)

    def __call__(self, log: Log, pulse: Callable[..., None]) -> None:
        """Evaluate; what fails is a warning in the log, except for a full disk.

        pulse(done, total, text): called often; what it raises ends the evaluation.
        """
        began, trainer, step = time.perf_counter(), self.trainer, self.trainer.step
        encoder, found, failed = None, {}, []
        cuda = [trainer.device] if trainer.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            for name, part in (("pictures", self.draw), ("k-NN", self.vote), ("DAVIS", self.propagate)):
                try:
                    encoder = encoder or self.encoder()
                    found |= part(encoder, log, pulse)
                except Stopped:
                    raise
                except Exception as error:  # whatever it is, the training is worth more
                    pulse()  # a signal may have ended a process of the evaluation, too
                    if cause := full(error):
                        where = f"{self.run.folder}: the evaluation cannot be written: {cause.strerror}"
                        again = f"free space, then --resume {self.run.folder}"
                        raise UserError(f"{where}; the run is saved: {again}", status=1) from error
                    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    failed.append(f"{name} failed: {text}")
        if cuda:
            del encoder
            torch.cuda.empty_cache()  # the next step finds the memory as it left it
        line = {"step": step, "epoch": trainer.schedules.epoch(step - 1), DONE: trainer.epoch} | found
        log.write(line | ({"warning": " ".join("; ".join(failed).split())} if failed else {}))
        rates = {key.rpartition(".")[2]: value for key, value in found.items() if isinstance(value, float)}
        shown = "  ".join(f"{name} {value:.2f}" for name, value in rates.items())
        text = f"step {step}: {shown or 'evaluated'} ({time.perf_counter() - began:.0f} s)"
        log.reporter.console.print(text, highlight=False, soft_wrap=True)

    def draw(self, encoder, log: Log, pulse) -> dict:
        """Pictures: likeness of all patches to the middle one, and the class token's attention; -> no numbers."""
        folder = self.run.folder / "watch" / f"step-{self.trainer.step:08d}"
        for number, (name, photo) in enumerate(self.images):
            pulse(number, len(self.images), "pictures")
            pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].to(self.trainer.device)
            images = encoder.normalise(pixels)
            patches = encoder.patch_maps(images)[0][0]
            query = patches.shape[1] // 2, patches.shape[2] // 2
            attended = attention(encoder, images)
            attended = None if attended is None else attended[0].mean(0).cpu().numpy()
            picture = draw(photo, similarity(patches, query).cpu().numpy(), query, attended)
            folder.mkdir(parents=True, exist_ok=True)
            content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
            write_atomic(folder / f"{name}.png", lambda file, content=content: file.write(content))
            log.picture(f"watch/{name}", picture, self.trainer.step)
        return {}

    def vote(self, encoder, log: Log, pulse) -> dict:
        """k-NN: a vote of the nearest training images (benchmarks.tasks.knn); -> accuracies"""
        if self.knn is None:
            return {}
        data, protocol, before, found = self.knn, knn.Protocol(), 0, []
        for note in knn.few([protocol.k], len(data.train)):
            log.reporter.console.print(f"watch.knn: {note}", highlight=False, soft_wrap=True)
        for split in (data.train, data.val):
            report = partial(_shifted, pulse, before, len(data.train) + len(data.val))
            found.append(vectors(encoder, split, self.crop, self.trainer.device, report))
            before += len(split)
        labels = torch.from_numpy(data.train.labels)
        train, val, labels = (x.to(self.trainer.device) for x in (*found, labels))
        best = []
        for some_of in val.split(VOTES):
            pulse(before, before, "k-NN")
            best.append(
                knn.vote(train, labels, some_of, len(data.classes), [protocol.k], protocol.temperature)[protocol.k]
            )
        hits = knn.accuracies(torch.cat(best), torch.from_numpy(data.val.labels))
        in_force = {"watch.knn.k": len(data.train)} if len(data.train) < protocol.k else {}
        return {f"watch.knn.{n}": 100 * float(x.mean()) for n, x in zip(("top1", "top5"), hits, strict=True)} | in_force

    def propagate(self, encoder, log: Log, pulse) -> dict:
        """DAVIS: masks carried through videos (benchmarks.tasks.davis); -> J&F"""
        if self.davis is None:
            return {}
        work = self.run.folder / "watch" / ".davis"  # beside the pictures: it is the run's disk that may be full
        shutil.rmtree(work, ignore_errors=True)  # of a killed run
        try:
            metrics = davis.run(encoder, replace(self.davis, progress=pulse), work)["metrics"]
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return {f"watch.davis.{name}": metrics[name] for name in ("JF_m", "J_m", "F_m")}


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Errors inside say which option they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{option}: {error}", error.status) from None


def videos(cfg: Config, encoder, device: str) -> task.Config:
    """The DAVIS task, with its data checked, down to the frames' size for this network."""
    watch = cfg.watch
    protocol = davis.Protocol(size=watch.davis_size, frames=watch.frames)
    made = task.Config(protocol, root=Path(watch.davis), limit=watch.sequences, device=device)
    made.data = davis.check(made)
    for sequence in made.data.content.davis.sequences:
        davis.frame_size(sequence.size, protocol, davis.feature_map(encoder, protocol.block)[1])
    return made


def some(data: ClassSet, count: int | None) -> ClassSet:
    """The first `count` images of each split, one of every class in turn; None: all."""
    return data if count is None else replace(data, train=_first(data.train, count), val=_first(data.val, count))


def _first(split: Split, count: int) -> Split:
    seen: Counter = Counter()
    turns = []
    for i, label in enumerate(split.labels.tolist()):
        turns.append((seen[label], i))
        seen[label] += 1
    kept = sorted(i for _, i in sorted(turns)[:count])
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


def vectors(encoder, split: Split, crop: Crop, device: torch.device, progress: Callable[[int], None]) -> Tensor:
    """L2-normalised image vectors of a split, float32 [n, D] on the CPU; unlike image_features.features, kept nowhere:
    no later evaluation has the same network. progress(images so far)."""

    def load(first: int) -> Tensor:
        images = [crop(split.read(i)) for i in range(first, min(first + BATCH, len(split)))]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    made, starts = [], range(0, len(split), BATCH)
    with ThreadPoolExecutor(2) as threads:
        for start, images in zip(starts, ahead((partial(load, i) for i in starts), threads, 2), strict=True):
            progress(start)
            made.append(F.normalize(encoder(encoder.normalise(images.to(device))).image.float(), dim=1).cpu())
    whole = torch.cat(made)
    if not torch.isfinite(whole).all():
        raise UserError("the network gives features that are not finite")
    return whole


def _shifted(pulse, before: int, total: int, done: int) -> None:
    pulse(before + done, total, "k-NN")


def full(error: BaseException | None) -> OSError | None:
    """A full disk (or quota) among an error and its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


# --------------------------------------------------------------------------------------------- several processes
def evaluate(watch: Watch | None, log: Log | None, ranks: Ranks, stop) -> int:
    """Evaluate in the first process, for which the others wait; -> the signal that cut it short, 0 if none did, the
    same in every process.

    stop.signal: what this process was told. While the first one works, all exchange a few numbers every PULSE seconds:
    a collective that waited for the whole evaluation could meet its time limit, and a signal to any is obeyed soon.
    """
    busy = [True, False]
    if watch is None:
        while busy[0]:
            *busy, told = exchange(ranks, [False, False, stop.signal])
        return told if busy[1] else 0
    began = last = time.monotonic()
    told, cut = 0, False

    def pulse(done: float = 0, total: float = 1, text: str = "") -> None:
        nonlocal last, told
        told = told or stop.signal
        if ranks.world > 1 and time.monotonic() - last > PULSE:
            told = exchange(ranks, [True, False, stop.signal])[2]
            last = time.monotonic()
        if told:
            raise Stopped
        if log.reporter.bar and text:
            log.reporter(watch.trainer.step, len(watch.trainer), f"{text} {done:g}/{total:g}")

    try:
        watch(log, pulse)
    except Stopped:
        cut = True
    log.leave_out(time.monotonic() - began)
    if ranks.world > 1:
        told = exchange(ranks, [False, cut, stop.signal])[2]
    return told if cut else 0


def exchange(ranks: Ranks, mine: Sequence[int]) -> list[int]:
    """Small numbers of this process -> the largest of all processes, one by one."""
    table = torch.zeros(ranks.world, len(mine), device=ranks.device)
    table[ranks.rank] = torch.tensor(mine, dtype=table.dtype)
    return ranks.add({"table": table})["table"].amax(0).int().tolist()
