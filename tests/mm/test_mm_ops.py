"""mmcv's ops through torchvision's kernels, against plain references; and that mm stays optional."""

import ast
import importlib.util
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import REPO
from selfpatch_bench.benchmarks.mm import ops
from selfpatch_bench.pretrain.common.errors import UserError

HAVE = all(importlib.util.find_spec(name) for name in ops.PACKAGES)
mm = pytest.mark.skipif(not HAVE, reason="the extra mm is not installed")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
DTYPES = [torch.float32, torch.float16]
# float32 sums in another order; in half only inputs and result are rounded, by 2^-11 of their size.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}


def error(a, b):
    """max|a-b| / max|b|"""
    a, b = (np.asarray(x.detach().double().cpu() if isinstance(x, torch.Tensor) else x) for x in (a, b))
    return np.abs(a - b).max() / np.abs(b).max()


# --- non-maximum suppression -----------------------------------------------------------------------------------------


def plain_nms(boxes, scores, threshold, offset=0):
    """Greedy NMS in float64, one pair at a time -> (kept indices, how near any overlap came to the threshold)."""
    kept, nearest = [], 1.0
    for i in np.argsort(-scores):
        good = True
        for j in kept:
            (ax, ay, ax2, ay2), (bx, by, bx2, by2) = boxes[i], boxes[j]
            w = max(0.0, min(ax2, bx2) - max(ax, bx) + offset)
            h = max(0.0, min(ay2, by2) - max(ay, by) + offset)
            union = (ax2 - ax + offset) * (ay2 - ay + offset) + (bx2 - bx + offset) * (by2 - by + offset) - w * h
            nearest = min(nearest, abs(w * h / union - threshold))
            good &= w * h / union <= threshold
        if good:
            kept.append(i)
    return kept, nearest


