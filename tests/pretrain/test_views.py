"""Draws against torchvision's distributions, pixels against Pillow."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from omegaconf import OmegaConf
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as F

import reference_views as reference
from conftest import SHARED
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.data import pixels
from selfpatch_bench.pretrain.data.group import Group, normalise
from selfpatch_bench.pretrain.data.views import Views, ViewSpec, _mix, draw, draw_all, permutation, uniforms

DINO = Views(
    [
        ViewSpec(1, 224, (0.4, 1.0), blur_p=1.0),
        ViewSpec(1, 224, (0.4, 1.0), blur_p=0.1, solarize_p=0.2),
        ViewSpec(8, 96, (0.05, 0.4), blur_p=0.5),
    ]
)
DRAWS = 3000


def distance(a, b) -> float:
    """Kolmogorov-Smirnov distance of two samples in units of its deviation; above 1.95 with a probability of 1e-3 (less
    for discrete values). Seeds are fixed, so nothing here is flaky, and a wrong distribution of this many draws lies
    far above: a range that is 10 % too wide at about 3.
    """
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    gap = np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)
    return np.abs(gap).max() * np.sqrt(len(a) * len(b) / (len(a) + len(b)))


def even(n: int, low: float = 0, high: float = 1) -> np.ndarray:
    """What a uniform distribution looks like: many evenly spaced values, against n drawn ones."""
    return low + (high - low) * (np.arange(20 * n) + 0.5) / (20 * n)


def many(spec: ViewSpec, height: int, width: int, count: int = DRAWS) -> list:
    return [draw(spec, height, width, row) for row in uniforms(count, 7, 0)]


# ---------------------------------------------------------------- numbers


def test_the_stream_is_splitmix64():
    """First outputs for the seed 1234567, as the generator's published test vectors have them."""
    state, out = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        out.append(_mix(state))
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_and_independent_of_their_neighbours():
    u = np.stack([uniforms(4, 0, e, i) for e in range(4) for i in range(500)])  # [2000, 4, 56]
    assert u.min() >= 0
    assert u.max() < 1
    assert distance(u.ravel(), even(10_000)) < 1.95
    # Neighbouring views, places and images: correlations of n pairs have standard deviation n^-1/2.
    for a, b in ((u[:, 0], u[:, 1]), (u[..., :-1], u[..., 1:]), (u[:-1], u[1:]), (u[:500], u[500:1000])):
        r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(r) < 4 / np.sqrt(a.size)
    # No two of the streams start alike: seed, epoch, image and view all matter, and so does their order.
    keys = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    assert len({tuple(row) for key in keys for row in uniforms(3, *key)}) == 3 * len(keys)


def test_a_view_does_not_depend_on_how_many_are_drawn():
    assert np.array_equal(uniforms(3, 1, 2, 3), uniforms(10, 1, 2, 3)[:3])


def test_permutations():
    orders = [permutation(1000, 5, epoch) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    for a, b in ((orders[0], orders[1]), (orders[1], orders[2]), (orders[0], np.arange(1000))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(1000)


def test_draws_stay_what_they_were():
    """A run that is resumed with a newer version must go on with the same views."""
    views = draw_all(DINO, 375, 500, 0, 1, 2)[1:3]
    assert [v.box for v in views] == [(51, 1, 440, 368), (346, 198, 146, 172)]
    assert [v.flip for v in views] == [True, True]
    assert [[name for name, _ in v.jitter] for v in views] == [
        ["contrast", "saturation", "hue", "brightness"],
        ["contrast", "hue", "saturation", "brightness"],
    ]
    assert [round(v.blur, 6) for v in views] == [0.0, 0.651388]
    assert permutation(8, 0, 3).tolist() == [4, 5, 7, 1, 0, 2, 6, 3]


# ---------------------------------------------------------------- distributions


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.25), (0.9, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (120, 400), (31, 29)])
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    torch.manual_seed(0)
    source = torch.empty(3, height, width)
    expected = np.array([RandomResizedCrop.get_params(source, scale, (3 / 4, 4 / 3)) for _ in range(DRAWS)])
    expected = expected[:, [1, 0, 3, 2]]  # top, left, height, width -> left, top, width, height
    found = np.array([v.box for v in many(ViewSpec(scale=scale), height, width)])
    assert (found[:, :2] >= 0).all()
    assert (found[:, 0] + found[:, 2] <= width).all()
    assert (found[:, 1] + found[:, 3] <= height).all()
    for column, name in enumerate(("left", "top", "width", "height")):
        assert distance(expected[:, column], found[:, column]) < 1.95, name
    for name, of in (("area", lambda b: b[:, 2] * b[:, 3]), ("aspect", lambda b: b[:, 2] / b[:, 3])):
        assert distance(of(expected), of(found)) < 1.95, name


