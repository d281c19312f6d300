"""Batch normalisation whose statistics are those of the whole batch, whatever the number of processes.

torch's SyncBatchNorm does the same, on GPUs only.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all axes but the last: [..., D] -> [..., D], with a gain and a bias per channel.

    In training mode by the statistics of all rows of all processes (each takes part in every call; numbers of rows may
    differ), else by the running ones. A single row is allowed: it becomes the bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if not self.training or (len(rows) > 1 and not distributed()):  # the fused kernel
            return super().forward(rows).view_as(x)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        sums, count = summed(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))])).split([rows.shape[1], 1])
        mean = sums / count
        variance = summed((rows - mean).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        y = (rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
        return y.to(x.dtype).view_as(x)


def distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(x: Tensor) -> Tensor:
    """The sum of x over all processes."""
    return _Sum.apply(x) if distributed() else x


class _Sum(torch.autograd.Function):
    # By hand, because torch.distributed.nn.all_reduce, which does the same, is deprecated and warns.

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):  # of the sum of all processes' losses
        return _Sum.forward(ctx, grad)
