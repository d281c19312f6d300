"""DAVIS video object segmentation: J&F of the first frame's mask, carried through the video by label propagation.

Source: facebookresearch/dino 7c446df, eval_video_segmentation.py, and davisvideochallenge/davis2017-evaluation ac7c43f.
Features are the last block's patch tokens (the official script takes ViTs only; of a ResNet layer3, of a Swin stage 3,
named in the protocol id); each frame's are computed once. Reading, encoding, writing and scoring overlap. A sequence
whose scores are on disk is not computed again.
"""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.errors import UserError
from ..datasets.davis import Sequence, Videos, open_davis
from ..datasets.files import read_frame
from ..datasets.masks import write_mask
from ..metrics.jf import global_scores, summarize
from ..metrics.scoring import ScorePool
from . import Config, Data, Metric, Task
from ._pairs import annotation, read_pair
from ._propagation import Propagator, first_labels, labels_to_mask, normalise

# The official scripts all have 0.228 for red; it is part of the protocol.
OFFICIAL_STD = (0.228, 0.224, 0.225)
STAGE = 2  # layer3 of a ResNet, stage 3 of a Swin: stride 16, like the patches of most ViTs
AHEAD = 4  # frames that are read, or being written, while the network is busy


@dataclass
class Protocol:
    """The protocol's values.

    size: shorter side in pixels; the longer one keeps the ratio, rounded down to a multiple of `multiple`.
    radius: of the square window, in patches; None: the whole frame. topk: context patches that count.
    temperature: of the cosine. context: previous frames beside the first. block: whose tokens, negative from the end;
    of a ResNet or Swin the stage, 0 to 3, and -1 is the protocol's own.
    mean, std: None: the card's (and red 0.228 for ImageNet's). bound: of F, part of the diagonal.
    frames: only the first so many of each sequence. precision: of the network, float32 or bf16.
    """

    size: int = 480
    multiple: int = 64
    radius: int | None = 12
    topk: int = 5
    temperature: float = 0.1
    context: int = 7
    block: int = -1
    mean: list[float] | None = None
    std: list[float] | None = None
    bound: float = 0.008
    frames: int | None = None
    precision: str = "float32"


TASK = Task(
    version=1,
    protocol_id="davis2017-dino-v1",
    protocol=Protocol,
    # Deterministic: the same weights give the same masks, so there is no band of noise.
    metrics=(
        *(Metric(name) for name in ("JF_m", "J_m", "F_m", "J_recall", "F_recall")),
        *(Metric(name, higher=False) for name in ("J_decay", "F_decay")),
    ),
    dataset="davis2017",
    published=(("davis2017", "label_propagation"),),
    seeded=False,
)


def check(cfg: Config) -> Data:
    """Open and check the data set (and the masks to score). Raises UserError that names the file."""
    p = cfg.protocol
    if p.precision not in ("float32", "bf16"):
        raise UserError(f"precision={p.precision}: it is float32 or bf16")
    for name in ("size", "multiple", "topk", "context"):
        if getattr(p, name) < 1:
            raise UserError(f"{name}={getattr(p, name)}: at least 1")
    for name in ("mean", "std"):
        if (values := getattr(p, name)) is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            raise UserError(f"{name}={values}: three numbers, for red, green and blue")
    Propagator(p.radius, p.topk, p.temperature)
    return open_davis(cfg.root, cfg.list_file, cfg.limit, p.frames, cfg.masks)


def feature_map(encoder, block: int) -> tuple[int, int]:
    """The protocol's `block` -> (number of the block or stage, stride of its map)."""
    if encoder.card.family == "vit":
        return encoder.resolve([block])[0], encoder.card.patch
    stage = encoder.resolve([STAGE if block == -1 else block])[0]
    return stage, encoder.strides[stage]


