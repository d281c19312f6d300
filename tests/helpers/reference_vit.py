"""A plain ViT, written anew from the papers' formulas, that reads the ORIGINAL names of each code base's file.

Every reader below takes the raw content of a file and gives `Network`; nothing of the package is used. Float64.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Network:
    """blocks: dicts of norm1, norm2, q, k, v, proj ((weight, bias) each), mlp (function), ls1, ls2 (or 1)."""

    patch: tuple
    cls: torch.Tensor | None
    blocks: list
    heads: int
    norm: tuple | None
    eps: float = 1e-6
    pos: torch.Tensor | None = None  # [1, 1 + G*G, D], or [1, G*G, D] without class token
    resize: str = "dino"  # how other grids are made: dino, size, antialias
    registers: torch.Tensor | None = None
    periods: torch.Tensor | None = None


def layer_norm(x, pair, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * pair[0] + pair[1]


def linear(x, pair):
    out = x @ pair[0].T
    return out if pair[1] is None else out + pair[1]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def positions(net: Network, h: int, w: int):
    """[h*w, D] for the patches"""
    grid = net.pos[0, int(net.cls is not None) :]
    side = math.isqrt(len(grid))
    if (h, w) == (side, side):
        return grid
    square = grid.view(1, side, side, -1).permute(0, 3, 1, 2)
    if net.resize == "dino":
        scale = ((h + 0.1) / side, (w + 0.1) / side)
        out = F.interpolate(square, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
    else:
        out = F.interpolate(square, size=(h, w), mode="bicubic", antialias=net.resize == "antialias")
    return out[0].permute(1, 2, 0).reshape(h * w, -1)


def rotate(x, periods, h, w, before):
    """x [B, heads, N, d]: each pair (i, i + d/2) of a patch's channels turned by the angle of its row or column."""
    out = x.clone()
    half = x.shape[-1] // 2
    for index in range(h * w):
        row, column = divmod(index, w)
        y, z = 2 * (row + 0.5) / h - 1, 2 * (column + 0.5) / w - 1
        angle = torch.cat([2 * math.pi * y / periods, 2 * math.pi * z / periods])
        a, b = x[..., before + index, :half], x[..., before + index, half:]
        out[..., before + index, :half] = a * angle.cos() - b * angle.sin()
        out[..., before + index, half:] = b * angle.cos() + a * angle.sin()
    return out


