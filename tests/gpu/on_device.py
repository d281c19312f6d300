"""What the tests for a GPU share: the device, exact arithmetic, tiny learners of every recipe."""

import contextlib
import functools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "pretrain"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "mm"))
from figures_pretrain import configuration, synthetic

from selfpatch_bench.pretrain.recipes import RECIPES
from selfpatch_bench.pretrain.step import Learner

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for a fixed order of additions; read at the first use
WANTED = os.environ.get("SELFPATCH_GPU_TESTS", "cuda")
EVERY = sorted(RECIPES.scan())


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU. SELFPATCH_GPU_TESTS=cpu tries the tests themselves on a CPU."""
    if WANTED == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; SELFPATCH_GPU_TESTS=cpu tries these tests on a CPU")
    return torch.device(WANTED)


@pytest.fixture
def exact():
    """float32 is float32: no TF32 in products and convolutions."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [b.allow_tf32 for b in backends]
    for b in backends:
        b.allow_tf32 = False
    yield
    for b, value in zip(backends, before, strict=True):
        b.allow_tf32 = value


def asked(batch: int = 4, device: str = "cpu", precision: str = "float32") -> SimpleNamespace:
    """Options as `figures.py --tiny` has them."""
    return SimpleNamespace(batch=batch, device=device, precision=precision, tiny=True)


def tiny(recipe: str, device, spread: float = 0.3, batch: int = 4):
    """(learner on the device, its groups): the same numbers on every device. Weights are far from their initial ones by
    `spread`, the teacher's from the student's, and nothing is drawn in a step."""
    cfg = configuration(recipe, asked(batch), "network.drop_path=0")
    learner, noise = Learner(cfg), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if not name.endswith("weight_g"):
                scale = spread / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.05
                p.add_(scale * torch.randn(p.shape, generator=noise))
    return learner.to(device), [g.to(device) for g in synthetic(cfg, batch, torch.device("cpu"))]


def gradients(learner) -> dict[str, torch.Tensor]:
    """Of everything that is trained, float32 on the CPU; a gradient that is zero but for rounding is left out."""
    found = {n: p.grad.detach().float().cpu() for n, p in learner.trained() if p.grad is not None}
    return {n: g for n, g in found.items() if g.abs().max() > 1e-7}


@contextlib.contextmanager
def quick_compile(device: torch.device):
    """On a CPU graphs are only traced: building C++ of them would take minutes."""
    usual = torch.compile
    if device.type == "cpu":
        torch.compile = functools.partial(usual, backend="eager")
    try:
        yield
    finally:
        torch.compile = usual
        torch._dynamo.reset()