def frame_size(size: tuple[int, int], protocol: Protocol, patch: int) -> tuple[tuple[int, int], bool]:
    """(H, W) of a frame -> (H, W) that the network sees, and whether the patch size made it smaller still.

    patch: or the stride of a map.
    """
    short, long = sorted(size)
    long = int(protocol.size * long / short // protocol.multiple * protocol.multiple)
    h, w = (protocol.size, long) if size[0] <= size[1] else (long, protocol.size)
    fit = h // patch * patch, w // patch * patch
    if min(fit) < patch:
        frame = f"{size[0]}x{size[1]} frame"
        raise UserError(f"size={protocol.size} and multiple={protocol.multiple} leave {h}x{w} of a {frame}")
    return fit, fit != (h, w)


def normalisation(card, protocol: Protocol) -> tuple[list[float], list[float]]:
    """Mean and std in force: overrides, else the official numbers for ImageNet's, else the card's own."""
    official = card.mean == IMAGENET_MEAN and card.std == IMAGENET_STD
    return list(protocol.mean or card.mean), list(protocol.std or (OFFICIAL_STD if official else card.std))


def prepare(path: Path, size: tuple[int, int], mean: list[float], std: list[float]) -> torch.Tensor:
    """A frame from disk as the network takes it, float32 [1, 3, H, W]."""
    small = cv2.resize(read_frame(path), size[::-1])  # bilinear on uint8, like the official script
    image = torch.from_numpy(small).permute(2, 0, 1).float().div_(255)
    return image.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))[None]


