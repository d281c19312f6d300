"""Label propagation against the official rule written plainly (reference_propagation.py)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import reference_propagation as reference
from selfpatch_bench.benchmarks.tasks import _propagation as propagation
from selfpatch_bench.benchmarks.tasks._propagation import Propagator, first_labels, labels_to_mask, normalise
from selfpatch_bench.pretrain.common.errors import UserError

# h, w, radius, n, C, topk: both tiling branches, grids smaller than a tile or the window, one row or column, windows
# of one patch, fewer candidates than k.
CASES = [
    (1, 1, 12, 1, 1, 5),
    (3, 2, 12, 2, 3, 5),
    (5, 40, 0, 3, 2, 5),
    (5, 40, 0, 8, 2, 5),
    (1, 50, 3, 8, 4, 5),
    (50, 1, 3, 2, 4, 5),
    (14, 14, 12, 8, 3, 5),
    (13, 37, 4, 3, 21, 1),
    (17, 35, 2, 1, 2, 30),
    (30, 52, 12, 8, 3, 5),
    (9, 33, None, 2, 3, 5),
    (20, 45, 100, 2, 2, 7),
]
ids = ["-".join(map(str, case)) for case in CASES]


def scene(h, w, n, c, dim=24, dtype=torch.float64, seed=0):
    """Features as of a video: smooth in space, alike in time, plus noise; soft labels that sum to 1 over channels."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, h // 3 + 1, w // 3 + 1, generator=g, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")[0].permute(1, 2, 0)
    features = normalise(smooth + 0.4 * torch.randn(n + 1, h, w, dim, generator=g, dtype=torch.float64))
    labels = torch.rand(n, c, h, w, generator=g, dtype=torch.float64) ** 4
    labels = labels / labels.sum(1, keepdim=True)
    return features[-1].to(dtype), features[:-1].to(dtype), labels.to(dtype)


def signs(h, w, n, c, dtype, dim=16, seed=0):
    """Features of +-1/4 in 16 dimensions: every cosine is a multiple of 1/8, exact in any order of summation, so that
    ties at the k-th value are everywhere and exact in every implementation."""
    g = torch.Generator().manual_seed(seed)
    features = (torch.randint(0, 2, (n + 1, h, w, dim), generator=g) * 2 - 1).to(dtype) / 4
    return features[-1], features[:-1], torch.rand(n, c, h, w, generator=g, dtype=torch.float64).to(dtype)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def clear(target, context, radius, topk, gap=1e-6):
    """[h, w]: targets whose k-th and (k+1)-th cosine differ by more than `gap`. Elsewhere float32 rounding of the
    cosines (1e-7) decides who is kept, in the official code too."""
    h, w, _ = target.shape
    cosine = torch.einsum("yxd,nvud->yxnvu", target.double(), context.double()).reshape(h * w, -1, h * w)
    if radius is not None:
        cosine = cosine.masked_fill(reference.window(h, w, radius)[:, None] == 0, -2)
    cosine = cosine.reshape(h * w, -1)
    if cosine.shape[1] <= topk:
        return torch.ones(h, w, dtype=torch.bool)
    best = cosine.topk(topk + 1).values
    return ((best[:, -2] - best[:, -1] > gap) | (best[:, -1] == -2)).view(h, w)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_float64_equals_dense(case):
    h, w, radius, n, c, topk = case
    target, context, labels = scene(h, w, n, c)
    out = Propagator(radius, topk)(target, context, labels)
    assert out.dtype == torch.float64
    assert relative(out, reference.propagate(target, context, labels, radius, topk)) < 1e-10


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_float32_equals_dense(case):
    h, w, radius, n, c, topk = case
    target, context, labels = scene(h, w, n, c, dtype=torch.float32)
    out = Propagator(radius, topk)(target, list(context), list(labels))
    want = reference.propagate(target, context, labels, radius, topk)
    sure = clear(target, context, radius, topk)
    assert sure.float().mean() > 0.99
    assert out.dtype == torch.float32
    assert relative(out[:, sure], want[:, sure]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_all_ties_at_the_threshold_are_kept(case, dtype):
    h, w, radius, n, c, topk = case
    target, context, labels = signs(h, w, n, c, dtype)
    out = Propagator(radius, topk)(target, context, labels)
    want = reference.propagate(target, context, labels, radius, topk)
    assert relative(out, want) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_planted_tie_spreads_over_frames_and_places():
    """One target, seven equal best matches, k = 5: the mean of all seven labels, not of five."""
    target, context, labels = signs(20, 40, 4, 2, torch.float64)
    places = [(0, 3, 4), (0, 3, 5), (1, 9, 10), (2, 2, 1), (3, 8, 12), (3, 9, 12), (1, 3, 4)]
    for i, y, x in places:
        context[i, y, x] = target[5, 6]
    context[0, 12, 6] = target[5, 6]  # outside the window of radius 6
    exact = (context @ target[5, 6]) > 0.999
    exact[:, 12:] = exact[:, :, 13:] = False
    want = labels.permute(0, 2, 3, 1)[exact].mean(0)
    assert exact.sum() >= 7
    out = Propagator(6, 5)(target, context, labels)
    assert relative(out[:, 5, 6], want) < 1e-10


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (8, 16), (16, 4), (100, 100)])
@pytest.mark.parametrize("radius", [0, 3, 7, None])
def test_tile_changes_nothing(tile, radius):
    for make in (scene, lambda *size: signs(*size, torch.float64)):
        target, context, labels = make(19, 37, 3, 4)
        want = Propagator(radius)(target, context, labels)
        assert relative(Propagator(radius, tile=tile)(target, context, labels), want) < 1e-10


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_temperature(temperature):
    target, context, labels = scene(12, 31, 2, 3)
    out = Propagator(4, 6, temperature)(target, context, labels)
    assert relative(out, reference.propagate(target, context, labels, 4, 6, temperature)) < 1e-10


