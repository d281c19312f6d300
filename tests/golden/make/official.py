"""What the scripts beside this one share: an official repository on the path, one process on the CPU, files."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

OUT = Path(__file__).resolve().parent.parent / "official"


def use(folder: str) -> None:
    """Import from the official repository in `folder`, with what it needs of a GPU and of other processes stood in."""
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def other_teacher(student, teacher) -> None:
    """The teacher as the student plus noise, so that no term of a loss cancels; without gradients."""
    teacher.load_state_dict(student.state_dict(), strict=False)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.randn_like(p) * 0.02).requires_grad_(False)


def random_views(sizes: list[int], images: int, seed: int) -> list[torch.Tensor]:
    """Views [images, 3, size, size] of random numbers that float16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, size, size, generator=generator).half().float() for size in sizes]


def state(name: str, module) -> dict[str, torch.Tensor]:
    return {f"{name}.{k}": v.clone() for k, v in module.state_dict().items()}


def gradients(module) -> dict[str, torch.Tensor]:
    return {f"grad.{k}": p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}


def save(name: str, recorded: dict) -> None:
    """Write official/NAME.npz."""
    OUT.mkdir(exist_ok=True)
    arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for k, v in recorded.items()}
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(f"{OUT / name}.npz: {(OUT / f'{name}.npz').stat().st_size} bytes")
