"""Softmax and cross-entropy over many outputs, in float32 whatever the logits are, which read a logit once or twice.

Uncompiled they go over the rows in parts that stay in a processor's cache; compiled, the passes are one to three
kernels each. Nothing as large as the logits is kept for the backward pass but the logits themselves and the targets.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

PART = 2**17  # numbers of a part: in float32 a few of them fit into a core's cache


class CrossEntropy(nn.Module):
    """-targets . log softmax(logits / temperature), for every row: [..., K], [..., K] -> [...], at least float32.

    Leading axes that the targets lack are views with the same targets. It is linear in the targets: the sum of several
    teacher views, or a weighted target, gives the sum, or the weighted term. They carry no gradient. The logits'
    gradient is float32 until it has its final size, loss scale included.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, targets: Tensor, logits: Tensor) -> Tensor:
        k, targets = logits.shape[-1], targets.detach()
        if torch.compiler.is_compiling():  # keeps no more, either: a kernel makes again what it can
            return -(targets * scaled(logits, self.temperature).log_softmax(-1)).sum(-1)
        views = logits.shape[: logits.ndim - targets.ndim].numel()
        p = targets.reshape(-1, k)
        return _CrossEntropy.apply(p, logits.reshape(views, len(p), k), self.temperature).view(logits.shape[:-1])


class _CrossEntropy(torch.autograd.Function):
    """targets [R, K], logits [V, R, K] -> [V, R]"""

    @staticmethod
    def forward(ctx, targets, logits, temperature):
        loss = logits.new_empty(logits.shape[:2], dtype=torch.promote_types(logits.dtype, torch.float32))
        for at in parts(logits):
            log_p = scaled(logits[at], temperature).log_softmax(-1)
            loss[at] = log_p.mul_(targets[at[1]]).sum(-1).neg_()
        ctx.save_for_backward(targets, logits)
        ctx.temperature = temperature
        return loss

    @staticmethod
    def backward(ctx, grad):
        targets, logits = ctx.saved_tensors
        out, factor, mass = torch.empty_like(logits), grad / ctx.temperature, targets.sum(-1, dtype=grad.dtype)
        for at in parts(logits):
            q = scaled(logits[at], ctx.temperature).softmax(-1)
            out[at] = q.mul_(mass[at[1], None]).sub_(targets[at[1]]).mul_(factor[at][..., None])
        return None, out, None


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, at least float32"""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


class CentredSoftmax(nn.Module):
    """logits [..., K], centre [K] or [N, K] (a row for each place of the axis before K), 0-dim temperature ->
    softmax((logits - centre) / temperature) [..., K] and its entropies [...] in nats, at least float32. No gradient."""

    @torch.no_grad()
    def forward(self, logits: Tensor, centre: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        dtype, k = torch.promote_types(logits.dtype, torch.float32), logits.shape[-1]
        centre = centre.to(dtype).view(-1, k)
        rows = logits.reshape(-1, len(centre), k)
        p = torch.empty_like(rows, dtype=dtype)
        entropy = p.new_empty(rows.shape[:-1])
        for at in parts(rows):
            z = (rows[at].to(dtype) - centre[at[1]]) / temperature
            z = z - z.logsumexp(-1, keepdim=True)
            p[at] = z.exp()
            entropy[at] = z.mul_(p[at]).sum(-1).neg_()
        return p.view(logits.shape), entropy.view(logits.shape[:-1])


def parts(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Indices of the first two axes of [V, R, K] that cover them, in order."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(None), slice(None)
        return
    views, rows, k = x.shape
    size = max(1, PART // k)
    if rows < size:  # several views at once
        size = max(1, size // max(1, rows))
        yield from ((slice(v, v + size), slice(None)) for v in range(0, views, size))
    else:
        yield from ((slice(v, v + 1), slice(r, r + size)) for v in range(views) for r in range(0, rows, size))
