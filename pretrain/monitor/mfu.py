"""MFU: the share of the devices' peak that a run's arithmetic takes (Chowdhery et al., PaLM, 2022, appendix B)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import optim
from ..data.group import Group
from ..model.precision import LOW
from ..objectives import Step
from ..step import Trainer

# Dense TFLOP/s of the tensor cores in bf16 and fp16, by words of the device's name; the first row that fits counts.
# Source: NVIDIA's data sheets, whose figures with sparsity are halved.
PEAKS = (
    (("H100", "PCIe"), 756.0),
    (("H100", "NVL"), 835.0),
    (("H100",), 989.4),
    (("H200",), 989.4),
    (("GH200",), 989.4),
    (("B200",), 2250.0),
    (("A100",), 312.0),
    (("A40",), 149.7),
    (("A30",), 165.0),
    (("L40S",), 362.0),
    (("L4",), 121.0),
    (("A10G",), 70.0),
    (("4090",), 165.2),
    (("3090",), 71.0),
)
FP16_PEAKS = ((("V100",), 125.0), (("T4",), 65.0))  # without bf16
IMAGES = 8  # that are counted


def peak(name: str, precision: str) -> float | None:
    """FLOP/s of a device, None if unknown."""
    words = name.replace("-", " ").split()
    rows = {"bf16": PEAKS, "fp16": PEAKS + FP16_PEAKS}.get(precision, ())
    return next((1e12 * value for known, value in rows if set(known) <= set(words)), None)


def flops(trainer: Trainer, groups: list[Group]) -> float:
    """Floating-point operations of forward and backward for an image, counted on some of a micro-batch (attention and
    matrix products; what loop.checkpointing computes again included). Every process takes part.

    It leaves no trace: gradients are dropped, running statistics put back; each micro-step seeds its noise.
    """
    rows = [g.rows(slice(0, IMAGES)) for g in groups]
    kept = optim.copies(trainer.statistics)
    cast = LOW.get(trainer.precision)
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        with torch.autocast(trainer.device.type, cast, enabled=cast is not None):
            total, _, _ = trainer.learner(rows, Step(trainer.step, trainer.epoch, trainer.ranks.rank, trainer.parts))
        total.backward()
    optim.put_back(kept)
    trainer.optimiser.zero_grad(set_to_none=True)
    return counter.get_total_flops() / rows[0].x.shape[1]


class Utilisation:
    """Of a run: `look` at the first micro-batch, then call with images/s -> MFU, None where the peak is unknown."""

    def __init__(self, trainer: Trainer):
        ranks = trainer.ranks
        name = ranks.first(lambda: torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else ""
        self.trainer, self.flops = trainer, None
        self.peak = peak(name, trainer.precision)

    def look(self, groups: list[Group]) -> None:
        if self.peak and self.flops is None:
            self.flops = flops(self.trainer, groups)

    def __call__(self, images_per_s: float) -> float | None:
        if self.flops is None:
            return None
        return images_per_s * self.flops / (self.peak * self.trainer.ranks.world)
