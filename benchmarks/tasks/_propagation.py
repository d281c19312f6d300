"""Label propagation over a video: soft labels of past frames -> labels of the next one -> mask.

The rule is that of facebookresearch/dino `eval_video_segmentation.py` (commit 7c446df): affinity =
exp(cosine / temperature) between every patch of the target frame and every patch of the context frames, zero outside a
square of `radius` patches; per target the top k over all context frames together are kept (everything equal to the
k-th value too), normalised to sum 1, and average the soft labels.

The official code builds the full N x N affinity per context frame. Here targets go in tiles of a few patches, and each
tile only meets the rectangle of context patches that its windows touch: the cost grows with N * (2 radius + 1)^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...pretrain.common.errors import UserError

NEG_INF = float("-inf")


def normalise(features: Tensor) -> Tensor:
    """[..., D] -> unit length over D, in float32 at least (x / max(|x|, 1e-12), as `F.normalize`).

    Once per frame: the result serves as target now and as context for the next frames.
    """
    return F.normalize(features.to(_dtype(features)), dim=-1, eps=1e-12)


@dataclass(frozen=True)
class Propagator:
    """Average of past labels, weighted by feature similarity inside a window.

    radius       side of the window is 2 radius + 1 patches, cut off at the borders; None: the whole frame
    topk         context patches that count per target, over all context frames together
    temperature  of the cosine in exp(cosine / temperature)
    tile         (rows, columns) of targets per matrix product: changes speed, never the result
    """

    radius: int | None = 12
    topk: int = 5
    temperature: float = 0.1
    tile: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, target: Tensor, context: Sequence[Tensor] | Tensor, labels: Sequence[Tensor] | Tensor) -> Tensor:
        """target [h, w, D] and context n x [h, w, D], both from `normalise`; labels n x [C, h, w] -> [C, h, w].

        `context` and `labels` are lists or stacked tensors (nothing is gained by stacking). Computed and returned in
        float32, or in float64 for float64 features; half-precision features are widened first, so that products and
        sums are float32 even then.
        """
        h, w, _ = target.shape
        n, k = len(context), self.topk
        labels = labels if isinstance(labels, Tensor) else torch.stack(list(labels))
        if n < 1 or labels.shape[0] != n or labels.shape[2:] != (h, w) or any(c.shape != target.shape for c in context):
            got = f"{tuple(target.shape)}, {[tuple(c.shape) for c in context]}, {tuple(labels.shape)}"
            raise ValueError(f"target, context, labels are {got}; expected [h, w, D], n x [h, w, D], [n, C, h, w]")
        target = target.to(_dtype(target))
        labels = labels.to(target.device, target.dtype)
        value, index, ties = self._search(target, context, labels)
        # exp(v - max) / sum is exp(v) / sum without overflow at low temperatures.
        weight = torch.softmax(value[..., :k] / self.temperature, dim=-1).view(h * w, k, 1)
        table = labels.transpose(0, 1).flatten(1).T.contiguous()  # [n * h * w, C]
        out = (table[index[..., :k].reshape(h * w, k)] * weight).sum(1).T.contiguous()
        for where, tied_labels in ties:
            out[:, where] = tied_labels
        return out.view(-1, h, w)

    def _search(self, target: Tensor, context, labels: Tensor) -> tuple[Tensor, Tensor, list]:
        """The k + 1 most similar context patches of every target: similarity and index, flat over (frame, y, x), both
        [h, w, k + 1]. And, where more than k are as similar as the k-th, ([targets], their labels [C, targets])."""
        (h, w, dim), n, k = target.shape, len(context), self.topk
        like = {"dtype": target.dtype, "device": target.device}
        radius = max(h, w) if self.radius is None else self.radius
        th, tw = self._tile(w, radius, target.device)
        rows, columns = _spans(h, th, radius), _spans(w, tw, radius)
        value = torch.full((h, w, k + 1), NEG_INF, **like)
        index = torch.zeros((h, w, k + 1), dtype=torch.long, device=target.device)
        ties = []
        # Work space, allocated once: fresh pages for each strip would cost more than the copies into them.
        widest, tallest = (max(hi - lo for _, _, lo, hi in spans) for spans in (columns, rows))
        strip_space = torch.empty(h * n * widest * dim, **like)
        similarity_space = torch.empty(tallest * n * widest * th * tw, **like)
        for x0, x1, left, right in columns:
            # One strip of context columns serves all tiles below each other; with rows outermost, the context of a
            # tile is one contiguous matrix [rows * n * columns, D].
            wide = right - left
            strip = strip_space[: h * n * wide * dim].view(h, n, wide, dim)
            for i, frame in enumerate(context):
                strip[:, i].copy_(frame[:, left:right])
            outside_x = _outside(left, right, x0, x1, radius, **like)  # [wide, x]
            for y0, y1, top, bottom in rows:
                tile = target[y0:y1, x0:x1].reshape(-1, dim)
                m, groups = len(tile), (bottom - top) * n
                # Context first: [context, targets] is the faster product here, and the targets stay innermost for
                # the mask and the maxima below.
                similarity = similarity_space[: groups * wide * m].view(groups * wide, m)
                torch.mm(strip[top:bottom].reshape(-1, dim), tile.T, out=similarity)
                similarity = similarity.view(groups, wide, m)
                similarity += outside_x[:, None].expand(-1, y1 - y0, -1).reshape(wide, m)
                outside_y = _outside(top, bottom, y0, y1, radius, **like)  # [rows, y]
                outside_y = outside_y[:, None, :, None].expand(-1, n, -1, x1 - x0).reshape(groups, m).T
                found, group, column = _largest(similarity, outside_y, k + 1)
                kept = found.shape[1]
                at = ((group % n) * h + top + group // n) * w + left + column
                value[y0:y1, x0:x1, :kept] = found.view(y1 - y0, x1 - x0, kept)
                index[y0:y1, x0:x1, :kept] = at.view(y1 - y0, x1 - x0, kept)
                if kept > k:
                    tied = ((found[:, k] == found[:, k - 1]) & (found[:, k] > NEG_INF)).nonzero()[:, 0]
                    if not len(tied):
                        continue
                    window = labels[:, :, top:bottom, left:right].permute(1, 2, 0, 3).flatten(1)  # as similarity
                    every = (similarity[:, :, tied] + outside_y.T[:, None, tied]).flatten(0, 1)
                    where = (y0 + tied // (x1 - x0)) * w + x0 + tied % (x1 - x0)
                    ties.append((where, self._all_ties(every, found[tied, k - 1], window)))
        return value, index, ties

    def _tile(self, w: int, radius: int, device: torch.device) -> tuple[int, int]:
        # Small tiles waste little (a tile of t meets ((t + 2r) / (2r + 1))^2 windows' worth of context), large ones
        # multiply faster; measured in tests/perf. A GPU is kept busy by larger ones.
        th, tw = self.tile or ((8, 16) if device.type == "cpu" else (16, 16))
        # A strip that would reach both borders anyway: take all columns at once and copy the context once.
        return (max(1, th * tw // w), w) if tw + 2 * radius >= w else (th, tw)

    def _all_ties(self, similarity: Tensor, threshold: Tensor, labels: Tensor) -> Tensor:
        """Everything >= threshold, however many: similarity [M, t], threshold [t], labels [C, M] -> [C, t].

        The official code compares exponentials. Comparing cosines decides the same but where exp rounds two different
        cosines to one number; these differ by less than temperature * 1e-7, below the rounding of the cosine itself.
        """
        largest = similarity.amax(0)
        weight = torch.exp((similarity - largest) / self.temperature)
        weight.masked_fill_(similarity < threshold, 0)
        return labels @ (weight / weight.sum(0))


def _largest(similarity: Tensor, outside: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """similarity [groups, columns, m], outside [m, groups] (0 or -inf) -> the k largest of each of the m targets.

    Values, groups and columns, each [m, k] (fewer if there are fewer), values falling. A group is one row of one
    context frame. The k groups with the largest maxima hold the k largest values, so only those groups are searched:
    torch.topk over everything would cost several times the maxima. Masking the maxima alone is not enough, since a
    masked group is chosen too when fewer than k are left.
    """
    groups, columns, m = similarity.shape
    best = similarity.amax(1).T + outside
    _, group = best.topk(min(k, groups), sorted=False)
    target = torch.arange(m, device=similarity.device)[:, None]
    value = similarity.permute(2, 0, 1)[target, group] + outside.gather(1, group)[..., None]
    value, at = value.reshape(m, -1).topk(min(k, group.shape[1] * columns))
    return value, group.gather(1, at // columns), at % columns


def _dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _spans(size: int, step: int, radius: int) -> list[tuple[int, int, int, int]]:
    """Tiles along one axis: (first target, end, first context, end) each."""
    ends = ((a, min(a + step, size)) for a in range(0, size, step))
    return [(a, b, max(0, a - radius), min(size, b + radius)) for a, b in ends]


def _outside(lo: int, hi: int, a: int, b: int, radius: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[hi - lo, b - a]: -inf where context position and target position are more than radius apart, else 0."""
    gap = torch.arange(lo, hi, device=device)[:, None] - torch.arange(a, b, device=device)
    return torch.zeros(gap.shape, dtype=dtype, device=device).masked_fill_(gap.abs() > radius, NEG_INF)