def features(net: Network, images):
    """images [B, 3, H, W] -> (class token or None [B, D], patches [B, D, h, w]), after the final norm"""
    images = images.double()
    weight, bias = net.patch
    size = weight.shape[-1]
    batch, h, w = len(images), images.shape[2] // size, images.shape[3] // size
    cut = images[:, :, : h * size, : w * size].unfold(2, size, size).unfold(3, size, size)
    x = torch.einsum("bchwij,dcij->bhwd", cut, weight).flatten(1, 2) + (0 if bias is None else bias)
    before = []
    if net.pos is not None:
        x = x + positions(net, h, w)
    if net.cls is not None:
        before.append(net.cls + (net.pos[:, :1] if net.pos is not None else 0))
    if net.registers is not None:
        before.append(net.registers)
    n = sum(t.shape[1] for t in before)
    x = torch.cat([t.expand(batch, -1, -1) for t in before] + [x], 1)
    for block in net.blocks:
        y = layer_norm(x, block["norm1"], net.eps)
        parts = (
            linear(y, block[name]).view(batch, -1, net.heads, x.shape[2] // net.heads).transpose(1, 2) for name in "qkv"
        )
        q, k, v = parts
        if net.periods is not None:
            q, k = (rotate(t, net.periods, h, w, n) for t in (q, k))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        y = linear((weights @ v).transpose(1, 2).flatten(2), block["proj"])
        x = x + y * block.get("ls1", 1)
        x = x + block["mlp"](layer_norm(x, block["norm2"], net.eps)) * block.get("ls2", 1)
    if net.norm is not None:
        x = layer_norm(x, net.norm, net.eps)
    patches = x[:, n:].transpose(1, 2).unflatten(2, (h, w))
    return (x[:, 0] if net.cls is not None else None), patches


# -- readers


def plain(fc1, fc2):
    return lambda x: linear(gelu(linear(x, fc1)), fc2)


def swiglu(gate, up, out):
    def mlp(x):
        a = linear(x, gate)
        return linear(a / (1 + torch.exp(-a)) * linear(x, up), out)

    return mlp


class Reader:
    """Tensors of a flat dict below a prefix, as (weight, bias) in float64."""

    def __init__(self, tree, prefix=""):
        self.tree, self.prefix = tree, prefix

    def __call__(self, name):
        return self.tree[self.prefix + name].double()

    def pair(self, name):
        bias = self.prefix + name + ".bias"
        return self(name + ".weight"), self.tree[bias].double() if bias in self.tree else None

    def has(self, name):
        return self.prefix + name in self.tree

    def depth(self, pattern):
        i = 0
        while self.has(pattern.format(i)):
            i += 1
        return i


def thirds(pair):
    weight, bias = pair
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return dict(zip("qkv", zip(weight.chunk(3), biases, strict=True), strict=True))


def timm_names(tree, prefix, heads, **facts) -> Network:
    """DINO, iBOT, SERE, PW-Self, MAE, MoCo v3, VISSL, timm; DINOv2 and DINOv3 in their spelling of some parts."""
    r = Reader(tree, prefix)
    blocks = []
    for i in range(r.depth("blocks.{}.norm1.weight")):
        b = f"blocks.{i}."
        block = thirds(r.pair(b + "attn.qkv")) | {n: r.pair(b + n) for n in ("norm1", "norm2")}
        block["proj"] = r.pair(b + "attn.proj")
        if r.has(b + "attn.qkv.bias_mask"):
            weight, bias = r.pair(b + "attn.qkv")
            block |= thirds((weight, torch.where(r(b + "attn.qkv.bias_mask") == 1, bias, 0.0)))
        if r.has(b + "mlp.w12.weight"):
            (weight, bias), half = r.pair(b + "mlp.w12"), len(r(b + "mlp.w12.bias")) // 2
            block["mlp"] = swiglu((weight[:half], bias[:half]), (weight[half:], bias[half:]), r.pair(b + "mlp.w3"))
        elif r.has(b + "mlp.w1.weight"):
            block["mlp"] = swiglu(r.pair(b + "mlp.w1"), r.pair(b + "mlp.w2"), r.pair(b + "mlp.w3"))
        else:
            block["mlp"] = plain(r.pair(b + "mlp.fc1"), r.pair(b + "mlp.fc2"))
        block |= {f"ls{j}": r(f"{b}ls{j}.gamma") for j in (1, 2) if r.has(f"{b}ls{j}.gamma")}
        blocks.append(block)
    registers = next((r(n) for n in ("register_tokens", "storage_tokens") if r.has(n)), None)
    return Network(
        patch=r.pair("patch_embed.proj"),
        cls=r("cls_token") if r.has("cls_token") else None,
        blocks=blocks,
        heads=heads,
        norm=r.pair("norm") if r.has("norm.weight") else None,
        pos=r("pos_embed") if r.has("pos_embed") else None,
        registers=registers,
        periods=r("rope_embed.periods") if r.has("rope_embed.periods") else None,
        **facts,
    )


def hugging_face(tree, prefix, heads, **facts) -> Network:
    """ViT and Dinov2 of transformers, before and since version 5."""
    r = Reader(tree, prefix)
    since5 = r.has("layers.0.attention.q_proj.weight")
    layer = "layers.{}." if since5 else "encoder.layer.{}."
    qkv = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    qkv = qkv if since5 else tuple(f"attention.attention.{n}" for n in ("query", "key", "value"))
    proj = "attention.o_proj" if since5 else "attention.output.dense"
    dinov2 = r.has(layer.format(0) + "norm1.weight")
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    fcs = ("mlp.fc1", "mlp.fc2") if dinov2 or since5 else ("intermediate.dense", "output.dense")
    blocks = []
    for i in range(r.depth(layer + norms[0] + ".weight")):
        b = layer.format(i)
        block = {n: r.pair(b + name) for n, name in zip("qkv", qkv, strict=True)} | {"proj": r.pair(b + proj)}
        block |= {n: r.pair(b + name) for n, name in zip(("norm1", "norm2"), norms, strict=True)}
        block["mlp"] = plain(*(r.pair(b + name) for name in fcs))
        block |= {f"ls{j}": r(f"{b}layer_scale{j}.lambda1") for j in (1, 2) if dinov2}
        blocks.append(block)
    return Network(
        patch=r.pair("embeddings.patch_embeddings.projection"),
        cls=r("embeddings.cls_token") if r.has("embeddings.cls_token") else None,
        blocks=blocks,
        heads=heads,
        norm=r.pair("layernorm"),
        pos=r("embeddings.position_embeddings"),
        registers=r("embeddings.register_tokens") if r.has("embeddings.register_tokens") else None,
        **facts,
    )


def openmmlab(tree, prefix, heads, **facts) -> Network:
    """mmpretrain's VisionTransformer, and mmseg's with torch's MultiheadAttention."""
    r = Reader(tree, prefix)
    blocks = []
    for i in range(r.depth("layers.{}.ln1.weight")):
        b = f"layers.{i}."
        torchs = r.has(b + "attn.attn.in_proj_weight")
        if torchs:
            both = (r(b + "attn.attn.in_proj_weight"), r(b + "attn.attn.in_proj_bias"))
        block = thirds(both if torchs else r.pair(b + "attn.qkv"))
        block |= {"norm1": r.pair(b + "ln1"), "norm2": r.pair(b + "ln2")}
        block["proj"] = r.pair(b + ("attn.attn.out_proj" if torchs else "attn.proj"))
        block["mlp"] = plain(r.pair(b + "ffn.layers.0.0"), r.pair(b + "ffn.layers.1"))
        blocks.append(block)
    norm = r.pair("ln1") if r.has("ln1.weight") else None
    place = r.pair("patch_embed.projection")
    return Network(patch=place, cls=r("cls_token"), blocks=blocks, heads=heads, norm=norm, pos=r("pos_embed"), **facts)
