"""Maps of a picture: how much its patches resemble one of them, and what the class token attends to."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...pretrain.model.vit import RelativeAttention
from ..backbones.encoder import Encoder

GAP = 4  # pixels between the parts of a picture


def similarity(patches: Tensor, query: tuple[int, int]) -> Tensor:
    """Patch map [D, h, w] -> cosine of the patch at (row, column) with every patch, [h, w]"""
    unit = F.normalize(patches.float(), dim=0)
    return torch.einsum("d,dhw->hw", unit[:, query[0], query[1]], unit)


@torch.no_grad()
def attention(encoder, images: Tensor) -> Tensor | None:
    """Normalised images [B, 3, H, W] -> attention of the class token to the patches, [B, heads, h, w]: of the class
    attention's last block where there is one, else of the network's last block.

    What a token pays to itself (and to registers) is left out: a map sums up to less than 1. None for a network without
    a class token.
    """
    if encoder.card.readout == "class_attention":
        raw = encoder.patch_maps(images, [-1], norm=False)[0]
        return _class_attention(encoder.readout, raw.flatten(2).transpose(1, 2)).unflatten(-1, raw.shape[-2:])
    if not isinstance(encoder, Encoder) or not encoder.card.class_token:
        return None
    last = encoder.card.depth - 1
    x = encoder.tokens(images, [last - 1])[last - 1] if last else encoder.embed(images)
    block = encoder.vit.blocks[last]
    attn = block.attn
    q, k, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q[:, :, :1]), attn.k_norm(k)
    logits = q * attn.scale @ k.transpose(-2, -1)
    if isinstance(attn, RelativeAttention):
        logits = logits + attn.bias()[:, :, :1]
    weights = logits.softmax(-1)[:, :, 0, encoder.prefix :]
    h, w = (side // encoder.card.patch for side in images.shape[-2:])
    return weights.unflatten(-1, (h, w))


def _class_attention(readout, patches: Tensor) -> Tensor:
    """Raw patches [B, N, D] -> attention of the last block's class token [B, heads, N]"""
    token, cached = readout.cls_token[0], readout.keys_values(patches)
    *before, block = readout.cls_blocks
    for former, (keys, values) in zip(before, cached, strict=False):
        token = former(token, keys, values)
    attn, normed, keys = block.attn, block.norm1(token), cached[-1][0]
    q = attn.split(attn.q(normed)) * attn.scale
    own = (q * attn.split(attn.k(normed))).sum(-1, keepdim=True)
    others = torch.einsum("...hd,...nhd->...hn", q, keys)
    return torch.cat([own.expand(*others.shape[:-1], 1), others], -1).softmax(-1)[..., 1:]


def draw(photo: np.ndarray, likeness: np.ndarray, query: tuple[int, int], attended: np.ndarray | None) -> np.ndarray:
    """Side by side, uint8 RGB: the photo [S, S, 3] with the query patch framed, the likeness [h, w] of its patches from
    -1 (dark) to 1 (bright), and the attention [h, w], bright at its largest."""
    size, (h, w) = photo.shape[0], likeness.shape
    marked = photo.copy()
    top, left = query[0] * size // h, query[1] * size // w
    bottom, right = (query[0] + 1) * size // h - 1, (query[1] + 1) * size // w - 1
    for colour, grow in (((255, 255, 255), 1), ((220, 30, 30), 0)):
        cv2.rectangle(marked, (left - grow, top - grow), (right + grow, bottom + grow), colour, 1)
    parts = [marked, _heat((likeness + 1) / 2, size)]
    if attended is not None:
        parts.append(_heat(attended / max(float(attended.max()), 1e-12), size))
    gap = np.full((size, GAP, 3), 255, np.uint8)
    return np.concatenate([x for part in parts for x in (part, gap)][:-1], 1)


def _heat(values: np.ndarray, size: int) -> np.ndarray:
    """Values 0..1 [h, w] -> colours, uint8 RGB [size, size, 3], patches as squares."""
    levels = np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)
    large = cv2.resize(levels, (size, size), interpolation=cv2.INTER_NEAREST)
    return cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
