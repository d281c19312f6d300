"""What the objectives over keys share: queues, InfoNCE against them, and the log's numbers."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Step

CELLS = {"cpu": 2**20, "cuda": 2**26}  # logits made at a time: what stays in a CPU's cache, or keeps a GPU busy


class Queues(nn.Module):
    """Keys of former steps: `keys` [Q, C, K], unit columns, random at first; `pointer`, where the oldest stand.

    Source: SwinTransformer/Transformer-SSL 4510de1, models/moby.py: queue1, queue2, queue_ptr.
    """

    def __init__(self, count: int, width: int, length: int):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(count, width, length), dim=1))
        self.register_buffer("pointer", torch.tensor(0))

    def push(self, keys: Tensor) -> None:
        """keys [Q, n, C] take the place of the oldest; of more than there is room for, the last stay."""
        length = self.keys.shape[2]
        keys = keys[:, -length:]
        at = (self.pointer + torch.arange(keys.shape[1], device=keys.device)) % length
        self.keys.index_copy_(2, at, keys.transpose(1, 2).to(self.keys.dtype))
        self.pointer.copy_((self.pointer + keys.shape[1]) % length)


def unit(x: Tensor) -> Tensor:
    """[..., C] -> unit length, at least float32"""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Sum over rows of CE(first, softmax([q.k, q.Q] / temperature)): each query against its own key and the queue.

    queries, keys [R, C], queue [C, K], all of unit length -> scalar; gradient for the queries only. In chunks of rows,
    with the gradient made on the way: nothing of size [R, K] lives until the backward pass.
    """
    return _InfoNCE.apply(queries, keys, queue, temperature)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, queue, temperature):
        total, queue = queries.new_zeros(()), queue.to(queries.dtype)
        ctx.buffer = torch.empty_like(queries) if ctx.needs_input_grad[0] else None
        rows = max(1, CELLS.get(queries.device.type, 2**26) // (queue.shape[1] + 1))
        with torch.autocast(queries.device.type, enabled=False):
            for a in range(0, len(queries), rows):
                q, k = queries[a : a + rows], keys[a : a + rows]
                logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / temperature
                log_p = logits.log_softmax(1)
                total -= log_p[:, 0].sum()
                if ctx.buffer is not None:
                    p = log_p.exp_()
                    ctx.buffer[a : a + rows] = torch.addmm((p[:, :1] - 1) * k, p[:, 1:], queue.T) / temperature
        return total

    @staticmethod
    def backward(ctx, grad):
        buffer, ctx.buffer = ctx.buffer, None
        if buffer is None:
            raise RuntimeError("the gradient of this loss has been handed out already; compute the loss again")
        return buffer * grad, None, None, None


def shared_rows(rows: Tensor, step: Step) -> Tensor:
    """rows [V, B, C] of this share of the batch -> [V, parts * B, C] with zeros in place of the other shares': summed
    over micro-steps and processes it is the gathered batch, in its order."""
    count = rows.shape[1]
    whole = rows.new_zeros(len(rows), step.parts * count, rows.shape[2])
    whole[:, step.part * count : (step.part + 1) * count] = rows
    return whole


def likeness(positive: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """Stats of unit keys [..., C] and of the sum of their cosines with their queries."""
    rows = keys.flatten(0, -2)
    return {"positive": positive, "keys_sum": rows.sum(0), "rows": rows.new_tensor(len(rows))}


def report(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers for the log: `positive`, mean cosine of queries and their keys; `alike`, length of the mean key, which is
    1 when all keys are the same."""
    return {"positive": stats["positive"] / stats["rows"], "alike": (stats["keys_sum"] / stats["rows"]).norm()}
