"""DAVIS video object segmentation: J&F of the first frame's mask, carried through the video by label propagation.

Source: facebookresearch/dino 7c446df, eval_video_segmentation.py, and davisvideochallenge/davis2017-evaluation ac7c43f.
Features are the last block's patch tokens (the official script takes ViTs only; of a ResNet layer3, of a Swin stage 3,
named in the protocol id); each frame's are computed once. Reading, encoding, writing and scoring overlap. A sequence
whose scores are on disk is not computed again.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.ranges import bounded, bounds, one_of
from ..datasets.davis import open_davis
from ..datasets.masks import write_mask
from ..datasets.videos import Sequence, Videos
from ..datasets.videos.results import read_result
from ..metrics.jf import BOUND, bound_radius, frame_scores, global_scores, summarize
from . import PICTURES, Data, Flag, Metric, Task, TaskConfig
from ._protocol import check_channels

AHEAD = 4  # masks that are being written while the network is busy


@dataclass
class Protocol:
    """The protocol's values.

    size: shorter side in pixels; the longer one keeps the ratio, rounded down to a multiple of `multiple`.
    radius: of the square window, in patches; None: the whole frame. topk: context patches that count.
    temperature: of the cosine. context: previous frames beside the first. block: whose tokens, negative from the end;
    of a ResNet or Swin the stage, 0 to 3, and -1 is the protocol's own (of a user's network, _video.usual_stage).
    mean, std: None: the card's (and red 0.228 for ImageNet's). bound: of F, part of the diagonal.
    frames: only the first so many of each sequence. precision: of the network, float32 or bf16.
    """

    size: int = bounded(480, at_least=1, at_most=8192)
    multiple: int = bounded(64, at_least=1)
    radius: int | None = bounded(12, at_least=0)
    topk: int = bounded(5, at_least=1)
    temperature: float = bounded(0.1, above=0)
    context: int = bounded(7, at_least=1)
    block: int = -1
    mean: list[float] | None = field(default=None, metadata=bounds(at_least=0, at_most=1))
    std: list[float] | None = field(default=None, metadata=bounds(above=0, at_most=1))
    bound: float = bounded(BOUND, above=0)
    frames: int | None = bounded(None, at_least=3)
    precision: str = one_of("float32", "bf16")


class Davis(Task):
    def check(self, cfg: TaskConfig) -> Data:
        """Open and check the data set (and the masks to score). Raises UserError that names the file."""
        p = cfg.protocol
        check_channels(p)
        bound_radius((p.size, p.size), p.bound)
        return open_davis(cfg.root, cfg.list_file, cfg.limit, p.frames, cfg.masks, cfg.odd_masks)

    def check_card(self, values: Protocol, card: dict) -> None:
        """A block that the network has, and frames of at least a patch."""
        card, block = Card.from_dict(card), values.block
        unit, count = ("block", card.depth) if not card.staged else ("stage", _stages(card))
        if not -count <= block < count:
            near = min(max(block, -count), count - 1)
            raise UserError(
                f"block={block}: the network has {unit}s 0 to {count - 1}, or -1 for the last; nearest: {near}"
            )
        if values.size < (patch := _patch(card, block)):
            raise UserError(f"size={values.size}: frames of less than a patch ({patch} pixels); nearest: {patch}")

    def check_model(self, cfg: TaskConfig, card: dict) -> None:
        """That `size` and `multiple` leave something of every frame."""
        from ._video import frame_size

        for size in {s.size for s in cfg.data.content.sequences}:
            frame_size(size, cfg.protocol, _patch(Card.from_dict(card), cfg.protocol.block))

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Propagate (or read) and score every sequence: out/masks, out/scores, on request out/pictures. Of a set
        without annotations the masks alone, as its challenge takes them."""
        content: Videos = cfg.data.content
        sequences = content.sequences
        total, before = sum(len(s.frames) for s in sequences), 0
        scores: dict[str, dict] = {}
        unfinished: list[tuple[Sequence, list[Future]]] = []
        (out / "scores").mkdir(parents=True, exist_ok=True)
        scorers = 1 if encoder is not None else min(8, os.cpu_count() or 1)  # one keeps up with any network
        with ThreadPoolExecutor(scorers) as pool, ThreadPoolExecutor(3) as threads:
            for sequence in sequences:
                if (known := _known(out, sequence)) is not None:
                    scores[sequence.name] = known
                else:
                    masks = _masks(encoder, cfg, content, sequence, out, threads)
                    futures = []
                    unfinished.append((sequence, futures))
                    for i, mask in enumerate(masks):
                        # The first and the last frame do not count.
                        if content.scored and 0 < i < len(sequence.frames) - 1:
                            futures.append(pool.submit(score, mask, sequence, i, cfg.protocol.bound))
                        cfg.progress(before + i + 1, total, f"{sequence.name} {i + 1}/{len(sequence.frames)}")
                    while len(unfinished) > 1:  # the scores of the latest one are still coming
                        scores |= _finish(out, *unfinished.pop(0))
                before += len(sequence.frames)
            for item in unfinished:
                scores |= _finish(out, *item)
        scores = {s.name: scores[s.name] for s in sequences}
        if cfg.pictures:
            _pictures(content, out)
        if not content.scored:
            return {"said": f"masks of {len(sequences)} sequences, not scored: {out / 'masks'} (SEQUENCE/FRAME.png)"}
        return {
            "metrics": global_scores(scores),
            "parts": {"sequences": scores},
            "protocol": self._in_force(encoder, cfg),
        }

    def _in_force(self, encoder, cfg: TaskConfig) -> dict:
        if encoder is None:
            return {}
        from ._video import in_force

        return in_force(encoder, cfg, self.protocol_id)


