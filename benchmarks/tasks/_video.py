"""A video's masks by a network: the first frame's mask, carried on from frame to frame."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from ...pretrain.common.errors import UserError
from ..datasets.files import read_frame
from ..datasets.videos import Sequence
from . import TaskConfig, _protocol
from ._propagation import Propagator, first_labels, labels_to_mask, normalise

# The official scripts all have 0.228 for red; it is part of the protocol.
OFFICIAL_STD = (0.228, 0.224, 0.225)
STAGE = 2  # layer3 of a ResNet, stage 3 of a Swin: stride 16, like the patches of most ViTs
AHEAD = 4  # frames that are read while the network is busy


def usual_stage(card) -> int:
    """The stage whose map the protocol takes of a network with stages; of a user's own, the last map of a stride of at
    most 16, or of the smallest it has."""
    if not card.own:
        return STAGE
    most = max(16, min(card.strides))
    return max(i for i, stride in enumerate(card.strides) if stride <= most)


def feature_map(encoder, block: int) -> tuple[int, int]:
    """The protocol's `block` -> (number of the block or stage, stride of its map)."""
    if not encoder.card.staged:
        return encoder.resolve([block])[0], encoder.card.patch
    stage = encoder.resolve([usual_stage(encoder.card) if block == -1 else block])[0]
    return stage, encoder.strides[stage]


def frame_size(size: tuple[int, int], protocol, patch: int) -> tuple[tuple[int, int], bool]:
    """(H, W) of a frame -> (H, W) that the network sees, and whether the patch size made it smaller still.

    patch: or the stride of a map.
    """
    short, long = sorted(size)
    most = protocol.size * long / short
    long = int(most // protocol.multiple * protocol.multiple)
    h, w = (protocol.size, long) if size[0] <= size[1] else (long, protocol.size)
    fit = h // patch * patch, w // patch * patch
    if min(fit) < patch:
        frame = f"{size[0]}x{size[1]} frame"
        left = f"size={protocol.size} and multiple={protocol.multiple} leave {h}x{w} of a {frame}"
        raise UserError(f"{left}, less than a patch of {patch}; multiple is {patch} to {int(most)}")
    return fit, fit != (h, w)


def normalisation(card, protocol) -> tuple[list[float], list[float]]:
    """Mean and std in force, with the official script's for ImageNet's."""
    return _protocol.normalisation(card, protocol, OFFICIAL_STD)


def prepare(path: Path, size: tuple[int, int], mean: list[float], std: list[float]) -> torch.Tensor:
    """A frame from disk as the network takes it, float32 [1, 3, H, W]."""
    small = cv2.resize(read_frame(path), size[::-1])  # bilinear on uint8, like the official script
    image = torch.from_numpy(small).permute(2, 0, 1).float().div_(255)
    return image.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))[None]


@torch.inference_mode()
def propagate(encoder, cfg: TaskConfig, sequence: Sequence, threads: ThreadPoolExecutor) -> Iterator[np.ndarray]:
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


def in_force(encoder, cfg: TaskConfig, protocol_id: str) -> dict:
    """The values that the card decides, for the record, and the protocol's id with them."""
    card = encoder.card
    mean, std = normalisation(card, cfg.protocol)
    block, patch = feature_map(encoder, cfg.protocol.block)
    sizes = {frame_size(s.size, cfg.protocol, patch) for s in cfg.data.content.sequences}
    facts = {"id": protocol_id, "mean": mean, "std": std, "void": "background"}
    if not card.staged:
        rules = sorted({encoder.pos_rule(size) for size, _ in sizes})
        facts |= {"pos_rule": ", ".join(rules), "norm": card.final_norm, "map": f"block {block} of {card.depth}"}
    else:
        rules = sorted({encoder.size_rule(size) for size, _ in sizes})
        last = block == len(encoder.stages) - 1
        facts["id"] += f"-{encoder.stages[block]}"
        facts |= {"size_rule": ", ".join(rules), "norm": last and card.family != "resnet" and card.final_norm}
        facts["map"] = f"{encoder.stages[block]}, stride {patch}"
    facts["id"] += f"-p{patch}" if any(smaller for _, smaller in sizes) else ""
    return facts