def test_cold_softmax_does_not_overflow():
    """exp(1 / 0.002) is inf in float32 and not in float64; a cosine's rounding of 6e-8 is 3e-5 after the division."""
    target, context, labels = scene(6, 7, 2, 3, dtype=torch.float32)
    out = Propagator(2, 3, 0.002)(target, context, labels)
    want = reference.propagate(target.double(), context.double(), labels.double(), 2, 3, 0.002)
    assert relative(out.double(), want) < 3e-4


def test_bfloat16_features_are_summed_in_float32():
    target, context, labels = scene(12, 20, 3, 2, dim=64, dtype=torch.bfloat16)
    out = Propagator(3)(target, context, labels.float())
    assert out.dtype == torch.float32
    assert torch.equal(out, Propagator(3)(target.float(), context.float(), labels.float()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [scene, signs])
def test_cuda_equals_cpu(make):
    target, context, labels = (t.double() for t in make(30, 52, 8, 3, dtype=torch.float64))
    want = Propagator()(target, context, labels)
    out = Propagator()(target.cuda(), context.cuda(), labels.cuda())
    assert out.is_cuda
    assert relative(out.cpu(), want) < 1e-10
    assert np.array_equal(labels_to_mask(out, 16, (480, 854)), labels_to_mask(want, 16, (480, 854)))


def test_normalise():
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    x[0, 0] = 0
    unit = normalise(x)
    assert relative(unit, x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)) < 1e-15
    assert (unit[0, 0] == 0).all()
    assert normalise(x.bfloat16()).dtype == torch.float32


def test_cost_grows_with_the_window_not_with_the_square():
    """Multiplications at twice the side: 4 times the targets, each with at most a whole window more at the borders; the
    dense affinity takes 16 times."""

    def products(h, w):
        target, context, labels = scene(h, w, 2, 2, dim=8, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            Propagator(6)(target, context, labels)
        return counter.get_total_flops()

    small, large = products(32, 64), products(64, 128)
    assert small >= 2 * 8 * 2 * 32 * 64 * 7 * 7  # at least a quarter window each, or nothing was counted
    assert large < 5 * small
    assert large < 2 * 8 * 2 * (64 * 128) ** 2 / 10


MEMORY = """
import re, torch
from selfpatch_bench.benchmarks.tasks._propagation import Propagator, normalise
def resident(field):  # KiB; the usual ru_maxrss starts from the parent's
    return int(re.search(field + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
features = [normalise(torch.randn(60, 104, 384)) for _ in range(9)]
labels = torch.rand(8, 3, 60, 104)
Propagator()(features[8][:8, :8], [f[:8, :8] for f in features[:8]], labels[..., :8, :8])  # libraries and threads
before = resident('VmRSS')
Propagator()(features[8], features[:8], labels)
print(resident('VmHWM') - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_patch_8_at_480p_is_small():
    """Beyond the features: some 45 MiB of work space. One dense affinity of eight frames alone would be 1.2 GiB."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed blocks leave the process at once
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=environment)
    assert 20 * 1024 < int(run.stdout) < 200 * 1024  # KiB; below 20 MiB the measurement itself would be wrong