def some_boxes(n, device, dtype, seed=0, whole=False):
    """Boxes [n, 4] below 256 px that overlap much, and scores [n], no two alike, exact in half precision."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * 120
    boxes = torch.cat([corner, corner + 20 + torch.rand(n, 2, generator=g) * 80], 1)
    boxes = boxes.round() if whole else boxes
    scores = (torch.randperm(n, generator=g) + 1) / 1024
    return boxes.to(device, dtype), scores.to(device, dtype)


@mm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(device, dtype, offset):
    ops.install()
    from mmcv.ops import nms

    boxes, scores = some_boxes(150, device, dtype)
    expected, nearest = plain_nms(boxes.double().cpu().numpy(), scores.double().cpu().numpy(), 0.5, offset)
    assert nearest > 1e-6  # no overlap so near the threshold that float32 may decide otherwise
    assert 5 < len(expected) < 100
    dets, kept = nms(boxes, scores, 0.5, offset=offset)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    assert nms(boxes, scores, 0.5, offset=offset, max_num=3)[1].tolist() == expected[:3]
    high = [i for i in expected if scores[i] > 0.08]
    assert 0 < len(high) < len(expected)
    assert nms(boxes, scores, 0.5, offset=offset, score_threshold=0.08)[1].tolist() == high


@mm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batched_nms(device, dtype):
    ops.install()
    from mmcv.ops import batched_nms

    # mmcv moves each class's boxes apart: whole numbers, so that this is exact in half precision too
    boxes, scores = some_boxes(150, device, dtype, seed=1, whole=True)
    classes = (torch.arange(150) % 3).to(device)
    plain, nearest = boxes.double().cpu().numpy(), []
    expected = []
    for c in range(3):
        (index,) = np.nonzero(np.arange(150) % 3 == c)
        kept, near = plain_nms(plain[index], scores.double().cpu().numpy()[index], 0.5)
        expected += index[kept].tolist()
        nearest.append(near)
    assert min(nearest) > 1e-6
    expected.sort(key=lambda i: -float(scores[i]))
    for split in (10000, 100):  # all classes at once, or one after the other
        cfg = {"type": "nms", "iou_threshold": 0.5, "split_thr": split}
        dets, kept = batched_nms(boxes, scores, classes, cfg)
        assert kept.tolist() == expected
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    together = plain_nms(plain, scores.double().cpu().numpy(), 0.5)[0]
    cfg = {"type": "nms", "iou_threshold": 0.5}
    assert batched_nms(boxes, scores, classes, cfg, class_agnostic=True)[1].tolist() == together
    assert together != expected


@mm
def test_nms_of_nothing_and_of_mixed_types():
    ops.install()
    from mmcv.ops import nms

    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1].shape == (0,)
    boxes, scores = some_boxes(150, "cpu", torch.float32)  # as mmdet has it under autocast: boxes float32, scores half
    assert nms(boxes, scores.half(), 0.5)[1].tolist() == nms(boxes, scores, 0.5)[1].tolist()


# --- RoIAlign --------------------------------------------------------------------------------------------------------


def plain_roi_align(rois, size, shape, scale, ratio, aligned):
    """RoIAlign (He et al. 2017) as a linear map: weights [K, h, w, B, H, W] that take maps to bins."""
    b_, h_, w_ = shape
    out = np.zeros((len(rois), *size, *shape))
    for k, (image, *box) in enumerate(np.asarray(rois, float)):
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0) for v in box)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        ny, nx = (ratio, ratio) if ratio > 0 else (math.ceil(bin_h), math.ceil(bin_w))
        for i, j, iy, ix in np.ndindex(*size, ny, nx):
            y = y1 + i * bin_h + (iy + 0.5) * bin_h / ny
            x = x1 + j * bin_w + (ix + 0.5) * bin_w / nx
            if y < -1 or y > h_ or x < -1 or x > w_:
                continue
            y, x = min(max(y, 0), h_ - 1), min(max(x, 0), w_ - 1)
            for yy, wy in ((math.floor(y), 1 - y % 1), (math.ceil(y), y % 1)):
                for xx, wx in ((math.floor(x), 1 - x % 1), (math.ceil(x), x % 1)):
                    out[k, i, j, int(image), yy, xx] += wy * wx / (ny * nx)
    assert b_ > max(int(r[0]) for r in rois)
    return out


def some_rois(device, dtype):
    """Inside, half outside, far outside, thin, empty and turned-over boxes on images of 96 x 112 px."""
    rois = [
        *([0, 10.3, 20.2, 60.7, 70.1], [1, 0, 0, 112, 96], [1, -30.5, -20, 25, 33.3], [0, 90, 80, 150, 140]),
        *(
            [1, 300, 300, 360, 380],
            [0, 40, 50, 40.25, 90],
            [1, 33, 44, 33, 44],
            [0, 12.5, 3.25, 15, 7],
            [1, 60, 60, 40, 50],
        ),
    ]
    return torch.tensor(rois, device=device, dtype=dtype)


@mm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_forward_and_backward(device, dtype, ratio, aligned):
    ops.install()
    from mmcv.ops import RoIAlign

    g = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 12, 14, generator=g).to(device, dtype).requires_grad_()
    rois = some_rois(device, dtype)
    size = (4, 5)
    weights = plain_roi_align(rois.double().cpu().numpy(), size, (2, 12, 14), 1 / 8, ratio, aligned)
    out = RoIAlign(size, 1 / 8, ratio, aligned=aligned)(maps, rois)
    assert out.dtype == dtype
    expected = np.einsum("khwbyx,bcyx->kchw", weights, maps.detach().double().cpu().numpy())
    assert error(out, expected) < TOLERANCE[dtype]

    grad = torch.randn(out.shape, generator=g).to(device, dtype)
    out.backward(grad)
    expected = np.einsum("khwbyx,kchw->bcyx", weights, grad.double().cpu().numpy())
    assert maps.grad.dtype == dtype
    assert error(maps.grad, expected) < TOLERANCE[dtype]


@mm
@pytest.mark.parametrize("device", DEVICES)
def test_roi_align_under_autocast_keeps_the_type_of_the_maps(device):
    ops.install()
    from mmcv.ops import roi_align

    maps = torch.randn(2, 3, 12, 14, device=device)
    rois = some_rois(device, torch.float32)
    single = roi_align(maps, rois, (4, 4), 1 / 8, 0, "avg", True)
    with torch.autocast(device, torch.bfloat16):
        half = roi_align(maps.bfloat16(), rois.bfloat16(), (4, 4), 1 / 8, 0, "avg", True)
        assert torch.equal(roi_align(maps, rois, (4, 4), 1 / 8, 0, "avg", True), single)
    assert half.dtype == torch.bfloat16
    rounded = roi_align(maps.bfloat16().float(), rois.bfloat16().float(), (4, 4), 1 / 8, 0, "avg", True)
    assert error(half, rounded) < 2**-8  # one rounding to 8 bits


@mm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_cropped_and_resized(device, dtype):
    ops.install()
    from mmdet.structures.mask import BitmapMasks

    rng = np.random.default_rng(0)
    masks = np.stack([np.kron(rng.random((8, 7)) > 0.5, np.ones((6, 8))) for _ in range(3)]).astype(np.uint8)
    boxes = torch.tensor([[3.2, 4.1, 50.3, 40.9], [0, 0, 56, 48], [20, 10, 31.5, 46], [7, 7, 9, 9.5]], dtype=dtype)
    picked = np.array([0, 2, 1, 2])
    crops = BitmapMasks(masks, 48, 56).crop_and_resize(boxes.numpy(), (14, 14), picked, device=device)
    rois = [[i, *box] for i, box in enumerate(boxes.double().numpy())]
    weights = plain_roi_align(rois, (14, 14), (4, 48, 56), 1.0, 0, True)
    value = np.einsum("khwbyx,byx->khw", weights, masks[picked].astype(float))
    clear = np.abs(value - 0.5) > (1e-6 if dtype == torch.float32 else 1e-3)  # rounding decides about the others
    assert clear.mean() > 0.97
    assert np.array_equal(crops.masks[clear], (value >= 0.5)[clear])


# --- the extension's place -------------------------------------------------------------------------------------------


@mm
def test_mmcv_finds_the_extension_and_every_other_op_says_how_to_get_it():
    assert ops.install() == ops.install()
    import mmcv.ops
    from mmengine.utils.dl_utils.misc import mmcv_full_available

    assert mmcv_full_available()
    if ops.install() == "compiled":
        pytest.skip("compiled ops are installed")
    boxes, scores = some_boxes(10, "cpu", torch.float32)
    with pytest.raises(NotImplementedError, match=r"`softnms` .*MMCV_WITH_OPS=1 pip install .*onedl-mmcv") as caught:
        mmcv.ops.soft_nms(boxes, scores)
    assert "\n" not in str(caught.value)
    rois = some_rois("cpu", torch.float32)
    with pytest.raises(NotImplementedError, match=r"`roi_align` .*max.*MMCV_WITH_OPS=1"):
        mmcv.ops.roi_align(torch.zeros(2, 3, 12, 14), rois, 4, 1.0, 0, "max", True)
    assert mmcv.ops.get_compiler_version()
    assert mmcv.ops.get_compiling_cuda_version()


def install_beside(folder: Path, source: str, monkeypatch) -> str:
    """`ops.install()` where mmcv lies in `folder` and its _ext is `source`."""
    (folder / "_ext.py").write_text(source)
    package = types.SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: package)
    monkeypatch.setitem(sys.modules, ops.NAME, None)
    return ops.install()


def test_compiled_ops_win(tmp_path, monkeypatch):
    source = "nms = 'the compiled one'\nget_compiling_cuda_version = lambda: '13.0'\n"
    assert install_beside(tmp_path, source, monkeypatch) == "compiled"
    assert sys.modules[ops.NAME].nms == "the compiled one"
    assert ops.install() == "compiled"


def test_compiled_ops_that_do_not_load_are_warned_about(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="compiled ops cannot be used.*undefined symbol"):
        assert install_beside(tmp_path, "raise ImportError('undefined symbol')", monkeypatch) == "torchvision"
    assert isinstance(sys.modules[ops.NAME], ops.Kernels)


def test_compiled_ops_without_cuda_do_not_hide_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    source = "get_compiling_cuda_version = lambda: 'not available'"
    with pytest.warns(UserWarning, match="built without CUDA"):
        assert install_beside(tmp_path, source, monkeypatch) == "torchvision"


# --- mm stays optional -----------------------------------------------------------------------------------------------

MM = {*ops.PACKAGES, "mmpretrain"}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, also inside functions and as texts given to import_module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value).partition(".")[0])
    return found


def sources() -> list[Path]:
    folders = [REPO / name for name in ("benchmarks", "pretrain", "results", "mm_configs")]
    return [p for folder in folders for p in sorted(folder.rglob("*.py"))]


def test_mm_is_imported_in_one_folder_only():
    inside = REPO / "benchmarks" / "mm"
    users = {p for p in sources() if imported(p) & MM}
    assert users
    assert all(p.is_relative_to(inside) for p in users), sorted(users)


def test_without_the_extra_all_else_imports_and_mm_says_what_to_install():
    """As if none of the packages were installed: every module outside benchmarks/mm, then mm's own entry."""
    inside = REPO / "benchmarks" / "mm"
    parent = [
        inside / f"{name}.py" for name in ("launch", "processes", "recipe", "task", "training")
    ]  # they start the process with mm
    paths = [p for p in sources() if not p.is_relative_to(inside) and not p.is_relative_to(REPO / "mm_configs")]
    modules = [
        "selfpatch_bench." + ".".join(p.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        for p in [*paths, *parent]
        if p.name != "__main__.py"
    ]
    code = f"""
import importlib, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {MM!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
for name in {modules!r}:
    importlib.import_module(name)
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.benchmarks.mm import ops
for entry in (ops.require, ops.install, lambda: importlib.import_module("selfpatch_bench.benchmarks.mm.backbones")):
    try:
        entry()
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "selfpatch-bench[mm]" in line
        assert all(package in line for package in ops.PACKAGES.values())


def test_one_absent_package_is_named_alone(monkeypatch):
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: None if name == "mmseg" else object())
    with pytest.raises(UserError, match="onedl-mmsegmentation is not installed") as caught:
        ops.require()
    assert "onedl-mmcv" not in str(caught.value)