@pytest.mark.parametrize(("height", "width"), [(20, 1000), (1000, 20), (1, 1), (7, 300)])
def test_ten_misses_end_in_torchvisions_centre_crop(height, width):
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3))
    boxes = {v.box for v in many(ViewSpec(scale=(0.9, 1.0)), height, width, 50)}
    assert boxes == {(left, top, w, h)}


def test_colours_are_distributed_as_torchvisions():
    spec = ViewSpec(jitter_p=1.0)
    torch.manual_seed(0)
    jitter = ColorJitter(*spec.jitter)
    ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    expected = [ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    views = many(spec, 375, 500)
    for k, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        found = [dict(v.jitter)[name] for v in views]
        assert distance([e[k + 1] for e in expected], found) < 1.95, name
    orders = Counter(tuple(name for name, _ in v.jitter) for v in views)
    assert len(orders) == 24
    expected = DRAWS / 24
    assert sum((n - expected) ** 2 / expected for n in orders.values()) < 49.7  # chi-square, 23 degrees: 1e-3 above


def test_probabilities_and_ranges():
    spec = ViewSpec(flip=0.5, jitter_p=0.8, gray_p=0.2, blur_p=0.1, solarize_p=0.3, solarize_threshold=100)
    views = many(spec, 375, 500)
    rates = {
        0.5: [v.flip for v in views],
        0.8: [v.jitter != () for v in views],
        0.2: [v.gray for v in views],
        0.1: [v.blur > 0 for v in views],
        0.3: [v.solarize == 100 for v in views],
    }
    for p, hits in rates.items():
        assert abs(np.mean(hits) - p) < 4 * np.sqrt(p * (1 - p) / DRAWS)
    # decisions do not come in pairs
    correlation = np.corrcoef(np.array(list(rates.values()), float)) - np.eye(5)
    assert np.abs(correlation).max() < 4 / np.sqrt(DRAWS)
    radii = [v.blur for v in many(ViewSpec(blur_p=1.0, blur_radius=(0.1, 2.0)), 10, 10)]
    assert distance(radii, even(DRAWS, 0.1, 2.0)) < 1.95


def test_certain_and_impossible_steps():
    on = ViewSpec(flip=1, jitter_p=1, gray_p=1, blur_p=1, solarize_p=1, jitter=(0.4, 0, 0.2, 0))
    off = ViewSpec(flip=0, jitter_p=0, gray_p=0, blur_p=0, solarize_p=0)
    for view in many(on, 50, 50, 300):
        assert (view.flip, view.gray, view.blur >= 0.1, view.solarize) == (True, True, True, 128)
        assert {name for name, _ in view.jitter} == {"brightness", "saturation"}
    for view in many(off, 50, 50, 300):
        assert (view.flip, view.jitter, view.gray, view.blur, view.solarize) == (False, (), False, 0.0, None)


# ---------------------------------------------------------------- the table


def test_views_of_one_size_form_a_group():
    assert DINO.groups() == [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]
    assert [s.size for s in DINO.specs()] == [224] * 2 + [96] * 8
    mixed = Views([ViewSpec(1, 32), ViewSpec(2, 16), ViewSpec(1, 32)])
    assert mixed.groups() == [[0, 3], [1, 2]]


def test_the_first_group_is_the_global_views():
    """By what the rows say, wherever they stand; a row that says nothing is global if it is as large as the first."""
    rows = [
        ViewSpec(2, 16, role="local"),
        ViewSpec(1, 32, role="global"),
        ViewSpec(1, 32, role="local"),
        ViewSpec(1, 32),
    ]
    views = Views(rows)
    views.check()
    assert views.roles() == ["local", "local", "global", "local", "local"]
    assert views.groups() == [[2], [0, 1], [3, 4]]
    assert DINO.roles() == ["global"] * 2 + ["local"] * 8


def test_boxes_of_squashed_images_are_in_the_squashed_frame():
    views = Views([ViewSpec(4, 96, (0.05, 0.4))], pre_resize=256)
    assert draw_all(views, 100, 3000, 1, 2) == draw_all(views, 777, 31, 1, 2)


@pytest.mark.parametrize(
    ("views", "named"),
    [
        (Views([]), "rows"),
        (Views([ViewSpec(), ViewSpec(scale=(0.4, 1.2))]), r"rows\[1\].*scale"),
        (Views([ViewSpec(scale=(0.4, 0.2))]), "scale"),
        (Views([ViewSpec(ratio=(0, 1))]), "ratio"),
        (Views([ViewSpec(blur_p=1.5)]), "blur_p"),
        (Views([ViewSpec(size=0)]), "size"),
        (Views([ViewSpec(jitter=(0.4, 0.4, 0.2, 0.6))]), "hue"),
        (Views([ViewSpec(interpolation="nearest")]), "nearest"),
        (Views([ViewSpec(role="teacher")]), r"rows\[0\]\.role=teacher: it is global or local"),
        (Views([ViewSpec(role="local")]), "at least one view must be global"),
        (
            Views([ViewSpec(1, 96, role="global"), ViewSpec(1, 224, role="global")]),
            "global views of 96 and 224 pixels; they must be of one size",
        ),
        (Views([ViewSpec(1, 96), ViewSpec(1, 224)]), "local views of 224 pixels are larger than the global ones, 96"),
        (Views([ViewSpec()], pre_resize=0), "pre_resize"),
        (Views([ViewSpec()], share="rank"), "share"),
        (Views([ViewSpec()], unit="row"), "unit"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(views, named):
    with pytest.raises(UserError, match=named):
        views.check()
    DINO.check()


def test_the_table_goes_through_the_configuration():
    """As OmegaConf hands it back: nested, with numbers changed by dotted overrides."""
    config = OmegaConf.structured(DINO)
    config.merge_with_dotlist(["pre_resize=256", "rows.2.count=10", "rows.2.scale=[0.1,0.2]"])
    views = OmegaConf.to_object(config)
    views.check()
    assert views.pre_resize == 256
    assert len(views.specs()) == 12
    assert draw_all(views, 10, 10, 0)[5].size == 96


# ---------------------------------------------------------------- pixels


def drawn_pictures():
    yield from ((f"picture {seed}", reference.picture(seed)) for seed in range(4))
    yield "upright", reference.picture(10, 500, 333)
    yield "small", reference.picture(11, 60, 47)
    yield "gray", np.repeat(reference.picture(12)[..., :1], 3, -1)
    yield "flat", np.full((100, 100, 3), (200, 30, 77), np.uint8)
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    yield "ramps", np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 255 - ramp[None]), -1)


@pytest.fixture(scope="module")
def sources() -> list:
    """[(name, picture)]: drawn ones, and the photograph that comes with matplotlib."""
    return [*drawn_pictures(), ("photograph", np.array(Image.open(get_sample_data("grace_hopper.jpg", False))))]


@pytest.fixture(scope="module")
def crops(sources) -> list:
    return crops_of(sources)


def crops_of(sources) -> list:
    """[(name, the picture at 224 or 96 as Pillow makes it)], whole and a part at its own resolution"""
    found = []
    for number, (name, image) in enumerate(sources):
        whole = Image.fromarray(image)
        for size, scale in ((224, (0.4, 1.0)), (96, (0.05, 0.4))):
            left, top, width, height = draw(ViewSpec(scale=scale), *image.shape[:2], uniforms(1, 3, number)[0]).box
            box = (left, top, left + width, top + height)
            found.append((f"{name} at {size}", whole.crop(box).resize((size, size), Image.BICUBIC)))
    return found


def difference(found: np.ndarray, expected) -> np.ndarray:
    expected = np.asarray(expected)
    found = np.broadcast_to(found[..., None], expected.shape) if found.ndim == 2 else found
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    return np.abs(found.astype(int) - expected)


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize(sources, size, interpolation):
    resample = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[interpolation]
    for number, (name, image) in enumerate(sources):
        for scale in ((0.05, 0.25), (0.4, 1.0)):
            x, y, w, h = draw(ViewSpec(scale=scale), *image.shape[:2], uniforms(1, number)[0]).box
            part = image[y : y + h, x : x + w]
            delta = difference(
                pixels.resize(part, size, size, interpolation), Image.fromarray(part).resize((size, size), resample)
            )
            assert delta.mean() <= 0.5, name
            assert np.percentile(delta, 99) <= 3, name


# Each step alone, at factors over its whole range and at its ends. The bounds are the design's.
POINTWISE = {
    "brightness": (pixels.brightness, F.adjust_brightness, (0.0, 0.6, 0.83, 1.0, 1.17, 1.4)),
    "contrast": (pixels.contrast, F.adjust_contrast, (0.0, 0.6, 0.83, 1.0, 1.17, 1.4)),
    "saturation": (pixels.saturation, F.adjust_saturation, (0.0, 0.6, 0.8, 0.93, 1.0, 1.07, 1.2, 1.4)),
    "grayscale": (lambda x, _: pixels.grayscale(x), lambda x, _: F.to_grayscale(x, 3), (None,)),
    "solarize": (pixels.solarize, ImageOps.solarize, (0, 64, 128, 256)),
}


@pytest.mark.parametrize("step", POINTWISE)
def test_pointwise_steps_stay_within_one_level_everywhere(crops, step):
    ours, pillows, factors = POINTWISE[step]
    for name, image in crops:
        for factor in factors:
            delta = difference(ours(np.asarray(image), factor), pillows(image, factor))
            assert delta.max() <= 1, (name, factor)


HUES = (-0.5, -0.1, -0.037, -0.001, 0.0, 0.001, 0.021, 0.1, 0.5)
RADII = (0.1, 0.35, 0.7, 1.0, 1.3, 1.41, 1.42, 1.7, 2.0, 3.5)


@pytest.mark.parametrize("factor", HUES)
def test_hue(crops, factor):
    for name, image in crops:
        assert difference(pixels.hue(np.asarray(image), factor), F.adjust_hue(image, factor)).mean() <= 1.2, name


@pytest.mark.parametrize("radius", RADII)
def test_blur(crops, radius):
    for name, image in crops:
        expected = image.filter(ImageFilter.GaussianBlur(radius))
        assert difference(pixels.blur(np.asarray(image), radius), expected).mean() <= 1.2, name
        one = np.asarray(image)[..., 1]
        assert np.array_equal(pixels.blur(np.asarray(image), radius)[..., 1], pixels.blur(one, radius)), name


def test_whole_views_are_the_official_pipelines(sources):
    """All steps together. Errors of the steps add up (and a later contrast enlarges them), so the bound on the mean is
    that of hue and blur in one view; a step left out, doubled or moved costs several levels."""
    errors = []
    for number, (name, image) in enumerate(sources):
        whole = Image.fromarray(image)
        for v, view in enumerate(draw_all(DINO, *image.shape[:2], 11, number)):
            found = pixels.apply(view, image)
            assert found.shape == (3, view.size, view.size)
            delta = np.abs(found.astype(int) - reference.levels(reference.view_of(view, whole)))
            errors.append(delta.mean())
            assert delta.mean() <= 2.4, (name, v, view)
    assert np.mean(errors) <= 0.6  # about 0.3 measured


def test_pre_resize_squashes_as_pillow_does(sources):
    for name, image in sources:
        delta = difference(pixels.pre_resize(image, 256), reference.pre_resize(Image.fromarray(image), 256))
        assert delta.mean() <= 0.5, name
        assert np.percentile(delta, 99) <= 3, name
    assert pixels.pre_resize(image, None) is image


@pytest.mark.shared
def test_all_of_it_on_many_photographs():
    """Every tenth photograph; all of them with SELFPATCH_ALL_PHOTOS=1."""
    files = sorted((SHARED / "data/photos").rglob("*.JPEG"))
    if not files:
        pytest.skip(f"no photographs below {SHARED / 'data/photos'}")
    files = files if os.environ.get("SELFPATCH_ALL_PHOTOS") else files[::10]
    sources = [(path.name, np.array(Image.open(path).convert("RGB"))) for path in files]
    crops = crops_of(sources)
    for size in (224, 96):
        for interpolation in ("bicubic", "bilinear"):
            test_resize(sources, size, interpolation)
    for step in POINTWISE:
        test_pointwise_steps_stay_within_one_level_everywhere(crops, step)
    for factor in HUES:
        test_hue(crops, factor)
    for radius in RADII:
        test_blur(crops, radius)
    test_whole_views_are_the_official_pipelines(sources)
    test_pre_resize_squashes_as_pillow_does(sources)


def test_a_view_is_written_in_place_and_leaves_the_image_alone():
    image = reference.picture(3, 120, 140)
    before = image.copy()
    for view in draw_all(DINO, 120, 140, 5):
        out = np.zeros((2, 3, view.size, view.size), np.uint8)
        pixels.apply(view, image, out=out[1])
        assert np.array_equal(out[1], pixels.apply(view, image))
        assert not out[0].any()
    assert np.array_equal(image, before)


# ---------------------------------------------------------------- group


def test_normalise_is_to_tensor_and_normalize():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = Image.fromarray(reference.picture(1, 64, 64))
    x = torch.from_numpy(reference.levels(image).copy())
    expected = reference.to_tensor(image, mean, std)
    found = normalise(x.expand(2, 5, -1, -1, -1), mean, std)
    assert found.shape == (2, 5, 3, 64, 64)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-6  # float32, other order of operations
    assert normalise(x, mean, std, torch.float64).dtype == torch.float64


def test_group_takes_rows():
    group = Group(
        torch.arange(12).view(2, 3, 2, 1, 1), torch.zeros(2, 3, 4), torch.tensor([[True, False, True]]).expand(2, 3)
    )
    part = group.rows(slice(1, 3))
    assert torch.equal(part.x, group.x[:, 1:3])
    assert part.box.shape == (2, 2, 4)
    assert part.flip.tolist() == [[False, True]] * 2
    assert part.mask is None