def _patch(card: Card, block: int) -> int:
    """The stride in pixels of the map that `block` names."""
    if not card.staged:
        return card.patch
    from ._video import usual_stage

    stage = usual_stage(card) if block == -1 else block % _stages(card)
    return card.strides[stage] if card.own else (card.patch or 4) << stage


def _stages(card: Card) -> int:
    return len(card.strides if card.own else card.depths or card.blocks)


def score(prediction: np.ndarray | Path, sequence: Sequence, i: int, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every object of frame i. prediction: labels uint8 [H, W], or a mask file of any method."""
    if not isinstance(prediction, np.ndarray):
        prediction = read_result(prediction, sequence.objects)
    return frame_scores(prediction, sequence.truth(i), sequence.objects, bound)


def _masks(encoder, cfg: TaskConfig, content: Videos, sequence: Sequence, out: Path, threads) -> Iterator:
    """What to score for every frame: labels that were just computed and are being written, or the files to read."""
    if encoder is None:
        yield from content.results[sequence.name]
        return
    from ._video import propagate

    folder, writing = out / "masks" / sequence.name, deque()
    folder.mkdir(parents=True, exist_ok=True)
    first = sequence.truth(0)
    for frame, mask in zip(sequence.frames, chain([first], propagate(encoder, cfg, sequence, threads)), strict=True):
        writing.append(threads.submit(write_mask, folder / f"{frame.stem}.png", mask))
        if len(writing) > AHEAD:
            writing.popleft().result()
        yield mask
    for future in writing:
        future.result()


def _known(out: Path, sequence: Sequence) -> dict | None:
    """Scores of a sequence that an earlier, interrupted run has finished."""
    try:
        return json.loads((out / "scores" / f"{sequence.name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _finish(out: Path, sequence: Sequence, futures: list[Future]) -> dict[str, dict]:
    """Wait for a sequence's scores and keep them on disk: from here on it is not computed again. Of one that has none
    the file says that its masks are there."""
    found = []
    for i, future in enumerate(futures, 1):
        try:
            found.append(future.result())
        except UserError as error:
            raise UserError(f"{sequence.name}, frame {sequence.frames[i].stem}: {error}", error.status) from error
    summary = summarize(found) if sequence.scored else {}
    write_atomic(out / "scores" / f"{sequence.name}.json", json.dumps(summary))
    return {sequence.name: summary}


def _pictures(content: Videos, out: Path) -> None:
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
        shown = [(frame, mask) for frame, mask in zip(s.frames, masks, strict=True) if mask]
        contact_sheet(*zip(*shown, strict=True), folder / f"{s.name}.png", s.name)
        animation(*zip(*shown, strict=True), folder / f"{s.name}.webp")


TASK = Davis(
    version=1,
    protocol_id="davis2017-dino-v1",
    protocol=Protocol,
    # Deterministic: the same weights give the same masks, so there is no band of noise.
    metrics=(
        *(Metric(name) for name in ("JF_m", "J_m", "F_m", "J_recall", "F_recall")),
        *(Metric(name, higher=False) for name in ("J_decay", "F_decay")),
    ),
    dataset="davis2017",
    kind="video",
    published=(("davis2017", "label_propagation"),),
    takes=("encoder", "masks"),
    seeded=False,
    flags=(
        Flag("masks", Path, "Score the masks in this folder (DIR/SEQUENCE/00000.png)."),
        Flag("list_file", Path, "File of sequence names, for the set's own.", text="--list"),
        Flag("odd_masks", bool, "Score masks that look like grey values too; said beside the number.", False),
        PICTURES,
    ),
)
