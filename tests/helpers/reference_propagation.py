"""The official rules of label propagation written plainly: full affinity matrices, one step per sentence.

After facebookresearch/dino `eval_video_segmentation.py`, commit 7c446df. Slow and large on purpose: the tests and the
perf script compare with it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def window(h: int, w: int, radius: int) -> torch.Tensor:
    """[h*w, h*w]: 1 where two patches are within `radius` rows and columns of each other, else 0."""
    y = torch.arange(h).repeat_interleave(w)
    x = torch.arange(w).repeat(h)
    near = ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
    return near.float()


def propagate(target, context, labels, radius=12, topk=5, temperature=0.1, near=None):
    """target [h, w, D], context [n, h, w, D], labels [n, C, h, w] -> [C, h, w]; near: `window(...)`, made if absent."""
    h, w, dim = target.shape
    n, c = labels.shape[:2]
    queries = target.reshape(1, h * w, dim).repeat(n, 1, 1)
    keys = context.reshape(n, h * w, dim).transpose(1, 2)
    affinity = torch.exp(torch.bmm(queries, keys) / temperature)  # [n, target, context]
    if radius is not None:
        affinity *= (window(h, w, radius) if near is None else near).to(affinity)
    affinity = affinity.transpose(1, 2).reshape(n * h * w, h * w)  # [context of all frames, target]
    largest, _ = torch.topk(affinity, k=min(topk, n * h * w), dim=0)
    affinity[affinity < largest.min(dim=0).values] = 0
    affinity = affinity / affinity.sum(dim=0, keepdim=True)
    flat = labels.reshape(n, c, h * w).transpose(0, 1).reshape(c, n * h * w)
    return torch.mm(flat, affinity).reshape(c, h, w)


def labels_to_mask(labels, patch, size):
    """labels [C, h, w] -> uint8 [H, W], with the official 0/0 for a constant positive channel."""
    up = F.interpolate(
        labels[None], scale_factor=patch, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )[0]
    for c in range(len(up)):
        if up[c].max() > 0:
            channel = up[c] - up[c].min()
            up[c] = channel / channel.max()
    _, mask = torch.max(up, dim=0)
    mask = Image.fromarray(mask.numpy().astype(np.uint8))
    return np.array(mask.resize((size[1], size[0]), 0))


def first_labels(mask, grid):
    """uint8 [H, W] without void -> one-hot [C, h, w] by a scatter, as the official script builds it."""
    small = torch.from_numpy(np.array(Image.fromarray(mask).resize((grid[1], grid[0]), 0))).long()
    classes = int(small.max()) + 1
    one_hot = torch.zeros(small.numel(), classes).scatter_(1, small.reshape(-1, 1), 1)
    return one_hot.view(*grid, classes).permute(2, 0, 1)