def first_labels(mask: np.ndarray, grid: tuple[int, int], void: int = 255) -> Tensor:
    """The given mask of frame 0, uint8 [H, W], on the feature grid: one-hot float32 [C, h, w].

    Nearest resize by Pillow's rule; C = the largest label that is left after it, plus 1, so objects with the highest
    indices that vanish there get no channel (as in the official code). `void` counts as background.
    """
    small = _nearest(np.where(mask == void, 0, mask).astype(np.uint8), grid)
    return F.one_hot(torch.from_numpy(small).long()).permute(2, 0, 1).float().contiguous()


def labels_to_mask(labels: Tensor, patch: int, size: tuple[int, int]) -> np.ndarray:
    """Soft labels [C, h, w] -> mask uint8 [H, W] of `size`, as the official script writes it.

    Bilinear upsampling by the patch size, each channel with a positive maximum stretched to 0..1 over the frame, argmax
    (the first wins), nearest resize by Pillow's rule. Raises UserError if the labels are not finite.
    """
    if not torch.isfinite(labels).all():
        raise UserError("propagation: the labels are not finite, so the features hold NaN or inf; check the checkpoint")
    best = winner = None
    for c, channel in enumerate(labels):  # one channel at a time stays in the cache
        x = F.interpolate(channel[None, None], scale_factor=patch, mode="bilinear", align_corners=False)[0, 0]
        low, high = torch.aminmax(x)
        if high > 0:
            if low == high:  # official: 0/0 = NaN everywhere, and torch.max returns the first NaN
                winner = torch.full(x.shape, c, dtype=torch.uint8)
                break
            x = x.sub_(low).div_(high - low)
        if best is None:
            best, winner = x, torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        else:
            # c grows, so the last channel that beats all before it is the largest such c (faster than a masked fill).
            winner = torch.maximum(winner, (x > best).to(torch.uint8).mul_(c))
            best = torch.maximum(best, x)
    return _nearest(winner.cpu().numpy(), size)


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if mask.shape == tuple(size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)).copy()
