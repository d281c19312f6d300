"""Batch normalisation whose statistics are those of the whole batch, whatever the number of processes.

torch's SyncBatchNorm does the same, on GPUs only.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last: [..., D] -> [..., D], with a gain and a bias per channel.

    In training mode by the statistics of all rows of all processes (each takes part in every call; numbers of rows may
    differ), else by the running ones. Names, defaults and running statistics are those of torch.nn.BatchNorm1d. A
    single row is allowed: it becomes the bias.
    """

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        rows, own = x.reshape(-1, x.shape[-1]), (self.running_mean, self.running_var, self.weight, self.bias)
        if not self.training:
            return F.batch_norm(rows, *own, eps=self.eps).view_as(x)
        with torch.no_grad():
            self.num_batches_tracked += 1
        if len(rows) > 1 and not shared():  # the fused kernel
            return F.batch_norm(rows, *own, True, self.momentum, self.eps).view_as(x)
        y, mean, variance, count = _Normalise.apply(rows, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        return y.view_as(x)


def shared() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Normalise(torch.autograd.Function):
    """rows [R, D], gain and bias [D] -> normalised rows [R, D], and mean, biased variance [D] and number of all rows.

    Arithmetic in float32 at least. Every process gets the gradient of the sum of all processes' losses by its own rows.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, eps):
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        mean = x.mean(0)
        count, squares = x.new_tensor([len(x)]), (x - mean).square().sum(0)
        if shared():
            mine = torch.cat([count, mean, squares])
            every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(every, mine)
            counts, means, squares = torch.stack(every).split([1, len(mean), len(mean)], 1)
            count = counts.sum(0)
            mean = (counts * means).sum(0) / count
            squares = (squares + counts * (means - mean).square()).sum(0)
        scale = (squares / count + eps).rsqrt()
        unit = (x - mean) * scale
        ctx.save_for_backward(unit, weight, scale, count)
        variance = squares / count
        ctx.mark_non_differentiable(mean, variance, count)
        return (unit * weight + bias).to(rows.dtype), mean, variance, count

    @staticmethod
    def backward(ctx, grad, *_):
        unit, weight, scale, count = ctx.saved_tensors
        kind, grad = grad.dtype, grad.to(unit.dtype)
        own = torch.stack([grad.sum(0), (grad * unit).sum(0)])  # gradients of bias and gain
        total = own
        if shared():
            total = own.clone()
            dist.all_reduce(total)
        by_rows = weight * scale * (grad - (total[0] + unit * total[1]) / count)
        return by_rows.to(kind), own[1].to(weight.dtype), own[0].to(weight.dtype), None
