"""Softmax and cross-entropy over prototypes beside the official form: bytes and nanoseconds a logit.

    python tests/perf/perf_loss.py [--outputs 65536] [--rows 16] [--views 2] [--compiled]

Forward and backward on one thread, CPU time, best of five. Bytes: what every kernel reads and writes of tensors, over
the student's logits (the teacher's for the softmax). Uncompiled these are torch's operations; ours work on parts that
stay in a cache, so that most of these bytes never reach memory. An operation counts once, however often it goes over
its input inside. Compiled, they are those of the kernels that inductor makes,
as it counts them itself; a fusion on a GPU may differ.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfpatch_bench.pretrain.common.machine import keep_memory
from selfpatch_bench.pretrain.objectives._soft_cross_entropy import CentredSoftmax, CrossEntropy


class Official(nn.Module):
    """facebookresearch/dino 7c446df, main_dino.py: DINOLoss, float32 as under its autocast."""

    def forward(self, targets, logits):
        return torch.sum(-targets * F.log_softmax(logits.float() / 0.1, dim=-1), dim=-1)


class OfficialSoftmax(nn.Module):
    def forward(self, logits, centre, temperature):
        return F.softmax((logits.float() - centre) / temperature, dim=-1)


class Moved(TorchDispatchMode):
    """Bytes of the tensors that operations read and write; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        view = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
        if not view and "empty" not in str(func) and "detach" not in str(func):
            read = tree_leaves((args[1:] if func.overloadpacket is torch.ops.aten.copy_ else args, kwargs))
            self.bytes += sum(x.nbytes for x in [*read, *tree_leaves(out)] if isinstance(x, torch.Tensor))
        return out


def compiled_bytes(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Of the kernels that a forward and a backward pass are compiled to."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    counted, whole = [], GraphLowering.compile_to_module

    def noted(graph):
        made = whole(graph)
        counted.append(graph.count_bytes()[0])
        return made

    torch._dynamo.reset()
    GraphLowering.compile_to_module = noted
    try:
        with config.patch(force_disable_caches=True):
            backward(torch.compile(module)(*inputs))
    finally:
        GraphLowering.compile_to_module = whole
    return sum(counted)


def backward(out) -> None:
    loss = out[0] if isinstance(out, tuple) else out
    if loss.requires_grad:
        loss.mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("outputs", 65536), ("rows", 16), ("views", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compiled", action="store_true", help="also count compiled kernels (needs a C++ compiler)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    noise = torch.Generator().manual_seed(0)
    cosines = torch.rand(args.views, args.rows, args.outputs, generator=noise) * 2 - 1
    targets, centre = (5 * cosines[0]).softmax(-1), torch.zeros(1, args.outputs)
    print("| function | logits | form | ns a logit | bytes a logit | compiled |\n|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = cosines.to(dtype).requires_grad_(), cosines.to(dtype)
        cases = {
            ("cross-entropy", "ours"): (CrossEntropy(0.1), targets, student),
            ("cross-entropy", "official"): (Official(), targets, student),
            ("centred softmax", "ours"): (CentredSoftmax(), teacher, centre, torch.tensor(0.04)),
            ("centred softmax", "official"): (OfficialSoftmax(), teacher, centre, torch.tensor(0.04)),
        }
        for (what, form), (module, *inputs) in cases.items():
            spent = []
            for _ in range(6):
                student.grad, start = None, time.process_time()
                backward(module(*inputs))
                spent.append(time.process_time() - start)
            with Moved() as moved:
                backward(module(*inputs))
            n = cosines.numel()
            compiled = f"{compiled_bytes(module, *inputs) / n:.1f}" if args.compiled else ""
            row = [what, str(dtype).removeprefix("torch."), form, f"{1e9 * min(spent[1:]) / n:.2f}"]
            print("|", " | ".join([*row, f"{moved.bytes / n:.1f}", compiled]), "|", flush=True)


if __name__ == "__main__":
    main()
