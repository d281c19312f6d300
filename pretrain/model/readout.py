"""From patch tokens to an image vector: the final norm, or the class-attention readout of SelfPatch.

Source of the latter: alinlab/SelfPatch 81aef14, selfpatch_vision_transformer.py; restated in the paper's section 3.
Parameter names are the official ones, so that released weights load by name.
"""

from functools import partial

import torch
from timm.layers import Mlp
from timm.models.cait import ClassAttn
from torch import Tensor, nn

from ..common.card import Card
from ..common.errors import UserError
from .heads import init_linear

KeysValues = list[tuple[Tensor, Tensor]]  # per block: keys and values of the patches, [..., N, heads, d] each


class NormReadout(nn.Module):
    """The final norm alone: the image vector is the normed class token (`token`) or the mean of normed patches."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)


class ClassAttention(ClassAttn):
    """CaiT's multi-head attention with a single query, the class token, on keys and values that were made before."""

    def split(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., heads, D / heads]"""
        return x.unflatten(-1, (self.num_heads, -1))

    def forward(self, token: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """token [..., D] (normed), keys and values [..., n, heads, d] of the patches -> update of the token [..., D].

        Leading axes broadcast. valid [..., n]: patches that count. The token is a key too, always valid; its own key
        and value are made here because it changes from block to block.
        """
        q = self.split(self.q(token)) * self.scale
        own = (q * self.split(self.k(token))).sum(-1, keepdim=True)  # [..., heads, 1]
        others = torch.einsum("...hd,...nhd->...hn", q, keys)
        if valid is not None:
            others = others.masked_fill(~valid[..., None, :], -torch.inf)
        weight = torch.cat([own.expand(*others.shape[:-1], 1), others], -1).softmax(-1)
        out = weight[..., :1] * self.split(self.v(token))
        out = out + torch.einsum("...hn,...nhd->...hd", weight[..., 1:], values)
        return self.proj(out.flatten(-2))


class ClassAttentionBlock(nn.Module):
    """Pre-norm class attention and MLP that update the class token only; no LayerScale, unlike CaiT's block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = ClassAttention(dim, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def keys_values(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """patches [..., N, D] -> keys and values [..., N, heads, d]; they do not depend on the class token."""
        normed = self.norm1(patches)
        return self.attn.split(self.attn.k(normed)), self.attn.split(self.attn.v(normed))

    def forward(self, token: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """token [..., D], keys and values [..., n, heads, d], valid [..., n] -> token [..., D]; broadcasts as above"""
        token = token + self.attn(self.norm1(token), keys, values, valid)
        return token + self.mlp(self.norm2(token))


class ClassAttentionReadout(nn.Module):
    """Class-attention blocks started from a learned token, and one LayerNorm shared by token and patches."""

    def __init__(self, dim: int, heads: int, depth: int = 2, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        block = partial(ClassAttentionBlock, dim, heads, mlp_ratio, eps)
        self.cls_blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """patches [M, N, D], raw -> image [M, D], patches [M, N, D], both normed"""
        return self.image(self.keys_values(patches)), self.norm(patches)

    def keys_values(self, patches: Tensor) -> KeysValues:
        """patches [M, N, D], raw -> what `image` and `aggregate` attend to; made once for both."""
        return [block.keys_values(patches) for block in self.cls_blocks]

    def image(self, cached: KeysValues) -> Tensor:
        """Keys and values of M views -> image vectors [M, D], normed"""
        token = self.cls_token[0]  # [1, D]: until it has met the patches, it is the same for all
        for block, (keys, values) in zip(self.cls_blocks, cached, strict=True):
            token = block(token, keys, values)
        return self.norm(token)

    def aggregate(
        self, patches: Tensor, index: Tensor, valid: Tensor | None = None, cached: KeysValues | None = None
    ) -> Tensor:
        """Run the blocks on every patch's chosen neighbours.

        patches [M, N, D] raw, index [M, N, k] into N, valid [M, N, k] (which of them count), cached: the patches'
        `keys_values`, if they are there already -> [M, N, D], normed. Keys and values are made once per patch and
        gathered, instead of once per (patch, neighbour): the same numbers for a fifth of the linear work. Without any
        valid neighbour, the token attends to itself alone.
        """
        token = self.cls_token  # [1, 1, D]: until it has met its neighbours, it is the same for all
        rows = torch.arange(len(index), device=index.device)[:, None, None]
        for block, (keys, values) in zip(self.cls_blocks, cached or self.keys_values(patches), strict=True):
            token = block(token, keys[rows, index], values[rows, index], valid)
        return self.norm(token)


def build_readout(cfg, backbone: nn.Module) -> nn.Module:
    """The readout that a configuration's `network` names, initialised as the official code does. Raises UserError."""
    if cfg.readout == "class_attention":
        block = backbone.blocks[-1]
        ratio = block.mlp.fc1.out_features / backbone.num_features
        readout = ClassAttentionReadout(
            backbone.num_features, block.attn.num_heads, cfg.readout_depth, ratio, backbone.final_eps
        )
        init_linear(readout)
        nn.init.trunc_normal_(readout.cls_token, std=0.02)
        return readout
    if cfg.readout == "token" and backbone.cls_token is None:
        raise UserError("network.readout=token needs a class token: network.class_token=true")
    return NormReadout(backbone.num_features, backbone.final_eps)


def readout_of(card: Card) -> ClassAttentionReadout:
    """The class attention that a card speaks of: two blocks, as wide as the last tokens."""
    swin = card.family == "swin"
    width, heads = (card.dim << len(card.depths) - 1, card.heads[-1]) if swin else (card.dim, card.heads)
    return ClassAttentionReadout(width, heads, 2, card.mlp_ratio, card.norm_eps)
