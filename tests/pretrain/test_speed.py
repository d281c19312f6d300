"""What the log says of a GPU's use, and how batches get there; on a CPU, where the streams are stand-ins."""

import contextlib
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from selfpatch_bench.pretrain.common.machine import multiplies_bf16
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.data.loader import Batch, Mover
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.model.learner import Learner
from selfpatch_bench.pretrain.monitor.mfu import Utilisation, flops, peak
from selfpatch_bench.pretrain.step import Trainer
from selfpatch_bench.pretrain.train import products
from training import DINO, MOBY, MOBY_SELFPATCH, SELFPATCH, same
from training import one_thread as one_thread


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("Tesla V100-SXM2-32GB", "fp16", 125e12),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("NVIDIA GeForce RTX 9999", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_peak(name, precision, expected):
    assert peak(name, precision) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx\nbugs\t: amx_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\nbugs\t\t: avx512_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_processors_that_multiply_bf16(tmp_path, text, found):
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_bf16(tmp_path / "cpuinfo") is found
    assert not multiplies_bf16(tmp_path / "none")


def test_matmul_precision_holds_for_the_run():
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(KeyError), products("high"):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before == "highest"


def views(count: int, images: int, side: int) -> Group:
    box = torch.tensor([0.0, 0, side, side]).expand(count, images, 4)
    x = torch.randint(0, 256, (count, images, 3, side, side), dtype=torch.uint8)
    return Group(x, box, torch.zeros(count, images, dtype=torch.bool))


def test_flops_by_hand():
    """Of DINO's products, by hand: 2 a multiplication, once forward and twice backward (the patches' own gradient is
    not needed), the teacher forward on its two views only."""
    trainer = Trainer(
        load_recipe("dino", [*DINO, "loop.fused_attention=false", "network.drop_path=0"]), 4, Ranks("cpu")
    )
    dim, depth = 24, 2

    def forward(tokens: int) -> tuple[int, int]:
        """Patch embedding, and the rest with the head: 32, 32, 16 and 32 wide."""
        block = tokens * dim * dim * (3 + 1 + 8) + 2 * tokens * tokens * dim
        return (tokens - 1) * 192 * dim, depth * block + dim * 32 + 32 * 32 + 32 * 16 + 16 * 32

    (big, rest), (small, few) = forward(17), forward(5)
    expected = 2 * (2 * (2 * big + 3 * rest) + 2 * (2 * small + 3 * few) + 2 * (big + rest))
    before = trainer.state()
    assert flops(trainer, [views(2, 3, 32), views(2, 3, 16)]) == pytest.approx(expected, rel=0.02)
    assert same(trainer.state(), before)
    assert all(p.grad is None for _, p in trainer.named)


def test_flops_leave_no_trace_in_running_statistics():
    trainer = Trainer(
        load_recipe(
            "moby", [*MOBY, "views.rows=[{count: 2, size: 32}]", "network.class_token=true", "network.readout=token"]
        ),
        4,
        Ranks("cpu"),
    )
    assert trainer.statistics
    before = {k: v.clone() for k, v in trainer.learner.state_dict().items()}
    used = Utilisation(trainer)
    used.peak = 1e12
    assert used(10.0) is None
    used.look([views(2, 4, 32)])
    assert used(10.0) == pytest.approx(10 * used.flops / 1e12)
    assert all(torch.equal(v, before[k]) for k, v in trainer.learner.state_dict().items())


class Casts(TorchDispatchMode):
    """Counts the casts of tensors to bf16. names: by where a tensor begins."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names, self.found = names, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._to_copy and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.found[self.names.get(args[0].data_ptr())] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recipe", "options"), [("selfpatch", SELFPATCH), ("moby_selfpatch", MOBY_SELFPATCH)])
def test_teachers_weights_are_cast_once_a_step(recipe, options, monkeypatch):
    """However many groups, readouts and micro-steps there are, and to the numbers that autocast makes."""
    options = [*options, "loop.precision=bf16", "loop.accumulation=2"]
    ours, usual = (Trainer(load_recipe(recipe, options), 4, Ranks("cpu")) for _ in range(2))
    layers = {n: m for n, m in ours.learner.teacher.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    names = {p.data_ptr(): f"{n}.{k}" for n, m in layers.items() for k, p in m.named_parameters()}
    groups = [views(2, 4, 32), views(2, 4, 16)]
    with Casts(names) as casts:
        one = ours.advance(groups)
    del casts.found[None]
    assert casts.found == Counter(names.values())
    monkeypatch.setattr(Learner, "cast_teacher", lambda *_: contextlib.nullcontext())
    assert torch.equal(one.numbers["loss"], usual.advance(groups).numbers["loss"])
    assert same(ours.state(), usual.state())


def test_a_gpu_gets_batches_on_a_stream_of_its_own(monkeypatch):
    """In this order: copies on the side stream, the computing stream waits, the memory is marked as its own."""
    done = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def entered(stream):
        done.append(f"on {stream.name}")
        yield
        done.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: done.append(f"copy {non_blocking}") or self
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: done.append(f"for {stream.name}"))
    batch = Batch([views(1, 2, 8)], torch.arange(2), ["a", "b"], 0, 0)
    Mover(torch.device("cuda", 0))(batch)
    assert done == ["on side", *["copy True"] * 3, "off side", "main waits for side", *["for main"] * 3]
