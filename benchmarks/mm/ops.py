"""What comes before the first import of mm: mmcv's compiled extension, or torchvision's kernels in its place.

pip builds onedl-mmcv without its compiled ops, and of those Mask R-CNN needs only NMS and RoIAlign, which torchvision
has. Nothing in this file imports mm at its top.
"""

import functools
import importlib.util
import logging
import sys
import types
import warnings
from importlib.machinery import ModuleSpec, PathFinder

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from ...pretrain.common.errors import UserError

NAME = "mmcv._ext"
# Import name -> distribution, all of the extra `mm`.
PACKAGES = {
    "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv",
    "mmdet": "onedl-mmdetection",
    "mmseg": "onedl-mmsegmentation",
    "faster_coco_eval": "faster-coco-eval",
}
COMPILE = (
    "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall "
    "-c constraints.txt onedl-mmcv"
)


def require() -> None:
    """Raise UserError unless every package of the extra `mm` is installed; imports none of them."""
    absent = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"COCO and ADE20K need the extra `mm`, and {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not installed: pip install -c constraints.txt 'selfpatch-bench[mm]'"
        )


def install() -> str:
    """Make `mmcv._ext` importable: "compiled" if mmcv's own ops are there and load, else "torchvision".

    Call it before anything imports mmcv.ops; a second call changes nothing. Raises UserError without the extra `mm`.
    """
    present = sys.modules.get(NAME)
    if present is None:
        require()
        present = _compiled() or Kernels(NAME)
        sys.modules[NAME] = present
    silence()
    return "torchvision" if isinstance(present, Kernels) else "compiled"


def _compiled() -> types.ModuleType | None:
    """mmcv's own extension, or None; one that is there and cannot be used is warned about."""
    package = importlib.util.find_spec("mmcv")
    spec = PathFinder.find_spec(NAME, package.submodule_search_locations)
    if spec is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if torch.cuda.is_available() and module.get_compiling_cuda_version() == "not available":
            raise ImportError("built without CUDA, while there is a GPU")
    except (ImportError, AttributeError, OSError) as error:
        warnings.warn(f"mmcv's compiled ops cannot be used, torchvision's kernels are: {error}", stacklevel=3)
        return None
    return module


class Kernels(types.ModuleType):
    """Stands for the compiled module: the ops below, and for every other name a function that fails when called.

    mmcv imports all of its ops at once and only looks whether the names are there.
    """

    def __init__(self, name: str):
        super().__init__(name, "torchvision's kernels under the names of mmcv's compiled ops")
        self.__spec__ = ModuleSpec(name, None)  # mmengine asks find_spec whether there are ops
        self.nms = nms
        self.roi_align_forward = roi_align_forward
        self.roi_align_backward = roi_align_backward
        self.get_compiler_version = lambda: "torchvision's kernels, nothing compiled"
        self.get_compiling_cuda_version = lambda: torch.version.cuda or "not available"

    def __getattr__(self, op: str):
        if op.startswith("__"):
            raise AttributeError(op)

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f"mmcv op `{op}` is compiled code, which this mmcv was installed without (torchvision's kernels stand "
                f"in for nms and roi_align only). To compile all ops (a C++ or CUDA compiler, about ten minutes): "
                f"{COMPILE}"
            )

        missing.__name__ = op
        return missing


def _single(*tensors: Tensor) -> list[Tensor]:
    """Half precision to float32, other types as they are: half sums lose digits, and the CPU has no half NMS."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """boxes [N, 4] as x1, y1, x2, y2, scores [N] -> indices of the kept boxes, best first.

    offset: 1 counts corners as pixels that belong to the box, so widths are x2 - x1 + 1.
    """
    boxes, scores = _single(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, *_, aligned_height: int, aligned_width: int, **options
) -> None:
    """input [B, C, H, W], rois [K, 5] as image, x1, y1, x2, y2 -> fills output [K, C, h, w]; see `_average`."""
    scale, *how = _average(**options)
    maps, boxes = _single(input, rois)
    with torch.autocast(input.device.type, enabled=False):
        align = torch.ops.torchvision.roi_align
        output.copy_(align(maps, boxes.to(maps), scale, aligned_height, aligned_width, *how))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, *places: Tensor, aligned_height: int, aligned_width: int, **options
) -> None:
    """grad_output [K, C, h, w] -> fills the last of `places`, grad_input [B, C, H, W]; see `_average`."""
    scale, *how = _average(**options)
    grad, boxes = _single(grad_output, rois)
    back, into = torch.ops.torchvision._roi_align_backward, places[-1]
    into.copy_(back(grad, boxes.to(grad), scale, aligned_height, aligned_width, *into.shape, *how))


def _average(spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> tuple[float, int, bool]:
    """mmcv's options in torchvision's order. pool_mode: 1 is the average, 0 the maximum, which torchvision lacks; only
    the maximum fills mmcv's `argmax_y` and `argmax_x`."""
    if pool_mode != 1:
        raise NotImplementedError(f"mmcv op `roi_align` with pool_mode='max' needs compiled ops: {COMPILE}")
    return spatial_scale, sampling_ratio, aligned


def silence() -> None:
    """Ignore the warnings that mm gives as it is imported, most of it when a run starts; print no debug message.

    mmengine's `print_log` prints whatever has no logger, debug messages of optional imports included.
    """
    warnings.filterwarnings("ignore", message="``MultiScaleDeformableAttention`` has been moved")
    import mmengine.logging

    print_log = mmengine.logging.print_log
    if hasattr(print_log, "__wrapped__"):
        return

    @functools.wraps(print_log)
    def without_debug(msg, logger=None, level=logging.INFO):
        if logger is not None or level >= logging.INFO:
            print_log(msg, logger, level)

    mmengine.logging.print_log = without_debug