def test_shapes_must_agree():
    target, context, labels = scene(4, 5, 2, 3)
    for bad in (
        (target, context[:1], labels),
        (target[:3], context, labels),
        (target, context, labels[..., :4]),
        (target, [], []),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            Propagator()(*bad)


# --- labels <-> masks


def blobs(c, h, w, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.softmax(8 * torch.rand(c, h, w, generator=g), 0)


SIZES = [(16, (30, 52), (480, 854)), (8, (12, 20), (100, 171)), (14, (7, 9), (98, 126)), (16, (6, 4), (57, 31))]


@pytest.mark.parametrize(("patch", "grid", "size"), SIZES)
@pytest.mark.parametrize("c", [1, 2, 3, 7, 20])
def test_mask_equals_official(c, patch, grid, size):
    labels = blobs(c, *grid)
    mask = labels_to_mask(labels, patch, size)
    assert mask.dtype == np.uint8
    assert mask.shape == size
    assert np.array_equal(mask, reference.labels_to_mask(labels, patch, size))
    if c > 1:
        assert len(np.unique(mask)) > 1


def constant(channel, value):
    labels = blobs(4, 8, 10)
    labels[channel] = value
    return labels


EDGES = {
    "constant positive channel": constant(2, 0.25),
    "constant first channel": constant(0, 1.0),
    "two constant channels": constant(3, 0.5).index_fill(0, torch.tensor(1), 0.5),
    "zero channel": constant(1, 0.0),
    "zero first channel": constant(0, 0.0),
    "all zero": torch.zeros(3, 8, 10),
    "only background": torch.cat([torch.ones(1, 8, 10), torch.zeros(2, 8, 10)]),
    "equal channels": blobs(1, 8, 10).sqrt().expand(3, -1, -1) * torch.linspace(0.1, 0.9, 80).view(8, 10),
    "negative channel": constant(1, -0.5),
    "one channel": torch.ones(1, 8, 10),
    "one patch": torch.tensor([0.25, 0.75]).view(2, 1, 1),
}


@pytest.mark.parametrize("name", EDGES)
def test_mask_edge_cases_equal_official(name):
    labels = EDGES[name]
    before = labels.clone()
    assert np.array_equal(
        labels_to_mask(labels, 16, (130, 170)), reference.labels_to_mask(labels.clone(), 16, (130, 170))
    )
    assert torch.equal(labels, before)  # the soft labels stay for the next frames


def test_constant_positive_channel_takes_the_frame():
    """The official 0/0: every pixel becomes the first channel that is constant and positive."""
    assert (labels_to_mask(EDGES["constant positive channel"], 16, (128, 160)) == 2).all()
    assert (labels_to_mask(EDGES["two constant channels"], 16, (128, 160)) == 1).all()
    assert set(np.unique(labels_to_mask(EDGES["zero channel"], 16, (128, 160)))) == {0, 2, 3}


def test_mask_of_nan_is_an_error():
    labels = blobs(2, 4, 4)
    labels[1, 2, 2] = float("nan")
    with pytest.raises(UserError, match="finite"):
        labels_to_mask(labels, 16, (64, 64))


def shapes(h, w):
    mask = np.zeros((h, w), np.uint8)
    mask[h // 4 : h // 2, w // 5 : w // 2] = 1
    mask[h // 2 :, w // 2 :] = 3
    return mask


@pytest.mark.parametrize(
    ("size", "grid"), [((480, 854), (30, 52)), ((480, 854), (60, 104)), ((57, 31), (6, 4)), ((5, 6), (7, 9))]
)
def test_first_labels_equal_official(size, grid):
    mask = shapes(*size)
    labels = first_labels(mask, grid)
    assert labels.shape == (4, *grid)
    assert labels.dtype == torch.float32
    assert torch.equal(labels, reference.first_labels(mask, grid))
    assert (labels[2] == 0).all()


def test_void_is_background():
    mask = shapes(480, 854)
    void = mask.copy()
    void[:100] = 255
    labels = first_labels(void, (30, 52))
    assert labels.shape[0] == 4
    assert torch.equal(labels, first_labels(np.where(void == 255, 0, mask).astype(np.uint8), (30, 52)))
    assert first_labels(np.full((32, 32), 255, np.uint8), (2, 2)).shape == (1, 2, 2)
    assert first_labels(np.full((32, 32), 9, np.uint8), (2, 2), void=9).shape == (1, 2, 2)


def test_objects_that_vanish_in_the_downsample_have_no_channel():
    mask = shapes(480, 854)
    mask[0, 0] = 5  # one pixel that no patch samples
    assert first_labels(mask, (30, 52)).shape[0] == 4
    mask[mask == 1] = 0
    mask[0, 0] = 1  # a vanished lower index keeps its (empty) channel
    labels = first_labels(mask, (30, 52))
    assert labels.shape[0] == 4
    assert (labels[1] == 0).all()


def test_nearest_is_pillows():
    mask = np.random.default_rng(0).integers(0, 9, (37, 53)).astype(np.uint8)
    for size in ((37, 53), (12, 80), (111, 20), (1, 1)):
        want = np.array(Image.fromarray(mask).resize(size[::-1], 0))
        assert np.array_equal(propagation._nearest(mask, size), want)