def propagate(encoder, cfg: Config, sequence: Sequence, threads: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    """Masks uint8 [H, W] of frames 1, 2, ... of a sequence.

    Raises UserError for a frame that cannot be read, or features that are not finite.
    """
    p = cfg.protocol
    block, patch = feature_map(encoder, p.block)
    size, _ = frame_size(sequence.size, p, patch)
    mean, std = normalisation(encoder.card, p)
    propagator = Propagator(p.radius, p.topk, p.temperature)
    coming: deque[Future] = deque()
    waiting = iter(sequence.frames)

    def features() -> torch.Tensor:
        while len(coming) < AHEAD and (path := next(waiting, None)):
            coming.append(threads.submit(prepare, path, size, mean, std))
        image = coming.popleft().result().to(cfg.device)
        with torch.autocast(torch.device(cfg.device).type, torch.bfloat16, enabled=p.precision == "bf16"):
            found = encoder.patch_maps(image, [block], norm=True)[0][0]
        return normalise(found.float().permute(1, 2, 0))

    first = (features(), first_labels(sequence.truth(0), (size[0] // patch, size[1] // patch)).to(cfg.device))
    recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=p.context)
    for _ in sequence.frames[1:]:
        target = features()
        known, labels = zip(first, *recent, strict=True)
        soft = propagator(target, known, labels)
        recent.append((target, soft))
        yield labels_to_mask(soft, patch, sequence.size)


@torch.inference_mode()
def run(encoder, cfg: Config, out: Path) -> dict:
    """Propagate (or read) and score every sequence: out/masks, out/scores, on request out/pictures."""
    content: Videos = cfg.data.content
    sequences = content.sequences
    total, before = sum(len(s.frames) for s in sequences), 0
    scores: dict[str, dict] = {}
    unfinished: list[tuple[Sequence, list[Future]]] = []
    (out / "scores").mkdir(parents=True, exist_ok=True)
    # One process keeps up with any network; without one there is nothing to do but to score.
    with ScorePool(None if encoder is None else 1) as pool, ThreadPoolExecutor(3) as threads:
        for sequence in sequences:
            if (known := _known(out, sequence)) is not None:
                scores[sequence.name] = known
            else:
                masks = _masks(encoder, cfg, content, sequence, out, threads)
                futures = []
                unfinished.append((sequence, futures))
                for i, mask in enumerate(masks):
                    if 0 < i < len(sequence.frames) - 1:  # the first and the last frame do not count
                        one = annotation(sequence, i)
                        futures.append(pool.submit(read_pair, mask, one, sequence.objects, cfg.protocol.bound))
                    cfg.progress(before + i + 1, total, f"{sequence.name} {i + 1}/{len(sequence.frames)}")
                while len(unfinished) > 1:  # the scores of the latest one are still coming
                    scores |= _finish(out, *unfinished.pop(0))
            before += len(sequence.frames)
        for item in unfinished:
            scores |= _finish(out, *item)
    scores = {s.name: scores[s.name] for s in sequences}
    if cfg.pictures:
        _pictures(cfg, content, out)
    return {"metrics": global_scores(scores), "parts": {"sequences": scores}, "protocol": _effective(encoder, cfg)}


def _masks(encoder, cfg: Config, content: Videos, sequence: Sequence, out: Path, threads) -> Iterator:
    """What to score for every frame: labels that were just computed and are being written, or the files to read."""
    if encoder is None:
        yield from content.results[sequence.name]
        return
    folder, writing = out / "masks" / sequence.name, deque()
    folder.mkdir(parents=True, exist_ok=True)
    first = sequence.truth(0)
    for frame, mask in zip(sequence.frames, chain([first], propagate(encoder, cfg, sequence, threads)), strict=True):
        writing.append(threads.submit(write_mask, folder / f"{frame.stem}.png", mask))
        if len(writing) > AHEAD:
            writing.popleft().result()
        yield mask
    for job in writing:
        job.result()


def _known(out: Path, sequence: Sequence) -> dict | None:
    """Scores of a sequence that an earlier, interrupted run has finished."""
    try:
        return json.loads((out / "scores" / f"{sequence.name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _finish(out: Path, sequence: Sequence, futures: list[Future]) -> dict[str, dict]:
    """Wait for a sequence's scores and keep them on disk: from here on it is not computed again."""
    found = []
    for i, future in enumerate(futures, 1):
        try:
            found.append(future.result())
        except UserError as error:
            raise UserError(f"{sequence.name}, frame {sequence.frames[i].stem}: {error}", error.status) from error
    summary = summarize(found)
    write_atomic(out / "scores" / f"{sequence.name}.json", json.dumps(summary), sync=False)
    return {sequence.name: summary}


def _effective(encoder, cfg: Config) -> dict:
    """The values that the card decides, for the record."""
    if encoder is None:
        return {}
    card = encoder.card
    mean, std = normalisation(card, cfg.protocol)
    block, patch = feature_map(encoder, cfg.protocol.block)
    sizes = {frame_size(s.size, cfg.protocol, patch) for s in cfg.data.content.sequences}
    facts = {"id": TASK.protocol_id, "mean": mean, "std": std, "void": "background"}
    if card.family == "vit":
        rules = sorted({encoder.pos_rule(size) for size, _ in sizes})
        facts |= {"pos_rule": ", ".join(rules), "norm": card.final_norm, "map": f"block {block} of {card.depth}"}
    else:
        rules = sorted({encoder.size_rule(size) for size, _ in sizes})
        last = block == len(encoder.stages) - 1
        facts["id"] += f"-{encoder.stages[block]}"
        facts |= {"size_rule": ", ".join(rules), "norm": last and card.family == "swin" and card.final_norm}
        facts["map"] = f"{encoder.stages[block]}, stride {patch}"
    facts["id"] += f"-p{patch}" if any(smaller for _, smaller in sizes) else ""
    return facts


def _pictures(cfg: Config, content: Videos, out: Path) -> None:
    """A contact sheet and an animation for each sequence, in out/pictures."""
    from ..pictures.masks import animation, contact_sheet

    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for s in content.sequences:
        masks = (
            content.results[s.name]
            if content.results
            else [out / "masks" / s.name / f"{frame.stem}.png" for frame in s.frames]
        )
        contact_sheet(s.frames, masks, folder / f"{s.name}.png", s.name)
        animation(s.frames, masks, folder / f"{s.name}.webp")
