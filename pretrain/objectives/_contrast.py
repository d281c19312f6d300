"""What the objectives over keys share: queues, InfoNCE against them, and the log's numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Objective


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


class ContrastObjective(Objective):
    """Base: the numbers for the log, and the update of `queues`, which a subclass makes where it has negatives."""

    @staticmethod
    def stats(positive: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """positive: sum of the cosines of the unit keys [..., C] with their queries."""
        rows = keys.flatten(0, -2)
        return {"positive": positive, "keys_sum": rows.sum(0), "rows": rows.new_full((), len(rows))}

    def update(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the whole batch's `keys`, if there are any, into the queues; -> `positive`, the mean cosine of queries
        and their keys; `alike`, the length of the mean key, which is 1 when all keys are the same."""
        if "keys" in stats:
            self.queues.push(stats["keys"])
        return {"positive": stats["positive"] / stats["rows"], "alike": (stats["keys_sum"] / stats["rows"]).norm()}


def unit(x: Tensor) -> Tensor:
    """[..., C] -> unit length, at least float32"""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Sum over rows of CE(first, softmax([q.k, q.Q] / temperature)): each query against its own key and the queue.

    queries, keys [R, C], queue [C, K], all of unit length -> scalar, in the queries' precision whatever autocast says.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ queue.to(queries.dtype)], 1) / temperature
        return F.cross_entropy(logits, torch.zeros_like(own[:, 0], dtype=torch.long), reduction="sum")
